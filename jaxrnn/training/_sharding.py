"""Data parallel training: each device has its part of the batch, and all of everything else.

Every function here takes the shardings of a batch's leaves, or None for training on one device, in
which case it changes nothing.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxrnn import _check


def checked(name: str, sharding: PyTree | None, batch: PyTree) -> PyTree | None:
    """Return each leaf's sharding.

    Args:
        name: what `sharding` is called.
        sharding: a NamedSharding, or a pytree of them that is a prefix of the batch, or None.
        batch: the shapes and dtypes of a batch.

    Returns:
        A pytree like the batch, all on one mesh, whose axes are left to the compiler; or None.

    Raises:
        TypeError: if `sharding` has anything else in it.
        ValueError: if it is no prefix of the batch, or the batch can't be divided so.
    """
    if sharding is None:
        return None
    parts = jax.tree.leaves(sharding, is_leaf=lambda part: part is None)
    if not parts or not all(_is_named_sharding(part) for part in parts):
        raise TypeError(
            f"{name}: got {_check.describe(sharding)}, expected a jax.sharding.NamedSharding, or a "
            "pytree of them"
        )
    if len({part.mesh for part in parts}) > 1:
        raise ValueError(f"{name}: got several meshes, expected one")
    # Else arrays would have their sharding in their type, and a loss would have to speak of it.
    mesh = Mesh(parts[0].mesh.devices, parts[0].mesh.axis_names)

    def of_part(part: NamedSharding, batch: PyTree) -> PyTree:
        return jax.tree.map(lambda _: NamedSharding(mesh, part.spec), batch)

    try:
        shardings = jax.tree.map(of_part, sharding, batch)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: got {_check.describe(sharding)}, expected a prefix of a batch: "
            f"{_check.describe(batch)}"
        ) from None
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    for (path, leaf), of_leaf in zip(leaves, jax.tree.leaves(shardings), strict=True):
        _check_divides(name, jax.tree_util.keystr(path), leaf, of_leaf)
    return shardings


def put_data(data: PyTree, shardings: PyTree | None) -> PyTree:
    """Put arrays whose first axis counts batches on the devices."""
    if shardings is None:
        return jax.tree.map(jnp.asarray, data)
    return jax.tree.map(
        lambda leaf, part: _put(leaf, _with_spec(part, None, *part.spec)), data, shardings
    )


def put_everywhere(tree: PyTree, shardings: PyTree | None) -> PyTree:
    """Put a tree on each device."""
    if shardings is None:
        return tree
    return jax.tree.map(functools.partial(_put, sharding=_everywhere(shardings)), tree)


def divide(batch: PyTree, shardings: PyTree | None) -> PyTree:
    """Divide a batch over the devices, within a compiled function."""
    return batch if shardings is None else lax.with_sharding_constraint(batch, shardings)


def gather(tree: PyTree, shardings: PyTree | None) -> PyTree:
    """Make every device have all of a tree, within a compiled function."""
    if shardings is None:
        return tree
    return lax.with_sharding_constraint(tree, _everywhere(shardings))


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # What one process has on its device goes to those of others from NumPy alone.
    ours = jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", False)
    return jax.device_put(np.asarray(leaf) if ours else leaf, sharding)


def _is_named_sharding(part: Any) -> bool:
    return isinstance(part, NamedSharding) and isinstance(part.mesh, Mesh)


def _everywhere(shardings: PyTree) -> NamedSharding:
    return _with_spec(jax.tree.leaves(shardings)[0])


def _with_spec(sharding: NamedSharding, *axes: Any) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def _check_divides(name: str, path: str, leaf: Any, sharding: NamedSharding) -> None:
    spec = sharding.spec
    if len(spec) > len(leaf.shape):
        raise ValueError(
            f"{name}{path}: got the axes {tuple(spec)}, expected at most {len(leaf.shape)} for a "
            f"batch {_check.describe(leaf)}"
        )
    for axis, names in enumerate(spec):
        names = () if names is None else names if isinstance(names, tuple) else (names,)
        devices = math.prod(sharding.mesh.shape[name] for name in names)
        if leaf.shape[axis] % devices:
            raise ValueError(
                f"batches{path}: got a batch {_check.describe(leaf)}, expected a multiple of "
                f"{devices} on axis {axis}, which {name} divides over {devices} devices"
            )
