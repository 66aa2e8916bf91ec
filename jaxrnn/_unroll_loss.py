"""A loss on every step's output that never keeps them all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, bind_context, checked_cell
from jaxrnn._dtypes import pvary_like
from jaxrnn._types import Array
from jaxrnn._unroll import checked_flags, runner
from jaxrnn.engines import Engine
from jaxrnn.engines._choice import chosen_engine
from jaxrnn.engines._chunks import scan_checkpointed, sqrt_chunk
from jaxrnn.engines._engine import checked_chunk, checked_engine
from jaxrnn.wrappers._mixed_precision import mixed_precision


def unroll_loss(
    loss: Callable[[Any, Any], Float[Array, ""]],
    cell: Cell,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    targets: PyTree,
    state: PyTree | None = None,
    *,
    key: PRNGKeyArray | None = None,
    lengths: Integer[Array, "*batch"] | None = None,
    mask: Bool[Array, "T *batch"] | None = None,
    resets: Bool[Array, "T *batch"] | None = None,
    context: PyTree = None,
    chunk: int | None = None,
    compute_dtype: Any = None,
    engine: Engine | None = None,
) -> tuple[Any, Float[Array, ""]]:
    """Run a cell over a sequence and add up a loss on the way, chunk by chunk.

    It returns what this does,

        state, outputs = unroll(cell, params, inputs, state, key=key)
        return state, loss(outputs, targets)

    for a loss that is a sum over steps, and keeps the outputs and whatever `loss` makes of them,
    such as `(T, *batch, O)` logits, for one chunk at a time only. Going back, each chunk is run
    once more.

    Args:
        loss: `(outputs, targets) -> scalar` for some of the steps, such that the values of several
            parts of a sequence add up to that of the whole: a sum over steps, not a mean. It may
            use other parameters, such as a readout's, and their gradients come out too.
        cell: the cell.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        targets: a pytree of arrays with T as first axis, or None.
        state: the state before the first step; `cell.initial_state` if None.
        key: a random key to train with, as in `unroll`; None to evaluate. The noise of all steps is
            drawn at once, and kept, so that it is that of `unroll`.
        lengths: how many steps of each sequence are real, `(*batch)`, as in `unroll`. The loss gets
            outputs of zero for the padding and decides how to weight them; mark padding in
            `targets`.
        mask: which steps are real, `(T, *batch)`, as in `unroll`.
        resets: before which steps to begin anew, `(T, *batch)`, as in `unroll`.
        context: what a cell that takes a context reads, as in `unroll`.
        chunk: how many steps a chunk has. None takes a divisor of T near its square root. A
            remainder is compiled separately.
        compute_dtype: as in `unroll`.
        engine: how to run a chunk; None takes that of `choose_engine`.

    Returns:
        The state after the last step, and the sum, of the dtype of the loss.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> cell = jaxrnn.gru(8)
        >>> params = cell.init(jax.random.key(0), 3), jnp.zeros((8, 50))
        >>> xs, labels = jnp.ones((100, 4, 3)), jnp.zeros((100, 4), jnp.int32)
        >>> def mean_loss(params):
        ...     of_cell, readout = params
        ...     def loss(outputs, labels):
        ...         logits = outputs @ readout                  # (10, 4, 50), never (100, 4, 50)
        ...         return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
        ...     _, total = jaxrnn.unroll_loss(loss, cell, of_cell, xs, labels)
        ...     return total / labels.size
        >>> value, gradients = jax.value_and_grad(mean_loss)(params)
        >>> round(float(value), 3), round(float(jnp.log(50)), 3)
        (3.912, 3.912)
    """
    _check.function("loss", loss)
    checked_cell("cell", cell)
    checked_engine("engine", engine)
    if compute_dtype is not None:
        compute_dtype = _check.float_dtype("compute_dtype", compute_dtype)
    _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
    steps = inputs.shape[0]
    _check.steps("targets", targets, steps)
    _check.no_narrowing("targets", targets)
    chunk = chunk if chunk is None else _check.size("chunk", chunk)
    chunk = checked_chunk(chunk, steps) or sqrt_chunk(steps)
    batch_shape = inputs.shape[1:-1]
    state = cell.checked_state(params, state, inputs, batch_shape=batch_shape, context=context)
    cell, params = bind_context(cell, params, context)
    if compute_dtype is not None:
        cell = mixed_precision(cell, compute_dtype)
    mask, resets = checked_flags(inputs.shape[:-1], lengths, mask, resets)
    per_step = inputs, cell.noise(inputs, key), mask, resets, targets

    def run_chunk(carry, of_steps):
        state, total = carry
        *of_cell, targets = of_steps
        state, outputs, _ = runner(cell)(
            params,
            state,
            *of_cell,
            cell=cell,
            engine=engine or chosen_engine(cell, of_cell[0]),
            reverse=False,
            keep_states=False,
        )
        return (state, total + _check.scalar("loss", loss(outputs, targets))), ()

    # A Python zero is weakly typed, so the sum takes the loss's dtype.
    first = jax.tree.map(lambda leaf: leaf[:chunk], per_step)
    (_, total), _ = jax.eval_shape(run_chunk, (state, 0.0), first)
    (state, total), _ = scan_checkpointed(
        run_chunk,
        (state, pvary_like(jnp.zeros((), total.dtype), inputs)),
        per_step,
        steps=steps,
        chunk=chunk,
        reverse=False,
    )
    return state, total
