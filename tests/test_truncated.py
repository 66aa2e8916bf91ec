"""Truncated backpropagation: against NumPy window by window, the full gradient, and its memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from tests.cells import CELLS, DEEP, complex_step_gradient, numpy_unroll
from tests.problems import drawn, problem
from tests.tolerances import FLOAT64

H, T, B = 3, 12, 2
KEY = jax.random.key(0)
untyped: Any = jaxrnn
# One that gives its last output alone.
LAST = jaxrnn.rnn(jaxrnn.gru(H), return_sequences=False)


def squared_error(outputs, targets):
    return ((outputs - targets) ** 2).sum()


def drawn_problem(cell):
    params, inputs, state = problem(cell, length=T, batch=(B,))
    return params, inputs, 0.5 * np.random.default_rng(7).normal(size=(T, B, H)), state


def numpy_window(row, params, inputs, targets, state, k1):
    """Loss and gradient of the last k1 of some steps, their first state a constant."""

    def loss(params):
        _, outputs = numpy_unroll(row, params, inputs, state)
        return squared_error(outputs[-k1:], targets[-k1:])

    return loss(params), complex_step_gradient(loss, params)


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


# The function -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
@pytest.mark.parametrize(
    ("k1", "k2"),
    [
        (3, 5),
        *[
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [(1, 1), (1, 5), (2, 3), (3, 3), (3, 9), (4, 11), (6, 12)]
        ],
    ],
)
def test_it_is_the_sum_of_windows_each_from_a_constant_state(row, k1, k2):
    params, inputs, targets, state = drawn_problem(row.make(H))
    model = jaxrnn.rnn(row.make(H))
    got = jaxrnn.training.truncated_gradient(
        model, squared_error, params, inputs, targets, state, k1=k1, k2=k2
    )
    total, gradient = 0.0, jax.tree.map(np.zeros_like, params)
    for end in range(k1, T + 1, k1):
        start = max(0, end - k2)
        before, _ = numpy_unroll(row, params, inputs[:start], state) if start else (state, None)
        value, more = numpy_window(row, params, inputs[start:end], targets[start:end], before, k1)
        total, gradient = total + value, jax.tree.map(np.add, gradient, more)
    final, _ = numpy_unroll(row, params, inputs, state)
    close(tuple(got[0]), final)
    close(got[1:], (total, gradient))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("k1", "k2"), [(T, None), pytest.param(1, T, marks=pytest.mark.slow)])
def test_windows_back_to_the_start_give_the_full_gradient(k1, k2):
    """Also of a stack, on integers, whose readout has no state, from the initial one."""
    model = jaxrnn.serial(jaxrnn.embedding(5, 2), jaxrnn.rnn(jaxrnn.gru(H)), jaxrnn.dense(5))
    params = drawn(jax.eval_shape(lambda: model.init(KEY)), 0)
    text = jnp.asarray(np.random.default_rng(0).integers(0, 5, (T, B)))
    state = model.initial_state((B,), dtype=jnp.float64)

    def loss(outputs, labels):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum()

    def full(params):
        final, outputs = model.apply(params, state, text)
        return loss(outputs, text), final

    (value, final), gradient = jax.jit(jax.value_and_grad(full, has_aux=True))(params)
    got = jaxrnn.training.truncated_gradient(model, loss, params, text, text, state, k1=k1, k2=k2)
    close(got, (final, value, gradient))


def test_resets_are_carried_to_a_window_that_brings_none():
    cell = jaxrnn.gru(H)
    params, inputs, _ = problem(cell, length=4, batch=(B,))
    outputs = jnp.zeros((4, B, H))
    loss = jaxrnn.training.truncated_loss(
        jaxrnn.rnn(cell), lambda got, expected: jnp.square(got - expected).sum(), k1=2, k2=4
    )
    resets = jnp.zeros((2, B), bool)
    carry = loss.initial_carry(inputs)
    _, carry = loss(params, carry, (inputs[:2], outputs[:2], {"resets": resets.at[1].set(True)}))
    bare, _ = loss(params, carry, (inputs[2:], outputs[2:]))
    flagged, _ = loss(params, carry, (inputs[2:], outputs[2:], {"resets": resets}))
    np.testing.assert_array_equal(bare, flagged)
    _, expected = jaxrnn.unroll(cell, params, inputs[1:])
    np.testing.assert_allclose(bare, jnp.square(expected[1:]).sum(), **FLOAT64)


# A gap, padding at the end, and resets on the first step of a window, within one, and in the gap.
LENGTHS: Any = np.array([T, T - 3])
MASK: Any = np.arange(T)[:, None] != [[4, 2]]
RESETS: Any = (np.arange(T)[:, None] == [[3, 8]]) | (np.arange(T)[:, None] == [[4, 11]])
FLAGS = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}


def flagged_problem(cell):
    """A cell's layer, parameters, inputs, targets, state; padding is told from the rest by a 0."""
    params, inputs, targets, state = drawn_problem(cell)
    real = MASK & (np.arange(T)[:, None] < LENGTHS)
    return jaxrnn.rnn(cell), params, inputs, (targets, real[..., None]), state


def masked_error(outputs, targets):
    targets, real = targets
    return (real * (outputs - targets) ** 2).sum()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("k1", "k2"), [(T, T), *[pytest.param(*p, marks=pytest.mark.slow) for p in [(1, T), (3, T)]]]
)
def test_with_flags_windows_back_to_the_start_give_the_full_gradient(k1, k2):
    model, params, inputs, targets, state = flagged_problem(jaxrnn.gru(H))

    def full(params):
        final, outputs = model.apply(params, state, inputs, **FLAGS)
        return masked_error(outputs, targets), final

    (value, final), gradient = jax.jit(jax.value_and_grad(full, has_aux=True))(params)
    arguments = model, masked_error, params, inputs, targets, state
    got = jaxrnn.training.truncated_gradient(*arguments, k1=k1, k2=k2, **FLAGS)
    close(got, (final, value, gradient))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("k1", "k2"), [(3, 5), (3, 3)])
def test_fit_heeds_flags_of_each_window(k1, k2):
    """Without learning, windows in a row are `truncated_gradient`, and the state goes on."""
    model, params, inputs, targets, state = flagged_problem(jaxrnn.lstm(H))
    loss = jaxrnn.training.truncated_loss(model, masked_error, k1=k1, k2=k2)
    flags = {"mask": targets[1][..., 0], "resets": RESETS & (np.arange(T)[:, None] < LENGTHS)}
    windows = jax.tree.map(
        lambda leaf: leaf.reshape(-1, k1, *leaf.shape[1:]), (inputs, targets, flags)
    )
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    carry, total, gradient = loss.initial_carry(inputs, state), 0.0, None
    for number in range(T // k1):
        batch = jax.tree.map(lambda leaf, number=number: leaf[number], windows)
        (value, carry), more = step(params, carry, batch)
        total += value
        gradient = more if gradient is None else jax.tree.map(jnp.add, gradient, more)
    arguments = model, masked_error, params, inputs, targets, state
    expected = jaxrnn.training.truncated_gradient(*arguments, k1=k1, k2=k2, **FLAGS)
    close((total, gradient), expected[1:])
    result = jaxrnn.fit(
        loss,
        params,
        optax.sgd(0.0),
        windows,
        steps=T // k1,
        key=KEY,
        carry=loss.initial_carry(inputs, state),
    )
    close(result.losses.sum(), expected[1])
    close(result.carry, carry)


@pytest.mark.usefixtures("float64")
def test_no_gradient_passes_a_reset():
    """Whatever k2 is: each part's gradient is that of a sequence of its own."""
    cell = jaxrnn.gru(H)
    params, inputs, targets, _ = drawn_problem(cell)
    run = functools.partial(
        jaxrnn.training.truncated_gradient, jaxrnn.rnn(cell), squared_error, params, k1=2
    )
    resets = jnp.broadcast_to(jnp.arange(T)[:, None] == 6, (T, B))
    whole = run(inputs, targets, k2=10, resets=resets)
    first, second = (run(inputs[at], targets[at], k2=6) for at in (slice(6), slice(6, None)))
    close(whole[0], second[0])
    close(whole[1:], jax.tree.map(jnp.add, first[1:], second[1:]))


def test_a_truncated_gradient_is_not_the_full_one():
    """Over a constant loss of memory: the sum s_t = w s_(t-1) + x_t, whose gradient is known."""
    cell = jaxrnn.elman(1, activation=jax.nn.identity, use_bias=False)
    params = jaxrnn.cells.ElmanParams(jnp.ones((1, 1)), jnp.ones((1, 1)), None)
    inputs = jnp.ones((T, 1))

    def gradient(k2):
        loss = lambda outputs, targets: outputs.sum()  # noqa: E731
        model = jaxrnn.rnn(cell)
        return jaxrnn.training.truncated_gradient(model, loss, params, inputs, None, k1=1, k2=k2)[2]

    # d s_t / d w at w = 1 is the sum of the states before: of the last k2, 0 + 1 + ... + t - 1.
    for k2 in (1, 4):
        expected = sum(sum(range(max(0, t - k2), t)) for t in range(1, T + 1))
        assert gradient(k2).recurrent_kernel == expected


@pytest.mark.slow
def test_dropout_draws_anew_in_every_window():
    model = jaxrnn.serial(jaxrnn.dropout(0.5), jaxrnn.rnn(jaxrnn.elman(H)))
    params = drawn(jax.eval_shape(lambda: model.init(KEY, 3)), 0)
    inputs = jnp.ones((4, B, 3))
    noise = []
    for key in (None, KEY, KEY, jax.random.key(1)):
        run = functools.partial(jaxrnn.training.truncated_gradient, key=key, k1=1)
        noise.append(run(model, lambda y, _: y.sum(), params, inputs, None)[1])
    assert noise[1] == noise[2]
    assert len({float(value) for value in noise}) == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sequence():
    cell = jaxrnn.lstm(16)
    model = jaxrnn.rnn(cell)
    params = jax.eval_shape(lambda: cell.init(KEY, 3))

    def memory(steps):
        inputs, targets = (
            jax.ShapeDtypeStruct((steps, B, features), jnp.float32) for features in (3, 16)
        )
        run = functools.partial(
            jaxrnn.training.truncated_gradient, model, squared_error, k1=5, k2=10
        )
        analysis: Any = jax.jit(run).lower(params, inputs, targets).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert memory(2000) <= memory(50)


def test_it_compiles_once(compilations):
    model = jaxrnn.rnn(jaxrnn.elman(H))
    params, _, _ = problem(jaxrnn.elman(H))
    inputs, targets = jnp.ones((4, B, 3)), jnp.ones((4, B, H))
    run = functools.partial(jaxrnn.training.truncated_gradient, model, squared_error, params, k1=2)
    run(inputs, targets)
    before = compilations()
    run(inputs, targets)
    assert compilations() == before


# In fit -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_fit_trains_window_by_window_with_overlap():
    (row,) = (row for row in CELLS if row.name == "elman")
    params, inputs, targets, state = drawn_problem(row.make(H))
    k1, k2, rate = 2, 5, 0.05
    loss = jaxrnn.training.truncated_loss(jaxrnn.rnn(row.make(H)), squared_error, k1=k1, k2=k2)
    windows = jax.tree.map(lambda leaf: leaf.reshape(-1, k1, *leaf.shape[1:]), (inputs, targets))
    result = jaxrnn.fit(
        loss,
        params,
        optax.sgd(rate),
        windows,
        steps=T // k1,
        key=KEY,
        carry=loss.initial_carry(inputs, state),
        report_every=4,
    )
    losses, start = [], 0
    for end in range(k1, T + 1, k1):
        value, gradient = numpy_window(
            row, params, inputs[start:end], targets[start:end], state, k1
        )
        losses.append(value)
        # The state goes on as far as the next window's start, with the parameters of this one.
        next_start = max(0, end + k1 - k2)
        if next_start > start:
            state, _ = numpy_unroll(row, params, inputs[start:next_start], state)
            start = next_start
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    close(result.losses, losses)
    close(result.params, params)
    np.testing.assert_array_equal(result.carry.inputs, inputs[-(k2 - k1) :])
    assert result.carry.mask.all()
    assert not result.carry.resets.any()


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": jaxrnn.gru(H)}, TypeError, "model: got Cell.*expected a jaxrnn.Layer"),
        # With k1 steps of k1 sequences, outputs have the shape of those of one step each.
        (
            {"model": LAST, "k1": B},
            ValueError,
            "model: got .*expected one that gives an output for",
        ),
        (
            {"model": dataclasses.replace(LAST, return_sequences=True), "k1": 4},
            ValueError,
            "outputs of model: got .* expected an array of 4 steps",
        ),
        (
            {"model": jaxrnn.rnn(jaxrnn.gru(H), reverse=True)},
            ValueError,
            r"model: got Layer\(rnn\(gru\)\), expected one that streams, from the first step on",
        ),
        (
            {
                "model": jaxrnn.serial(
                    jaxrnn.dense(3), jaxrnn.layers.residual(jaxrnn.bidirectional(jaxrnn.gru(H)))
                )
            },
            ValueError,
            r"model: got Layer\(serial\(2 layers\)\), expected one that streams",
        ),
        (
            {"model": dataclasses.replace(jaxrnn.rnn(jaxrnn.gru(H)), recurrent=False), "k2": 3},
            ValueError,
            "model: .* is stateful but ignores `mask`",
        ),
        ({"inputs": np.ones((T, B, 3))}, ValueError, r"inputs: got float64\[12, 2, 3\], whose val"),
        ({"params": np.ones(3)}, ValueError, r"params: got float64\[3\], whose values change"),
        ({"targets": np.ones((T, B, H))}, ValueError, r"targets: got float64\[12, 2, 3\], whose"),
        ({"loss": "mse"}, TypeError, "loss: got str 'mse'"),
        ({"loss": lambda outputs, targets: outputs}, TypeError, "loss: returned float32"),
        ({"k1": 0}, ValueError, "k1: got 0"),
        ({"k1": 2.0}, TypeError, "k1: got float 2.0"),
        ({"k1": 3, "k2": 2}, ValueError, "k2: got 2, expected at least k1=3"),
        ({"k1": T + 1}, ValueError, "k2=13 steps for a sequence of 12, expected at most 12"),
        ({"k1": 1, "k2": T + 1}, ValueError, "k2=13 steps for a sequence of 12"),
        ({"k1": 5}, ValueError, "inputs: got 12 steps, expected a multiple of k1=5"),
        ({"inputs": 1.0}, TypeError, "inputs: got float 1.0"),
        ({"inputs": jnp.ones(())}, TypeError, r"inputs: got float32\[\]"),
        ({"targets": jnp.ones((T - 1, B))}, ValueError, r"targets: got float32\[11, 2\].*12 steps"),
        ({"state": jnp.ones(3)}, TypeError, "state: got float32"),
        ({"key": 0}, TypeError, "key: got int 0"),
        ({"lengths": np.array([T + 1, 0])}, ValueError, "lengths: got integers from 0 to 13"),
        ({"lengths": np.ones((B, 1), int)}, ValueError, r"lengths: got int64\[2, 1\], expected"),
        ({"mask": np.ones((T, B))}, TypeError, r"mask: got float64\[12, 2\], expected .*bools"),
        ({"resets": RESETS[1:]}, ValueError, r"resets: got bool\[11, 2\], expected bool\[12, 2\]"),
    ],
)
def test_bad_input(change, error, message):
    model = jaxrnn.rnn(jaxrnn.gru(H))
    params, inputs, _ = problem(jaxrnn.gru(H), length=T, batch=(B,))
    arguments = {
        "model": model,
        "loss": squared_error,
        "params": params,
        "inputs": inputs,
        "targets": jnp.zeros((T, B, H)),
        "k1": 2,
        **change,
    }
    with pytest.raises(error, match=message):
        untyped.training.truncated_gradient(**arguments)


MODEL = jaxrnn.rnn(jaxrnn.elman(3))


@pytest.mark.parametrize("inputs", [None, 1.0, jnp.ones(())])
def test_bad_input_of_initial_carry(inputs):
    loss: Any = jaxrnn.training.truncated_loss(MODEL, squared_error, k1=2)
    with pytest.raises(
        TypeError, match=r"inputs: got .*, expected an array \(T, \*batch, \.\.\.\)"
    ):
        loss.initial_carry(inputs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"carry": None}, TypeError, "carry: got tuple.*expected what initial_carry returns"),
        (
            {"carry": jnp.ones(3)},
            TypeError,
            r"carry: got float32\[3\], expected what initial_carry",
        ),
        *[
            (
                {
                    "carry": jaxrnn.training.truncated_loss(
                        MODEL, squared_error, k1=2, k2=k2
                    ).initial_carry(x)
                },
                ValueError,
                r"carry.inputs: got .*, expected float32\[1, 2, 3\] for the k2 - k1 = 1 steps",
            )
            for k2, x in [
                (4, jnp.ones((2, B, 3))),
                (3, jnp.ones((2, B + 1, 3))),
                (3, jnp.ones((4, 2, B, 3))),
            ]
        ],
        ({"batches": jnp.ones((4, 2, B, 3))}, TypeError, "batch: got float32"),
        ({"batches": 2 * (jnp.ones((4, 3, B, 3)),)}, ValueError, "inputs: .* expected k1=2 steps"),
        ({"batches": 3 * (jnp.ones((4, 2, B, 3)),)}, TypeError, r"flags: got float32.* a dict of"),
        (
            {"batches": (*2 * (jnp.ones((4, 2, B, 3)),), {"reset": jnp.ones((4, 2, B), bool)})},
            TypeError,
            "flags: got dict .*expected a dict of mask and resets",
        ),
        (
            {"batches": (*2 * (jnp.ones((4, 2, B, 3)),), {"mask": jnp.ones((4, 2), bool)})},
            ValueError,
            r"mask: got bool\[2\], expected bool\[2, 2\]",
        ),
    ],
)
def test_bad_input_in_fit(change, error, message):
    loss = jaxrnn.training.truncated_loss(MODEL, squared_error, k1=2, k2=3)
    batches = 2 * (jnp.ones((4, 2, B, 3)),)
    carry = loss.initial_carry(batches[0][0])
    arguments = {"carry": carry, "batches": batches, "steps": 2, "key": KEY, **change}
    with pytest.raises(error, match=message):
        untyped.fit(loss, problem(jaxrnn.elman(3))[0], optax.sgd(0.1), **arguments)
