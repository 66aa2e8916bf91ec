"""How far back a gradient reaches, and the rate at which it decays."""

import functools
import math
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrnn import _check
from jaxrnn._dtypes import at_least_float32
from jaxrnn.diagnostics._tangents import finite


class GradientHorizon(NamedTuple):
    """How far back a gradient reaches.

    Attributes:
        steps: how many steps before the last one the norm first is below the fraction of the last
            one's; infinite if it never is.
        decay_rate: nats per step going back, positive where the gradient vanishes and negative
            where it explodes; over long sequences minus the largest Lyapunov exponent. Not a number
            where fewer than two norms are positive.
        standard_error: of the decay rate; infinite where fewer than three norms are positive.
    """

    steps: Float[Array, "*batch"]
    decay_rate: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]


def gradient_horizon(norms: Float[Array, "T *batch"], fraction: float = 0.01) -> GradientHorizon:
    """Steps until a gradient's norm falls below a fraction of its last value, and its decay rate.

        steps = smallest k with norms[-1 - k] < fraction * norms[-1]
        log(norms[-1 - k]) = constant - decay_rate * k + noise, by least squares over k

    The logarithm's noise adds up from step to step, so the usual error of a fitted line would be
    far too small. The slope is a weighted mean of the steps' changes, and its error comes from
    their variance and their correlation over `T**(1/3)` steps (Newey and West). Norms of 0, where
    the gradient has underflowed, are left out of the fit.

    Args:
        norms: each step's gradient norm, of a loss at the last step, such as `gradient_norms`
            returns; `(T, *batch)` for several.
        fraction: from 0 to 1.

    Returns:
        A `GradientHorizon`, `(*batch,)` each, in float32 if the norms have fewer bits. Memory is
        O(T).

    Raises:
        TypeError: if the norms are no floating array or the fraction no number.
        ValueError: if there are no norms, or (outside of a trace) one isn't finite or is negative,
            or the last one is 0.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> horizon = jaxrnn.diagnostics.gradient_horizon(0.5 ** jnp.arange(20.0)[::-1])
        >>> horizon.steps                                                 # 2**-7 is below 1 / 100
        Array(7., dtype=float32)
        >>> bool(jnp.isclose(horizon.decay_rate, jnp.log(2.0)))
        True

    References:
        Newey and West, "A simple, positive semi-definite, heteroskedasticity and autocorrelation
        consistent covariance matrix", Econometrica 55, 1987, equation 5.
    """
    _check.array("norms", norms, min_ndim=1, axes="(T, *batch)")
    fraction = _check.number("fraction", fraction, low=0.0, high=1.0)
    if len(norms) == 0:
        raise ValueError(f"norms: got {_check.describe(norms)}, expected at least one step")
    finite("norms", norms)
    if not isinstance(norms, jax.core.Tracer):
        if (np.asarray(norms) < 0).any():
            raise ValueError("norms: got a negative number, expected norms")
        if (np.asarray(norms)[-1] == 0).any():
            raise ValueError(
                "norms: got a last one of 0, expected the gradient of a last step's loss"
            )
    return _run(norms, fraction)


@functools.partial(jax.jit, inline=True)
def _run(norms: Float[Array, "T *batch"], fraction: float) -> GradientHorizon:
    # 16 bits hold neither the logarithms' small changes nor sums over many steps.
    backwards = at_least_float32(norms[::-1])
    below = backwards < fraction * backwards[0]
    first = jnp.argmax(below, axis=0).astype(backwards.dtype)
    steps = jnp.where(below.any(axis=0), first, jnp.inf)
    return GradientHorizon(steps, *_fit(backwards))


def _fit(norms: Float[Array, "T *batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Return minus the slope of the norms' logarithms and its standard error."""
    valid = (norms > 0).astype(norms.dtype)
    logs = jnp.log(jnp.where(norms > 0, norms, 1))
    lags = jnp.arange(len(norms), dtype=norms.dtype).reshape((-1,) + (1,) * (norms.ndim - 1))
    count = valid.sum(axis=0)
    centred = valid * (lags - (valid * lags).sum(axis=0) / count)
    weights = centred / jnp.square(centred).sum(axis=0)
    slope = (weights * logs).sum(axis=0)

    # slope = sum over t of tails[t] * (logs[t] - logs[t - 1]), where the logs are known.
    tails = jnp.cumsum(weights[::-1], axis=0)[::-1][1:]
    both = valid[1:] * valid[:-1]
    noise = both * (jnp.diff(logs, axis=0) - slope)
    changes = both.sum(axis=0)
    bandwidth = min(math.ceil(len(norms) ** (1 / 3)), max(len(norms) - 2, 0))
    variance = jnp.square(noise).sum(axis=0)
    for lag in range(1, bandwidth + 1):
        together = (noise[lag:] * noise[:-lag]).sum(axis=0)
        variance = variance + 2 * (1 - lag / (bandwidth + 1)) * together
    # Rounding may leave a variance of nearly 0 below it.
    variance = jnp.maximum(variance, 0) / (changes - 1)
    error = jnp.sqrt(variance * jnp.square(tails * both).sum(axis=0))
    return jnp.where(count >= 2, -slope, jnp.nan), jnp.where(changes >= 2, error, jnp.inf)
