"""Residual: a layer's outputs are added to its inputs."""

import dataclasses
from typing import Any

from jaxtyping import Float

from jaxrnn import _check
from jaxrnn._layer import Layer, checked_layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array


@memoized(layer=checked_layer)
def residual(layer: Layer) -> Layer:
    """Residual layer: the outputs of another layer are added to its inputs.

        outputs = inputs + layer(inputs)

    With `lengths` or `mask`, the outputs at padding are the padding itself, since the layer's
    outputs there are zero. For zeros use `rnn(jaxrnn.wrappers.residual(cell))`.

    Args:
        layer: a layer whose outputs have the shape of its inputs; params and state are its own.

    Returns:
        A layer from `(T, *batch, I)` to the same shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.gru(32)))
        >>> params = layer.init(jax.random.key(0), 32)
        >>> state, outputs = layer.apply(params, None, jnp.ones((5, 32)))
        >>> outputs.shape
        (5, 32)

    References:
        He et al., "Deep residual learning for image recognition", 2016, equation 1.
    """

    def apply(
        params: Any, state: Any, inputs: Float[Array, "..."], *, key=None, **options: Any
    ) -> tuple[Any, Float[Array, "..."]]:
        state, outputs = layer.apply(params, state, inputs, key=key, **options)
        if outputs.shape != inputs.shape:
            raise ValueError(
                f"inputs: got {_check.describe(inputs)}, expected the shape {outputs.shape} of "
                f"{layer.name}'s outputs, as these are added to them"
            )
        return state, inputs + outputs

    return dataclasses.replace(layer, apply=apply, name=f"residual({layer.name})")
