"""A linear function that brings its own transpose.

Reverse mode in JAX is forward mode, transposed. Where an engine knows a better transpose than JAX
derives, `jax.custom_vjp` would let it say so, but then refuses forward mode and so second
derivatives too. Here forward mode stays what it is, and only the transpose is replaced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def linear_with_transpose(
    function: Callable[[Any, Any], Any],
    transpose: Callable[[Any, Any], Any],
    residuals: PyTree,
    tangents: PyTree,
) -> PyTree:
    """Return `function(residuals, tangents)`, which reverse mode transposes by `transpose`.

    Args:
        function: `(residuals, tangents) -> tangents_out`, linear in its second argument.
        transpose: `(residuals, cotangents_out) -> cotangents`, its transpose in that argument.
        residuals: what else both need.
        tangents: a pytree of floating arrays.

    Returns:
        What `function` returns.
    """
    flat_residuals, residuals_tree = jax.tree.flatten(residuals)
    flat_tangents, tangents_tree = jax.tree.flatten(tangents)
    trees = []

    def flat_function(residuals, tangents):
        out = function(residuals_tree.unflatten(residuals), tangents_tree.unflatten(tangents))
        leaves, tree = jax.tree.flatten(out)
        trees.append(tree)
        return leaves

    def flat_transpose(residuals, cotangents):
        cotangents = trees[0].unflatten(cotangents)
        return jax.tree.leaves(transpose(residuals_tree.unflatten(residuals), cotangents))

    out = _bind(flat_function, flat_transpose, flat_residuals, flat_tangents)
    return trees[0].unflatten(out)


_linear_p = jex_core.Primitive("linear_with_transpose")
_linear_p.multiple_results = True


def _bind(function: Callable, transpose: Callable, residuals: list, tangents: list) -> list:
    jaxpr = jax.make_jaxpr(function)(residuals, tangents)
    arguments = [*jaxpr.consts, *residuals, *tangents]
    return _linear_p.bind(
        *arguments,
        jaxpr=jaxpr.jaxpr,
        transpose=transpose,
        num_consts=len(jaxpr.consts),
        num_residuals=len(residuals),
    )


def _call(jaxpr: Any, num_consts: int) -> Callable[..., list]:
    """Return a jaxpr as a function of its constants and inputs."""

    def call(*arguments):
        closed = jex_core.ClosedJaxpr(jaxpr, list(arguments[:num_consts]))
        return jex_core.jaxpr_as_fun(closed)(*arguments[num_consts:])

    return call


@_linear_p.def_impl
def _evaluate(*arguments, jaxpr, transpose, num_consts, num_residuals):
    return _call(jaxpr, num_consts)(*arguments)


@_linear_p.def_abstract_eval
def _abstract_eval(*arguments, jaxpr, transpose, num_consts, num_residuals):
    return [variable.aval for variable in jaxpr.outvars]


mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, *, jaxpr, num_consts, num_residuals, **params):
    out = _linear_p.bind(
        *primals, jaxpr=jaxpr, num_consts=num_consts, num_residuals=num_residuals, **params
    )
    split = num_consts + num_residuals
    dense = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if all(isinstance(tangent, ad.Zero) for tangent in tangents[:split]):
        tangents_out = _linear_p.bind(
            *primals[:split],
            *dense[split:],
            jaxpr=jaxpr,
            num_consts=num_consts,
            num_residuals=num_residuals,
            **params,
        )
    else:
        # A second derivative: from here on JAX differentiates the function as it is written.
        _, tangents_out = jax.jvp(_call(jaxpr, num_consts), tuple(primals), tuple(dense))
    return out, tangents_out


def _transpose(cotangents, *arguments, jaxpr, transpose, num_consts, num_residuals):
    split = num_consts + num_residuals
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    results = transpose(list(arguments[num_consts:split]), cotangents)
    wanted = [ad.is_undefined_primal(argument) for argument in arguments[split:]]
    return [None] * split + [
        result if want else None for result, want in zip(results, wanted, strict=True)
    ]


def _batch(arguments, axes, *, jaxpr, transpose, num_consts, num_residuals):
    sizes = {a.shape[d] for a, d in zip(arguments, axes, strict=True) if d is not None}
    (size,) = sizes
    split = num_consts + num_residuals
    # Batched along their first axis are all tangents, and of the rest what comes batched.
    moved, new_axes = [], []
    for number, (argument, axis) in enumerate(zip(arguments, axes, strict=True)):
        if axis is not None:
            argument = jnp.moveaxis(argument, axis, 0)
        elif number >= split:
            argument = jnp.broadcast_to(argument, (size, *argument.shape))
        moved.append(argument)
        new_axes.append(0 if axis is not None or number >= split else None)
    residual_axes = new_axes[:split]

    def function(residuals, tangents):
        call = jax.vmap(_call(jaxpr, num_consts), in_axes=new_axes, axis_size=size)
        return call(*residuals, *tangents)

    def batched_transpose(residuals, cotangents):
        def one(residuals, cotangents):
            return transpose(residuals[num_consts:], cotangents)

        return jax.vmap(one, in_axes=(residual_axes, 0), axis_size=size)(residuals, cotangents)

    out = _bind(function, batched_transpose, moved[:split], moved[split:])
    return out, [0] * len(out)


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
