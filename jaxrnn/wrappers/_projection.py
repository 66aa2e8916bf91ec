"""Recurrent projection: fewer numbers go back than there are units."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from jaxrnn import _check, initializers
from jaxrnn._cell import Cell, checked_cell, hidden_part, with_hidden
from jaxrnn._jaxpr import leaves_read
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.initializers import Initializer
from jaxrnn.wrappers._wrap import checked_readout, checked_split_step, inner_step


class ProjectionParams(NamedTuple):
    """A cell's params, with `recurrent_kernel` `(P, G*H)`, and the projection of its units.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.wrappers.projection(jaxrnn.lstm(64), 16)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> params.projection.shape
        (64, 16)
    """

    cell: Any
    projection: Float[Array, "H P"]


def projection(
    cell: Cell, size: int, *, projection_init: Initializer = initializers.glorot_uniform
) -> Cell:
    """Recurrent projection: a cell's hidden state is projected to fewer numbers.

        hidden, cell = step(hidden, cell)
        hidden = hidden @ projection

    An LSTM with it is known as LSTMP, PyTorch's `LSTM(proj_size=P)`: its recurrent kernel has
    P rows, so that many units cost little. `projection` acts after the step's nonlinearity, so its
    own gradient is the one that engines can't take out of the backward loop.

    Args:
        cell: a cell made of a `SplitStep` whose params have a `recurrent_kernel` `(H, G*H)`, and
            whose hidden state is used in the recurrent product only: an LSTM, with peepholes or
            without, or an Elman network. A GRU mixes its old hidden state into the new one, and so
            can't be projected.
        size: P, from 1 to H.
        projection_init: initialiser of `projection`, `(H, P)`.

    Returns:
        A cell whose params are a `ProjectionParams`, its step split, and whose output and hidden
        state are `(*batch, P)`. The recurrent kernel is at first the first P rows of what the
        cell's own initialiser draws.

    Raises:
        ValueError: if the cell can't be projected.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.projection(jaxrnn.lstm(64), 16)
        >>> params = cell.init(jax.random.key(0), 32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 32)))
        >>> outputs.shape, state.cell.shape, params.cell.recurrent_kernel.shape
        ((5, 16), (64,), (16, 256))

    References:
        Sak, Senior and Beaufays, "Long short-term memory based recurrent neural network
        architectures for large vocabulary speech recognition", 2014, equations 7 to 12, without
        the second projection.
    """
    checked_cell("cell", cell)
    size = _check.size("size", size)
    units = _projectable_units(cell)
    if size > units:
        raise ValueError(f"size: got {size}, expected at most the {units} units of {cell.name}")
    return _projection(cell, size, _check.function("projection_init", projection_init))


def _projectable_units(cell: Cell) -> int:
    """Return H of a cell of which only the recurrent product sees the hidden state."""
    inner = checked_split_step(cell, "projection")
    if cell.learned_state is not None:
        raise ValueError(
            f"cell: got {cell.name}, which learns its initial state, expected one that doesn't; "
            "wrap what is projected by jaxrnn.wrappers.learned_initial_state, not the other way "
            "round"
        )
    params, state = cell.params_spec(1), cell.state_spec()
    if not hasattr(params, "recurrent_kernel"):
        raise ValueError(
            f"cell: got {cell.name} with params {_check.describe(params)}, expected some with a "
            "recurrent_kernel, such as those of jaxrnn.lstm"
        )
    projected = jax.eval_shape(inner.project, params, jax.ShapeDtypeStruct((1,), jnp.float32))
    recurrent = jax.eval_shape(inner.product, params, state, projected)
    gates = jax.eval_shape(inner.combine, projected, recurrent)
    _, reads_state, _ = leaves_read(inner.activate, params, state, gates)
    if inner.mask_state is not None or hidden_part(cell, reads_state):
        raise ValueError(
            f"cell: got {cell.name}, which uses its old hidden state elsewhere than in the "
            "recurrent product, expected one such as jaxrnn.lstm; wrap what is projected, not "
            "the other way round"
        )
    return hidden_part(cell, state).shape[-1]


@memoized()
def _projection(cell: Cell, size: int, projection_init: Initializer) -> Cell:
    readout = checked_readout(cell, "projection")
    inner = checked_split_step(cell, "projection")

    def init(key: jax.Array, input_size: int, dtype: Any) -> ProjectionParams:
        of_cell, of_projection = jax.random.split(key)
        params = cell.init(of_cell, input_size, dtype=dtype)
        shape = (params.recurrent_kernel.shape[0], size)
        return ProjectionParams(
            params._replace(recurrent_kernel=params.recurrent_kernel[:size]),
            initializers.draw(projection_init, of_projection, shape, dtype),
        )

    def initial_state(batch_shape: tuple[int, ...], dtype: Any) -> PyTree:
        state = cell.initial_state(batch_shape, dtype=dtype)
        return with_hidden(state, hidden_part(cell, state)[..., :size])

    def activate(params: Any, *others: Any) -> tuple[Any, Any]:
        new_state, _ = inner.activate(params.cell, *others)
        projected = with_hidden(new_state, hidden_part(cell, new_state) @ params.projection)
        return projected, readout(projected)

    step = dataclasses.replace(inner_step(cell), activate=activate)
    name = f"projection({cell.name})"
    return cell.replace(
        init=init, initial_state=initial_state, step=step, readout=readout, name=name
    )
