"""The loop back through a chunk's steps, which carries the state's cotangent, in two forms."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrnn.engines._chunks import deduplicate, scan_without_duplicates
from jaxrnn.engines._gated import StepInfo
from jaxrnn.engines._leaves import add, add_at, pick, put_at


class Steps(NamedTuple):
    """What a chunk's steps started from and multiplied, and the cotangents that come to them.

    All are pytrees of arrays with an entry for each step; `d_states` is None if there are none.
    """

    previous: PyTree
    projected: PyTree
    recurrent: PyTree
    d_outputs: PyTree
    d_states: PyTree


class Cotangents(NamedTuple):
    """The cotangents that leave a chunk.

    Attributes:
        state: that of the state before it.
        used: those of the params that `activate` reads.
        projected: those of every step's `projected`.
        recurrent: those of every step's `recurrent`.
    """

    state: PyTree
    used: list[Array]
    projected: PyTree
    recurrent: PyTree


def back_through(
    parts: StepInfo,
    params: PyTree,
    product: Callable[[PyTree, PyTree], PyTree],
    d_state: PyTree,
    steps: Steps,
    *,
    reverse: bool,
    unroll: int,
) -> Cotangents:
    """Carry cotangents back through a chunk's steps.

    Args:
        parts: the anatomy of the step.
        params: the cell's.
        product: `(state, projected) -> recurrent`, the step's.
        d_state: the cotangent of the state after the chunk.
        steps: what the steps need.
        reverse: whether the loop begins with the last step.
        unroll: how many steps the compiled loop's body holds.

    Returns:
        The cotangents.
    """
    loop = _by_derivatives if parts.pointwise and parts.small else _by_pullbacks
    return loop(parts, params, product, d_state, steps, reverse=reverse, unroll=unroll)


def _by_pullbacks(
    parts: StepInfo,
    params: PyTree,
    product: Callable[[PyTree, PyTree], PyTree],
    d_state: PyTree,
    steps: Steps,
    *,
    reverse: bool,
    unroll: int,
) -> Cotangents:
    """Carry cotangents back through any steps."""
    # The transpose of `activate` at every step: a function is a pytree of what it holds.
    pullbacks = jax.vmap(lambda *step: jax.vjp(parts.split_step.activate, params, *step)[1])(
        steps.previous, steps.projected, steps.recurrent
    )
    unpacked: Any = None

    def body(carry, of_step):
        nonlocal unpacked
        d_state, d_used = carry
        pullback, step = of_step
        d_params, d_state, d_projected, d_recurrent = pullback(_arriving(d_state, step))
        d_previous, d_exposing = _through_product(parts, product, step, d_recurrent)
        d_projected = add_at(parts.exposing, d_projected, d_exposing)
        carry = add(d_state, d_previous), add(d_used, pick(parts.used, d_params))
        packed, unpacked = _packed(d_projected, d_recurrent)
        return carry, packed

    zeros = jax.tree.map(jnp.zeros_like, pick(parts.used, params))
    (d_state, d_used), packed = scan_without_duplicates(
        body, (d_state, zeros), (pullbacks, steps), reverse=reverse, unroll=unroll
    )
    return Cotangents(d_state, d_used, *unpacked(packed))


def _by_derivatives(
    parts: StepInfo,
    params: PyTree,
    product: Callable[[PyTree, PyTree], PyTree],
    d_state: PyTree,
    steps: Steps,
    *,
    reverse: bool,
    unroll: int,
) -> Cotangents:
    """Carry cotangents back through small steps whose `activate` is pointwise.

    Small steps take as long as it takes to start their kernels. Here a step has few: all that
    `activate` passes to the products is a single array, by a table of derivatives times the
    cotangents of what it returns, and so is the state's cotangent.
    """
    activate = functools.partial(parts.split_step.activate, params)
    arguments = steps.previous, steps.projected, steps.recurrent
    (of_previous, *of_products), merge = _derivatives(activate, arguments)
    rows, places = _rows(of_products[::-1])
    # Not stacked along that axis at once: XLA's CPU backend may then write wrong numbers, as in
    # second derivatives of 4 sequences of 5 units in float64.
    table = [jnp.moveaxis(jnp.stack(column), 0, -2) for column in zip(*rows, strict=True)]
    direct = {number: of_previous[number] for number in parts.reading}

    def unpacked(packed: Array) -> list[PyTree]:
        parts_of_packed = _split(packed, len(rows))
        return [
            jax.tree.structure(like).unflatten([parts_of_packed[place] for place in part])
            for like, part in zip(arguments[1:], places[::-1], strict=True)
        ]

    def of_stacked(stacked: Array) -> PyTree:
        return jax.tree.structure(d_state).unflatten(list(stacked))

    def stacked(state: PyTree) -> Array:
        return jnp.stack(jax.tree.leaves(state))

    def body(d_state, of_step):
        table, direct, step = of_step
        d_results = merge(_arriving(of_stacked(d_state), step))
        rows = _weighted_sum(table, [d[..., None, :] for d in d_results])
        packed = rows.reshape(*rows.shape[:-2], math.prod(rows.shape[-2:]))
        d_previous, _ = _through_product(parts, product, step, unpacked(packed)[1])
        extra = [_weighted_sum(derivatives, d_results) for derivatives in direct.values()]
        return stacked(add_at(list(direct), d_previous, extra)), packed

    d_first, packed = scan_without_duplicates(
        body, stacked(d_state), (table, direct, steps), reverse=reverse, unroll=unroll
    )
    return Cotangents(of_stacked(d_first), [], *unpacked(packed))


def _arriving(d_state: PyTree, step: Steps) -> tuple[PyTree, PyTree]:
    """Return the cotangents of what a step returns: its state and its output."""
    return d_state if step.d_states is None else add(d_state, step.d_states), step.d_outputs


def _packed(
    d_projected: PyTree, d_recurrent: PyTree
) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
    """Put what goes back to the recurrent product into one array.

    A product that was split has to do so anyway. Then it is stored at once, not piece by piece.

    Returns:
        That and whatever else goes to the projections, and a function that undoes it, for any
        number of steps.
    """
    pieces, structure = jax.tree.flatten(d_recurrent)
    alike = len({(piece.shape, piece.dtype) for piece in pieces}) == 1
    if len(pieces) < 2 or not alike or pieces[0].ndim == 0:
        return (d_projected, d_recurrent), lambda kept: kept
    count, places = len(pieces), {id(piece): number for number, piece in enumerate(pieces)}
    leaves, structure_of_projected = jax.tree.flatten(d_projected)
    numbers = [places.get(id(leaf)) for leaf in leaves]
    rest = [leaf for leaf, number in zip(leaves, numbers, strict=True) if number is None]

    def unpacked(kept):
        packed, rest = kept
        split, others = _split(packed, count), iter(rest)
        return (
            structure_of_projected.unflatten(
                [next(others) if number is None else split[number] for number in numbers]
            ),
            structure.unflatten(split),
        )

    return (jnp.concatenate(pieces, axis=-1), rest), unpacked


def _split(packed: Array, count: int) -> list[Array]:
    """Split the last axis into so many pieces, in a way that XLA undoes where they are joined."""
    *leading, width = packed.shape
    pieces = jnp.split(packed.reshape(math.prod(leading), width), count, axis=-1)
    return [piece.reshape(*leading, width // count) for piece in pieces]


def _through_product(
    parts: StepInfo,
    product: Callable[[PyTree, PyTree], PyTree],
    step: Steps,
    d_recurrent: PyTree,
) -> tuple[PyTree, list[Array]]:
    """Return the cotangents of the state, and of those projections that the product sees."""

    def of_step(state, exposing):
        return product(state, put_at(parts.exposing, step.projected, exposing))

    _, pullback = jax.vjp(of_step, step.previous, pick(parts.exposing, step.projected))
    return pullback(d_recurrent)


def _derivatives(
    function: Callable[..., PyTree], arguments: tuple[PyTree, ...]
) -> tuple[list[list[tuple[Array, ...]]], Callable[[PyTree], list[Array]]]:
    """Differentiate a pointwise function, each of its results by each of its arguments.

    Returns:
        For each argument a list with, for each of its leaves, the derivatives of all distinct
        results; and a function that adds up the cotangents of results which are the same array.
    """
    restored: Any = None

    def results(*arguments):
        nonlocal restored
        leaves, restored = deduplicate(function(*arguments))
        return leaves

    like = jax.eval_shape(results, *arguments)

    def of_result(number):
        one, pullback = jax.vjp(lambda *arguments: results(*arguments)[number], *arguments)
        return [jax.tree.leaves(part) for part in pullback(jnp.ones_like(one))]

    of_results = [of_result(number) for number in range(len(like))]
    of_arguments = [list(zip(*parts, strict=True)) for parts in zip(*of_results, strict=True)]
    steps = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in like]
    merge = jax.linear_transpose(restored, steps)
    return of_arguments, lambda cotangents: merge(cotangents)[0]


def _rows(parts: list[list[tuple[Array, ...]]]) -> tuple[list[Any], list[list[int]]]:
    """Return each leaf's derivatives once, and for each part the places of its leaves' in that.

    What is only added to something shares its derivatives.
    """
    rows = {_identity(row): row for part in parts for row in part}
    order = list(rows)
    return list(rows.values()), [[order.index(_identity(row)) for row in part] for part in parts]


def _weighted_sum(weights: Any, values: list[Array]) -> Array:
    return functools.reduce(jnp.add, map(jnp.multiply, weights, values))


def _identity(arrays: tuple[Array, ...]) -> tuple[int, ...]:
    return tuple(map(id, arrays))
