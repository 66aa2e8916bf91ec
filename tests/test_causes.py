"""Bounds, saturation and gates against NumPy's equations of the cells."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.diagnostics import (
    gate_statistics,
    jacobian_spectrum,
    pascanu_bound,
    saturation,
    spectral_radius,
)
from tests.cells import CELLS, sigmoid
from tests.problems import problem
from tests.tolerances import FLOAT32, FLOAT64, SIXTEEN_BITS

ROWS = {row.name: row for row in CELLS}
T, H = 5, 4


def array(value, dtype=None) -> Any:
    return np.asarray(value, dtype)


def numpy_problem(name):
    """Return a cell's arguments, and in NumPy every step's old state and pre-activation parts."""
    row = ROWS[name]
    cell = row.make(H)
    arguments = problem(cell, length=T)
    params, inputs, state = jax.tree.map(np.asarray, arguments)
    states = [tuple(state)]
    for x in inputs:
        states.append(row.numpy_step(params, states[-1], x)[0])
    return cell, arguments, params, inputs, states


def test_spectral_radius(float64):
    matrices = np.random.default_rng(0).normal(size=(3, 5, 5))
    expected = [np.abs(np.linalg.eigvals(matrix)).max() for matrix in matrices]
    np.testing.assert_allclose(spectral_radius(array(matrices)), expected, **FLOAT64)
    # Not its norm: this one's is 5, and its only eigenvalue 0.
    assert spectral_radius(array([[0.0, 5.0], [0.0, 0.0]])) == 0


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_spectral_radius_of_matrices_of_any_size(size):
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    expected = size * np.abs(np.linalg.eigvals(matrix)).max()
    got = spectral_radius(array([size * matrix, 0 * matrix], np.float32))
    np.testing.assert_allclose(got, [expected, 0], rtol=FLOAT32["rtol"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_in_sixteen_bits(dtype):
    kernel = jnp.diag(jnp.array([3.0, -5.0], dtype))
    for got, expected in ((spectral_radius(kernel), 5), (pascanu_bound(kernel, [0, 2]), [1, 25])):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, float), expected, rtol=SIXTEEN_BITS[dtype])


def test_pascanus_bound_is_the_power_of_the_norm(float64):
    kernel = np.random.default_rng(0).normal(size=(4, 4))
    norm = np.linalg.svd(kernel, compute_uv=False)[0]
    got = pascanu_bound(array(kernel), [0, 1, 7], gamma=0.25)
    np.testing.assert_allclose(got, [1, 0.25 * norm, (0.25 * norm) ** 7], **FLOAT64)


@pytest.mark.parametrize(("name", "gamma"), [("elman", 1.0), ("elman_logistic", 0.25)])
def test_pascanus_bound_holds_and_for_a_linear_start_is_reached(float64, name, gamma):
    cell = ROWS[name].make(H)
    params, inputs, state = problem(cell, length=T, batch=())
    got = jacobian_spectrum(cell, params, inputs, state, lags=range(1, T + 1))[:, 0]
    bound = pascanu_bound(params.recurrent_kernel, range(1, T + 1), gamma=gamma)
    assert (got <= bound).all()
    # At rest the activation's derivative is gamma, and one step's bound is exact.
    rest = jax.tree.map(np.zeros_like, params)._replace(recurrent_kernel=params.recurrent_kernel)
    at_rest = jacobian_spectrum(cell, rest, 0 * inputs, lags=[1])[0, 0]
    np.testing.assert_allclose(at_rest, bound[0], **FLOAT64)


def test_saturation_of_an_elman_network(float64):
    cell, arguments, _, _, states = numpy_problem("elman")
    got = saturation(cell, *arguments, threshold=0.6)
    expected = [np.mean(1 - hidden**2 < 0.6, axis=-1) for (hidden,) in states[1:]]
    np.testing.assert_allclose(got[..., 0], expected, **FLOAT64)
    assert 0.1 < np.mean(expected) < 0.9


def test_saturation_of_an_lstms_gates(float64):
    cell, arguments, params, inputs, states = numpy_problem("lstm")
    got = saturation(cell, *arguments, threshold=0.1)
    assert got.shape == (T, 2, 4)
    for t, ((h, c), (_, new)) in enumerate(itertools.pairwise(states)):
        total = inputs[t] @ params.kernel + h @ params.recurrent_kernel + params.bias
        i, f, g, o = np.split(total, 4, axis=-1)
        gates = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        on_cell = [
            gates[0] * (1 - gates[0]) * gates[2],
            gates[1] * (1 - gates[1]) * c,
            gates[0] * (1 - gates[2] ** 2),
        ]
        # What moves the cell state moves the hidden state by less.
        on_hidden = gates[3] * (1 - gates[3]) * np.tanh(new)
        expected = [np.mean(np.abs(part) < 0.1, axis=-1) for part in [*on_cell, on_hidden]]
        np.testing.assert_allclose(got[t], np.stack(expected, -1), **FLOAT64)


def test_large_weights_saturate_every_unit():
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell)
    assert saturation(cell, params, inputs, state).mean() < 0.5
    large = jax.tree.map(lambda leaf: 1000 * leaf, params)
    assert saturation(cell, large, inputs, state).mean() > 0.95


def test_an_lstms_forget_gate(float64):
    cell, arguments, params, inputs, states = numpy_problem("lstm")
    got = gate_statistics(cell, *arguments)
    for t, (h, _) in enumerate(states[:-1]):
        total = inputs[t] @ params.kernel + h @ params.recurrent_kernel + params.bias
        forget = sigmoid(np.split(total, 4, axis=-1)[1]).mean(-1)
        np.testing.assert_allclose(got.forget[t], forget, **FLOAT64)
        np.testing.assert_allclose(got.time_constant[t], -1 / np.log(forget), **FLOAT64)


def test_a_grus_forget_gate(float64):
    cell, arguments, params, inputs, states = numpy_problem("gru")
    got = gate_statistics(cell, *arguments)
    for t, (h,) in enumerate(states[:-1]):
        total = inputs[t] @ params.kernel + h @ params.recurrent_kernel
        z = sigmoid(np.split(total + params.bias + params.recurrent_bias, 3, axis=-1)[1])
        np.testing.assert_allclose(got.forget[t], z.mean(-1), **FLOAT64)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_a_bare_step_shows_what_the_cells_structure_does(float64, name):
    cell, arguments, *_ = numpy_problem(name)
    for measure in (gate_statistics, functools.partial(saturation, threshold=0.2)):
        expected = measure(cell, *arguments)
        got = measure(jax.jit(cell.step), *arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


def test_a_gru_with_reset_before(float64):
    cell, arguments, params, inputs, states = numpy_problem("gru_reset_before")
    gates = gate_statistics(cell, *arguments)
    got = saturation(cell, *arguments, threshold=0.1)
    assert got.shape == (T, 2, 3)
    wr, wz, wn = np.split(params.kernel, 3, axis=-1)
    ur, uz, un = np.split(params.recurrent_kernel, 3, axis=-1)
    br, bz, bn = np.split(params.bias, 3)

    def advance(h, x, disturbance):
        r = sigmoid(x @ wr + br + h @ ur + disturbance[0])
        z = sigmoid(x @ wz + bz + h @ uz + disturbance[1])
        n = np.tanh(x @ wn + bn + (r * h) @ un + disturbance[2])
        return (1 - z) * n + z * h, z

    for t, (h,) in enumerate(states[:-1]):
        (_, z), effects = advance(h, inputs[t], np.zeros((3, H))), np.zeros((2, 3, H))
        np.testing.assert_allclose(gates.forget[t], z.mean(-1), **FLOAT64)
        for place in np.ndindex(3, H):
            disturbance = np.zeros((3, H), complex)
            disturbance[place] = 1e-30j
            effects[:, *place] = np.abs(advance(h, inputs[t], disturbance)[0].imag / 1e-30).max(-1)
        np.testing.assert_allclose(got[t], np.mean(effects < 0.1, -1), **FLOAT64)


def test_products_out_of_sight_or_none_at_all():
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell)

    def hidden(params, state, inputs):
        return jax.lax.cond(inputs.sum() > 0, cell.step, cell.step, params, state, inputs)

    for measure in (saturation, gate_statistics):
        with pytest.raises(ValueError, match="a matrix product of its state in a `cond`, expected"):
            measure(hidden, params, inputs, state)

    def leaky(params, state, inputs):
        return 0.5 * state, state

    ones = array(np.ones((2, H)), np.float32)
    np.testing.assert_allclose(gate_statistics(leaky, (), inputs, ones).forget, 0.5)
    with pytest.raises(ValueError, match="a step without a matrix product of its state"):
        saturation(leaky, (), inputs, ones)
    with pytest.raises(TypeError, match="state: got None, expected a state"):
        saturation(leaky, (), inputs)


def test_an_elman_network_has_no_forget_gate():
    cell = jaxrnn.elman(H)
    params, inputs, state = problem(cell)
    got = gate_statistics(cell, params, inputs, state)
    np.testing.assert_array_equal(got.forget, np.zeros((T + 1, 2)))
    np.testing.assert_array_equal(got.time_constant, 0)


def test_what_forgets_nothing_has_an_infinite_time_constant():
    def keep(params, state, inputs):
        return params * state, state

    inputs, state = jnp.ones((T, 2, 3)), jnp.ones((2, H))
    for factor, expected in ((1.0, np.inf), (0.5, 1 / np.log(2)), (0.0, 0)):
        got = gate_statistics(keep, jnp.float32(factor), inputs, state).time_constant
        np.testing.assert_allclose(got, np.full((T, 2), expected), **FLOAT32)


@pytest.mark.parametrize("measure", [saturation, gate_statistics])
def test_parts_of_different_shapes_are_refused(measure):
    def activate(params, state, gates):
        hidden = jnp.tanh(gates)
        return (hidden, 0.5 * state[1] + hidden[..., None]), hidden

    cell = jaxrnn.Cell(
        init=lambda key, input_size, dtype: (),
        initial_state=lambda batch, dtype: (
            jnp.zeros((*batch, H), dtype),
            jnp.zeros((*batch, H, H), dtype),
        ),
        step=jaxrnn.SplitStep(
            lambda params, inputs: inputs, lambda params, state: state[0], activate
        ),
    )
    message = r"cell: got a state of .*float32\[2, 4\], .*\[2, 4, 4\]\), expected parts of the same"
    with pytest.raises(ValueError, match=message):
        measure(cell, (), jnp.ones((T, 2, H)))


@pytest.mark.parametrize("measure", [saturation, gate_statistics])
def test_jit_and_vmap(measure):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, batch=(2, 3))
    expected = measure(cell, params, inputs, state)

    def run(params, inputs, state):
        return measure(cell, params, inputs, state)

    mapped = jax.vmap(run, (None, 1, 0), 1)(params, inputs, state)
    for got in (jax.jit(run)(params, inputs, state), mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), got, expected)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [saturation, gate_statistics])
def test_bad_sequences(measure):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell)
    with pytest.raises(TypeError, match="cell: got str 'gru'"):
        measure("gru", params, inputs, state)
    with pytest.raises(ValueError, match="inputs: got NaN or infinity"):
        measure(cell, params, inputs * np.nan, state)
    with pytest.raises(TypeError, match=r"state\.hidden: got int32"):
        measure(cell, params, inputs, jaxrnn.cells.GRUState(array(np.ones((2, H)), np.int32)))
    with pytest.raises(TypeError, match="params: got LSTMParams"):
        measure(cell, jaxrnn.lstm(H).init(jax.random.key(0), 3), inputs, state)


def test_bad_threshold():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell)
    with pytest.raises(ValueError, match=r"threshold: got -1\.0"):
        saturation(cell, params, inputs, state, threshold=-1.0)


@pytest.mark.parametrize("measure", [spectral_radius, lambda kernel: pascanu_bound(kernel, [1])])
def test_bad_kernels(measure):
    with pytest.raises(ValueError, match=r"kernel: got float32\[3, 4\], expected a square"):
        measure(array(np.ones((3, 4)), np.float32))
    with pytest.raises(ValueError, match=r"kernel: got float32\[3\]"):
        measure(array(np.ones(3), np.float32))
    with pytest.raises(TypeError, match="kernel: got int32"):
        measure(array(np.ones((3, 3)), np.int32))
    with pytest.raises(ValueError, match="kernel: got NaN"):
        measure(array(np.full((3, 3), np.nan), np.float32))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lags": [-1]}, ValueError, r"lags\[0\]: got -1"),
        ({"lags": 3}, TypeError, "lags: got int 3"),
        ({"gamma": -1.0}, ValueError, r"gamma: got -1\.0"),
        (
            {"recurrent_kernel": array(np.ones((2, 3, 3)), np.float32)},
            ValueError,
            "recurrent_kernel: got .* expected one matrix",
        ),
    ],
)
def test_bad_bounds(change, error, message):
    good: dict[str, Any] = {"recurrent_kernel": array(np.eye(3), np.float32), "lags": [1]}
    with pytest.raises(error, match=message):
        pascanu_bound(**{**good, **change})


# Arrays that are no single gate -----------------------------------------------------------------


def packed_lstm():
    """An LSTM whose products are packed: the same numbers, in one array for four gates."""
    plain = jaxrnn.lstm(H)
    parts = plain.split_step
    assert parts is not None

    def activate(params, state, gates):
        return parts.activate(params, state, jnp.split(gates, 4, -1))

    step = jaxrnn.SplitStep(
        lambda params, inputs: inputs @ params.kernel + params.bias,
        lambda params, state: state.hidden @ params.recurrent_kernel,
        activate,
    )
    return plain, plain.replace(step=step, name="packed")


def test_packed_gates_are_refused_where_they_would_count_as_one():
    plain, packed = packed_lstm()
    params, inputs, state = problem(plain)
    message = rf"cell: got packed, whose `\w+` returns .*one array per gate.*\[{H}\]"
    with pytest.raises(ValueError, match=message):
        saturation(packed, params, inputs, state)
    with pytest.raises(ValueError, match=message):
        jaxrnn.wrappers.layer_norm(packed)
    # What looks at the state alone sees no difference.
    for got, expected in zip(
        gate_statistics(packed, params, inputs, state),
        gate_statistics(plain, params, inputs, state),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, **FLOAT32)


def test_a_projection_without_features_is_refused():
    step = jaxrnn.SplitStep(
        lambda params, inputs: (inputs @ params, inputs.sum(-1)),
        lambda params, state: state,
        lambda params, state, gates: 2 * (gates[0] * gates[1][..., None],),
        lambda projected, recurrent: (projected[0] + recurrent, projected[1]),
    )
    cell = jaxrnn.Cell(
        lambda key, size, dtype: jnp.ones((size, H), dtype),
        lambda batch, dtype: jnp.zeros((*batch, H), dtype),
        step,
    )
    with pytest.raises(ValueError, match=r"`project` returns float32\[\] at project\[1\]"):
        jaxrnn.wrappers.layer_norm(cell)


def test_a_cell_without_a_recurrent_product_is_named():
    def activate(params, hidden, gates):
        z, candidate = gates
        hidden = hidden + jax.nn.sigmoid(z) * (candidate - hidden)
        return hidden, hidden

    cell = jaxrnn.Cell(
        lambda key, size, dtype: jnp.ones((size, 2 * H), dtype),
        lambda batch, dtype: jnp.zeros((*batch, H), dtype),
        jaxrnn.SplitStep(lambda p, x: jnp.split(x @ p, 2, -1), lambda p, h: (), activate),
        name="mingru",
    )
    params, inputs = jnp.ones((3, 2 * H)), jnp.ones((T, 2, 3))
    with pytest.raises(ValueError, match="cell: got mingru, which has no recurrent product"):
        saturation(cell, params, inputs)
    # Its gate keeps 1 - sigmoid(3).
    np.testing.assert_allclose(
        gate_statistics(cell, params, inputs).forget, 1 - 1 / (1 + np.exp(-3.0)), rtol=1e-5
    )
    jaxrnn.wrappers.layer_norm(cell)
