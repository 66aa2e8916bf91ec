"""Embedding: integers to vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from jaxrnn import _check, initializers
from jaxrnn._layer import Layer
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.initializers import Initializer
from jaxrnn.layers._layer import no_state

_unit_rows: Initializer = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")


@memoized(num_embeddings=_check.size, features=_check.size, embedding_init=_check.function)
def embedding(
    num_embeddings: int, features: int, *, embedding_init: Initializer = _unit_rows
) -> Layer:
    """Embedding layer: looks up a row of a table for each integer.

        outputs[t] = table[inputs[t]]

    Args:
        num_embeddings: the number of rows, such as words in the vocabulary.
        features: the length of a row.
        embedding_init: initialiser of the table, `(num_embeddings, features)`; by default normal
            with rows of norm 1 on average.

    Returns:
        A layer from integers `(T, *batch)` to `(T, *batch, features)`; its params are the table.

    Raises:
        ValueError: in `apply` on an index that is not in the table. Within `jit` no value can be
            looked at: there the row of such an index is NaN, rather than a wrong one.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> layer = jaxrnn.embedding(5, 100)
        >>> table = layer.init(jax.random.key(0))
        >>> state, outputs = layer.apply(table, None, jnp.arange(5))
        >>> outputs.shape
        (5, 100)
    """

    def init(key, input_size: int | None = None, *, dtype: Any = jnp.float32):
        if input_size is not None:
            raise ValueError(
                f"input_size: got {input_size}, expected None: an embedding's inputs are integers"
            )
        dtype = _check.float_dtype("dtype", dtype)
        key = _check.key("key", key)
        return initializers.draw(embedding_init, key, (num_embeddings, features), dtype)

    def apply(
        params: Float[Array, "N F"], state: Any, inputs: Integer[Array, "T *batch"], *, key=None
    ) -> tuple[Any, Float[Array, "T *batch F"]]:
        _check.integers("inputs", inputs, low=0, high=num_embeddings - 1)
        _check.array("params", params, min_ndim=0, axes="(num_embeddings, features)")
        if params.shape != (num_embeddings, features):
            raise ValueError(
                f"params: got {_check.describe(params)}, expected a table of shape "
                f"{(num_embeddings, features)}"
            )
        rows = jnp.take(params, inputs, axis=0, mode="fill", fill_value=jnp.nan)
        # `take` counts negative indices from the end.
        return (), jnp.where(inputs[..., None] < 0, jnp.nan, rows)

    return Layer(init, no_state, apply, name=f"embedding({num_embeddings}, {features})")
