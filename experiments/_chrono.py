"""Chrono biases, with which gates keep the state for about as long as a sequence is.

What `jaxrnn.initializers.chrono` draws, put where each cell has its gates.
"""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

import jaxrnn


def lstm(
    params: jaxrnn.cells.LSTMParams, key: PRNGKeyArray, length: int
) -> jaxrnn.cells.LSTMParams:
    """Open an LSTM's forget gates for up to `length` steps, and close its input gates as far."""
    units = params.recurrent_kernel.shape[0]
    forget = jaxrnn.initializers.chrono(length)(key, (units,), params.kernel.dtype)
    return params._replace(bias=jnp.concatenate([-forget, forget, jnp.zeros(2 * units)]))


def gru(params: jaxrnn.cells.GRUParams, key: PRNGKeyArray, length: int) -> jaxrnn.cells.GRUParams:
    """Let a GRU's gate z keep the state for up to `length` steps."""
    units = params.recurrent_kernel.shape[0]
    keep = jaxrnn.initializers.chrono(length)(key, (units,), params.kernel.dtype)
    return params._replace(bias=jnp.concatenate([jnp.zeros(units), keep, jnp.zeros(units)]))
