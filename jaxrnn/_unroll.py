"""Unrolling a cell over a sequence: arguments checked, state made, engine chosen."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, State, bind_context, checked_cell, with_noise
from jaxrnn._jaxpr import holds_tracers
from jaxrnn._types import Array
from jaxrnn.engines import Engine
from jaxrnn.engines._choice import chosen_engine
from jaxrnn.engines._engine import checked_engine
from jaxrnn.wrappers._masked import first_resets, masked, real_steps, select, with_masks
from jaxrnn.wrappers._mixed_precision import mixed_precision


class _Options(TypedDict, total=False):
    """The options of `unroll` on which the types of its results don't depend."""

    key: PRNGKeyArray | None
    lengths: Integer[Array, "*batch"] | None
    mask: Bool[Array, "..."] | None
    resets: Bool[Array, "..."] | None
    reverse: bool
    time_major: bool
    context: PyTree
    compute_dtype: Any
    engine: Engine | None


@overload
def unroll(
    cell: Cell[Any, State],
    params: PyTree,
    inputs: Array,
    state: PyTree | None = None,
    *,
    return_states: Literal[False] = False,
    **options: Unpack[_Options],
) -> tuple[State, Any]: ...


@overload
def unroll(
    cell: Cell[Any, State],
    params: PyTree,
    inputs: Array,
    state: PyTree | None = None,
    *,
    return_states: Literal[True],
    **options: Unpack[_Options],
) -> tuple[State, Any, State]: ...


@overload
def unroll(
    cell: Cell,
    params: PyTree,
    inputs: Array,
    state: PyTree | None = None,
    *,
    return_states: bool,
    **options: Unpack[_Options],
) -> tuple[Any, ...]: ...


def unroll(
    cell: Cell,
    params: PyTree,
    inputs: Float[Array, "*steps I"],
    state: PyTree | None = None,
    *,
    key: PRNGKeyArray | None = None,
    lengths: Integer[Array, "*batch"] | None = None,
    mask: Bool[Array, "*steps"] | None = None,
    resets: Bool[Array, "*steps"] | None = None,
    reverse: bool = False,
    time_major: bool = True,
    return_states: bool = False,
    context: PyTree = None,
    compute_dtype: Any = None,
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
        key: a random key to train with; None to evaluate. Deterministic cells ignore it. All noise
            is drawn before the loop.
        lengths: how many steps of each sequence are real, `(*batch)`; those after them are padding.
            A sequence's final state is that of its last real step, its outputs beyond are zero, and
            no gradient depends on what stands there. With `reverse` each sequence is reversed
            within its length. Under `jit`, where lengths have no values to check, one out of range
            counts as the nearest in it.
        mask: which steps are real, `(T, *batch)`, for padding anywhere. A step that isn't keeps the
            state, and its output is zero.
        resets: before which steps to begin anew from `cell.initial_state`, `(T, *batch)`, for
            several sequences in a row. With `reverse` that is before going on to an earlier step.
        reverse: whether to run from the last step to the first. Outputs stay where their inputs
            are, so the last one computed is `outputs[0]`.
        time_major: whether time is the first axis. If not, inputs are `(*batch, T, I)`, mask and
            resets `(*batch, T)`, and time takes the same place in what is returned.
        return_states: whether to return every step's state, as it is after the step, too.
        context: what a cell that takes a context reads at every step: a pytree of arrays
            `(*batch, ...)`, such as an encoder's outputs. It has gradients like the params.
        compute_dtype: what to multiply by weights in, such as `jnp.bfloat16`: there weights, inputs
            and state are rounded to it. Params, state, gradients and pointwise operations keep the
            inputs' dtype. A cell whose step isn't split computes all of it so. None for the
            inputs' dtype.
        engine: how to run it, such as `scan(unroll=4)`; None takes that of `choose_engine`.

    Returns:
        `(state, outputs)`: the state after the last step and the outputs `(T, *batch, H)`. With
        `return_states` also `states`, a pytree like `state` whose arrays have a time axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(hidden_size=128)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((100, 16, 32)))
        >>> outputs.shape, state.cell.shape
        ((100, 16, 128), (16, 128))
    """
    checked_cell("cell", cell)
    checked_engine("engine", engine)
    compute_dtype = _check.optional_float_dtype("compute_dtype", compute_dtype)
    reverse = _check.flag("reverse", reverse)
    return_states = _check.flag("return_states", return_states)
    axes = "(T, *batch, features)"
    if not _check.flag("time_major", time_major):
        axes = "(*batch, T, features)"
    _check.array("inputs", inputs, min_ndim=2, axes=axes)
    if not time_major:
        inputs = jnp.moveaxis(inputs, -2, 0)
    batch_shape = inputs.shape[1:-1]
    state = cell.checked_state(params, state, inputs, batch_shape=batch_shape, context=context)
    cell, params = bind_context(cell, params, context)
    if compute_dtype is not None:
        cell = mixed_precision(cell, compute_dtype)
    noise = cell.noise(inputs, key)
    mask, resets = checked_flags(inputs.shape[:-1], lengths, mask, resets, time_major=time_major)
    if engine is None:
        engine = chosen_engine(cell, inputs)

    options = {"cell": cell, "engine": engine, "reverse": reverse, "keep_states": return_states}
    run = runner(cell)
    state, outputs, states = run(params, state, inputs, noise, mask, resets, **options)
    if not time_major:
        move = functools.partial(jnp.moveaxis, source=0, destination=len(batch_shape))
        outputs, states = jax.tree.map(move, (outputs, states))
    return (state, outputs, states) if return_states else (state, outputs)


def checked_flags(
    shape: tuple[int, ...], lengths: Any, mask: Any, resets: Any, *, time_major: bool = True
) -> tuple[Bool[Array, "T *batch"] | None, Bool[Array, "T *batch"] | None]:
    """Return the mask and the reset flags, or None where every step is real and none resets."""
    if mask is not None:
        mask = _check.flags("mask", mask, shape, time_major=time_major)
    if resets is not None:
        resets = _check.flags("resets", resets, shape, time_major=time_major)
    if lengths is not None:
        _check.integers("lengths", lengths, low=0, high=shape[0])
        if lengths.shape != shape[1:]:
            raise ValueError(
                f"lengths: got {_check.describe(lengths)}, expected the shape {shape[1:]} of a "
                "batch of inputs"
            )
        mask = real_steps(shape, lengths, mask)
        # In padding at the end nothing begins: it would undo the final state.
        resets = None if resets is None else resets & real_steps(shape, lengths, None)
    return mask, resets


def runner(cell: Cell) -> Callable[..., tuple[Any, Any, Any]]:
    """Return the function that runs a cell by an engine, on arguments that have been checked."""
    # What closes over traced values, such as the slope of a surrogate gradient, can't be in a jit
    # of its own.
    return _run if cell.derived(_closes_over_tracers) else _jitted_run


def _closes_over_tracers(cell: Cell) -> bool:
    return holds_tracers(cell._step)


def _run(
    params, state, inputs, noise, mask, resets, *, cell, engine, reverse, keep_states
) -> tuple[Any, Any, Any]:
    if mask is None and resets is None:
        inputs = with_noise(inputs, noise)
        return engine(cell, params, state, inputs, reverse=reverse, keep_states=keep_states)
    if resets is not None:
        initial = cell.initial_state(inputs.shape[1:-1], dtype=inputs.dtype, params=params)
        state = select(first_resets(resets, reverse=reverse), initial, state)
    masked_inputs = with_masks(inputs, mask, resets, reverse=reverse)
    inputs = masked_inputs._replace(inputs=with_noise(masked_inputs.inputs, noise))
    state, (outputs, states), _ = engine(
        masked(cell, keep_states=keep_states),
        params,
        state,
        inputs,
        reverse=reverse,
        keep_states=False,
    )
    return state, outputs, states


# Jitted, so that a call outside of any jit compiles once for equal settings rather than each time;
# inlined, so that inside of one it leaves no trace.
_jitted_run = functools.partial(
    jax.jit, static_argnames=("cell", "engine", "reverse", "keep_states"), inline=True
)(_run)
