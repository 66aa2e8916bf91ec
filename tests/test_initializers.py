"""Initialisers: what they draw, in every dtype, and that they are memoised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import initializers
from tests.tolerances import FLOAT64, x64

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
    assert abs(np.var(kernel) / (limit**2 / 3) - 1) < 5 * 0.9 / np.sqrt(kernel.size)


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

    with pytest.raises(ValueError, match=r"initializer: got .* shape \(4, 3\), wanted \(3, 4\)"):
        initializers.draw(transposed, KEY, (3, 4), jnp.dtype("float32"))
    for layer in (
        jaxrnn.rnn(jaxrnn.lstm(4, kernel_init=transposed)),
        jaxrnn.dense(4, kernel_init=transposed),
    ):
        with pytest.raises(ValueError, match=r"shape \(4, 3\), wanted \(3, 4\)"):
            layer.init(KEY, 3)


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
