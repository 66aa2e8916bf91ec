"""Initialisers: what they draw, in every dtype, and that they are memoised."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import initializers
from tests.tolerances import FLOAT64, STANDARD_ERRORS, x64

# A product of orthogonal 6 by 6 factors in float32, with 6e-8 of rounding an operation.
ORTHOGONAL = 2e-6

# Weights of at most 1 are rounded once to 8 or 11 significant bits, and 6 products are summed up.
ORTHOGONAL_SIXTEEN_BITS = {"bfloat16": 6 * 2**-8, "float16": 6 * 2**-11}

KEY = jax.random.key(0)


def gram(matrix):
    matrix = np.asarray(matrix, np.float64)
    return matrix @ matrix.T


@pytest.mark.parametrize("gain", [1.0, 0.5, 3.0])
def test_orthogonal(gain):
    matrix = initializers.orthogonal(gain)(KEY, (6, 6), jnp.float32)
    np.testing.assert_allclose(gram(matrix) / gain**2, np.eye(6), atol=ORTHOGONAL)
    other = initializers.orthogonal(gain)(jax.random.key(1), (6, 6), jnp.float32)
    assert (np.asarray(matrix) != np.asarray(other)).any()


def test_orthogonal_in_float64():
    with x64():
        matrix = initializers.draw(initializers.orthogonal(), KEY, (6, 6), jnp.dtype("float64"))
        assert matrix.dtype == jnp.float64
        np.testing.assert_allclose(gram(matrix), np.eye(6), **FLOAT64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_draws_in_sixteen_bits_are_those_of_float32_rounded(dtype):
    draws = [
        initializers.draw(initializers.orthogonal(), KEY, (6, 6), jnp.dtype(name), gates=2)
        for name in (dtype, "float32")
    ]
    assert draws[0].dtype == dtype
    np.testing.assert_array_equal(draws[0], draws[1].astype(dtype))
    for block in np.split(np.asarray(draws[0], np.float64), 2, axis=-1):
        np.testing.assert_allclose(gram(block), np.eye(6), atol=ORTHOGONAL_SIXTEEN_BITS[dtype])


MADE = [
    initializers.orthogonal(),
    initializers.identity(),
    initializers.near_identity(),
    initializers.scaled_gaussian(),
    initializers.chrono(10),
]


@pytest.mark.parametrize("init", MADE)
def test_every_initializer_draws_sixteen_bits_and_refuses_integers(init):
    got = init(KEY, (3, 3), jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, init(KEY, (3, 3)).astype(jnp.bfloat16))
    for dtype in (jnp.int32, bool):
        with pytest.raises(TypeError, match=r"dtype: got (int32|bool), expected a floating dtype"):
            init(KEY, (3, 3), dtype)
    with pytest.raises(ValueError, match=r"shape\[0\]: got -1, expected a size"):
        init(KEY, (-1, -1))


def test_the_identity_of_complex_numbers():
    got = initializers.identity(2.0)(KEY, (3, 3), jnp.complex64)
    assert got.dtype == jnp.complex64
    np.testing.assert_array_equal(got, 2 * np.eye(3))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3)])
def test_the_identity_is_a_matrix(shape):
    with pytest.raises(ValueError, match=r"shape: got \(.*\), expected that of a matrix"):
        initializers.identity()(KEY, shape)


@pytest.mark.parametrize(
    ("init", "dtype", "message"),
    [
        (initializers.identity(1e39), "float32", r"gain: got 1e\+39, expected at most 3.4e\+38"),
        (initializers.orthogonal(-1e39), "float32", r"gain: got -1e\+39"),
        (initializers.orthogonal(1e5), "float16", r"gain: .* at most 6.55e\+04, as float16 holds"),
        (initializers.near_identity(1e39), "float32", "noise: got"),
        (initializers.scaled_gaussian(1e39), "float32", "radius: got"),
        (initializers.chrono(1e39), "float32", "max_time: got"),
    ],
)
def test_settings_beyond_the_dtype(init, dtype, message):
    with pytest.raises(ValueError, match=message):
        init(KEY, (3, 3), jnp.dtype(dtype))


def test_each_gate_is_a_draw_of_its_own():
    packed = np.asarray(
        initializers.draw(initializers.orthogonal(), KEY, (6, 6), jnp.dtype("float32"), gates=4)
    )
    assert packed.shape == (6, 24)
    blocks = np.split(packed, 4, axis=-1)
    for number, block in enumerate(blocks):
        np.testing.assert_allclose(gram(block), np.eye(6), atol=ORTHOGONAL)
        for other in blocks[:number]:
            assert np.abs(block - other).max() > 0.1


def test_draws_of_glorot_have_each_gates_variance():
    shape, gates = (100, 50), 4
    kernel = initializers.draw(
        initializers.glorot_uniform, KEY, shape, jnp.dtype("float32"), gates=gates
    )
    limit = np.sqrt(6 / sum(shape))
    assert 0.999 * limit < np.abs(kernel).max() <= limit
    # A uniform's variance is limit**2 / 3; its estimate from n draws is off by 0.9 / sqrt(n).
    assert abs(np.var(kernel) / (limit**2 / 3) - 1) < STANDARD_ERRORS * 0.9 / np.sqrt(kernel.size)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identity(shape, dtype):
    matrix = initializers.identity(2.0)(KEY, shape, jnp.dtype(dtype))
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(matrix.astype(jnp.float32), 2 * np.eye(*shape))


def test_identity_in_an_elman_cell_adds_its_inputs_up():
    cell = jaxrnn.elman(2, activation=jax.nn.relu, recurrent_init=initializers.identity())
    params = cell.init(KEY, 2)._replace(kernel=jnp.eye(2))
    inputs = jnp.arange(10.0).reshape(5, 2)
    _, outputs = jaxrnn.unroll(cell, params, inputs)
    np.testing.assert_array_equal(outputs, np.cumsum(inputs, axis=0))


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
def test_scaled_gaussian_has_the_radius_exactly(radius):
    matrix = np.asarray(initializers.scaled_gaussian(radius)(KEY, (20, 20), jnp.float32))
    assert np.abs(np.linalg.eigvals(matrix)).max() == pytest.approx(radius, rel=1e-5)
    other = initializers.scaled_gaussian(2 * radius)(KEY, (20, 20), jnp.float32)
    np.testing.assert_allclose(other, 2 * matrix, rtol=1e-5)


def test_near_identity():
    matrix = np.asarray(initializers.near_identity(0.1, 0.5)(KEY, (200, 200), jnp.float32))
    noise = matrix - 0.5 * np.eye(200)
    # The circular law's radius is 0.1, with an error that falls as 1 / sqrt(units).
    assert np.abs(np.linalg.eigvals(noise)).max() == pytest.approx(0.1, rel=0.15)
    assert np.std(noise) == pytest.approx(0.1 / np.sqrt(200), rel=5 / np.sqrt(2 * noise.size))
    without = initializers.near_identity(0.0)(KEY, (3, 3), jnp.float32)
    np.testing.assert_array_equal(without, np.eye(3))


def test_chrono():
    bias = np.asarray(initializers.chrono(100)(KEY, (10_000,), jnp.float32), float)
    times = np.exp(bias)
    assert times.min() == pytest.approx(1, abs=0.1)
    assert times.max() == pytest.approx(99, abs=0.1)
    # Uniform: of n draws the mean is off by the spread / sqrt(n), here 0.28.
    assert times.mean() == pytest.approx(50, abs=5 * 0.28)
    assert times.std() == pytest.approx(98 / np.sqrt(12), rel=0.03)


@functools.cache
def horizon_of(activation):
    """Return a function from a recurrent kernel to its network's horizon and decay rate."""
    cell = jaxrnn.elman(32, activation=activation)
    rng = np.random.default_rng(0)
    kernel = jnp.float32(rng.normal(size=(2, 32)) / 4)
    inputs = jnp.float32(0.3 * rng.normal(size=(100, 4, 2)))
    weights = jnp.float32(rng.normal(size=32))

    @jax.jit
    def measure(recurrent_kernel):
        params = jaxrnn.cells.ElmanParams(kernel, recurrent_kernel, jnp.zeros(32))
        norms = jaxrnn.diagnostics.gradient_norms(
            lambda outputs: (outputs[-1] @ weights).sum(), cell, params, inputs
        )
        horizon = jaxrnn.diagnostics.gradient_horizon(norms)
        return horizon.steps, horizon.decay_rate

    return lambda init: [float(part) for part in measure(init(KEY, (32, 32), jnp.float32))]


def gaussian(size):
    return lambda key, shape, dtype: size * jax.random.normal(key, shape, dtype)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("activation", "worse", "better"),
    [
        # Saxe et al.: no shrinking at gain 1, where each of a Gaussian matrix's products spreads.
        slow(jax.nn.identity, gaussian(32**-0.5), initializers.orthogonal()),
        # And in a nonlinear network a gain above 1 makes up for the activation.
        slow(jnp.tanh, initializers.orthogonal(0.8), initializers.orthogonal()),
        slow(jnp.tanh, initializers.orthogonal(), initializers.orthogonal(1.1)),
        # Le et al. compare with a Gaussian matrix of small weights.
        (jax.nn.relu, gaussian(0.001), initializers.identity()),
        (jax.nn.relu, initializers.orthogonal(), initializers.identity()),
        # Jaeger: the memory fades the more slowly, the closer the radius is to 1.
        slow(jnp.tanh, initializers.scaled_gaussian(0.5), initializers.scaled_gaussian(0.95)),
        (jax.nn.relu, gaussian(32**-0.5), initializers.near_identity()),
        slow(jax.nn.identity, initializers.near_identity(0.3), initializers.near_identity(0.01)),
    ],
)
def test_remedies_bring_the_gradients_decay_nearer_to_none(activation, worse, better):
    (steps, rate), (longer, slower) = map(horizon_of(activation), (worse, better))
    assert longer >= steps
    assert abs(slower) < abs(rate) / 1.5


@pytest.mark.slow
def test_horizons_of_linear_networks_are_what_the_papers_say():
    measure = horizon_of(jax.nn.identity)
    for gain in (0.9, 1.0, 1.1):
        assert measure(initializers.orthogonal(gain))[1] == pytest.approx(-np.log(gain), abs=1e-4)
    # The largest eigenvalue decides in the end; the first steps know of the others, too.
    _, rate = measure(initializers.scaled_gaussian(0.9))
    assert rate == pytest.approx(-np.log(0.9), abs=0.02)
    # No more than `noise` nats a step, within the spread of a matrix of 32 units.
    for noise in (0.1, 0.01):
        assert abs(measure(initializers.near_identity(noise))[1]) < 1.5 * noise


@pytest.mark.slow
def test_chrono_lengthens_the_memory_and_the_horizon_of_an_lstm():
    cell = jaxrnn.lstm(16)
    plain = cell.init(KEY, 2)
    forget = initializers.chrono(100)(jax.random.key(1), (16,), jnp.float32)
    chrono = plain._replace(bias=jnp.concatenate([-forget, forget, jnp.zeros(32)]))
    inputs = 0.1 * jax.random.normal(jax.random.key(2), (200, 2))
    rates, times = [], []
    for params in (plain, chrono):
        norms = jaxrnn.diagnostics.gradient_norms(lambda o: o[-1].sum(), cell, params, inputs)
        rates.append(float(jaxrnn.diagnostics.gradient_horizon(norms).decay_rate))
        gates = jaxrnn.diagnostics.gate_statistics(cell, params, inputs)
        times.append(float(gates.time_constant.mean()))
    assert rates[1] < rates[0] / 2
    assert times[1] > 2 * times[0]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_unitary(dtype):
    with x64():
        matrix = np.asarray(initializers.unitary()(KEY, (20, 20), jnp.dtype(dtype)))
    assert matrix.dtype == dtype
    # Products of 20 factors, rounded to 6e-8 or 1e-16.
    error = {"complex64": 1e-6, "complex128": 1e-14}[dtype]
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(20), atol=error)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(matrix)), 1, atol=10 * error)


def test_unitary_is_drawn_by_haars_measure():
    size, count = 4, 4000
    keys = jax.random.split(KEY, count)
    draw = functools.partial(initializers.unitary(), shape=(size, size))
    matrices = np.asarray(jax.vmap(draw)(keys))
    powers, traces = matrices, []
    for power in (1, 2, 3):
        traces.append(np.trace(powers, axis1=-2, axis2=-1))
        powers = powers @ matrices
        # Diaconis and Shahshahani: mean 0, mean square modulus `power` up to `size`. Moduli squared
        # are about exponential, so n draws are off by that mean / sqrt(n).
        square = np.abs(traces[-1]) ** 2
        assert abs(traces[-1].mean()) < STANDARD_ERRORS * np.sqrt(power / count)
        assert square.mean() == pytest.approx(power, rel=5 / np.sqrt(count))
    # The phases of all eigenvalues are spread evenly: Kolmogorov and Smirnov's distance, with 2.0
    # for one in a thousand if they were independent; as they repel one another it is less.
    phases = np.sort(np.angle(np.linalg.eigvals(matrices)).ravel()) / (2 * np.pi) + 0.5
    distance = np.abs(phases - np.arange(phases.size) / phases.size).max()
    assert distance < 2.0 / np.sqrt(phases.size)
    # What NumPy's factorisation alone gives is not: its R has a real positive diagonal or not, and
    # the check sees that.
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, count, size, size))
    planted = np.linalg.qr(normal[0] + 1j * normal[1])[0]
    square = np.abs(np.trace(planted, axis1=-2, axis2=-1)) ** 2
    assert square.mean() != pytest.approx(1, rel=5 / np.sqrt(count))


@pytest.mark.slow
def test_a_unitary_kernel_carries_a_complex_state_for_ever():
    """By Arjovsky et al. no gradient vanishes; scaled Gaussian ones with radius 0.9 do."""

    def cell_of(recurrent_init):
        def init(key, input_size, dtype):
            del input_size
            return recurrent_init(key, (8, 8), jnp.result_type(dtype, jnp.complex64))

        def initial_state(batch_shape, dtype):
            return jnp.zeros((*batch_shape, 8), jnp.result_type(dtype, jnp.complex64))

        def step(params, state, inputs):
            state = state @ params + inputs
            return state, state.real

        return jaxrnn.Cell(init, initial_state, step, name="complex")

    inputs = jnp.ones((300, 1))
    for init, lasts in [
        (initializers.unitary(), True),
        (lambda *draw: 0.9 * initializers.unitary()(*draw), False),
    ]:
        cell = cell_of(init)
        params = cell.init(KEY, 1)
        norms = jaxrnn.diagnostics.gradient_norms(
            lambda outputs: outputs[-1].sum(), cell, params, inputs
        )
        horizon = jaxrnn.diagnostics.gradient_horizon(norms)
        expected = 0 if lasts else -np.log(0.9)
        np.testing.assert_allclose(horizon.decay_rate, expected, atol=1e-5)
        assert np.isinf(horizon.steps) == lasts


def test_unitary_refuses_real_dtypes_and_a_precision_that_is_not_enabled():
    assert initializers.unitary() is initializers.unitary()
    with pytest.raises(TypeError, match="dtype: got float32, expected complex64 or complex128"):
        initializers.unitary()(KEY, (3, 3), jnp.float32)
    with pytest.raises(ValueError, match="dtype complex128: got float64, which JAX turns into"):
        initializers.unitary()(KEY, (3, 3), np.complex128)


@pytest.mark.parametrize(
    "make", [initializers.scaled_gaussian, initializers.near_identity, initializers.unitary]
)
def test_square_shapes_only(make):
    with pytest.raises(ValueError, match=r"shape: got \(3, 4\), expected a square"):
        make()(KEY, (3, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"shape: got \(0, 0\), expected a square"):
        make()(KEY, (0, 0))


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (initializers.scaled_gaussian, ("1",), TypeError, "radius: got str"),
        (initializers.scaled_gaussian, (-1.0,), ValueError, "radius: got -1"),
        (initializers.near_identity, (-1.0,), ValueError, "noise: got -1"),
        (initializers.near_identity, (0.1, None), TypeError, "gain: got NoneType"),
        (initializers.chrono, (2,), ValueError, "max_time: got 2.0, expected more than 2"),
        (initializers.chrono, (np.inf,), ValueError, "max_time: got inf"),
        (initializers.chrono, (True,), TypeError, "max_time: got bool"),
    ],
)
def test_bad_settings(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(*arguments)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "init",
    [initializers.scaled_gaussian(), initializers.near_identity(), initializers.chrono(10)],
)
def test_cells_take_them_and_equal_settings_are_one_function(init, dtype):
    assert initializers.scaled_gaussian(1) is initializers.scaled_gaussian()
    assert initializers.near_identity(0.01, 1) is initializers.near_identity()
    assert initializers.chrono(10.0) is initializers.chrono(10)
    params = jaxrnn.gru(4, recurrent_init=init).init(KEY, 3, dtype=dtype)
    assert params.recurrent_kernel.shape == (4, 12)
    assert params.recurrent_kernel.dtype == dtype


@pytest.mark.parametrize("make", [initializers.orthogonal, initializers.identity])
def test_equal_settings_give_the_same_function_and_cell(make):
    assert make() is make(1) is make(1.0) is make(gain=np.float32(1.0))
    assert make(0.5) is not make(1.0)
    assert jaxrnn.gru(3, recurrent_init=make(0.5)) is jaxrnn.gru(3, recurrent_init=make(0.5))


def test_the_default_is_the_same_as_the_one_asked_for():
    assert jaxrnn.elman(3, recurrent_init=initializers.orthogonal()) is jaxrnn.elman(3)
    assert jaxrnn.elman(3, recurrent_init=initializers.orthogonal(1.0)) is jaxrnn.elman(3)


def test_an_initializer_of_another_shape():
    def transposed(key, shape, dtype):
        return jnp.zeros(shape[::-1], dtype)

    with pytest.raises(ValueError, match=r"initializer: got .* shape \(4, 3\), expected \(3, 4\)"):
        initializers.draw(transposed, KEY, (3, 4), jnp.dtype("float32"))
    for layer in (
        jaxrnn.rnn(jaxrnn.lstm(4, kernel_init=transposed)),
        jaxrnn.dense(4, kernel_init=transposed),
    ):
        with pytest.raises(ValueError, match=r"shape \(4, 3\), expected \(3, 4\)"):
            layer.init(KEY, 3)


@pytest.mark.parametrize(
    ("init", "got"),
    [
        (lambda key, shape, dtype: initializers.unitary()(key, shape), "complex64"),
        (lambda key, shape, dtype: np.ones(shape, np.int32), "int32"),
    ],
)
def test_an_initializer_of_another_kind_of_numbers(init, got):
    with pytest.raises(TypeError, match=rf"initializer: got {got}\[3, 3\], expected floating num"):
        initializers.draw(init, KEY, (3, 3), jnp.dtype("float32"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": jnp.dtype("int32")}, TypeError, "dtype: got int32, expected a floating dtype"),
        ({"gates": 0}, ValueError, "gates: got 0, expected an integer of at least 1"),
        ({"gates": 1.5}, TypeError, "gates: got float 1.5"),
    ],
)
def test_bad_draws(change, error, message):
    with pytest.raises(error, match=message):
        initializers.draw(
            initializers.zeros, KEY, (3, 3), **{"dtype": jnp.dtype("float32"), **change}
        )


@pytest.mark.parametrize("make", [initializers.orthogonal, initializers.identity])
@pytest.mark.parametrize(
    ("gain", "error"),
    [
        ("1", TypeError),
        (True, TypeError),
        (None, TypeError),
        (np.ones(3), TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
    ],
)
def test_bad_gain(make, gain, error):
    with pytest.raises(error, match="gain: got"):
        make(gain)


def test_under_vmap_no_factorisation_is_batched():
    """Several batched ones in a program can wait for one another without end."""
    init = initializers.orthogonal()
    keys = jax.random.split(KEY, 5)
    text = str(jax.make_jaxpr(jax.vmap(lambda key: init(key, (3, 3), jnp.float32)))(keys))
    assert re.search(r"f32\[3,3\] = (qr|geqrf)\[", text)
    assert not re.search(r"\[5,3,3\] = (qr|geqrf)\[", text)
    np.testing.assert_array_equal(
        jax.vmap(lambda k: init(k, (3, 3)))(keys)[4], init(keys[4], (3, 3))
    )
