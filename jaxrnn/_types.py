"""What annotations call an array: one of JAX, or one of NumPy, which does as well.

A type checker knows it as JAX's, whose methods it has.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray | np.generic

__all__ = ["Array"]
