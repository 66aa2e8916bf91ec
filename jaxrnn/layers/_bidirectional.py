"""Bidirectional: one cell runs forwards, another backwards."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.engines import Engine
from jaxrnn.engines._engine import checked_engine
from jaxrnn.layers._layer import either_major, options_for
from jaxrnn.layers._rnn import rnn


def _optional_cell(name: str, value: Any) -> Cell | None:
    return None if value is None else checked_cell(name, value)


@memoized(
    forward=checked_cell,
    backward=_optional_cell,
    return_sequences=_check.flag,
    compute_dtype=_check.optional_float_dtype,
    engine=checked_engine,
)
def bidirectional(
    forward: Cell,
    backward: Cell | None = None,
    *,
    return_sequences: bool = True,
    compute_dtype: Any = None,
    engine: Engine | None = None,
) -> Layer:
    """Bidirectional layer: outputs of a forward and of a backward pass, side by side.

        outputs[t] = concatenate(forwards[t], backwards[t])

    The backward pass starts at the end of the inputs, so this layer needs a whole sequence: fed in
    windows it returns something else. Weights are not shared between the directions.

    Args:
        forward: the cell that runs from the first step to the last.
        backward: the cell that runs from the last to the first; by default the same kind.
        return_sequences: whether to return every step's output, or only the last output that each
            direction computed, as Keras does.
        compute_dtype: what to multiply by weights in, such as `jnp.bfloat16`, as in `unroll`.
        engine: how to run both; None chooses.

    Returns:
        A layer from `(T, *batch, I)` to `(T, *batch, 2 * H)`, or to `(*batch, 2 * H)`. Its params
        and its state are pairs `(forward, backward)`. Its `apply` also takes `lengths`, `mask`,
        `resets`, `context` and `time_major`, as `unroll` does.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.bidirectional(jaxrnn.gru(64))
        >>> params = layer.init(jax.random.key(0), 32)
        >>> state, outputs = layer.apply(params, None, jnp.ones((5, 16, 32)))
        >>> outputs.shape
        (5, 16, 128)

    References:
        Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal
        Processing 45, 1997.
    """
    settings: dict[str, Any] = {
        "return_sequences": return_sequences,
        "compute_dtype": compute_dtype,
        "engine": engine,
    }
    cells = forward, forward if backward is None else backward
    directions = rnn(cells[0], **settings), rnn(cells[1], reverse=True, **settings)

    def init(key, input_size: int, *, dtype: Any = jnp.float32):
        keys = jax.random.split(_check.key("key", key))
        return tuple(
            direction.init(k, input_size, dtype=dtype)
            for direction, k in zip(directions, keys, strict=True)
        )

    def initial_state(
        batch_shape: tuple[int, ...] = (), *, dtype: Any = jnp.float32, params: Any = None
    ):
        params = (None, None) if params is None else params
        _check.one_per_layer("params", params, 2)
        return tuple(
            direction.initial_state(batch_shape, dtype=dtype, params=of_direction)
            for direction, of_direction in zip(directions, params, strict=True)
        )

    def apply(
        params: Any, state: Any, inputs: Float[Array, "T *batch I"], *, key=None, **options: Any
    ) -> tuple[Any, PyTree]:
        _check.one_per_layer("params", params, 2)
        if state is None:
            state = (None, None)
        _check.one_per_layer("state", state, 2)
        keys: Any = (None, None)
        if key is not None:
            keys = jax.random.split(_check.key("key", key))
        runs = [
            direction.apply(p, s, inputs, key=k, **options_for(direction, options))
            for direction, p, s, k in zip(directions, params, state, keys, strict=True)
        ]
        (forward_state, forwards), (backward_state, backwards) = runs

        def side_by_side(*both: Array) -> Array:
            # Without features of their own, outputs would be joined along the batch.
            if min(leaf.ndim for leaf in both) < inputs.ndim - (not return_sequences):
                raise ValueError(
                    f"cell: got {name} with outputs of {_check.describe(both)} for inputs of "
                    f"{_check.describe(inputs)}, expected some with features to put side by side"
                )
            return jnp.concatenate(both, axis=-1)

        outputs = jax.tree.map(side_by_side, forwards, backwards)
        return (forward_state, backward_state), outputs

    name = f"bidirectional({forward.name})"
    return Layer(
        init,
        initial_state,
        either_major(apply, return_sequences),
        name,
        recurrent=True,
        causal=False,
        return_sequences=return_sequences,
        takes_context=any(direction.takes_context for direction in directions),
        parts=cells,
    )
