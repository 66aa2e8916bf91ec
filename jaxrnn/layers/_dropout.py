"""Dropout between layers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.layers._layer import no_state


@memoized(rate=_check.rate)
def dropout(rate: float) -> Layer:
    """Dropout layer: in training, sets each feature of each step to zero with probability `rate`.

        outputs = inputs * keep / (1 - rate),  keep ~ Bernoulli(1 - rate)

    Without a key, in evaluation, outputs are the inputs.

    Args:
        rate: the probability, from 0 up to but not 1.

    Returns:
        A layer from any shape to the same one; it has no parameters.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.dropout(0.5)
        >>> state, outputs = layer.apply((), None, jnp.ones(1000), key=jax.random.key(0))
        >>> float(outputs.max()), abs(float(outputs.mean()) - 1) < 0.1
        (2.0, True)

    References:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR
        15, 2014; Zaremba, Sutskever and Vinyals, "Recurrent neural network regularization", 2014:
        between recurrent layers, never from step to step.
    """

    def init(key, input_size: int | None = None, *, dtype: Any = jnp.float32) -> tuple[()]:
        del key, input_size, dtype
        return ()

    def apply(
        params: tuple[()], state: Any, inputs: Float[Array, "..."], *, key=None
    ) -> tuple[Any, Float[Array, "..."]]:
        _check.array("inputs", inputs, min_ndim=0, axes="of any shape")
        if key is None or rate == 0.0:
            return (), inputs
        keep = jax.random.bernoulli(_check.key("key", key), 1 - rate, inputs.shape)
        return (), jnp.where(keep, inputs / (1 - rate), jnp.zeros_like(inputs))

    return Layer(init, no_state, apply, name=f"dropout({rate})")
