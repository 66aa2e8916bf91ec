"""Ragged sequences: steps that are padding, and steps at which a sequence begins anew.

Both are a wrapper from cell to cell, so that every engine runs them. The wrapped cell's inputs are
the cell's own, with noise if it draws some, and for each step and sequence two flags.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxrnn._cell import Cell
from jaxrnn.wrappers._wrap import wrap_step


class MaskedInputs(NamedTuple):
    """A cell's inputs with flags, 0 or 1, of the inputs' dtype: an engine may differentiate all.

    A flag that no step has is None.
    """

    inputs: Any
    keep: Float[Array, "T *batch 1"] | None
    restart: Float[Array, "T *batch 1"] | None


def with_masks(
    inputs: Float[Array, "T *batch I"],
    mask: Bool[Array, "T *batch"] | None,
    resets: Bool[Array, "T *batch"] | None,
    *,
    reverse: bool,
) -> MaskedInputs:
    """Join inputs and flags.

    A step with `keep` 0 leaves the state as it is, and its inputs are zeroed, so that whatever the
    padding holds, NaN too, has no effect on values or gradients. A reset before a step is the same
    as a `restart` after the step that is run before it, so that the product sees the new state.
    """
    keep = None if mask is None else mask[..., None]
    restart = None if resets is None else _moved(resets, reverse=reverse)[..., None]
    if keep is not None:
        inputs = jnp.where(keep, inputs, 0)
    return jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), MaskedInputs(inputs, keep, restart))


def real_steps(
    shape: tuple[int, ...],
    lengths: Int[Array, "*batch"] | None,
    mask: Bool[Array, "T *batch"] | None,
) -> Bool[Array, "T *batch"]:
    """Return which steps of `(T, *batch)` are within their sequence's length, and not masked."""
    real = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    if lengths is None:
        return real
    # Clipped in their own dtype, which is unsigned or short maybe, and counts otherwise.
    lengths = jnp.minimum(lengths, min(shape[0], int(jnp.iinfo(lengths.dtype).max)))
    return real & (jnp.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) < lengths)


def first_resets(resets: Bool[Array, "T *batch"], *, reverse: bool) -> Bool[Array, "*batch"]:
    """Return which sequences begin anew at the step that is run first."""
    if resets.shape[0] == 0:
        return jnp.zeros(resets.shape[1:], bool)
    return resets[-1 if reverse else 0]


def select(where: Bool[Array, "*batch"], yes: PyTree, no: PyTree) -> PyTree:
    """Choose between two states, or two outputs, for each sequence."""

    def of_leaf(yes, no):
        return jnp.where(where.reshape(*where.shape, *[1] * (yes.ndim - where.ndim)), yes, no)

    return jax.tree.map(of_leaf, yes, no)


@functools.lru_cache(maxsize=1024)
def masked(cell: Cell, *, keep_states: bool) -> Cell:
    """Wrap a cell so that it heeds flags; its output is a pair, output and state or None.

    Args:
        cell: the cell.
        keep_states: whether the output has the state too: what the cell made of the step, where the
            wrapped cell's own state may be the one that it restarts from.

    Returns:
        A cell for engines, gated if the given one is.
    """

    def split(inputs: MaskedInputs) -> tuple[Any, MaskedInputs]:
        return inputs.inputs, inputs._replace(inputs=None)

    def finish(
        params: Any, state: Any, flags: MaskedInputs, new_state: Any, output: Any
    ) -> tuple[Any, Any]:
        if flags.keep is not None:
            keep = flags.keep[..., 0] > 0
            new_state = select(keep, new_state, state)
            output = select(keep, output, jax.tree.map(jnp.zeros_like, output))
        carried = new_state
        if flags.restart is not None:
            restart = flags.restart[..., 0] > 0
            dtype = flags.restart.dtype
            initial = cell.initial_state(restart.shape, dtype=dtype, params=params)
            carried = select(restart, initial, new_state)
        return carried, (output, new_state if keep_states else None)

    return cell.replace(step=wrap_step(cell, split, finish))


def _moved(resets: Bool[Array, "T *batch"], *, reverse: bool) -> Bool[Array, "T *batch"]:
    """Move each flag to the step that is run before its own."""
    none = jnp.zeros_like(resets[:1])
    parts = [none, resets[:-1]] if reverse else [resets[1:], none]
    return jnp.concatenate(parts)
