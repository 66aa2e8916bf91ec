"""Which engine to run a cell with, and why."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn.engines._checkpointed import checkpointed
from jaxrnn.engines._engine import Engine, default_unroll, is_static, size_in_bytes
from jaxrnn.engines._hoisted._engine import hoisted_where_it_can

# States that take more than this, in bytes, are not all kept.
_MEMORY = 2**30


class EngineChoice(NamedTuple):
    """An engine, and the reason why `choose_engine` chose it."""

    engine: Engine
    reason: str


def choose_engine(
    cell: Cell, inputs: Float[Array, "T *batch I"] | jax.ShapeDtypeStruct
) -> EngineChoice:
    """Choose the engine that `unroll` takes if it is given none, and say why.

    Args:
        cell: the cell.
        inputs: the sequence `(T, *batch, I)`; of its entries none is looked at, so that
            `jax.ShapeDtypeStruct((T, B, I), jnp.float32)` will do.

    Returns:
        The engine and the reason.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> inputs = jax.ShapeDtypeStruct((200, 32, 64), jnp.float32)
        >>> choice = jaxrnn.engines.choose_engine(jaxrnn.gru(128), inputs)
        >>> choice.engine
        hoisted(chunk=None, keep=None, unroll=None)
        >>> print(choice.reason)
        gru has a split step, so weight gradients can leave the backward loop
    """
    checked_cell("cell", cell)
    _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
    steps, *batch_shape, _ = inputs.shape
    state = cell.state_spec(tuple(batch_shape), inputs.dtype)
    need = steps * size_in_bytes(state) if is_static(steps, *batch_shape) else 0
    engine = checkpointed() if need > _MEMORY else hoisted_where_it_can(cell)
    if need > _MEMORY:
        reason = (
            f"the states of all {steps} steps would take {need / 2**30:.1f} GiB, so only the one "
            "at the start of each chunk is kept"
        )
    elif cell.split_step is None:
        reason = f"the step of {cell.name} is not split, which other engines need"
    else:
        reason = f"{cell.name} has a split step, so weight gradients can leave the backward loop"
    unroll = default_unroll()
    if unroll > 1:
        where = jax.default_backend()
        reason += f"; on a {where} launching kernels dominates, so loops hold {unroll} steps"
    return EngineChoice(engine, reason)
