"""Zoneout: some units keep their old state."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.wrappers._wrap import (
    checked_readout,
    combined_noise,
    per_state_leaf,
    split_noise,
    wrap_step,
)


def zoneout(cell: Cell, rate: float | PyTree) -> Cell:
    """Zoneout: in training, each unit keeps its old state with probability `rate` at each step.

        state[t] = keep * state[t - 1] + (1 - keep) * step(state[t - 1]),  keep ~ Bernoulli(rate)

    Where dropout would set a unit to zero, zoneout leaves it as it is, so that information and
    gradients pass. Without a key, in evaluation, `keep` is `rate`, its mean. All arrays are
    computed from the old state before any is kept, so that an LSTM's new hidden state is that of
    its new cell state, as in the paper.

    Args:
        cell: any cell.
        rate: the probability, from 0 up to but not 1: a number for all floating parts of the state,
            or a pytree like the state for each part, such as `LSTMState(hidden=0.05, cell=0.5)`.
            Integers, such as a counter, always take their new value; their rate is 0.

    Returns:
        A cell with the same params and state; its output is read from the new state.

    Raises:
        ValueError: if the cell doesn't say what its output is of its state, `Cell(readout=...)`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> rates = jaxrnn.cells.LSTMState(hidden=0.05, cell=0.5)
        >>> cell = jaxrnn.wrappers.zoneout(jaxrnn.lstm(64), rates)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 16, 3))
        >>> state, outputs = jaxrnn.unroll(cell, params, xs, key=jax.random.key(1))  # trains
        >>> state, outputs = jaxrnn.unroll(cell, params, xs)                         # evaluates
        >>> outputs.shape
        (5, 16, 64)

    References:
        Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
        2017, section 3.2.
    """
    checked_readout(checked_cell("cell", cell), "zoneout")
    return _zoneout(cell, per_state_leaf("rate", rate, cell, _check.rate))


@memoized()
def _zoneout(cell: Cell, rates: tuple[float, ...]) -> Cell:
    readout = checked_readout(cell, "zoneout")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> list[Array | None]:
        spec = jax.tree.leaves(cell.state_spec())
        keys = jax.random.split(key, len(rates))
        return [
            jax.random.bernoulli(k, rate, (*shape, *leaf.shape)).astype(dtype) if rate else None
            for k, rate, leaf in zip(keys, rates, spec, strict=True)
        ]

    def mixed(rate: float, keep: Float[Array, "*batch H"] | None, old: Array, new: Array) -> Array:
        if rate == 0:
            return new
        return rate * old + (1 - rate) * new if keep is None else jnp.where(keep > 0, old, new)

    def finish(params: Any, state: Any, keeps: Any, new_state: Any, output: Any) -> tuple[Any, Any]:
        keeps = [None] * len(rates) if keeps is None else keeps
        new, treedef = jax.tree.flatten(new_state)
        parts = map(mixed, rates, keeps, jax.tree.leaves(state), new)
        zoned_out = treedef.unflatten(parts)
        return zoned_out, readout(zoned_out)

    return cell.replace(
        step=wrap_step(cell, split_noise, finish),
        readout=readout,
        draw_noise=combined_noise(cell, draw),
        name=f"zoneout({cell.name})",
    )
