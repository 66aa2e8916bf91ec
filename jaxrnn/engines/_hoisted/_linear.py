"""A linear function that brings its own transpose.

Reverse mode in JAX is forward mode, transposed. Where an engine knows a better transpose than JAX
derives, `jax.custom_vjp` would let it say so, but then refuses forward mode and so second
derivatives too. Here forward mode stays what it is, and only the transpose is replaced.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def linear_with_transpose(
    function: Callable[[Any, Any], Any],
    transpose: Callable[[Any, Any], Any],
    residuals: PyTree,
    tangents: PyTree,
    like: PyTree,
) -> PyTree:
    """Return `function(residuals, tangents)`, which reverse mode transposes by `transpose`.

    Then `function` isn't even traced.

    Args:
        function: `(residuals, tangents) -> tangents_out`, linear in its second argument.
        transpose: `(residuals, cotangents_out) -> cotangents`, its transpose in that argument.
        residuals: what else both need.
        tangents: a pytree of floating arrays.
        like: a pytree of arrays such as `function` returns.

    Returns:
        What `function` returns.
    """
    flat_residuals, residuals_tree = jax.tree.flatten(residuals)
    flat_tangents, tangents_tree = jax.tree.flatten(tangents)
    flat_like, out_tree = jax.tree.flatten(like)

    def flat_function(residuals, tangents):
        out = function(residuals_tree.unflatten(residuals), tangents_tree.unflatten(tangents))
        return jax.tree.leaves(out)

    def flat_transpose(residuals, cotangents):
        cotangents = out_tree.unflatten(cotangents)
        return jax.tree.leaves(transpose(residuals_tree.unflatten(residuals), cotangents))

    out = _linear_p.bind(
        *flat_residuals,
        *flat_tangents,
        function=flat_function,
        transpose=flat_transpose,
        num_residuals=len(flat_residuals),
        avals=tuple(jax.typeof(leaf) for leaf in flat_like),
    )
    return out_tree.unflatten(out)


_linear_p = jex_core.Primitive("linear_with_transpose")
_linear_p.multiple_results = True


@_linear_p.def_impl
def _evaluate(*arguments, function, transpose, num_residuals, avals):
    return function(list(arguments[:num_residuals]), list(arguments[num_residuals:]))


@_linear_p.def_abstract_eval
def _abstract_eval(*arguments, function, transpose, num_residuals, avals):
    return list(avals)


mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, **params):
    out = _linear_p.bind(*primals, **params)
    split = params["num_residuals"]
    dense = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if all(isinstance(tangent, ad.Zero) for tangent in tangents[:split]):
        tangents_out = _linear_p.bind(*primals[:split], *dense[split:], **params)
    else:
        # A second derivative: from here on JAX differentiates the function as it is written.
        evaluate = functools.partial(_evaluate, **params)
        _, tangents_out = jax.jvp(evaluate, tuple(primals), tuple(dense))
    return out, tangents_out


def _transpose(cotangents, *arguments, function, transpose, num_residuals, avals):
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    results = transpose(list(arguments[:num_residuals]), cotangents)
    expected = [ad.is_undefined_primal(argument) for argument in arguments[num_residuals:]]
    return [None] * num_residuals + [
        result if want else None for result, want in zip(results, expected, strict=True)
    ]


def _batch(arguments, axes, *, function, transpose, num_residuals, avals):
    (size,) = {a.shape[d] for a, d in zip(arguments, axes, strict=True) if d is not None}
    # Batched along their first axis are all tangents, and of the rest what comes batched.
    moved, new_axes = [], []
    for number, (argument, axis) in enumerate(zip(arguments, axes, strict=True)):
        tangent = number >= num_residuals
        if axis is not None:
            argument = jnp.moveaxis(argument, axis, 0)
        elif tangent:
            argument = jnp.broadcast_to(argument, (size, *argument.shape))
        moved.append(argument)
        new_axes.append(0 if axis is not None or tangent else None)
    mapped = {"in_axes": (new_axes[:num_residuals], 0), "axis_size": size}
    out = _linear_p.bind(
        *moved,
        function=jax.vmap(function, **mapped),
        transpose=jax.vmap(transpose, **mapped),
        num_residuals=num_residuals,
        avals=tuple(_with_axis(aval, size) for aval in avals),
    )
    return out, [0] * len(out)


def _with_axis(aval: Any, size: int) -> Any:
    """Return what an array is known by after it got a new first axis, on the same devices."""
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec(None, *aval.sharding.spec))
    return aval.update(shape=(size, *aval.shape), sharding=sharding)


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
