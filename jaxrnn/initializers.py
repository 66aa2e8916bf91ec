"""Initialisers for recurrent kernels; those of `jax.nn.initializers` all work here too.

An initialiser is a function `(key, shape, dtype) -> array`. The constructors are memoised, so that
equal settings give the same function, and so the same memoised cell. What they make raises a
`TypeError` for a dtype that is neither floating nor complex, and a `ValueError` for a shape of
which it has no draw, or for a setting beyond what the dtype holds.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, PRNGKeyArray

from jaxrnn import _check
from jaxrnn._dtypes import at_least_float32_dtype
from jaxrnn._memoize import Rebuildable, memoized
from jaxrnn._types import Array

__all__ = [
    "Initializer",
    "chrono",
    "draw",
    "glorot_uniform",
    "identity",
    "near_identity",
    "orthogonal",
    "scaled_gaussian",
    "unitary",
    "zeros",
]

Initializer = Callable[..., Array]

_glorot_uniform = jax.nn.initializers.glorot_uniform()
zeros: Initializer = jax.nn.initializers.zeros


# A function of a module, which can be pickled, where JAX makes a closure.
def glorot_uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform numbers of variance `2 / (in + out)`, the initialiser of Glorot and Bengio.

    Args:
        key: a random key.
        shape: `(in, out)`.
        dtype: a floating dtype.

    Returns:
        An array of that shape.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.initializers.glorot_uniform(jax.random.key(0), (8, 4)).shape
        (8, 4)

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
        networks", 2010, equation 16.
    """
    return _glorot_uniform(key, shape, dtype)


class _Checked(Rebuildable):
    """An initialiser that refuses what `draw` can't draw, or with which it would overflow.

    Below 32 bits the draw is made in float32 and rounded, as factorisations don't exist in 16 bits.
    """

    __slots__ = ("__weakref__", "_draw", "_made_by", "_settings")

    def __init__(self, draw: Initializer, **settings: float):
        self._draw, self._settings = draw, settings

    def __call__(
        self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Array:
        key, dtype = _check.key("key", key), _dtype(dtype)
        for name, value in self._settings.items():
            check_fits(name, value, dtype)
        shape = _check.shape("shape", shape)
        return self._draw(key, shape, at_least_float32_dtype(dtype)).astype(dtype)


def _dtype(dtype: Any) -> np.dtype:
    if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
        _check.float_dtype(f"dtype {jnp.dtype(dtype)}", jnp.finfo(dtype).dtype)
        return jnp.dtype(dtype)
    return _check.float_dtype("dtype", dtype)


def check_fits(name: str, value: float, dtype: np.dtype) -> None:
    """Raise if a setting would be infinite in a dtype."""
    largest = float(jnp.finfo(dtype).max)
    if abs(value) > largest:
        raise ValueError(f"{name}: got {value}, expected at most {largest:.3g}, as {dtype} holds")


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
    return _orthogonal(_check.number("gain", gain))


# Memoised behind the check, as a cache takes True for 1.0, and f() and f(1.0) for two settings.
@memoized()
def _orthogonal(gain: float) -> _Checked:
    draw = jax.nn.initializers.orthogonal(gain)

    def one_by_one(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        # One after the other under vmap, such as over seeds: of jaxlib's batched factorisations
        # several in one program can wait for one another without end, where a CPU has few threads.
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return _Checked(one_by_one, gain=gain)


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
    return _identity(_check.number("gain", gain))


@memoized()
def _identity(gain: float) -> _Checked:
    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Float[Array, "I H"]:
        del key
        if len(shape) != 2:
            raise ValueError(f"shape: got {shape}, expected that of a matrix such as (64, 64)")
        return gain * jnp.eye(*shape, dtype=dtype)

    return _Checked(draw, gain=gain)


def near_identity(noise: float = 0.01, gain: float = 1.0) -> Initializer:
    """Identity times `gain`, plus a Gaussian matrix of spectral radius about `noise`.

        kernel = gain * identity + noise * normal / sqrt(units)

    A network that starts so remembers for about `1 / noise` steps, as the IRNN does for ever, but
    its units differ and mix from the first step.

    Args:
        noise: the spectral radius of the Gaussian part, for many units.
        gain: the factor on the identity.

    Returns:
        An initialiser for square shapes `(units, units)`, which raises a ValueError for others.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if `noise` is negative, or a setting not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> init = jaxrnn.initializers.near_identity(0.001)
        >>> matrix = init(jax.random.key(0), (64, 64), jnp.float32)
        >>> bool(jnp.allclose(matrix, jnp.eye(64), atol=0.001))
        True

    References:
        Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear
        units", 2015 (the identity).
        Ginibre, "Statistical ensembles of complex, quaternion, and real matrices", Journal of
        Mathematical Physics 6, 1965 (the Gaussian part's radius).
    """
    return _near_identity(_check.number("noise", noise, low=0.0), _check.number("gain", gain))


@memoized()
def _near_identity(noise: float, gain: float) -> _Checked:
    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Float[Array, "H H"]:
        units = _square(shape)
        normal = jax.random.normal(key, shape, dtype)
        return gain * jnp.eye(units, dtype=dtype) + noise / math.sqrt(units) * normal

    return _Checked(draw, noise=noise, gain=gain)


def scaled_gaussian(radius: float = 1.0) -> Initializer:
    """Gaussian matrix, scaled so that its spectral radius is exactly `radius`.

    The usual start of echo state networks. Its singular values spread up to about twice the radius,
    so products of a few grow even where those of many shrink. Gaussian draws of variance
    `gain**2 / units`, as in studies of chaos, have a radius near `gain` for many units only.

    Args:
        radius: the largest modulus of an eigenvalue.

    Returns:
        An initialiser for square shapes `(units, units)`, which raises a ValueError for others.
        Older releases of JAX find eigenvalues on CPU only.

    Raises:
        TypeError: if `radius` is not a number.
        ValueError: if `radius` is negative or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> init = jaxrnn.initializers.scaled_gaussian(0.9)
        >>> matrix = init(jax.random.key(0), (64, 64), jnp.float32)
        >>> bool(jnp.isclose(jaxrnn.diagnostics.spectral_radius(matrix), 0.9))
        True

    References:
        Jaeger, "The echo state approach to analysing and training recurrent neural networks", GMD
        report 148, 2001, section 3.
    """
    return _scaled_gaussian(_check.number("radius", radius, low=0.0))


@memoized()
def _scaled_gaussian(radius: float) -> _Checked:
    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Float[Array, "H H"]:
        _square(shape)
        normal = jax.random.normal(key, shape, dtype)
        return radius / jnp.max(jnp.abs(jnp.linalg.eigvals(normal))) * normal

    return _Checked(draw, radius=radius)


def unitary() -> Initializer:
    """Random unitary matrix, for complex states: every eigenvalue is on the unit circle.

        q, r = qr(complex normal matrix)
        kernel = q * (diag(r) / abs(diag(r)))

    It is drawn evenly from all unitary matrices, by Haar's measure; `q` alone would not be, as its
    phases depend on how it was factorised. The complex counterpart of `orthogonal`: a linear
    network carries its state with it for ever, and its phases turn at all rates.

    Returns:
        An initialiser for square shapes `(units, units)` and complex dtypes, by default complex64.
        It raises a ValueError for other shapes and a TypeError for other dtypes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> matrix = jaxrnn.initializers.unitary()(jax.random.key(0), (3, 3), jnp.complex64)
        >>> bool(jnp.allclose(matrix @ matrix.conj().T, jnp.eye(3), atol=1e-6))
        True

    References:
        Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", 2016.
        Mezzadri, "How to generate random matrices from the classical compact groups", Notices of
        the American Mathematical Society 54, 2007, section 5.
    """
    return _unitary


def _unitary(
    key: PRNGKeyArray, shape: tuple[int, int], dtype: Any = jnp.complex64
) -> Complex[Array, "H H"]:
    key, dtype = _check.key("key", key), _dtype(dtype)
    _square(_check.shape("shape", shape))
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"dtype: got {dtype}, expected complex64 or complex128")
    q, r = jnp.linalg.qr(jax.random.normal(key, shape, dtype))
    phases = jnp.diagonal(r)
    return q * (phases / jnp.abs(phases))


def _square(shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"shape: got {tuple(shape)}, expected a square such as (64, 64)")
    return shape[0]


def chrono(max_time: float) -> Initializer:
    """Forget gates' bias for time constants spread evenly from 2 up to `max_time`.

        bias = log(uniform(1, max_time - 1))

    A forget gate of `sigmoid(bias)` keeps the state for about `1 + exp(bias)` steps. For an LSTM
    the paper also closes the input gate as far as the forget gate is open, with minus this bias;
    for a GRU as here, whose `z` keeps the state, the bias is that of `z`.

    Args:
        max_time: steps, the longest dependency to expect, such as the sequences' length; more
            than 2.

    Returns:
        An initialiser for a gate's bias, of any shape.

    Raises:
        TypeError: if `max_time` is not a number.
        ValueError: if `max_time` is not finite or not more than 2.

    Example:
        An LSTM with chrono biases, packed in its order i f g o:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> params = jaxrnn.lstm(64).init(jax.random.key(0), 32)
        >>> forget = jaxrnn.initializers.chrono(100)(jax.random.key(1), (64,), jnp.float32)
        >>> nothing = jnp.zeros(128)
        >>> params = params._replace(bias=jnp.concatenate([-forget, forget, nothing]))

    References:
        Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, equation 16.
    """
    max_time = _check.number("max_time", max_time)
    if max_time <= 2:
        raise ValueError(f"max_time: got {max_time}, expected more than 2 steps")
    return _chrono(max_time)


@memoized()
def _chrono(max_time: float) -> _Checked:
    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> Float[Array, "..."]:
        # Its logarithm fits into fewer bits than itself.
        check_fits("max_time", max_time, dtype)
        return jnp.log(jax.random.uniform(key, shape, dtype, 1, max_time - 1))

    return _Checked(draw)


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
        dtype: the dtype expected. Below 32 bits the draw is made in float32 and rounded, as
            factorisations such as orthogonal's don't exist in 16 bits.
        gates: how many gates.

    Returns:
        An array of shape `(in, gates * out)`.

    Raises:
        TypeError: if the initialiser returns anything but floating numbers, such as complex ones,
            or the dtype expected isn't floating.
        ValueError: if it returns another shape than it was asked for, or there are no gates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import initializers
        >>> init = initializers.orthogonal()
        >>> initializers.draw(init, jax.random.key(0), (8, 8), jnp.float32, gates=4).shape
        (8, 32)
    """
    wide = at_least_float32_dtype(_check.float_dtype("dtype", dtype))
    keys = jax.random.split(key, _check.size("gates", gates))
    blocks = [jnp.asarray(initializer(key, shape, wide)) for key in keys]
    for block in blocks:
        if block.shape != tuple(shape):
            raise ValueError(
                f"initializer: got an array of shape {block.shape}, expected {tuple(shape)}"
            )
        if not jnp.issubdtype(block.dtype, jnp.floating):
            raise TypeError(f"initializer: got {_check.describe(block)}, expected floating numbers")
    return jnp.concatenate(blocks, axis=-1).astype(dtype)
