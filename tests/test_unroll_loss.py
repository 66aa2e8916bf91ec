"""The loss that is added up on the way, against the plain one."""

import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from tests.cells import DEEP
from tests.problems import problem
from tests.tolerances import FLOAT32, FLOAT64

H, T, B, SYMBOLS = 3, 12, 2, 5
untyped: Any = jaxrnn


def cross_entropy(readout, outputs, labels):
    logits = outputs @ readout
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


@pytest.fixture
def data():
    labels = jax.random.randint(jax.random.key(4), (T, B), 0, SYMBOLS)
    return jax.random.normal(jax.random.key(3), (H, SYMBOLS)), labels


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
@pytest.mark.parametrize(
    "chunk", [5, *[pytest.param(chunk, marks=pytest.mark.slow) for chunk in (None, 4, 1, T)]]
)
def test_values_and_gradients_are_those_of_the_plain_loss(row, chunk):
    cell = row.make(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    labels = jax.random.randint(jax.random.key(4), (T, B), 0, SYMBOLS)
    readout = jax.random.normal(jax.random.key(3), (H, SYMBOLS))

    def chunked(params, readout, inputs, state):
        loss = functools.partial(cross_entropy, readout)
        final, total = jaxrnn.unroll_loss(loss, cell, params, inputs, labels, state, chunk=chunk)
        return total + jnp.sin(final.hidden).sum(), (final, total)

    def plain(params, readout, inputs, state):
        final, outputs = jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.scan())
        total = cross_entropy(readout, outputs, labels)
        return total + jnp.sin(final.hidden).sum(), (final, total)

    got, expected = (
        jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))(
            params, readout, inputs, state
        )
        for run in (chunked, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


# In chunks of 5 steps: padding that begins within one, and resets at the first step of another.
LENGTHS: Any = np.array([12, 7])
MASK: Any = np.arange(2 * T).reshape(T, 2) % 5 != 2
RESETS: Any = np.isin(np.arange(T)[:, None], [[0], [5], [6], [11]]) & [True, False]
RESETS[8] = True


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [
        {"lengths": LENGTHS, "mask": MASK, "resets": RESETS, "chunk": 5},
        *[
            pytest.param(options, marks=pytest.mark.slow)
            for options in [
                {"lengths": LENGTHS},
                {"mask": MASK, "chunk": 1},
                {"resets": RESETS, "chunk": 4},
                {"lengths": LENGTHS, "resets": RESETS, "engine": jaxrnn.engines.scan()},
            ]
        ],
    ],
)
def test_lengths_masks_and_resets_are_those_of_unroll(data, options):
    cell = jaxrnn.gru(H)
    arguments = problem(cell, length=T, batch=(B,))
    readout, labels = data
    of_unroll = {name: value for name, value in options.items() if name != "chunk"}

    def chunked(params, inputs, state):
        loss = functools.partial(cross_entropy, readout)
        final, total = jaxrnn.unroll_loss(loss, cell, params, inputs, labels, state, **options)
        return total + jnp.sin(final.hidden).sum(), (final, total)

    def plain(params, inputs, state):
        final, outputs = jaxrnn.unroll(cell, params, inputs, state, **of_unroll)
        total = cross_entropy(readout, outputs, labels)
        return total + jnp.sin(final.hidden).sum(), (final, total)

    got, expected = (
        jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(*arguments)
        for run in (chunked, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


def test_the_sum_has_the_dtype_of_the_loss():
    """Sums of bfloat16 lose all but 8 bits, so a loss may be wider than what it is of."""
    cell = jaxrnn.elman(H)
    params, inputs, _ = problem(cell, length=T, batch=(B,), dtype=jnp.bfloat16)

    def loss(outputs, _):
        return outputs.astype(jnp.float32).sum()

    _, total = jaxrnn.unroll_loss(loss, cell, params, inputs, None, chunk=5)
    _, outputs = jaxrnn.unroll(cell, params, inputs)
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, loss(outputs, None), **FLOAT32)


@pytest.mark.slow
def test_it_keeps_no_logits():
    cell = jaxrnn.gru(8)
    params, inputs, _ = problem(cell, length=400, batch=(B,))
    readout, labels = jnp.ones((8, 200)), jnp.zeros((400, B), jnp.int32)

    def chunked(params, readout):
        loss = functools.partial(cross_entropy, readout)
        return jaxrnn.unroll_loss(loss, cell, params, inputs, labels)[1]

    def plain(params, readout):
        return cross_entropy(readout, jaxrnn.unroll(cell, params, inputs)[1], labels)

    def memory(run):
        compiled = jax.jit(jax.grad(run, argnums=(0, 1))).lower(params, readout).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes

    logits = 400 * B * 200 * 4
    assert memory(plain) > logits
    assert memory(chunked) < logits / 4


def test_an_empty_sequence_costs_nothing(data):
    readout, labels = data
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    loss = functools.partial(cross_entropy, readout)
    final, total = jaxrnn.unroll_loss(loss, cell, params, inputs[:0], labels[:0], state)
    np.testing.assert_array_equal(final.hidden, state.hidden)
    assert total == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mean"}, TypeError, "loss: got str 'mean'"),
        ({"loss": lambda outputs, labels: outputs}, TypeError, "loss: returned float32"),
        ({"cell": "gru"}, TypeError, "cell: got str"),
        ({"inputs": jnp.ones(3)}, ValueError, r"inputs: got float32\[3\]"),
        ({"targets": jnp.ones((T - 1, B))}, ValueError, r"targets: got float32\[11, 2\].*12 steps"),
        ({"targets": np.full((T, B), 2**40)}, ValueError, r"targets: got int64\[12, 2\], whose"),
        ({"targets": {"a": 1.0}}, ValueError, r"targets\['a'\]: got float 1.0"),
        ({"chunk": 0}, ValueError, "chunk: got 0"),
        ({"chunk": T + 1}, ValueError, "chunk: got 13 for inputs of 12 steps"),
        ({"engine": "scan"}, TypeError, "engine: got str"),
        ({"state": jnp.ones(3)}, TypeError, "state: got float32"),
        ({"lengths": np.array([T + 1, 0])}, ValueError, "lengths: got integers from 0 to 13"),
        ({"lengths": np.array([T])}, ValueError, r"lengths: got int64\[1\], expected.*\(2,\)"),
        ({"mask": MASK[1:]}, ValueError, r"mask: got bool\[11, 2\], expected bool\[12, 2\]"),
        ({"resets": 1 * RESETS}, TypeError, r"resets: got int64\[12, 2\], expected .*bools"),
    ],
)
def test_bad_input(data, change, error, message):
    readout, labels = data
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    arguments = {
        "loss": functools.partial(cross_entropy, readout),
        "cell": cell,
        "params": params,
        "inputs": inputs,
        "targets": labels,
        "state": state,
        **change,
    }
    with pytest.raises(error, match=message):
        untyped.unroll_loss(**arguments)
