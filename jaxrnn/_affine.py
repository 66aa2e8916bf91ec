"""The weighted sum that every cell begins with."""

import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn._types import Array


def affine(
    inputs: Float[Array, "*batch I"], kernel: Float[Array, "I O"], bias: Float[Array, "O"] | None
) -> Float[Array, "*batch O"]:
    """Return `inputs @ kernel + bias`, or the product alone where there is no bias."""
    product = inputs @ kernel
    return product if bias is None else product + align(bias, product)


def align(vector: Float[Array, "H"], array: Float[Array, "*batch H"]) -> Float[Array, "..."]:
    """Return a vector with as many axes as an array of the same features.

    Without it `vector + array` would be a rank promotion, which JAX can be told to refuse.
    """
    return jnp.expand_dims(vector, tuple(range(array.ndim - 1)))
