"""Unroll: its options, its derivatives, and what it refuses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.cells import DEEP, innermost, numpy_unroll
from tests.problems import problem
from tests.tolerances import FLOAT64, x64

H, T = 4, 6
untyped: Any = jaxrnn


@pytest.fixture
def gru():
    cell = jaxrnn.gru(H)
    return (cell, *problem(cell))


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
def test_states_are_those_after_each_step(row):
    cell = row.make(H)
    params, inputs, state = problem(cell)
    final, outputs, states = jaxrnn.unroll(cell, params, inputs, state, return_states=True)
    np.testing.assert_array_equal(states.hidden, outputs)
    for t in range(T):
        until, _ = jaxrnn.unroll(cell, params, inputs[: t + 1], state)
        here = jax.tree.map(lambda leaf, t=t: leaf[t], states)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), here, until)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-1], b), states, final)


def test_no_state_is_the_initial_state(row):
    cell = row.make(H)
    params, inputs, _ = problem(cell)
    given = jaxrnn.unroll(cell, params, inputs, cell.initial_state((2,), params=params))
    jax.tree.map(np.testing.assert_array_equal, jaxrnn.unroll(cell, params, inputs), given)


@pytest.mark.parametrize("row", DEEP)
def test_reverse_runs_backwards_and_keeps_places(row):
    with x64():
        cell = row.make(H)
        params, inputs, state = problem(cell, dtype=jnp.float64)
        got_state, outputs, states = jaxrnn.unroll(
            cell, params, inputs, state, reverse=True, return_states=True
        )
        numpy = jax.tree.map(np.asarray, (params, inputs[::-1], state))
        wanted_state, expected = numpy_unroll(row, *numpy)
        np.testing.assert_allclose(outputs, expected[::-1], **FLOAT64)
        np.testing.assert_allclose(states.hidden, expected[::-1], **FLOAT64)
        for ours, theirs in zip(got_state, wanted_state, strict=True):
            np.testing.assert_allclose(ours, theirs, **FLOAT64)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_time_may_come_after_the_batch(batch):
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell, batch=batch)
    final, outputs, states = jaxrnn.unroll(cell, params, inputs, state, return_states=True)
    swapped = jaxrnn.unroll(
        cell, params, jnp.moveaxis(inputs, 0, -2), state, time_major=False, return_states=True
    )
    move = functools.partial(jnp.moveaxis, source=0, destination=len(batch))
    expected = (final, move(outputs), jax.tree.map(move, states))
    jax.tree.map(np.testing.assert_array_equal, swapped, expected)
    assert swapped[1].shape == (*batch, T, H)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
def test_windows_equal_one_long_call(row):
    cell = row.make(H)
    params, inputs, state = problem(cell)
    final, outputs = jaxrnn.unroll(cell, params, inputs, state)
    middle, first = jaxrnn.unroll(cell, params, inputs[:2], state)
    last, second = jaxrnn.unroll(cell, params, inputs[2:], middle)
    np.testing.assert_allclose(jnp.concatenate([first, second]), outputs, **FLOAT64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), last, final)


@pytest.mark.parametrize("row", DEEP)
def test_an_empty_sequence_returns_the_state(row):
    cell = row.make(H)
    params, inputs, state = problem(cell)
    final, outputs, states = jaxrnn.unroll(cell, params, inputs[:0], state, return_states=True)
    jax.tree.map(np.testing.assert_array_equal, final, state)
    assert outputs.shape == (0, 2, H)
    assert {leaf.shape for leaf in states} == {(0, 2, H)}
    gradient = jax.grad(lambda p: jaxrnn.unroll(cell, p, inputs[:0], state)[0].hidden.sum())(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_an_empty_batch_is_no_error():
    cell = jaxrnn.gru(H)
    params, inputs, _ = problem(cell)
    state, outputs = jaxrnn.unroll(cell, params, inputs[:, :0])
    assert outputs.shape == (T, 0, H)
    assert state.hidden.shape == (0, H)


def test_nan_stays_visible_and_in_its_sequence(gru):
    cell, params, inputs, state = gru
    _, outputs = jaxrnn.unroll(cell, params, jnp.asarray(inputs).at[3, 0, 0].set(jnp.nan), state)
    assert np.isfinite(outputs[:3]).all()
    assert np.isnan(outputs[3:, 0]).all()
    assert np.isfinite(outputs[:, 1]).all()


@pytest.mark.usefixtures("float64")
def test_scan_unrolled_is_the_same(gru):
    cell, params, inputs, state = gru
    expected = jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.scan())
    for steps in (2, 4, T, T + 3):
        got = jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.scan(steps))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)
    assert jaxrnn.engines.scan(4) == jaxrnn.engines.scan(unroll=4)


# Derivatives and transformations ---------------------------------------------------------------


@pytest.mark.parametrize("row", DEEP)
def test_jvp_is_the_transpose_of_grad(row):
    with x64():
        cell = row.make(H)
        arguments = problem(cell, dtype=jnp.float64)
        tangents = problem(cell, dtype=jnp.float64, seed=1)

        def loss(*arguments):
            return jnp.sin(flat(jaxrnn.unroll(cell, *arguments))).sum()

        _, forward = jax.jit(lambda *both: jax.jvp(loss, *both))(arguments, tangents)
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
        np.testing.assert_allclose(forward, flat(gradients) @ flat(tangents), **FLOAT64)


@pytest.mark.parametrize("row", DEEP)
@pytest.mark.slow
def test_hessian_is_the_slope_of_the_gradient(row):
    with x64():
        cell = row.make(2)
        params, inputs, state = problem(cell, length=3, batch=(), features=2, dtype=jnp.float64)

        kernel = innermost(params).recurrent_kernel

        def loss(new):
            replaced = jax.tree.map(lambda leaf: new if leaf is kernel else leaf, params)
            return jnp.sin(flat(jaxrnn.unroll(cell, replaced, inputs, state))).sum()

        hessian = jax.jit(jax.hessian(loss))(kernel).reshape(kernel.size, kernel.size)
        np.testing.assert_allclose(hessian, hessian.T, **FLOAT64)
        direction = np.cos(np.arange(kernel.size)).reshape(kernel.shape)
        step = 1e-5
        gradient = jax.jit(jax.grad(loss))
        ends = [gradient(kernel + sign * step * direction) for sign in (1, -1)]
        slope = (ends[0] - ends[1]).ravel() / (2 * step)
        # The central difference is off by step**2 times the fourth derivative.
        np.testing.assert_allclose(hessian @ direction.ravel(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
@pytest.mark.slow
def test_vmap_over_seeds_inputs_and_gradients(row):
    cell = row.make(H)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(jax.random.key(1), (3, T, 2, 5))
    params = jax.vmap(lambda key: cell.init(key, 5, dtype=inputs.dtype))(keys)

    def loss(params, inputs):
        return jnp.square(jaxrnn.unroll(cell, params, inputs)[1]).sum()

    single = jax.jit(jax.value_and_grad(loss))
    both = jax.jit(jax.vmap(single))(params, inputs)
    seeds = jax.jit(jax.vmap(single, (0, None)))(params, inputs[0])
    for number in range(3):
        one = jax.tree.map(lambda leaf, number=number: leaf[number], params)
        for got, x in ((both, inputs[number]), (seeds, inputs[0])):
            here = jax.tree.map(lambda leaf, number=number: leaf[number], got)
            expected = single(one, x)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), here, expected)


@pytest.mark.usefixtures("float64")
def test_per_example_gradients(gru):
    cell, params, inputs, _ = gru

    def loss(params, inputs):
        return jnp.square(jaxrnn.unroll(cell, params, inputs)[1]).sum()

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 1)))(params, inputs)
    whole = jax.jit(jax.grad(loss))(params, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, **FLOAT64), each, whole)


def test_a_weakly_typed_state_is_traced_once():
    traces = []

    def step(params, state, inputs):
        traces.append(None)
        return state + inputs, state

    cell = jaxrnn.Cell(
        lambda key, size, dtype: (), lambda batch, dtype: jnp.zeros((*batch, 1)), step
    )
    weak = jnp.asarray(0.0)[None]
    jaxrnn.unroll(cell, (), jnp.ones((3, 1)), weak)
    count = len(traces)
    jaxrnn.unroll(cell, (), jnp.ones((3, 1)), jnp.zeros(1))
    jaxrnn.unroll(cell, (), jnp.ones((3, 1)), weak)
    assert len(traces) == count


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": jnp.ones(3)}, ValueError, r"inputs: got float32\[3\], expected .*\(T, \*batch"),
        (
            {"inputs": jnp.ones((T, 2, 5))},
            ValueError,
            r"params.kernel: got .* inputs of float32\[6, 2, 5\]",
        ),
        ({"inputs": jnp.ones((T, 2, 0))}, ValueError, "inputs: got .* at least 1 feature"),
        (
            {"inputs": jnp.ones((T, 7, 3))},
            ValueError,
            r"state.hidden: got float32\[2, 4\], expected float32\[7, 4\]",
        ),
        (
            {"inputs": jnp.ones((T, 3))},
            ValueError,
            r"state.hidden: got float32\[2, 4\], expected float32\[4\]",
        ),
        ({"inputs": jnp.ones((T, 2, 3), jnp.int32)}, TypeError, "inputs: got int32"),
        ({"inputs": "What time is it ?"}, TypeError, "inputs: got str 'What time"),
        ({"inputs": np.array([["What", "time"]])}, TypeError, "inputs: got <U4"),
        ({"inputs": [[1.0, 2.0]]}, TypeError, r"inputs: got list"),
        ({"inputs": None}, TypeError, "inputs: got NoneType"),
        ({"inputs": np.ones((T, 2, 3))}, ValueError, "inputs: got float64.*jax_enable_x64"),
        (
            {"inputs": jnp.ones((T, 2, 3), jnp.float16)},
            TypeError,
            "params.kernel: got float32.*expected float16",
        ),
        ({"state": jnp.ones((2, 4))}, TypeError, r"state: got float32\[2, 4\], expected GRUState"),
        ({"state": jaxrnn.cells.ElmanState(jnp.ones((2, 4)))}, TypeError, "state: got ElmanState"),
        (
            {"state": jaxrnn.cells.GRUState(jnp.ones((2, 5)))},
            ValueError,
            r"state.hidden: got float32\[2, 5\]",
        ),
        (
            {"state": jaxrnn.cells.GRUState(jnp.ones((2, 4), jnp.bfloat16))},
            TypeError,
            "state.hidden: got bfloat16",
        ),
        ({"state": untyped.cells.GRUState(1.0)}, TypeError, "state.hidden: got float 1.0"),
        ({"params": None}, TypeError, "params: got NoneType None, expected GRUParams"),
        ({"cell": "gru"}, TypeError, "cell: got str 'gru'"),
        ({"cell": jaxrnn.lstm(4)}, TypeError, "params: got GRUParams.*expected LSTMParams"),
        ({"cell": jaxrnn.gru(9)}, ValueError, "params.kernel: got"),
        ({"engine": "scan"}, TypeError, "engine: got str 'scan'"),
        ({"engine": jaxrnn.engines.scan}, TypeError, "engine: got ABCMeta"),
        ({"reverse": "yes"}, TypeError, "reverse: got str 'yes'"),
        ({"time_major": 0}, TypeError, "time_major: got int 0"),
        ({"return_states": None}, TypeError, "return_states: got NoneType None"),
    ],
)
def test_bad_input(gru, change, error, message):
    cell, params, inputs, state = gru
    arguments = {"cell": cell, "params": params, "inputs": inputs, "state": state, **change}
    with pytest.raises(error, match=message):
        jaxrnn.unroll(**arguments)


@pytest.mark.parametrize(
    ("unroll", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_scan(unroll, error):
    with pytest.raises(error, match="unroll: got"):
        jaxrnn.engines.scan(unroll)
