"""What every training loop needs: a key for each step, and where to store what it measures."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray, Shaped


# A program of its own, compiled once for all calls of `fit` rather than in each one's loop.
@functools.partial(jax.jit, static_argnames="count")
def step_keys(key: PRNGKeyArray, start: Array, count: int) -> Shaped[Array, "count 2 ..."]:
    """Return the keys of `count` steps, for each its batch's and its loss's, as `key_at` wants.

    As data, since JAX takes a loop that picks one of several keys for one that uses a key twice,
    where it is told to look for that (`jax_debug_key_reuse`).
    """
    fold = jax.vmap(lambda step: jax.random.split(jax.random.fold_in(key, step)))
    keys = fold(start + jnp.arange(count))
    return jax.random.key_data(keys) if _is_typed(key) else keys


def key_at(number: Array | int, keys: Array, like: PRNGKeyArray) -> tuple[Any, ...]:
    """Return a step's two keys out of those of `step_keys`, of the kind of another key."""
    both = keys[number]
    if _is_typed(like):
        implementation = jax.random.key_impl(like)
        return tuple(jax.random.wrap_key_data(data, impl=implementation) for data in both)
    return tuple(both)


def set_index(number: Array, array: Array, value: Array) -> Array:
    """Return an array with another entry at a number, which may be traced."""
    return lax.dynamic_update_index_in_dim(array, value, number, axis=0)


def _is_typed(key: PRNGKeyArray) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
