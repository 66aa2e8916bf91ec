"""Residual: what a layer or a cell computes is added to its inputs."""

import dataclasses
from typing import Any, overload

from jaxtyping import Array, Float

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.layers._layer import Layer
from jaxrnn.wrappers._residual import residual_cell


@overload
def residual(layer: Layer) -> Layer: ...
@overload
def residual(layer: Cell) -> Cell: ...
def residual(layer: Layer | Cell) -> Layer | Cell:
    """Residual layer, or cell: what another one computes is added to its inputs.

        outputs = inputs + layer(inputs)

    With `lengths` or `mask` the outputs of padding are what stands in it, as it is added to the
    layer's zeros: to have zeros there, use `rnn(residual(cell))`.

    Args:
        layer: a layer or cell whose outputs have the shape of its inputs; params and state are its
            own.

    Returns:
        A layer from `(T, *batch, I)` to the same shape, or a cell, gated if the given one is.

    Raises:
        TypeError: if `layer` is neither a Layer nor a Cell.
        ValueError: in `apply` or `step`, if the outputs' shape is not that of the inputs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.residual(jaxrnn.rnn(jaxrnn.gru(32)))
        >>> params = layer.init(jax.random.key(0), 32)
        >>> state, outputs = layer.apply(params, None, jnp.ones((5, 32)))
        >>> outputs.shape
        (5, 32)

    References:
        He et al., "Deep residual learning for image recognition", 2016, equation 1.
    """
    if isinstance(layer, Cell):
        return residual_cell(layer)
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: got {_check.describe(layer)}, wanted a jaxrnn.Layer or Cell")

    def apply(
        params: Any, state: Any, inputs: Float[Array, "T *batch I"], *, key=None, **ragged: Any
    ) -> tuple[Any, Float[Array, "T *batch I"]]:
        state, outputs = layer.apply(params, state, inputs, key=key, **ragged)
        if outputs.shape != inputs.shape:
            raise ValueError(
                f"inputs: got {_check.describe(inputs)}, wanted the shape {outputs.shape} of "
                f"{layer.name}'s outputs, as these are added to them"
            )
        return state, inputs + outputs

    return dataclasses.replace(layer, apply=apply, name=f"residual({layer.name})")
