"""What types arrays are carried and added up in: dtypes, and what differs between devices."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def at_least_float32_dtype(dtype: Any) -> np.dtype:
    """Return a floating or complex dtype, or float32 instead of one with fewer bits."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def at_least_float32(array: jax.Array) -> jax.Array:
    """Return an array in float32 at least: sums and squares overflow 16 bits, or vanish in them."""
    return array.astype(at_least_float32_dtype(array.dtype))


def without_weak_types(tree: PyTree) -> PyTree:
    """Return a tree as arrays, none of which changes its dtype when it meets one of another.

    A loop that carries a weakly typed one is traced twice, or refuses it, and so is a program that
    is called with what it returned.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def pvary_like(tree: PyTree, array: jax.Array) -> PyTree:
    """Return a tree that differs between devices, as far as JAX's types tell, where an array does.

    In `jax.shard_map` a loop refuses to carry what is the same everywhere at first only.
    """
    if not isinstance(array, jax.core.Tracer):
        return tree
    zero = array[:0].sum()  # of nothing, so that it is 0 even if the array isn't finite

    def of_leaf(leaf: jax.Array) -> jax.Array:
        random_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if random_key else leaf + zero.astype(leaf.dtype)

    return jax.tree.map(of_leaf, tree)
