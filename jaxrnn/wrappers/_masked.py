"""Ragged sequences: steps that are padding, and steps at which a sequence begins anew.

Both are a wrapper from cell to cell, so that every engine runs them. The wrapped cell's inputs are
the cell's own, with noise if it draws some, and two flags for each step and sequence.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Integer, PyTree

from jaxrnn._cell import Cell
from jaxrnn._types import Array
from jaxrnn.wrappers._wrap import wrap_step


class MaskedInputs(NamedTuple):
    """A cell's inputs with flags, 0 or 1, of the inputs' dtype: an engine may differentiate all.

    A flag that no step has is None.
    """

    inputs: Any
    mask: Float[Array, "T *batch 1"] | None
    reset_after: Float[Array, "T *batch 1"] | None


def with_masks(
    inputs: Float[Array, "T *batch I"],
    mask: Bool[Array, "T *batch"] | None,
    resets: Bool[Array, "T *batch"] | None,
    *,
    reverse: bool,
) -> MaskedInputs:
    """Join inputs and flags.

    A step with `mask` 0 leaves the state as it is. A reset before a step is the same as one after
    the step that runs before it, so that the recurrent product sees the new state.
    """
    if mask is not None:
        inputs = _filled(inputs, mask)
    reset_after = None if resets is None else _moved(resets, reverse=reverse)
    flags = [
        None if flag is None else flag[..., None].astype(inputs.dtype)
        for flag in (mask, reset_after)
    ]
    return MaskedInputs(inputs, *flags)


def _filled(
    inputs: Float[Array, "T *batch I"], mask: Bool[Array, "T *batch"]
) -> Float[Array, "T *batch I"]:
    """Return the inputs with real ones in the place of padding.

    What a step makes of padding is thrown away, and its gradient is multiplied by zero: so it must
    be finite wherever it is for real steps. Neither the padding itself nor zeros can promise that,
    as the gradient of a norm shows.
    """
    if mask.size == 0:
        return inputs
    real = mask[..., None]
    first = real & (jnp.cumsum(real, axis=0, dtype=jnp.int32) == 1)
    own = jnp.where(first, inputs, jnp.zeros_like(inputs)).sum(0)
    # A sequence without a real step takes another one's, and ones if there is none at all. Sums
    # pick it, as axes that are divided over devices can be neither reshaped nor indexed.
    some = real.any(0)
    numbers = jnp.zeros_like(some, jnp.int32)
    for axis, size in enumerate(some.shape[:-1]):
        numbers = numbers * size + lax.broadcasted_iota(jnp.int32, some.shape, axis)
    chosen = some & (numbers == jnp.min(numbers, where=some, initial=jnp.iinfo(jnp.int32).max))
    batch = tuple(range(mask.ndim - 1))
    others = jnp.where(chosen, own, jnp.zeros_like(own)).sum(batch, keepdims=True)
    others = jnp.where(some.any(), others, jnp.ones_like(others))
    fill = jnp.where(some, own, others)[None]
    return jnp.where(real, inputs, lax.stop_gradient(fill))


def real_steps(
    shape: tuple[int, ...],
    lengths: Integer[Array, "*batch"] | None,
    mask: Bool[Array, "T *batch"] | None,
) -> Bool[Array, "T *batch"]:
    """Return which steps of `(T, *batch)` are within their sequence's length, and not masked."""
    real = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    if lengths is None:
        return real
    # Clipped in their own dtype, which may be unsigned or short: then 32 bits hold them.
    if isinstance(shape[0], int):
        lengths = jnp.minimum(lengths, min(shape[0], int(jnp.iinfo(lengths.dtype).max)))
    steps = jnp.arange(shape[0], dtype=jnp.int32).reshape(-1, *[1] * (len(shape) - 1))
    return real & (steps < jnp.expand_dims(lengths, 0).astype(jnp.int32))


def first_resets(resets: Bool[Array, "T *batch"], *, reverse: bool) -> Bool[Array, "*batch"]:
    """Return which sequences begin anew at the step that is run first."""
    if resets.shape[0] == 0:
        return jnp.zeros(resets.shape[1:], bool)
    return resets[-1 if reverse else 0]


def select(where: Bool[Array, "*batch"], yes: PyTree, no: PyTree) -> PyTree:
    """Choose between two states, or two outputs, for each sequence."""

    def choose(yes: Array, no: Array) -> Array:
        return jnp.where(where.reshape(*where.shape, *[1] * (yes.ndim - where.ndim)), yes, no)

    return jax.tree.map(choose, yes, no)


def masked(cell: Cell, *, keep_states: bool) -> Cell:
    """Wrap a cell so that it takes `MaskedInputs`; its output is a pair, output and state or None.

    Args:
        cell: the cell.
        keep_states: whether the output has the state too: what the cell made of the step, where the
            wrapped cell's own state may be the one that it restarts from.

    Returns:
        A cell for engines.
    """
    return cell.derived(_masked, keep_states)


def _masked(cell: Cell, keep_states: bool) -> Cell:
    def split(inputs: MaskedInputs) -> tuple[Any, MaskedInputs]:
        return inputs.inputs, inputs._replace(inputs=None)

    # Padding runs on from a blank state: the one that it keeps may hold NaN, whose gradient would
    # be NaN though it is multiplied by zero.
    def begin(state: Any, flags: MaskedInputs) -> Any:
        if flags.mask is None:
            return state
        mask = flags.mask[..., 0] > 0
        return select(mask, state, cell.blank_state(mask.shape, flags.mask.dtype))

    def finish(
        params: Any, state: Any, flags: MaskedInputs, new_state: Any, output: Any
    ) -> tuple[Any, Any]:
        if flags.mask is not None:
            mask = flags.mask[..., 0] > 0
            new_state = select(mask, new_state, state)
            output = select(mask, output, jax.tree.map(jnp.zeros_like, output))
        carried = new_state
        if flags.reset_after is not None:
            reset = flags.reset_after[..., 0] > 0
            dtype = flags.reset_after.dtype
            initial = cell.initial_state(reset.shape, dtype=dtype, params=params)
            carried = select(reset, initial, new_state)
        return carried, (output, new_state if keep_states else None)

    return cell.replace(step=wrap_step(cell, split, finish, begin), readout=None)


def _moved(resets: Bool[Array, "T *batch"], *, reverse: bool) -> Bool[Array, "T *batch"]:
    """Move each flag to the step that is run before its own."""
    none = jnp.zeros_like(resets[:1])
    parts = [none, resets[:-1]] if reverse else [resets[1:], none]
    return jnp.concatenate(parts)
