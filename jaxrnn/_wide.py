"""Arithmetic in more than 16 bits."""

import jax
import jax.numpy as jnp


def wide(array: jax.Array) -> jax.Array:
    """Return an array in float32 at least: sums and squares overflow 16 bits, or vanish in them."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
