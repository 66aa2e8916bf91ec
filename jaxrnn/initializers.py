"""Initialisers for recurrent kernels; those of `jax.nn.initializers` all work here too.

An initialiser is a function `(key, shape, dtype) -> array`. The constructors are memoised, so that
equal settings give the same function, and so the same memoised cell.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrnn import _check

__all__ = ["Initializer", "draw", "glorot_uniform", "identity", "orthogonal", "zeros"]

Initializer = Callable[..., Array]

glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()
zeros: Initializer = jax.nn.initializers.zeros


def orthogonal(gain: float = 1.0) -> Initializer:
    """Random orthogonal matrix times `gain`: every singular value is `gain`.

    A recurrent kernel drawn so neither shrinks nor stretches what it carries, whence its use as a
    default. Long products of it stay at norm 1, where those of a Gaussian matrix spread.

    Args:
        gain: the factor on the orthogonal matrix.

    Returns:
        An initialiser for shapes `(in, out)`.

    Raises:
        TypeError: if `gain` is not a number.
        ValueError: if `gain` is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> matrix = jaxrnn.initializers.orthogonal(2.0)(jax.random.key(0), (3, 3), jnp.float32)
        >>> bool(jnp.allclose(matrix @ matrix.T, 4 * jnp.eye(3), atol=1e-5))
        True

    References:
        Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
        linear neural networks", 2014.
    """
    return _orthogonal(_check.real("gain", gain))


# Memoised behind the check, as a cache takes True for 1.0, and f() and f(1.0) for two settings.
@functools.cache
def _orthogonal(gain: float) -> Initializer:
    return jax.nn.initializers.orthogonal(gain)


def identity(gain: float = 1.0) -> Initializer:
    """Identity matrix times `gain`, the recurrent kernel of the IRNN.

    With relu, zero bias and this kernel an Elman network at first adds its inputs up for ever.

    Args:
        gain: the value on the diagonal.

    Returns:
        An initialiser for shapes `(in, out)`; off the square it is a rectangular identity.

    Raises:
        TypeError: if `gain` is not a number.
        ValueError: if `gain` is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> jaxrnn.initializers.identity()(jax.random.key(0), (2, 2), jnp.float32)
        Array([[1., 0.],
               [0., 1.]], dtype=float32)

    References:
        Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear
        units", 2015.
    """
    return _identity(_check.real("gain", gain))


@functools.cache
def _identity(gain: float) -> Initializer:
    def init(key: PRNGKeyArray, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "I H"]:
        del key
        return gain * jnp.eye(*shape, dtype=dtype)

    return init


def draw(
    initializer: Initializer,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    gates: int = 1,
) -> Float[Array, "..."]:
    """Draw weights of `shape` for each of `gates` gates and pack them along the last axis.

    Each gate gets a draw of its own: one draw of the packed shape would count all gates as outputs
    and give a Glorot kernel too small and an orthogonal one that is orthogonal in no gate.

    Args:
        initializer: a function `(key, shape, dtype) -> array`.
        key: a random key.
        shape: the shape for one gate, `(in, out)`.
        dtype: the dtype wanted. Below 32 bits the draw is made in float32 and rounded, as
            factorisations such as orthogonal's don't exist in 16 bits.
        gates: how many gates.

    Returns:
        An array of shape `(in, gates * out)`.

    Raises:
        ValueError: if the initialiser returns another shape than it was asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import initializers
        >>> init = initializers.orthogonal()
        >>> initializers.draw(init, jax.random.key(0), (8, 8), jnp.float32, gates=4).shape
        (8, 32)
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    blocks = [initializer(k, shape, wide) for k in jax.random.split(key, gates)]
    for block in blocks:
        if jnp.shape(block) != tuple(shape):
            raise ValueError(
                f"initializer: got an array of shape {jnp.shape(block)}, wanted {tuple(shape)}"
            )
    return jnp.concatenate(blocks, axis=-1).astype(dtype)
