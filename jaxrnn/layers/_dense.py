"""Dense: the same weighted sum at every step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check, initializers
from jaxrnn._affine import affine
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.initializers import Initializer
from jaxrnn.layers._layer import no_state


class DenseParams(NamedTuple):
    """Weights of a dense layer; `bias` is None without one.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.dense(3).init(jax.random.key(0), input_size=64)
        >>> params.kernel.shape
        (64, 3)
    """

    kernel: Float[Array, "I O"]
    bias: Float[Array, "O"] | None


@memoized(
    features=_check.size,
    activation=_check.optional_function,
    use_bias=_check.flag,
    kernel_init=_check.function,
)
def dense(
    features: int,
    *,
    activation: Callable[[Array], Array] | None = None,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform,
) -> Layer:
    """Dense layer: a weighted sum of each step's features.

        outputs = activation(inputs @ kernel + bias)

    Args:
        features: O, how many outputs.
        activation: any pointwise function; None for none.
        use_bias: whether to add a bias, zero at first.
        kernel_init: initialiser of `kernel`, `(I, O)`.

    Returns:
        A layer from `(..., I)` to `(..., O)`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.dense(3)
        >>> params = layer.init(jax.random.key(0), 64)
        >>> state, outputs = layer.apply(params, None, jnp.ones((5, 16, 64)))
        >>> outputs.shape
        (5, 16, 3)
    """

    def init(key, input_size: int | None = None, *, dtype: Any = jnp.float32) -> DenseParams:
        dtype = _check.float_dtype("dtype", dtype)
        shape = (_check.size("input_size", input_size), features)
        kernel = initializers.draw(kernel_init, _check.key("key", key), shape, dtype)
        return DenseParams(kernel, jnp.zeros(features, dtype) if use_bias else None)

    def apply(
        params: DenseParams, state: Any, inputs: Float[Array, "*batch I"], *, key=None
    ) -> tuple[Any, Float[Array, "*batch O"]]:
        _check.array("inputs", inputs, min_ndim=1, axes="(*batch, features)")
        kernel = jax.ShapeDtypeStruct((inputs.shape[-1], features), inputs.dtype)
        bias = jax.ShapeDtypeStruct((features,), inputs.dtype) if use_bias else None
        source = f"for dense({features}) on inputs of {_check.describe(inputs)}"
        _check.same_spec("params", params, DenseParams(kernel, bias), source)  # pyright: ignore[reportArgumentType]
        outputs = affine(inputs, params.kernel, params.bias)
        return (), outputs if activation is None else activation(outputs)

    return Layer(init, no_state, apply, name=f"dense({features})")
