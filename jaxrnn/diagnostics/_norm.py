"""Norms of numbers whose squares would under- or overflow."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxrnn._dtypes import at_least_float32


def scale_of(array: Array, axes: Sequence[int]) -> Array:
    """Return the largest modulus over some axes, which are kept, and 1 for one of 0, inf or NaN.

    No derivative goes through it: it is to divide by, and to multiply with again.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(array)), axis=tuple(axes), keepdims=True, initial=0)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def norm(array: Array, axes: Sequence[int]) -> Array:
    """Return the Euclidean norm over some axes, whose derivative at 0 is 0, in float32 at least.

    In 16 bits the inverse of a small number is infinite, and a sum of squares soon is, too.
    """
    array = at_least_float32(array)
    scale = scale_of(array, axes)
    scaled = array / scale
    squares = jnp.sum((scaled * scaled.conj()).real, axis=tuple(axes))
    # The root's own derivative at 0 is infinite.
    zero = squares == 0
    roots = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))
    return jnp.squeeze(scale, tuple(axes)) * roots
