"""The Jacobian's singular values against NumPy's chain of single steps, and closed forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.diagnostics import _jacobian, jacobian_spectrum
from tests.cells import CELLS, DEEP, complex_step_gradient
from tests.problems import problem
from tests.tolerances import FLOAT64

ROWS = {row.name: row for row in CELLS}


def array(value, dtype=None) -> Any:
    return np.asarray(value, dtype)


def numpy_chain(row, params, inputs, state):
    """Return each step's Jacobian in NumPy, by the complex step, of one sequence."""
    flat, parts, jacobians = np.concatenate(state, -1), len(state), []

    def advance(flat, x):
        return np.concatenate(row.numpy_step(params, tuple(np.split(flat, parts)), x)[0])

    for x in inputs:
        rows = [
            complex_step_gradient(lambda flat, i=i, x=x: advance(flat, x)[i], flat)
            for i in range(len(flat))
        ]
        jacobians.append(np.stack(rows))
        flat = advance(flat, x)
    return jacobians


def singular_values(jacobians, size):
    product = functools.reduce(
        lambda product, jacobian: jacobian @ product, jacobians, np.eye(size)
    )
    return np.linalg.svd(product, compute_uv=False)


@pytest.mark.parametrize("row", DEEP)
def test_the_product_over_lags_is_the_chain_of_single_steps(float64, row):
    cell = row.make(3)
    params, inputs, state = problem(cell, length=6)
    lags = [4, 0, 1, 6, 4]
    got = jacobian_spectrum(cell, params, inputs, state, lags=lags)
    params, inputs, state = jax.tree.map(np.asarray, (params, inputs, state))
    for sequence in range(2):
        one = tuple(leaf[sequence] for leaf in state)
        chain = numpy_chain(row, params, inputs[:, sequence], one)
        expected = [singular_values(chain[:lag], len(chain[0])) for lag in lags]
        np.testing.assert_allclose(got[:, sequence], expected, **FLOAT64)


def test_a_chain_that_is_shifted_or_reversed_is_seen(float64):
    row = ROWS["lstm"]
    cell = row.make(3)
    params, inputs, state = problem(cell, length=6, batch=())
    got = jacobian_spectrum(cell, params, inputs, state, lags=[4])[0]
    chain = numpy_chain(row, *jax.tree.map(np.asarray, (params, inputs, tuple(state))))
    np.testing.assert_allclose(got, singular_values(chain[:4], 6), **FLOAT64)
    for planted in (chain[1:5], chain[:3], chain[:5], chain[:4][::-1]):
        assert np.abs(got - singular_values(planted, 6)).max() > 1e-4


@pytest.mark.parametrize("lag", [1, 3])
def test_a_few_values_of_a_large_state_are_the_first_of_all(float64, lag):
    cell = jaxrnn.lstm(30)
    params, inputs, state = problem(cell, length=4)
    everything = jacobian_spectrum(cell, params, inputs, state, lags=[lag])
    few = jacobian_spectrum(cell, params, inputs, state, lags=[lag, 0, lag], num_values=3)
    assert everything.shape == (1, 2, 60)
    assert few.shape == (3, 2, 3)
    np.testing.assert_allclose(few[0], everything[0, :, :3], rtol=1e-9)
    np.testing.assert_allclose(few[1], 1, rtol=1e-12)
    np.testing.assert_array_equal(few[2], few[0])


def test_a_few_values_where_the_block_would_be_the_whole_state(float64):
    cell = jaxrnn.gru(5)
    params, inputs, state = problem(cell)
    everything = jacobian_spectrum(cell, params, inputs, state, lags=[2])
    few = jacobian_spectrum(cell, params, inputs, state, lags=[2], num_values=2)
    np.testing.assert_allclose(few, everything[..., :2], **FLOAT64)


def crowded():
    """A linear network of 100 units, and its singular values, which are close together."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(100, 100)))[0] for _ in range(2))
    values = np.linspace(1, 0.99, 100)
    cell = jaxrnn.elman(100, activation=jax.nn.identity, use_bias=False)
    kernel = array(left @ np.diag(values) @ right)
    return cell, jaxrnn.cells.ElmanParams(array(np.zeros((1, 100))), kernel, None), values


def test_values_that_are_close_together_are_told_apart(float64):
    cell, params, values = crowded()
    got = jacobian_spectrum(cell, params, array(np.zeros((1, 1))), lags=[1], num_values=3)
    np.testing.assert_allclose(got[0], values[:3], rtol=1e-12)


def test_values_that_do_not_stand_still_are_not_given(float64, monkeypatch):
    monkeypatch.setattr(_jacobian, "_PASSES", 4)
    # Another number of steps than elsewhere, so that nothing compiled before is taken.
    cell, params, _ = crowded()
    got = jacobian_spectrum(cell, params, array(np.zeros((2, 1))), lags=[2], num_values=3)
    assert np.isnan(got).all()


@pytest.mark.parametrize("num_values", [None, 2])
def test_an_orthogonal_linear_network_keeps_every_length(num_values):
    cell = jaxrnn.elman(40, activation=jax.nn.identity, use_bias=False)
    params = cell.init(jax.random.key(0), 1)
    inputs = jnp.zeros((50, 1))
    got = jacobian_spectrum(cell, params, inputs, lags=[1, 50], num_values=num_values)
    np.testing.assert_allclose(got, 1, atol=5e-5)  # 50 products in float32


@pytest.mark.slow
def test_jit_vmap_and_a_bare_step():
    cell = jaxrnn.gru(3)
    params, inputs, state = problem(cell)
    measure = functools.partial(jacobian_spectrum, cell, lags=(2, 5))
    expected = measure(params, inputs, state)
    np.testing.assert_allclose(jax.jit(measure)(params, inputs, state), expected, atol=1e-6)
    mapped = jax.vmap(measure, (None, 1, 0), 1)(params, inputs, state)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    bare = jacobian_spectrum(cell.step, params, inputs, state, lags=array([2, 5]))
    np.testing.assert_allclose(bare, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lags": [1, 7]}, ValueError, "lags: got 7 for inputs of 6 steps"),
        ({"lags": [1, -1]}, ValueError, r"lags\[1\]: got -1"),
        ({"lags": [1.5]}, TypeError, r"lags\[0\]: got float 1.5"),
        ({"lags": []}, ValueError, "lags: got none"),
        ({"lags": 3}, TypeError, "lags: got int 3"),
        ({"lags": "12"}, TypeError, "lags: got str '12'"),
        ({"num_values": 4}, ValueError, "num_values: got 4, expected at most 3"),
        ({"num_values": 0}, ValueError, "num_values: got 0"),
        ({"inputs": array(np.full((6, 3), np.inf), np.float32)}, ValueError, "inputs: got NaN or"),
        ({"inputs": array(np.ones((6, 0, 3)), np.float32)}, ValueError, "at least one sequence"),
        (
            {"state": array(np.ones(3), np.int32)},
            TypeError,
            r"state: got int32\[3\], expected a flo",
        ),
    ],
)
def test_bad_input(change, error, message):
    cell = jaxrnn.gru(3)
    params, inputs, state = problem(cell, batch=(), dtype=np.float32)
    arguments: dict[str, Any] = {"inputs": inputs, "state": state, "lags": [1], **change}
    with pytest.raises(error, match=message):
        jacobian_spectrum(cell, params, **arguments)
