"""What dtypes arrays are carried and added up in."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def wide(array: jax.Array) -> jax.Array:
    """Return an array in float32 at least: sums and squares overflow 16 bits, or vanish in them."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def strongly_typed(tree: PyTree) -> PyTree:
    """Return a tree as arrays, none of which changes its dtype when it meets one of another.

    A loop that carries a weakly typed one is traced twice, or refuses it, and so is a program that
    is called with what it returned.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)
