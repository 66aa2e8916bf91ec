"""Regularisers against NumPy's closed forms, and that they mend what they are for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import regularizers
from jaxrnn.diagnostics import gradient_horizon, gradient_norms, lyapunov_exponents
from tests.cells import DEEP
from tests.problems import drawn, problem
from tests.tolerances import FLOAT32, FLOAT64

H = 3


def array(value, dtype=None) -> Any:
    return np.asarray(value, dtype)


def last(outputs):
    return (outputs[-1] * np.arange(1, outputs.shape[-1] + 1)).sum()


def numpy_pascanu(kernel, params, inputs, hidden):
    """The penalty of a tanh network's Jacobians with `kernel` in them, all else being given."""
    states = [hidden]
    for x in inputs:
        total = x @ params.kernel + states[-1] @ params.recurrent_kernel + params.bias
        states.append(np.tanh(total))
    states = states[1:]
    gradient, penalty = np.arange(1.0, H + 1), 0.0
    for t in range(len(states) - 1, 0, -1):
        slope = 1 - states[t] ** 2
        # The activation's derivative, too, is of the kernel, through the pre-activation.
        total = inputs[t] @ params.kernel + states[t - 1] @ kernel + params.bias
        passed = (gradient * (1 - np.tanh(total) ** 2)) @ kernel.T
        penalty += (np.linalg.norm(passed) / np.linalg.norm(gradient) - 1) ** 2
        gradient = (gradient * slope) @ params.recurrent_kernel.T
    return penalty


def test_pascanus_penalty_and_its_gradient(float64):
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell, batch=())
    numpy_params, numpy_inputs, (hidden,) = jax.tree.map(np.asarray, (params, inputs, tuple(state)))

    def penalty(params):
        return regularizers.pascanu(last, cell, params, inputs, state)

    kernel = numpy_params.recurrent_kernel
    expected = numpy_pascanu(kernel, numpy_params, numpy_inputs, hidden)
    np.testing.assert_allclose(penalty(params), expected, **FLOAT64)
    size = 1e-6
    gradient = np.zeros((H, H))
    for place in np.ndindex(H, H):
        disturbance = np.zeros((H, H))
        disturbance[place] = size
        up, down = (
            numpy_pascanu(kernel + sign * disturbance, numpy_params, numpy_inputs, hidden)
            for sign in (1, -1)
        )
        gradient[place] = (up - down) / (2 * size)
    got = jax.grad(penalty)(params).recurrent_kernel
    np.testing.assert_allclose(got, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("factor", "length", "size", "expected"),
    [(0.5, 20, 1e-24, 19 / 4), (2.0, 120, 1.0, 119), (1.0, 20, np.nan, np.nan)],
)
def test_pascanus_penalty_of_any_gradients_size(factor, length, size, expected):
    cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
    params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), factor * jnp.eye(2), None)
    got = regularizers.pascanu(
        lambda outputs: size * outputs[-1].sum(), cell, params, jnp.zeros((length, 1))
    )
    np.testing.assert_allclose(got, expected, **FLOAT32)


@pytest.mark.parametrize("row", DEEP)
def test_pascanus_penalty_is_a_mean_over_the_batch(row):
    cell = row.make(H)
    params, inputs, state = problem(cell, batch=(2,))
    penalty = jax.jit(functools.partial(regularizers.pascanu, last, cell))
    together = penalty(params, inputs, state)
    each = [
        penalty(params, inputs[:, n], jax.tree.map(lambda leaf, n=n: leaf[n], state))
        for n in range(2)
    ]
    np.testing.assert_allclose(together, np.mean(each), **FLOAT32)


@pytest.mark.parametrize("name", ["pascanu", "flossing"])
def test_a_bare_steps_penalty_is_its_cells(name):
    cell = jaxrnn.elman(H)
    arguments = problem(cell)
    penalty = getattr(regularizers, name)
    if name == "pascanu":
        penalty = functools.partial(penalty, last)
    expected = penalty(cell, *arguments)
    np.testing.assert_allclose(penalty(cell.step, *arguments), expected, **FLOAT32)


@pytest.mark.slow
def test_no_gradient_no_penalty():
    cell = jaxrnn.elman(H)
    params, inputs, _ = problem(cell)

    def penalty(params):
        return regularizers.pascanu(lambda outputs: outputs[0].sum(), cell, params, inputs)

    assert penalty(params) == 0
    for leaf in jax.tree.leaves(jax.grad(penalty)(params)):
        np.testing.assert_array_equal(leaf, 0)
    assert regularizers.pascanu(last, cell, params, inputs[:1]) == 0


def test_flossing_is_the_mean_square_of_the_exponents(float64):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=20)
    got = regularizers.flossing(cell, params, inputs, state, num_exponents=2, burn_in=3)
    spectrum = lyapunov_exponents(cell, params, inputs, state, num_exponents=2, burn_in=3)
    np.testing.assert_allclose(got, np.mean(np.asarray(spectrum.exponents) ** 2), **FLOAT64)


@pytest.mark.slow
def test_flossings_gradient_is_that_of_finite_differences(float64):
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell, length=8)
    direction = drawn(params, 9)

    def penalty(size):
        moved = jax.tree.map(lambda leaf, along: leaf + size * along, params, direction)
        return regularizers.flossing(cell, moved, inputs, state, num_exponents=2)

    size = 1e-5
    got, slope = jax.jit(penalty), jax.jit(jax.grad(penalty))
    expected = (got(size) - got(-size)) / (2 * size)
    np.testing.assert_allclose(slope(0.0), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pascanu", "flossing"])
def test_descent_lengthens_the_horizon(name):
    cell = jaxrnn.elman(16)
    params = cell.init(jax.random.key(0), 2)
    params = params._replace(recurrent_kernel=0.5 * params.recurrent_kernel)
    inputs = 0.3 * jax.random.normal(jax.random.key(1), (60, 2))

    def penalty(params):
        if name == "pascanu":
            return regularizers.pascanu(last, cell, params, inputs) / len(inputs)
        return regularizers.flossing(cell, params, inputs, num_exponents=4)

    @jax.jit
    def descend(params):
        gradient = jax.grad(penalty)(params)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, gradient)

    def horizon(params):
        return gradient_horizon(gradient_norms(last, cell, params, inputs))

    before, start = horizon(params), penalty(params)
    for _ in range(40):
        params = descend(params)
    after = horizon(params)
    assert penalty(params) < start / 2
    assert after.decay_rate < before.decay_rate / 2
    assert after.steps > before.steps


def test_bad_input():
    cell = jaxrnn.elman(H)
    params, inputs, _ = problem(cell)
    with pytest.raises(ValueError, match="num_exponents: got 4, expected at most 3"):
        regularizers.flossing(cell, params, inputs, num_exponents=4)
    with pytest.raises(ValueError, match="inputs: got NaN or infinity"):
        regularizers.flossing(cell, params, inputs * jnp.nan)
    with pytest.raises(ValueError, match="inputs: got NaN or infinity"):
        regularizers.pascanu(last, cell, params, inputs * jnp.nan)
    with pytest.raises(TypeError, match="loss: returned float32"):
        regularizers.pascanu(lambda outputs: outputs, cell, params, inputs)
    with pytest.raises(ValueError, match=r"inputs: got .* expected at least one step"):
        regularizers.pascanu(last, cell, params, inputs[:0])
    with pytest.raises(ValueError, match=r"inputs: got float.*\[6, 0, 3\], .* one sequence"):
        regularizers.pascanu(last, cell, params, inputs[:, :0])
    with pytest.raises(ValueError, match=r"inputs: got float.*\[6, 0, 3\], .* one sequence"):
        regularizers.flossing(cell, params, inputs[:, :0])
