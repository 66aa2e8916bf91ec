"""Rnn: a cell unrolled, as a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn._unroll import unroll as jaxrnn_unroll
from jaxrnn.engines import Engine
from jaxrnn.engines._engine import checked_engine
from jaxrnn.layers._layer import either_major
from jaxrnn.wrappers._masked import real_steps, select


@memoized(
    cell=checked_cell,
    reverse=_check.flag,
    return_sequences=_check.flag,
    compute_dtype=_check.optional_float_dtype,
    engine=checked_engine,
)
def rnn(
    cell: Cell,
    *,
    reverse: bool = False,
    return_sequences: bool = True,
    compute_dtype: Any = None,
    engine: Engine | None = None,
) -> Layer:
    """Recurrent layer: a cell unrolled over the sequence.

    Args:
        cell: the cell; the layer's params and state are the cell's.
        reverse: whether to run from the last step to the first. Such a layer can't stream.
        return_sequences: whether to return every step's output, or only that of the step which was
            run last.
        compute_dtype: what to multiply by weights in, such as `jnp.bfloat16`, as in `unroll`.
        engine: how to run it; None chooses.

    Returns:
        A layer from `(T, *batch, I)` to `(T, *batch, H)`, or to `(*batch, H)` for the last alone.
        Its `apply` also takes `lengths`, `mask`, `resets`, `context` and `time_major`, as `unroll`
        does; the last output is that of each sequence's last real step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.rnn(jaxrnn.elman(64), return_sequences=False)
        >>> params = layer.init(jax.random.key(0), 100)
        >>> state, outputs = layer.apply(params, None, jnp.ones((5, 1, 100)))
        >>> outputs.shape
        (1, 64)
    """

    def apply(
        params: Any,
        state: Any,
        inputs: Float[Array, "T *batch I"],
        *,
        key=None,
        unroll: Callable[..., tuple[Any, Any]] = jaxrnn_unroll,
        lengths: Integer[Array, "*batch"] | None = None,
        mask: Bool[Array, "T *batch"] | None = None,
        resets: Bool[Array, "T *batch"] | None = None,
        context: PyTree = None,
    ) -> tuple[Any, PyTree]:
        options = {} if context is None else {"context": context}
        state, outputs = unroll(
            cell,
            params,
            inputs,
            state,
            key=key,
            lengths=lengths,
            mask=mask,
            resets=resets,
            reverse=reverse,
            compute_dtype=compute_dtype,
            engine=engine,
            **options,
        )
        if return_sequences:
            return state, outputs
        shape = inputs.shape[:-1]
        if cell.readout is not None and unroll is jaxrnn_unroll:
            return state, _output_of_state(cell.readout(state), shape, lengths, mask)
        return state, _last_output(outputs, shape, lengths, mask, reverse=reverse)

    return Layer(
        cell.init,
        cell.initial_state,
        either_major(apply, return_sequences),
        f"rnn({cell.name})",
        recurrent=True,
        causal=not reverse,
        return_sequences=return_sequences,
        takes_context=cell.takes_context,
        parts=(cell,),
    )


def _output_of_state(
    output: PyTree,
    shape: tuple[int, ...],
    lengths: Integer[Array, "*batch"] | None,
    mask: Bool[Array, "T *batch"] | None,
) -> PyTree:
    """Return the output of the last real step, read from the state: no other output is kept.

    As that of padding, it is zero for sequences without a real step.
    """
    _check_not_empty(shape)
    if lengths is None and mask is None:
        return output
    some = real_steps(shape, lengths, mask).any(axis=0)
    return select(some, output, jax.tree.map(jnp.zeros_like, output))


def _last_output(
    outputs: PyTree,
    shape: tuple[int, ...],
    lengths: Integer[Array, "*batch"] | None,
    mask: Bool[Array, "T *batch"] | None,
    *,
    reverse: bool,
) -> PyTree:
    """Return the output of the step that was run last, of each sequence's real ones.

    Outputs are a pytree of arrays that begin with `shape`, `(T, *batch)`.
    """
    _check_not_empty(shape)
    steps = shape[0]
    if lengths is None and mask is None:
        return jax.tree.map(lambda leaf: leaf[0 if reverse else -1], outputs)
    real = real_steps(shape, lengths, mask)
    # The first real step, or the last. A sequence without any has outputs of zero everywhere.
    last = jnp.argmax(real, axis=0) if reverse else steps - 1 - jnp.argmax(real[::-1], axis=0)

    def of_leaf(leaf: Array) -> Array:
        index = jnp.expand_dims(last, (0, *range(len(shape), leaf.ndim)))
        return jnp.take_along_axis(leaf, index, axis=0)[0]

    return jax.tree.map(of_leaf, outputs)


def _check_not_empty(shape: tuple[int, ...]) -> None:
    if shape[0] == 0:
        raise ValueError("inputs: got 0 steps, expected at least 1, as only the last is returned")
