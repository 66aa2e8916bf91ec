"""Unrolling a cell over a sequence: arguments checked, state made, engine chosen."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines import Engine, checked_engine, choose_engine


def unroll(
    cell: Cell,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
    *,
    reverse: bool = False,
    time_major: bool = True,
    return_states: bool = False,
    engine: Engine | None = None,
) -> tuple[Any, ...]:
    """Run a cell over a sequence, from its first step to its last.

    It replaces this loop, and returns the same in one compiled one:

        outputs = []
        for x in inputs:
            state, output = cell.step(params, state, x)
            outputs.append(output)
        return state, jnp.stack(outputs)

    PyTorch and Keras return the outputs first; here, as with `lax.scan`, the state is first.

    Args:
        cell: the cell.
        params: its parameters, from `cell.init`.
        inputs: the sequence `(T, *batch, I)`, of the parameters' dtype, with any number of batch
            dimensions. T may be 0: then the state comes back as it was, and no outputs.
        state: the state before the first step; `cell.initial_state` if None.
        reverse: whether to run from the last step to the first. Outputs stay where their inputs
            are, so the last one computed is `outputs[0]`.
        time_major: whether time is the first axis. If not, inputs are `(*batch, T, I)`, and time
            takes the same place in what is returned.
        return_states: whether to return every step's state, as it is after the step, too.
        engine: how to run it, such as `scan(unroll=4)`; None takes that of `choose_engine`.

    Returns:
        `(state, outputs)`: the state after the last step and the outputs `(T, *batch, H)`. With
        `return_states` also `states`, a pytree like `state` whose arrays have a time axis.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell.
        ValueError: if shapes don't fit one another.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(hidden_size=128)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((100, 16, 32)))
        >>> outputs.shape, state.cell.shape
        ((100, 16, 128), (16, 128))
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: got {_check.describe(cell)}, wanted a jaxrnn.Cell")
    if engine is not None:
        checked_engine(engine)
    reverse = _check.flag("reverse", reverse)
    return_states = _check.flag("return_states", return_states)
    axes = "(T, *batch, features)"
    if not _check.flag("time_major", time_major):
        axes = "(*batch, T, features)"
    _check.array("inputs", inputs, min_ndim=2, axes=axes)
    if not time_major:
        inputs = jnp.moveaxis(inputs, -2, 0)
    batch_shape = inputs.shape[1:-1]
    if state is None:
        state = cell.initial_state(batch_shape, dtype=inputs.dtype)
    cell.check(params, state, inputs, batch_shape=batch_shape)
    if engine is None:
        engine = choose_engine(cell, inputs).engine
    # A weakly typed state would make JAX trace the loop twice.
    state = jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), state)

    state, outputs, states = _run(
        params, state, inputs, cell=cell, engine=engine, reverse=reverse, keep_states=return_states
    )
    if not time_major:
        move = functools.partial(jnp.moveaxis, source=0, destination=len(batch_shape))
        outputs, states = jax.tree.map(move, (outputs, states))
    return (state, outputs, states) if return_states else (state, outputs)


# Jitted, so that a call outside of any jit compiles once for equal settings rather than each time;
# inlined, so that inside of one it leaves no trace.
@functools.partial(
    jax.jit, static_argnames=("cell", "engine", "reverse", "keep_states"), inline=True
)
def _run(params, state, inputs, *, cell, engine, reverse, keep_states):
    return engine(cell, params, state, inputs, reverse=reverse, keep_states=keep_states)
