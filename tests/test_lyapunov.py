"""Lyapunov exponents against closed forms, known maps, and a NumPy loop over dense Jacobians."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.diagnostics import (
    entropy_rate,
    jacobian_spectrum,
    kaplan_yorke_dimension,
    lyapunov_exponents,
)
from jaxrnn.diagnostics._tangents import fixed_basis
from tests.cells import CELLS, DEEP, complex_step_gradient, innermost
from tests.problems import problem
from tests.tolerances import FLOAT32, x64

# A mean over tens of steps of logarithms, each the end of a chain of factorisations in float64.
CHAIN: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def array(value, dtype=None) -> Any:
    return np.asarray(value, dtype)


def nothing(steps, *batch):
    return array(np.zeros((steps, *batch, 1)))


def linear(kernel):
    """Return a cell without activation or input, and its parameters."""
    cell = jaxrnn.elman(len(kernel), activation=jax.nn.identity, use_bias=False)
    return cell, jaxrnn.cells.ElmanParams(array(np.zeros((1, len(kernel)))), array(kernel), None)


def map_cell(name, function, size):
    """Return a cell without parameters whose state is a point that a map moves."""
    return jaxrnn.Cell(
        init=lambda key, input_size, dtype: (),
        initial_state=lambda batch_shape, dtype: jnp.full((*batch_shape, size), 0.1, dtype),
        step=lambda params, state, inputs: (function(state), state),
        name=name,
    )


LOGISTIC = map_cell("logistic", lambda x: 4 * x * (1 - x), 1)
HENON = map_cell(
    "henon",
    lambda s: jnp.stack([1 - 1.4 * s[..., 0] ** 2 + s[..., 1], 0.3 * s[..., 0]], -1),
    2,
)


def numpy_jacobians(row, params, inputs, state):
    """Return each step's Jacobian in NumPy, by the complex step, of one sequence."""
    jacobians, state = [], np.concatenate(state, -1)

    def advance(flat, x):
        parts = tuple(np.split(flat, len(flat) // innermost(params).recurrent_kernel.shape[0]))
        return np.concatenate(row.numpy_step(params, parts, x)[0])

    for x in inputs:
        jacobians.append(
            np.stack(
                [
                    complex_step_gradient(lambda flat, i=i, x=x: advance(flat, x)[i], state)
                    for i in range(len(state))
                ]
            )
        )
        state = advance(state, x)
    return jacobians


def numpy_exponents(jacobians, tangents, burn_in=0):
    """Benettin's algorithm as it stands in the textbook."""
    total = np.zeros(tangents.shape[1])
    for t, jacobian in enumerate(jacobians):
        tangents, r = np.linalg.qr(jacobian @ tangents)
        if t >= burn_in:
            total += np.log(np.abs(np.diag(r)))
    return np.sort(total / (len(jacobians) - burn_in))[::-1]


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [None, 1, 3])
def test_a_linear_networks_exponents_are_its_eigenvalues(float64, count):
    moduli = np.array([0.3, 1.7, 0.9, 0.05, 1.1])
    basis = np.random.default_rng(0).normal(size=(5, 5))  # not orthogonal
    signs = np.array([1, -1, 1, 1, -1])
    cell, params = linear(basis @ np.diag(signs * moduli) @ np.linalg.inv(basis))
    # The dynamics leave the origin where it is, and the tangents grow there all the same.
    got = lyapunov_exponents(cell, params, nothing(500), num_exponents=count, burn_in=300)
    expected = np.sort(np.log(moduli))[::-1][:count]
    np.testing.assert_allclose(got.exponents, expected, atol=1e-10)
    assert got.converged.all()


def test_the_largest_is_found_where_the_first_axes_are_not_its_own(float64):
    cell, params = linear(np.diag([0.2, 0.5, 2.0]))
    got = lyapunov_exponents(cell, params, nothing(200), num_exponents=1, burn_in=100)
    np.testing.assert_allclose(got.exponents, [np.log(2)], atol=1e-12)


def test_complex_eigenvalues(float64):
    # Of a random matrix: their tangents turn for ever, so the mean's error falls as 1 / steps.
    kernel = np.random.default_rng(1).normal(size=(6, 6)) / 2
    cell, params = linear(kernel)
    eigenvalues = np.linalg.eigvals(kernel)
    assert (np.abs(eigenvalues.imag) > 0.01).any()
    got = lyapunov_exponents(cell, params, nothing(20_000), burn_in=1000)
    np.testing.assert_allclose(got.exponents, np.sort(np.log(np.abs(eigenvalues)))[::-1], atol=2e-4)


@pytest.mark.parametrize(
    ("seed", "qr_every"),
    [(0, 1), *(pytest.param(seed, 2, marks=pytest.mark.slow) for seed in range(1, 5))],
)
def test_weights_find_complex_eigenvalues_to_a_millionth(float64, seed, qr_every):
    kernel = np.random.default_rng(seed).normal(size=(8, 8)) / np.sqrt(8)
    cell, params = linear(kernel)
    eigenvalues = np.linalg.eigvals(kernel)
    assert (np.abs(eigenvalues.imag) > 0.01).any()
    expected = np.sort(np.log(np.abs(eigenvalues)))[::-1]
    measure = functools.partial(
        lyapunov_exponents, cell, params, nothing(10_000), burn_in=1000, qr_every=qr_every
    )
    got = measure(tolerance=1e-6, weighted=True)
    np.testing.assert_allclose(got.exponents, expected, atol=1e-9)
    assert got.converged.all()
    assert (np.abs(got.exponents - expected) <= got.standard_error + 1e-13).all()
    plain = measure(tolerance=1e-6)
    assert np.abs(plain.exponents - expected).max() > 1e-6
    assert not plain.converged.all()


@pytest.mark.parametrize("qr_every", [1, 3])
def test_an_orthogonal_networks_exponents_are_zero(float64, qr_every):
    kernel = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    cell, params = linear(kernel)
    got = lyapunov_exponents(cell, params, nothing(200), qr_every=qr_every)
    np.testing.assert_allclose(got.exponents, 0, atol=1e-10)
    np.testing.assert_allclose(got.standard_error, 0, atol=1e-10)
    assert got.converged.all()


def test_the_logistic_map(float64):
    got = lyapunov_exponents(LOGISTIC, (), nothing(50_000))
    assert abs(got.exponents[0] - np.log(2)) < 1e-3
    assert got.converged.all()


def test_henons_map(float64):
    got = lyapunov_exponents(HENON, (), nothing(20_000), burn_in=100)
    np.testing.assert_allclose(got.exponents, [0.419, -1.623], atol=5e-3)
    # The map shrinks every area by 0.3.
    np.testing.assert_allclose(got.exponents.sum(), np.log(0.3), atol=1e-8)
    # The known dimension is 1.258.
    np.testing.assert_allclose(kaplan_yorke_dimension(got.exponents), 1.258, atol=5e-3)
    np.testing.assert_allclose(entropy_rate(got.exponents), got.exponents[0])


# Any cell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", DEEP)
def test_exponents_are_those_of_a_numpy_loop(float64, row):
    cell = row.make(3)
    params, inputs, state = problem(cell, length=40)
    arguments = jax.tree.map(np.asarray, (params, inputs, state))
    got = lyapunov_exponents(cell, params, inputs, state, burn_in=10)
    for sequence in range(2):
        one = tuple(leaf[sequence] for leaf in arguments[2])
        jacobians = numpy_jacobians(row, arguments[0], arguments[1][:, sequence], one)
        determinants = [np.linalg.slogdet(jacobian)[1] for jacobian in jacobians[10:]]
        total = got.exponents[sequence].sum()
        np.testing.assert_allclose(total, np.mean(determinants), rtol=1e-8, atol=1e-8)
        # Where a relu cuts directions off there is no smallest exponent to compare.
        if np.isfinite(determinants).all():
            size = len(jacobians[0])
            start = fixed_basis(size, size).T
            expected = numpy_exponents(jacobians, start, burn_in=10)
            np.testing.assert_allclose(got.exponents[sequence], expected, **CHAIN)


def test_a_shifted_or_reversed_sequence_of_jacobians_is_seen(float64):
    (row,) = (row for row in CELLS if row.name == "elman")
    cell = row.make(3)
    params, inputs, state = problem(cell, length=20, batch=())
    arguments = jax.tree.map(np.asarray, (params, inputs, state))
    jacobians = numpy_jacobians(row, *arguments)
    start = fixed_basis(3, 3).T
    got = lyapunov_exponents(cell, params, inputs, state, burn_in=5).exponents
    np.testing.assert_allclose(got, numpy_exponents(jacobians, start, 5), **CHAIN)
    # One step early or late, and backwards in time.
    for planted in (jacobians[:1] + jacobians[:-1], jacobians[1:], jacobians[::-1]):
        burn_in = 5 - (len(jacobians) - len(planted))
        assert np.abs(got - numpy_exponents(planted, start, burn_in)).max() > 1e-3


@pytest.fixture(scope="module")
def chaotic():
    """A chaotic Elman network of 20 units with a batch of 2, in float64."""
    rng = np.random.default_rng(3)
    kernel = 4 * rng.normal(size=(20, 20)) / np.sqrt(20)
    params = jaxrnn.cells.ElmanParams(array(np.zeros((1, 20))), array(kernel), None)
    return (
        jaxrnn.elman(20, use_bias=False),
        params,
        jaxrnn.cells.ElmanState(array(rng.normal(size=(2, 20)))),
    )


@pytest.mark.slow
def test_factorising_less_often_finds_the_same(float64, chaotic):
    cell, params, state = chaotic
    measure = functools.partial(
        lyapunov_exponents, cell, params, nothing(203, 2), state, num_exponents=3, burn_in=50
    )
    often, seldom = measure(), measure(qr_every=5)
    assert often.running_average.shape == (153, 2, 3)
    assert seldom.running_average.shape == (31, 2, 3)  # the last one after 3 steps
    # The same product of Jacobians, in bunches; the running average is of the same steps, too.
    np.testing.assert_allclose(seldom.exponents, often.exponents, atol=1e-9)
    np.testing.assert_allclose(
        np.sort(seldom.running_average[:30]), np.sort(often.running_average[4:150:5]), atol=1e-9
    )
    np.testing.assert_allclose(seldom.running_average[-1], seldom.exponents, atol=1e-12)
    assert (often.exponents[:, 0] > 0.1).all()
    assert (np.diff(often.exponents) <= 0).all()


def multiply(params, state, inputs):
    """Multiply the state by the input, whose mean logarithm is then the exponent."""
    return state * inputs, None


def test_the_standard_error_is_that_of_repeated_measurements(float64):
    drive = array(np.exp(np.random.default_rng(0).normal(size=(400, 300, 1))))
    got = lyapunov_exponents(multiply, (), drive, np.ones((300, 1)))
    np.testing.assert_allclose(got.exponents, np.log(drive).mean(0), atol=1e-12)
    # Of independent normal numbers with spread 1 the mean of 400 has 1/20; 20 blocks and 300
    # repetitions estimate that to about 1 in 100.
    error = np.sqrt(np.mean(np.square(got.standard_error)))
    np.testing.assert_allclose(error, 1 / 20, rtol=0.05)


@pytest.mark.slow
def test_the_standard_error_of_a_weighted_average_is_honest_too(float64):
    drive = array(np.exp(np.random.default_rng(0).normal(size=(400, 300, 1))))
    got = lyapunov_exponents(multiply, (), drive, np.ones((300, 1)), weighted=True)
    times = (np.arange(400) + 0.5) / 400
    weights = np.exp(-1 / (times * (1 - times)))
    expected = np.average(np.log(drive), axis=0, weights=weights)
    np.testing.assert_allclose(got.exponents, expected, atol=1e-12)
    spread = np.sqrt(np.sum(weights**2)) / np.sum(weights)
    # 8 blocks of 300 repetitions estimate it to about 1 in 65, and 50 steps make a rough integral.
    error = np.sqrt(np.mean(np.square(got.standard_error)))
    np.testing.assert_allclose(error, spread, rtol=0.08)
    # From the middle on the rate is another.
    drive = array(np.exp(np.repeat([[0.0], [0.3]], 200, axis=0)))
    drifting = lyapunov_exponents(multiply, (), drive, np.ones(1), tolerance=0.1, weighted=True)
    assert not drifting.converged.any()


@pytest.mark.slow
def test_a_short_or_drifting_measurement_has_not_converged(float64, chaotic):
    cell, params, state = chaotic
    measure = functools.partial(lyapunov_exponents, cell, params, state=state, num_exponents=2)
    short = measure(inputs=nothing(15, 2))
    assert not short.converged.any()
    assert np.isinf(short.standard_error).all()
    assert not measure(inputs=nothing(64, 2), tolerance=1e-6).converged.any()
    assert measure(inputs=nothing(64, 2), tolerance=1.0).converged.all()
    # From the middle on the rate is another, but the blocks' spread alone would let that pass.
    drive = array(np.exp(np.repeat([[0.0], [0.3]], 200, axis=0)))
    drifting = lyapunov_exponents(multiply, (), drive, np.ones(1), tolerance=0.1)
    assert drifting.standard_error < 0.1
    assert not drifting.converged.any()


def test_a_singular_jacobian_is_not_called_converged_or_nan(float64):
    cell, params = linear(np.diag([0.5, 0.0]))
    got = lyapunov_exponents(cell, params, nothing(100), burn_in=20)
    np.testing.assert_allclose(got.exponents[0], np.log(0.5), atol=1e-12)
    assert got.converged[0]
    assert got.exponents[1] < -30  # of log 0 rounding leaves log 1e-16 or less
    assert not np.isnan(got.exponents).any()


@pytest.mark.parametrize("size", [3, 64])
def test_parallel_tangents_are_told_apart(float64, size):
    # 1e10 between the stretches of one step: their Gram matrix is singular to rounding.
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    stretches = np.concatenate([[1e5, 1.0, 1e-5], np.full(size - 3, 1e-5)])
    cell, params = linear(basis @ np.diag(stretches) @ basis.T)
    got = lyapunov_exponents(cell, params, nothing(30), burn_in=10)
    np.testing.assert_allclose(got.exponents, np.log(stretches), atol=1e-5)


# Transformations and shapes ----------------------------------------------------------------------


@pytest.mark.slow
def test_float32_agrees_with_float64(chaotic):
    cell, params, state = chaotic
    with x64():
        expected = lyapunov_exponents(cell, params, nothing(20, 2), state).exponents
    arguments = jax.tree.map(np.float32, (params, nothing(20, 2), state))
    got = lyapunov_exponents(cell, *arguments).exponents
    assert got.dtype == np.float32
    # 20 chaotic steps enlarge the rounding of 6e-8. The last exponents are of units so saturated
    # that float32 knows nothing of their derivatives.
    np.testing.assert_allclose(got[:, :12], expected[:, :12], atol=1e-3)


@pytest.mark.slow
def test_batch_jit_and_vmap_agree(chaotic):
    cell, params, state = chaotic
    params, inputs, state = jax.tree.map(np.float32, (params, nothing(20, 2), state))
    measure = functools.partial(lyapunov_exponents, cell, num_exponents=4)
    together = measure(params, inputs, state)
    jitted = jax.jit(measure)(params, inputs, state)
    mapped = jax.vmap(measure, (None, 1, 0))(params, inputs, state)
    for got in (jitted.exponents, mapped.exponents):
        np.testing.assert_allclose(got, together.exponents, rtol=1e-3, atol=1e-4)
    assert together.exponents.shape == (2, 4)


def test_constants_may_be_closed_over_in_a_trace(chaotic):
    cell, params, state = chaotic
    params, inputs, state = jax.tree.map(jnp.float32, (params, nothing(5, 2), state))
    scaled = jax.jit(
        lambda gain: lyapunov_exponents(
            cell, params._replace(kernel=gain * params.kernel), inputs, state
        )
    )
    assert np.isfinite(scaled(1.0).exponents[0, 0])


def test_a_second_call_compiles_nothing(compilations, chaotic):
    cell, params, state = chaotic
    arguments = jax.tree.map(jnp.float32, (params, nothing(20, 2), state))
    lyapunov_exponents(cell, *arguments)
    before = compilations()
    lyapunov_exponents(cell, *arguments)
    assert compilations() == before


def test_a_bare_step_and_a_state_of_mixed_shapes(float64):
    def step(params, state, inputs):
        return {"a": params * state["a"], "b": 0.5 * state["b"]}, None

    state = {"a": np.ones((2, 2, 2)), "b": np.ones(2)}
    got = lyapunov_exponents(step, np.float64(2.0), nothing(20, 2), state)
    expected = np.log([[2, 2, 2, 2, 0.5]] * 2)
    assert got.exponents.shape == (2, 5)
    got = lyapunov_exponents(step, np.float64(2.0), nothing(60, 2), state, burn_in=40)
    np.testing.assert_allclose(got.exponents, expected, atol=1e-10)


def turned(params, state, inputs):
    """Turn complex numbers and stretch them, each by one complex factor."""
    return params * state + inputs, state.real


def test_a_complex_state_is_two_real_ones(float64):
    factors: Any = array([0.5j, 2 * np.exp(0.3j), -1.0])
    state = array(np.ones((2, 3), complex))
    got = lyapunov_exponents(turned, factors, nothing(60, 2), state, burn_in=40)
    expected = np.log([2, 2, 1, 1, 0.5, 0.5])
    np.testing.assert_allclose(got.exponents, [expected, expected], atol=1e-9)
    values = jacobian_spectrum(turned, factors, nothing(5, 2), state, lags=[3])[0]
    np.testing.assert_allclose(values, [np.exp(3 * expected)] * 2, rtol=1e-12)
    with pytest.raises(ValueError, match="params: got NaN or infinity"):
        lyapunov_exponents(turned, factors * np.nan, nothing(60, 2), state)
    with pytest.raises(ValueError, match=r"state: got complex128\[3\], expected .* \[2\]"):
        lyapunov_exponents(turned, factors, nothing(60, 2), state[0])


@pytest.mark.slow
def test_derivatives_are_finite_differences(float64):
    cell = jaxrnn.elman(3)
    params, inputs, state = problem(cell, length=10, batch=())

    def largest(scale):
        scaled = params._replace(recurrent_kernel=scale * params.recurrent_kernel)
        return lyapunov_exponents(cell, scaled, inputs, state, num_exponents=2).exponents[1]

    size = 1e-5
    value, slope = jax.jit(largest), jax.jit(jax.grad(largest))
    expected = (value(1 + size) - value(1 - size)) / (2 * size)
    np.testing.assert_allclose(slope(1.0), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_derivatives_where_tangents_are_almost_parallel(float64, size):
    # 1e10 between the stretches of one step: Cholesky's factorisation fails, Householder's doesn't.
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    stretches = np.array([1e5, 1.0, 1e-5, 1e-5])[-size:]
    cell, params = linear(basis @ np.diag(stretches) @ basis.T)

    def total(scale):
        scaled = params._replace(recurrent_kernel=scale * params.recurrent_kernel)
        return lyapunov_exponents(cell, scaled, nothing(20)).exponents.sum()

    # Every exponent grows by the scale's logarithm.
    np.testing.assert_allclose(jax.grad(total)(2.0), size / 2, rtol=1e-6)
    many = jax.vmap(jax.grad(total))(array([1.0, 2.0]))
    np.testing.assert_allclose(many, [size, size / 2], rtol=1e-6)


# What follows from the exponents ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exponents", "dimension", "rate"),
    [
        ([0.906, 0.0, -14.572], 2 + 0.906 / 14.572, 0.906),  # Lorenz's attractor
        ([-1.0, -2.0], 0, 0),
        ([0.0, -1.0], 1, 0),
        ([1.0, 0.5], 2, 1.5),
        ([-4.0, 1.0, 2.0], 2.75, 3),
        ([1.0, -np.inf], 1, 1),
    ],
)
def test_dimension_and_entropy(exponents, dimension, rate):
    exponents = array(exponents, np.float32)
    np.testing.assert_allclose(kaplan_yorke_dimension(exponents), dimension, **FLOAT32)
    np.testing.assert_allclose(entropy_rate(exponents), rate, **FLOAT32)
    batch = array([exponents, exponents - 100])
    np.testing.assert_allclose(kaplan_yorke_dimension(batch), [dimension, 0], **FLOAT32)
    np.testing.assert_allclose(entropy_rate(batch), [rate, 0], **FLOAT32)
    for measure in (kaplan_yorke_dimension, entropy_rate):
        one_unknown = measure(jnp.asarray(batch).at[0, -1].set(jnp.nan))
        assert np.isnan(one_unknown).tolist() == [True, False]


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_exponents": 7}, ValueError, "num_exponents: got 7, expected at most 6"),
        ({"num_exponents": 0}, ValueError, "num_exponents: got 0"),
        ({"num_exponents": 2.0}, TypeError, "num_exponents: got float"),
        ({"burn_in": 5}, ValueError, "burn_in: got 5 for inputs of 5 steps, expected fewer"),
        ({"burn_in": -1}, ValueError, "burn_in: got -1"),
        ({"qr_every": 0}, ValueError, "qr_every: got 0"),
        ({"tolerance": -1.0}, ValueError, "tolerance: got -1.0"),
        ({"weighted": 1}, TypeError, "weighted: got int 1"),
        ({"cell": "lstm"}, TypeError, "cell: got str 'lstm', expected a jaxrnn.Cell or a function"),
        ({"cell": jaxrnn.gru(3)}, TypeError, "params: got LSTMParams"),
        (
            {"inputs": np.ones((0, 2, 2), np.float32)},
            ValueError,
            "inputs: got .* at least one step",
        ),
        (
            {"inputs": np.ones((5, 0, 2), np.float32)},
            ValueError,
            "inputs: got .* at least one sequence",
        ),
        ({"inputs": np.full((5, 2, 2), np.nan, np.float32)}, ValueError, "inputs: got NaN or inf"),
        ({"inputs": np.ones((5, 2, 2), int)}, TypeError, "inputs: got int64"),
        ({"inputs": np.ones((2,), np.float32)}, ValueError, r"inputs: got float32\[2\]"),
        (
            {"state": jaxrnn.cells.LSTMState(*array(np.ones((2, 2, 3), np.int32)))},
            TypeError,
            r"state.hidden: got int32\[2, 3\], expected a floating dtype",
        ),
        (
            {"state": jaxrnn.cells.LSTMState(*array(np.full((2, 2, 3), np.inf, np.float32)))},
            ValueError,
            "state.hidden: got NaN or inf",
        ),
        ({"state": np.ones((4, 3), np.float32)}, ValueError, r"state: got .*begins with \[2\]"),
    ],
)
def test_bad_input(change, error, message):
    cell = jaxrnn.lstm(3)
    params = cell.init(jax.random.key(0), 2)
    arguments = {
        "cell": cell,
        "params": params,
        "inputs": np.ones((5, 2, 2), np.float32),
        "state": None,
        **change,
    }
    with pytest.raises(error, match=message):
        lyapunov_exponents(**arguments)


def test_sixteen_bits_are_refused():
    cell = jaxrnn.elman(3)
    params = cell.init(jax.random.key(0), 2, dtype=jnp.bfloat16)
    inputs = jnp.ones((5, 2), jnp.bfloat16)
    for measure in (lyapunov_exponents, functools.partial(jacobian_spectrum, lags=[1])):
        with pytest.raises(
            TypeError, match=r"state.hidden: got bfloat16\[3\], expected float32 or"
        ):
            measure(cell, params, inputs)


def test_params_that_are_not_finite_and_a_step_without_a_state():
    cell = jaxrnn.elman(3)
    params = cell.init(jax.random.key(0), 2)
    inputs = array(np.ones((5, 2), np.float32))
    with pytest.raises(ValueError, match=r"params\.kernel: got NaN or inf"):
        lyapunov_exponents(cell, params._replace(kernel=params.kernel * np.inf), inputs)
    with pytest.raises(TypeError, match="state: got None, expected a state"):
        lyapunov_exponents(lambda params, state, x: (state, x), (), inputs)


@pytest.mark.parametrize("measure", [kaplan_yorke_dimension, entropy_rate])
def test_bad_exponents(measure):
    with pytest.raises(TypeError, match="exponents: got int64"):
        measure(array([1, 2]))
    with pytest.raises(ValueError, match="exponents: got float32"):
        measure(array(np.zeros((2, 0)), np.float32))
    with pytest.raises(ValueError, match="exponents: got float32"):
        measure(array(1, np.float32))
