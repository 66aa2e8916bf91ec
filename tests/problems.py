"""Problems for tests, drawn by NumPy: drawing them with JAX would compile a program each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn


def drawn(tree: Any, seed: int, dtype: Any = None) -> Any:
    """Replace every array of a pytree by noise, in the widest dtype that is enabled."""
    rng = np.random.default_rng(seed)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), tree)


def problem(cell: jaxrnn.Cell, *, length=6, batch=(2,), features=3, dtype=None, seed=0) -> Any:
    """Return random params, inputs and state for a cell."""
    params = cell.params_spec(features)
    state = cell.state_spec(batch)
    inputs = jax.ShapeDtypeStruct((length, *batch, features), jnp.float32)
    params, state = drawn(params, seed, dtype), drawn(state, seed + 1, dtype)
    return params, 2 * drawn(inputs, seed + 2, dtype), state
