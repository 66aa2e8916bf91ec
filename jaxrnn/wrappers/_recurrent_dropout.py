"""Recurrent dropout: the recurrent product misses some units, the same ones at every step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell, hidden_part, with_hidden
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.wrappers._wrap import (
    Extended,
    checked_split_step,
    combined_noise,
    split_noise,
    wrap_step,
)


def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """Recurrent dropout: in training, the recurrent product sees only some of the hidden units.

        recurrent[t] = recur(hidden[t - 1] * keep / (1 - rate)),  keep ~ Bernoulli(1 - rate)

    One mask is drawn for each sequence, before its first step, and stays the same at all steps, so
    that memory can last in the units that are kept. The cell state, and what else doesn't go
    through the product, is untouched, such as the part that a GRU carries over. Without a key, in
    evaluation, the cell is as it was.

    Semeniuta et al. drop the LSTM's update `tanh(g)` in place of the hidden state: then memory
    isn't lost even with a mask of its own for each step. Keras' `recurrent_dropout` is the one
    here; with `implementation=1` it draws a mask for each gate.

    Args:
        cell: a cell made of a `SplitStep`, with a hidden state: a field `hidden` of its state, or
            the state itself if that is a single array.
        rate: the probability that a unit isn't seen, from 0 up to but not 1.

    Returns:
        A cell with the same params and state, its step split.

    Raises:
        ValueError: if the cell's step is not split, or its state has no hidden part.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.recurrent_dropout(jaxrnn.gru(64), 0.25)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 16, 3))
        >>> state, outputs = jaxrnn.unroll(cell, params, xs, key=jax.random.key(1))  # trains
        >>> outputs.shape
        (5, 16, 64)

    References:
        Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
        networks", 2016, section 4.1 (tied weights).
        Semeniuta, Severyn and Barth, "Recurrent dropout without memory loss", 2016, equation 8.
    """
    checked_split_step(checked_cell("cell", cell), "recurrent_dropout")
    hidden_part(cell, cell.state_spec())
    return _recurrent_dropout(cell, _check.rate("rate", rate))


@memoized()
def _recurrent_dropout(cell: Cell, rate: float) -> Cell:
    inner = checked_split_step(cell, "recurrent_dropout")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, "T *batch H"]:
        steps, *batch = shape
        units = hidden_part(cell, cell.state_spec()).shape
        keep = jax.random.bernoulli(key, 1 - rate, (*batch, *units)).astype(dtype)
        return jnp.broadcast_to(keep / (1 - rate), (steps, *batch, *units))

    def finish(params: Any, state: Any, mask: Any, new_state: Any, output: Any) -> tuple[Any, Any]:
        return new_state, output

    def mask_state(state: Any, projected: Extended) -> Any:
        mask = projected.extra
        if mask is not None:
            state = with_hidden(state, mask * hidden_part(cell, state))
        return inner.masked_state(state, projected.inner)

    step: Any = wrap_step(cell, split_noise, finish)
    return cell.replace(
        step=dataclasses.replace(step, mask_state=mask_state),
        draw_noise=combined_noise(cell, draw),
        name=f"recurrent_dropout({cell.name})",
    )
