"""Where batches come from: a function of a key, or arrays of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from jaxrnn import _check

# `(step, key, data) -> batch`
Take = Callable[[Int[Array, ""], PRNGKeyArray, PyTree], PyTree]


def batch_source(batches: Callable[[PRNGKeyArray], PyTree] | PyTree) -> tuple[Take, PyTree]:
    """Return the pure function that takes each step's batch from data, and the data, () if none."""
    num_batches = count_batches(batches)
    if num_batches is None:
        return lambda step, key, data: batches(key), ()  # pyright: ignore[reportCallIssue]

    def take(step: Array, key: Any, data: PyTree) -> PyTree:
        number = step % num_batches
        return jax.tree.map(
            lambda array: lax.dynamic_index_in_dim(array, number, keepdims=False), data
        )

    return take, jax.tree.map(jnp.asarray, batches)


def count_batches(batches: Callable[[PRNGKeyArray], PyTree] | PyTree) -> np.ndarray | None:
    """Return how many batches there are before the first comes again; None of a function."""
    if callable(batches):
        return None
    leaves = jax.tree.leaves(batches)
    if not leaves or not all(jnp.ndim(leaf) for leaf in leaves):
        raise TypeError(
            f"batches: got {_check.describe(batches)}, wanted a function of a key, or arrays whose "
            "first axis counts batches"
        )
    lengths = {jnp.shape(leaf)[0] for leaf in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"batches: got arrays of {sorted(lengths)} batches, wanted one number > 0")
    return np.asarray(lengths.pop(), np.int32)
