"""Arithmetic on some leaves of a pytree, told by their numbers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def pick(numbers: list[int], tree: PyTree) -> list[Any]:
    """Return the leaves with these numbers."""
    leaves = jax.tree.leaves(tree)
    return [leaves[number] for number in numbers]


def put_at(numbers: list[int], tree: PyTree, new: list[Any]) -> PyTree:
    """Return the tree with new leaves in these places."""
    leaves, structure = jax.tree.flatten(tree)
    for number, leaf in zip(numbers, new, strict=True):
        leaves[number] = leaf
    return structure.unflatten(leaves)


def add(left: PyTree, right: PyTree) -> PyTree:
    """Return the sums of two trees' leaves."""
    return jax.tree.map(jnp.add, left, right)


def add_at(numbers: list[int], tree: PyTree, extra: list[Any]) -> PyTree:
    """Return the tree with something added to the leaves in these places."""
    return put_at(numbers, tree, add(pick(numbers, tree), extra))
