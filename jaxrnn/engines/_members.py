"""A computation whose members, under `vmap`, run one after another where that is faster.

`vmap` makes one computation of many: it starts as many kernels as one does, each with more to do.
But what the caches of a CPU hold of one member they don't hold of many, and where each has weights
of its own, products want members first and scans want steps first, so that all is copied.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def call_members(
    function: Callable[..., PyTree],
    params: PyTree,
    *arguments: PyTree,
    together: Callable[[int], bool],
) -> PyTree:
    """Return `function(params, *arguments)`, with a choice of how `vmap` runs it.

    Args:
        function: a function of pytrees of arrays, which closes over no value that is being traced.
        params: weights. Members that share them always run together: their products are one.
        arguments: what else it is called with.
        together: whether so many members with weights of their own are better run together.

    Returns:
        What `function` returns.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(params, *arguments)
    out = _members_p.bind(
        *jax.tree.leaves((params, *arguments)),
        jaxpr=jaxpr,
        together=together,
        num_params=len(jax.tree.leaves(params)),
    )
    return jax.tree.structure(shapes).unflatten(out)


_members_p = jex_core.Primitive("members")
_members_p.multiple_results = True


@_members_p.def_impl
def _evaluate(*arguments, jaxpr, together, num_params):
    return jex_core.jaxpr_as_fun(jaxpr)(*arguments)


@_members_p.def_abstract_eval
def _abstract_eval(*arguments, jaxpr, together, num_params):
    return jaxpr.out_avals


mlir.register_lowering(_members_p, mlir.lower_fun(_evaluate, multiple_results=True))


def _jvp(primals, tangents, **options):
    # From here on JAX differentiates, and maps, the function as it is written.
    dense = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(functools.partial(_evaluate, **options), tuple(primals), tuple(dense))


def _batch(arguments, axes, *, jaxpr, together, num_params):
    (size,) = {a.shape[d] for a, d in zip(arguments, axes, strict=True) if d is not None}
    function = jex_core.jaxpr_as_fun(jaxpr)

    def call(function, arguments, together):
        params, rest = arguments[:num_params], arguments[num_params:]
        return call_members(
            lambda params, *rest: function(*params, *rest), params, *rest, together=together
        )

    if all(axis is None for axis in axes[:num_params]) or together(size):
        mapped = jax.vmap(function, in_axes=tuple(axes))
        out = call(mapped, arguments, lambda members: together(members * size))
    else:
        places = [place for place, axis in enumerate(axes) if axis is not None]

        def member(own):
            each = list(arguments)
            for place, argument in zip(places, own, strict=True):
                each[place] = argument
            return call(function, each, together)

        out = lax.map(member, [jnp.moveaxis(arguments[n], axes[n], 0) for n in places])
    return out, [0] * len(out)


ad.primitive_jvps[_members_p] = _jvp
batching.primitive_batchers[_members_p] = _batch
