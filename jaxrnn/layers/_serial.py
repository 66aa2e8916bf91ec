"""Serial: layers in a row."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jaxrnn import _check
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.layers._layer import either_major, options_for, output_size


def _checked_layers(name: str, layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    if not layers:
        raise TypeError(f"{name}: got none, expected at least one jaxrnn.Layer")
    for number, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{name}[{number}]: got {_check.describe(layer)}, expected a Layer, such "
                "as jaxrnn.rnn(cell)"
            )
        last = next((before for before in layers[:number] if not before.return_sequences), None)
        if last is not None and _runs_over_time(layer):
            raise ValueError(
                f"{name}[{number}]: got {layer.name}, which runs over time, after {last.name}, "
                "whose outputs have no time axis, expected return_sequences=True before it"
            )
    return layers


@memoized(layers=_checked_layers)
def serial(*layers: Layer) -> Layer:
    """Serial layer: each layer's outputs are the next one's inputs.

    Args:
        *layers: the layers, first to last.

    Returns:
        A layer whose params and state are tuples with one entry for each of `layers`. A key given
        to `apply` is split among them; `lengths`, `mask` and `resets` go to every recurrent one.
        With `time_major=False` inputs are `(*batch, T, I)`, or integers `(*batch, T)`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> model = jaxrnn.serial(
        ...     jaxrnn.embedding(50, 16), jaxrnn.rnn(jaxrnn.lstm(32)), jaxrnn.dense(50)
        ... )
        >>> params = model.init(jax.random.key(0))
        >>> text = jnp.zeros((100, 8), jnp.int32)
        >>> state, logits = model.apply(params, None, text)
        >>> state, more = model.apply(params, state, text)      # goes on where it stopped
        >>> logits.shape
        (100, 8, 50)
    """
    takes_context = any(layer.takes_context for layer in layers)

    def init(key, input_size: int | None = None, *, dtype: Any = jnp.float32) -> tuple[Any, ...]:
        params = []
        for number, key_of_layer in enumerate(
            jax.random.split(_check.key("key", key), len(layers))
        ):
            layer = layers[number]
            with _named(number, layer):
                params.append(layer.init(key_of_layer, input_size, dtype=dtype))
                input_size = output_size(layer, params[-1], input_size, dtype)
        return tuple(params)

    def initial_state(
        batch_shape: tuple[int, ...] = (), *, dtype: Any = jnp.float32, params: Any = None
    ) -> tuple[Any, ...]:
        params = (None,) * len(layers) if params is None else params
        _check.one_per_layer("params", params, len(layers))
        states = []
        for number, layer in enumerate(layers):
            with _named(number, layer):
                states.append(layer.initial_state(batch_shape, dtype=dtype, params=params[number]))
        return tuple(states)

    def apply(
        params: Any, state: Any, inputs: Shaped[Array, "T *batch"], *, key=None, **options: Any
    ) -> tuple[Any, Shaped[Array, "..."]]:
        states = (None,) * len(layers) if state is None else state
        _check.one_per_layer("params", params, len(layers))
        _check.one_per_layer("state", states, len(layers))
        # Here, as no layer might be recurrent, and look at them.
        unknown = sorted(options.keys() - {"lengths", "mask", "resets", "context", "unroll"})
        if unknown:
            raise TypeError(
                f"apply() got an unexpected argument {unknown[0]!r}; it takes lengths, mask, "
                "resets, context and time_major"
            )
        if options.get("context") is not None and not takes_context:
            raise TypeError("context: got one, expected none, as no layer reads a context")
        keys: Any = [None] * len(layers)
        if key is not None:
            keys = jax.random.split(_check.key("key", key), len(layers))
        new_states = []
        for number, layer in enumerate(layers):
            with _named(number, layer):
                layer_options = options_for(layer, options)
                new_state, inputs = layer.apply(
                    params[number], states[number], inputs, key=keys[number], **layer_options
                )
            new_states.append(new_state)
        return tuple(new_states), inputs

    return_sequences = all(layer.return_sequences for layer in layers)
    return Layer(
        init,
        initial_state,
        either_major(apply, return_sequences),
        f"serial({len(layers)} layers)",
        recurrent=any(layer.recurrent for layer in layers),
        causal=all(layer.causal for layer in layers),
        return_sequences=return_sequences,
        takes_context=takes_context,
        parts=layers,
    )


def _runs_over_time(layer: Layer) -> bool:
    """Return whether a layer unrolls a cell, or carries a state from step to step by itself."""
    return layer.recurrent or bool(jax.tree.leaves(jax.eval_shape(layer.initial_state)))


@contextlib.contextmanager
def _named(number: int, layer: Layer) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in layer {number} of serial: {layer.name}")
        raise
