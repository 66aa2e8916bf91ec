"""What types arrays are carried and added up in: dtypes, and what differs between devices."""

import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxrnn._types import Array


def at_least_float32_dtype(dtype: Any) -> np.dtype:
    """Return a floating or complex dtype, or float32 instead of one with fewer bits."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def at_least_float32(array: Array) -> Array:
    """Return an array in float32 at least: sums and squares overflow 16 bits, or vanish in them."""
    return array.astype(at_least_float32_dtype(array.dtype))


def global_norm(tree: PyTree) -> jax.Array:
    """Return the Euclidean norm of all arrays in a tree, in float32 at least.

    Scaled by the largest entry first, whose square might overflow, or vanish.
    """
    leaves = [jnp.abs(at_least_float32(leaf)) for leaf in jax.tree.leaves(tree) if leaf.size]
    if not leaves:
        return jnp.zeros(())
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
    leaves = [leaf.astype(dtype) for leaf in leaves]
    largest = functools.reduce(jnp.maximum, map(jnp.max, leaves))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(sum(jnp.square(leaf / scale).sum() for leaf in leaves))


def without_weak_types(tree: PyTree) -> PyTree:
    """Return the tree as arrays without weak types.

    A loop that carries a weakly typed array is traced twice, or refuses it, and so is a program
    that is called with what it returned.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def pvary_like(tree: PyTree, array: Array) -> PyTree:
    """Mark a tree as varying over the devices that `array` varies over.

    In `jax.shard_map` a loop refuses to carry what is the same on all devices at first only.
    """
    if not isinstance(array, jax.core.Tracer):
        return tree
    zero = array[:0].sum()  # of nothing, so that it is 0 even if the array isn't finite

    def pvary(leaf: jax.Array) -> jax.Array:
        random_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if random_key else leaf + zero.astype(leaf.dtype)

    return jax.tree.map(pvary, tree)


def distributed_like(state: PyTree, inputs: Array) -> PyTree:
    """Return a state `(*batch, ...)` distributed over devices as inputs `(T, *batch, I)` are.

    A mesh whose axes are explicit makes the division of an array a part of its type, which a loop's
    carry has to keep. On other meshes, and on one device, the state stays as it is.
    """
    batch = jax.typeof(inputs).sharding.spec[1:-1]
    if not any(batch):
        return pvary_like(state, inputs)
    traced = isinstance(inputs, jax.core.Tracer)
    mesh: Any = (jax.typeof(inputs) if traced else inputs).sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    place = jax.sharding.reshard if traced else jax.device_put

    def distribute(leaf: jax.Array) -> jax.Array:
        spec = jax.sharding.PartitionSpec(*batch, *[None] * (leaf.ndim - len(batch)))
        return place(leaf, jax.NamedSharding(mesh, spec))

    return jax.tree.map(distribute, state)
