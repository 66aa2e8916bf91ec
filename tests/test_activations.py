"""The activations against JAX's own, and what they store for the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn._activations import saving_output, sigmoid, tanh
from tests.tolerances import FLOAT64, x64

PAIRS = [(sigmoid, jax.nn.sigmoid), (tanh, jnp.tanh)]


def stored(function, *arguments):
    """How many numbers a function stores for its pullback."""
    pullback = jax.eval_shape(lambda *arguments: jax.vjp(function, *arguments)[1], *arguments)
    return sum(leaf.size for leaf in jax.tree.leaves(pullback))


@pytest.mark.parametrize(("ours", "jaxs"), PAIRS)
def test_values_and_derivatives(ours, jaxs):
    with x64():
        x = jnp.concatenate([jnp.linspace(-8, 8, 41), jnp.array([-800.0, 800.0, jnp.inf])])
        np.testing.assert_array_equal(ours(x), jaxs(x))
        for order in range(3):
            ours, jaxs = jax.grad(ours), jax.grad(jaxs)
            got, expected = (jax.vmap(function)(x) for function in (ours, jaxs))
            # Where the slope is 3e-7 of the middle's, both lose that many digits of it.
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15 * 10**order)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
@pytest.mark.parametrize("ours", [sigmoid, tanh])
def test_dtypes_stay(ours, dtype):
    x = jnp.ones(3, dtype)
    value, tangent = jax.jvp(ours, (x,), (x,))
    assert value.dtype == tangent.dtype == dtype


@pytest.mark.parametrize(("ours", "jaxs"), PAIRS)
def test_a_gate_stores_its_value_and_what_it_lets_through(ours, jaxs):
    x = jnp.ones(7)
    assert stored(lambda x, y: ours(x) * y, x, x) == 14
    # When JAX's own does so too, these here can go.
    assert stored(lambda x, y: jaxs(x) * y, x, x) > 14


@pytest.mark.parametrize(("cell", "most"), [(jaxrnn.elman, 1), (jaxrnn.gru, 5), (jaxrnn.lstm, 6)])
def test_a_cell_stores_little(cell, most):
    cell = cell(50)
    params, inputs = cell.init(jax.random.key(0), 3), jnp.ones((2, 3))
    state = cell.initial_state((2,))
    parts = cell.split_step
    gates = parts.gates(params, state, parts.project(params, inputs))
    # For each unit an LSTM needs four gates, the tanh of its cell state, and this from before.
    assert stored(lambda *a: parts.activate(params, *a), state, gates) <= most * 100


def test_other_activations_are_left_alone():
    assert saving_output(jnp.tanh) is tanh
    assert saving_output(jax.nn.sigmoid) is sigmoid
    assert saving_output(jax.nn.relu) is jax.nn.relu


def test_an_elman_network_has_the_gradient_of_its_activation():
    with x64():
        xs = jax.random.normal(jax.random.key(1), (9, 2, 3))

        def gradient(activation):
            cell = jaxrnn.elman(4, activation=activation)
            params = cell.init(jax.random.key(0), 3, dtype=jnp.float64)
            return jax.grad(lambda params: (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum())(params)

        for plain in (jnp.tanh, jax.nn.sigmoid):
            pairs = zip(gradient(plain), gradient(lambda x, f=plain: f(x)), strict=True)
            for got, expected in pairs:
                np.testing.assert_allclose(got, expected, **FLOAT64)
