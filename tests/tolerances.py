"""The tolerances of the tests, each with its reason, and the switch to float64."""

from typing import Any

import jax
import jax.experimental
import numpy as np

# Float64 against float64: a hundred or so operations in another order, each off by 1e-16.
FLOAT64: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}

# Float32 against float32, the same computation in another order: rounding is 6e-8 an operation.
FLOAT32: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}

# Frameworks against each other: error of the whole array relative to its norm, where single
# roundings average out.
PEERS_RELATIVE = {"float32": 1e-6, "float64": 1e-13}

# A mean of draws against the true one: more standard errors than these come about for less than
# one key in 10,000, and the keys are always the same.
STANDARD_ERRORS = 4

# Sixteen bits against float32: bfloat16 keeps 8 bits, so each rounding is 4e-3; float16 keeps 11.
SIXTEEN_BITS = {"bfloat16": 6e-2, "float16": 8e-3}


def x64():
    """Return a context in which float64 exists; JAX's name for it has moved."""
    where = jax if hasattr(jax, "enable_x64") else jax.experimental
    return where.enable_x64(True)  # pyright: ignore[reportAttributeAccessIssue]


def relative_error(got, expected) -> float:
    """Norm of the difference over the norm of what was expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
