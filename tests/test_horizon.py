"""The gradient's horizon against closed forms, NumPy's least squares, and the Lyapunov exponent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.diagnostics import gradient_horizon, gradient_norms, lyapunov_exponents
from tests.tolerances import FLOAT32, FLOAT64


def array(value, dtype=None) -> Any:
    return np.asarray(value, dtype)


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 47), (1.0, 5), (-0.1, np.inf), (0.0, np.inf)])
def test_an_exponential_decay(float64, rate, steps):
    got = gradient_horizon(array(3 * np.exp(-rate * np.arange(100)[::-1])))
    assert got.steps == steps  # log(100) is 4.605
    np.testing.assert_allclose(got.decay_rate, rate, atol=1e-13)
    np.testing.assert_allclose(got.standard_error, 0, atol=1e-13)


def test_the_horizon_is_the_first_fall_and_strict():
    norms = array([9.0, 0.1, 0.5, 0.4, 1.0], np.float32)
    assert gradient_horizon(norms, 0.5).steps == 1
    assert gradient_horizon(norms, 0.4).steps == 3
    assert np.isinf(gradient_horizon(norms, 0.05).steps)


def test_the_rate_is_that_of_least_squares(float64):
    norms = np.exp(np.random.default_rng(0).normal(size=(30, 2)).cumsum(axis=0))
    norms[:4, 1] = 0  # underflowed
    got = gradient_horizon(array(norms))
    for column, first in ((0, 0), (1, 4)):
        lags = np.arange(30)[::-1][first:]
        slope = np.polyfit(lags, np.log(norms[first:, column]), 1)[0]
        np.testing.assert_allclose(got.decay_rate[column], -slope, **FLOAT64)


def test_the_standard_error_is_the_spread_of_repetitions(float64):
    # The noise of a gradient's logarithm adds up; here with correlation from one step to the next.
    noise = np.random.default_rng(0).normal(size=(1001, 500))
    logs = -0.3 * np.arange(1000)[:, None] + (noise[1:] + noise[:-1]).cumsum(axis=0)
    got = gradient_horizon(array(np.exp(logs[::-1])))
    spread = np.std(got.decay_rate)
    np.testing.assert_allclose(np.mean(got.decay_rate), 0.3, atol=4 * spread / np.sqrt(500))
    # The spread of 500 is known to 3 in 100; the estimate leaves out some of the correlation.
    np.testing.assert_allclose(np.sqrt(np.mean(got.standard_error**2)), spread, rtol=0.15)


@pytest.mark.parametrize("gain", [0.8, 3.0])
@pytest.mark.slow
def test_the_rate_agrees_with_the_largest_lyapunov_exponent(float64, gain):
    rng = np.random.default_rng(0)
    cell = jaxrnn.elman(30, use_bias=False)
    kernel = gain * rng.normal(size=(30, 30)) / np.sqrt(30)
    params = jaxrnn.cells.ElmanParams(array(rng.normal(size=(1, 30))), array(kernel), None)
    inputs = array(rng.normal(size=(1500, 1)))
    norms = gradient_norms(lambda outputs: outputs[-1].sum(), cell, params, inputs)
    horizon = gradient_horizon(norms)
    largest = lyapunov_exponents(cell, params, inputs, num_exponents=1)
    np.testing.assert_allclose(-horizon.decay_rate, largest.exponents[0], atol=0.02)
    error = float(horizon.standard_error + largest.standard_error[0])
    assert abs(horizon.decay_rate + largest.exponents[0]) < 4 * error
    assert error < 0.03
    # Backwards in time the gradient would seem to do the opposite.
    planted = gradient_horizon(norms[norms > 0][::-1])
    assert abs(planted.decay_rate + largest.exponents[0]) > 4 * error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_in_sixteen_bits(dtype):
    norms = jnp.asarray(0.99 ** np.arange(300)[::-1], dtype)
    got = gradient_horizon(norms)
    slope = np.polyfit(np.arange(300), np.log(np.asarray(norms, float)), 1)[0]
    np.testing.assert_allclose(got.decay_rate, slope, rtol=1e-4)
    assert got.standard_error > 0


def test_too_few_norms_to_say():
    one = gradient_horizon(array([2.0], np.float32))
    assert np.isinf(one.steps)
    assert np.isnan(one.decay_rate)
    assert np.isinf(one.standard_error)
    two = gradient_horizon(array([0.0, 1.0, 2.0], np.float32))
    np.testing.assert_allclose(two.decay_rate, np.log(2), **FLOAT32)
    assert two.steps == 2
    assert np.isinf(two.standard_error)


def test_jit_and_vmap():
    norms = jnp.exp(jax.random.normal(jax.random.key(0), (20, 3)))
    together = gradient_horizon(norms)
    for got in (jax.jit(gradient_horizon)(norms), jax.vmap(gradient_horizon, 1)(norms)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), got, together)


@pytest.mark.parametrize(
    ("norms", "fraction", "error", "message"),
    [
        (array([1, 2]), 0.1, TypeError, "norms: got int64"),
        (array([], np.float32), 0.1, ValueError, r"norms: got float32\[0\]"),
        (array([1.0, -1.0], np.float32), 0.1, ValueError, "norms: got a negative"),
        (array([1.0, 0.0], np.float32), 0.1, ValueError, "norms: got a last one of 0"),
        (array([np.nan, 1.0], np.float32), 0.1, ValueError, "norms: got NaN or infinity"),
        (array([1.0, 1.0], np.float32), 1.5, ValueError, "fraction: got 1.5"),
        (array([1.0, 1.0], np.float32), "half", TypeError, "fraction: got str 'half'"),
    ],
)
def test_bad_input(norms, fraction, error, message):
    with pytest.raises(error, match=message):
        gradient_horizon(norms, fraction)
