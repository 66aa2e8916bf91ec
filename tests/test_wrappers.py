"""Wrappers: each in training against a NumPy loop that is fed with the very noise drawn.

In evaluation they are rows of the table of cells, and tested wherever cells are.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn._cell import with_noise
from tests.cells import numpy_gru_reset_before, numpy_lstm, sigmoid
from tests.engines import ENGINES
from tests.problems import problem
from tests.tolerances import FLOAT32, FLOAT64, SIXTEEN_BITS, STANDARD_ERRORS, relative_error, x64

KEY = jax.random.key(5)
H, T, B = 3, 7, 4
untyped: Any = jaxrnn


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def weighted(everything):
    numbers = flat(everything)
    return jnp.sin(numbers) @ jnp.cos(jnp.arange(numbers.size))


def at(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


class Trained(NamedTuple):
    """A wrapped cell, and its step of training in NumPy: `(params, state, x, noise)`."""

    name: str
    make: Callable[[int], jaxrnn.Cell]
    numpy_step: Callable[..., tuple[tuple, np.ndarray]]


def numpy_zoneout_recurrent_dropout_lstm(params, state, x, noise):
    keeps, (mask, _) = noise
    h, c = state
    new, _ = numpy_lstm(params, (h * mask, c), x)
    state = tuple(np.where(k, old, n) for k, old, n in zip(keeps, state, new, strict=True))
    return state, state[0]


def numpy_state_noise_zoneout_gru_reset_before(params, state, x, noise):
    (added,), ((keep,), _) = noise
    (new,), _ = numpy_gru_reset_before(params, state, x)
    h = np.where(keep, state[0], new) + added
    return (h,), h


def numpy_layer_norm(total, gain, shift):
    centred = total - total.mean(-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + shift


def numpy_everything(params, state, x, noise):
    (keep,), (mask, _) = noise
    (old,), params = state, params.cell
    weights = params.cell
    h = np.tanh(
        numpy_layer_norm(x @ weights.kernel, params.input_gain, weights.bias)
        + numpy_layer_norm(
            (old * mask) @ weights.recurrent_kernel, params.recurrent_gain, params.recurrent_shift
        )
    )
    h = np.where(keep, old, h)
    return (h,), x + h


def everything(size):
    cell = jaxrnn.wrappers.learned_initial_state(jaxrnn.wrappers.layer_norm(jaxrnn.elman(size)))
    return jaxrnn.wrappers.residual(
        jaxrnn.wrappers.zoneout(jaxrnn.wrappers.recurrent_dropout(cell, 0.4), 0.3)
    )


def numpy_projection(params, state, x, noise):
    (mask, _), (h, c) = noise, state
    weights = params.cell
    total = x @ weights.kernel + (h * mask) @ weights.recurrent_kernel + weights.bias
    i, f, g, o = np.split(total, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = (sigmoid(o) * np.tanh(c)) @ params.projection
    return (h, c), h


TRAINED = [
    Trained(
        "zoneout_recurrent_dropout_lstm",
        lambda size: jaxrnn.wrappers.zoneout(
            jaxrnn.wrappers.recurrent_dropout(jaxrnn.lstm(size), 0.4),
            untyped.cells.LSTMState(0.2, 0.6),
        ),
        numpy_zoneout_recurrent_dropout_lstm,
    ),
    Trained(
        "state_noise_zoneout_gru_reset_before",
        lambda size: jaxrnn.wrappers.state_noise(
            jaxrnn.wrappers.zoneout(jaxrnn.gru(size, reset_after=False), 0.3), 0.2
        ),
        numpy_state_noise_zoneout_gru_reset_before,
    ),
    Trained("everything", everything, numpy_everything),
    Trained(
        "recurrent_dropout_projection_lstm",
        lambda size: jaxrnn.wrappers.recurrent_dropout(
            jaxrnn.wrappers.projection(jaxrnn.lstm(size), 2), 0.3
        ),
        numpy_projection,
    ),
]
ROWS = {row.name: row for row in TRAINED}
QUICK = "everything-hoisted(2)"
PAIRS = [
    pytest.param(
        row,
        engine.engine,
        id=f"{row.name}-{engine.name}",
        marks=[] if f"{row.name}-{engine.name}" == QUICK else [pytest.mark.slow],
    )
    for row in TRAINED
    for engine in ENGINES
    if engine.runs(row.make(H))
]
RESETS: Any = np.array([list(row) for row in ("1001000", "0011001", "0000100", "0000000")]).T == "1"
LENGTHS: Any = np.array([7, 3, 0, 5])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_training_is_that_of_a_numpy_loop(row):
    cell = row.make(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    final, outputs = jaxrnn.unroll(cell, params, inputs, state, key=KEY)
    noise = jax.tree.map(np.asarray, cell.noise(inputs, KEY))
    here, expected = tuple(state), []
    for t in range(T):
        here, output = row.numpy_step(params, here, inputs[t], at(noise, t))
        expected.append(output)
    np.testing.assert_allclose(outputs, expected, **FLOAT64)
    for ours, theirs in zip(final, here, strict=True):
        np.testing.assert_allclose(ours, theirs, **FLOAT64)


@pytest.mark.parametrize(("row", "engine"), PAIRS)
def test_engines_train_alike(row, engine):
    with x64():
        cell = row.make(H)
        arguments = problem(cell, length=T, batch=(B,))

        def loss(engine, arguments):
            options = {"key": KEY, "lengths": LENGTHS, "resets": RESETS, "return_states": True}
            return weighted(jaxrnn.unroll(cell, *arguments, engine=engine, **options))

        got, expected = (
            jax.jit(jax.value_and_grad(functools.partial(loss, each)))(arguments)
            for each in (engine, jaxrnn.engines.scan())
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


@pytest.mark.slow
def test_second_derivatives_in_training():
    with x64():
        cell = everything(2)
        arguments = problem(cell, length=3, batch=(2,), features=2)
        tangents = problem(cell, length=3, batch=(2,), features=2, seed=9)

        def second(engine):
            def loss(arguments):
                return weighted(jaxrnn.unroll(cell, *arguments, key=KEY, engine=engine))

            return jax.jit(lambda *both: jax.jvp(jax.grad(loss), *both)[1])

        got, expected = (
            second(engine)((arguments,), (tangents,))
            for engine in (jaxrnn.engines.hoisted(2), jaxrnn.engines.scan())
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
def test_noise_lengths_and_resets_together(reverse):
    cell = everything(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    final, outputs, states = jaxrnn.unroll(
        cell,
        params,
        inputs,
        state,
        key=KEY,
        lengths=LENGTHS,
        resets=RESETS,
        reverse=reverse,
        return_states=True,
    )
    noise = cell.noise(inputs, KEY)
    advance = jax.jit(cell.advance)
    for b, length in enumerate(LENGTHS):
        here, steps = at(state, b), range(length)
        for t in reversed(steps) if reverse else steps:
            if RESETS[t, b]:
                here = params.initial_state
            here, output = advance(params, here, with_noise(inputs[t, b], at(noise, t, b)))
            np.testing.assert_allclose(outputs[t, b], output, **FLOAT64)
            np.testing.assert_allclose(states.hidden[t, b], here.hidden, **FLOAT64)
        np.testing.assert_allclose(final.hidden[b], here.hidden, **FLOAT64)
        assert (outputs[length:, b] == 0).all()


def test_padding_may_hold_anything_in_training(trained):
    cell, params, inputs, _ = trained
    padding = np.arange(T)[:, None] >= LENGTHS

    def loss(params, inputs):
        return weighted(jaxrnn.unroll(cell, params, inputs, key=KEY, lengths=LENGTHS))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean, dirty = run(params, inputs), run(params, np.where(padding[..., None], np.nan, inputs))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


# Keys -------------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    cell = jaxrnn.wrappers.zoneout(jaxrnn.wrappers.recurrent_dropout(jaxrnn.elman(H), 0.4), 0.3)
    return cell, *problem(cell, length=T, batch=(B,))


def test_a_key_decides(trained):
    cell, params, inputs, state = trained
    run = functools.partial(jaxrnn.unroll, cell, params, inputs, state)
    first, again, other = (run(key=jax.random.key(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_a_cell_without_noise_takes_any_key():
    for make in (jaxrnn.lstm, lambda size: jaxrnn.wrappers.layer_norm(jaxrnn.gru(size))):
        cell = make(H)
        params, inputs, state = problem(cell)
        assert cell.draw_noise is None
        got = jaxrnn.unroll(cell, params, inputs, state, key=KEY)
        jax.tree.map(np.testing.assert_array_equal, got, jaxrnn.unroll(cell, params, inputs, state))


def test_a_step_is_an_unroll_of_one(trained):
    cell, params, inputs, state = trained
    for key in (None, KEY):
        got, output = cell.step(params, state, inputs[0], key=key)
        expected, outputs = jaxrnn.unroll(cell, params, inputs[:1], state, key=key)
        np.testing.assert_allclose(output, outputs[0], **FLOAT32)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), got, expected)


@pytest.mark.slow
def test_seeds_at_once(trained):
    cell, params, inputs, state = trained
    keys = jax.random.split(KEY, 3)
    run = jax.jit(lambda key: jaxrnn.unroll(cell, params, inputs, state, key=key)[1])
    together = jax.vmap(run)(keys)
    for number, key in enumerate(keys):
        np.testing.assert_allclose(together[number], run(key), **FLOAT32)


@pytest.mark.slow
def test_the_loss_in_the_loop_trains_with_the_same_noise(trained):
    cell, params, inputs, state = trained

    def plain(params):
        return jnp.square(jaxrnn.unroll(cell, params, inputs, state, key=KEY)[1]).sum()

    def chunked(params):
        def loss(outputs, _):
            return jnp.square(outputs).sum()

        return jaxrnn.unroll_loss(loss, cell, params, inputs, None, state, key=KEY, chunk=3)[1]

    got, expected = (jax.jit(jax.value_and_grad(run))(params) for run in (chunked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), got, expected)


def test_layers_hand_their_key_on():
    cell = jaxrnn.wrappers.zoneout(jaxrnn.gru(H), 0.5)
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    of_rnn = jaxrnn.rnn(cell).apply(params, None, inputs, key=KEY)
    expected = jaxrnn.unroll(cell, params, inputs, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, of_rnn, expected)

    _, both = jaxrnn.bidirectional(cell).apply((params, params), None, inputs, key=KEY)
    for part, key, reverse in zip(
        jnp.split(both, 2, -1), jax.random.split(KEY), (False, True), strict=True
    ):
        _, expected = jaxrnn.unroll(cell, params, inputs, key=key, reverse=reverse)
        np.testing.assert_array_equal(part, expected)


# What each one draws and does --------------------------------------------------------------------


def test_zoneout_keeps_as_many_units_as_it_says():
    rates = untyped.cells.LSTMState(hidden=0.1, cell=0.6)
    cell = jaxrnn.wrappers.zoneout(jaxrnn.lstm(50), rates)
    inputs = jnp.ones((40, 20, 1))
    keeps, _ = cell.noise(inputs, KEY)
    for keep, rate in zip(keeps, rates, strict=True):
        assert set(np.unique(keep)) == {0, 1}
        error = np.sqrt(rate * (1 - rate) / keep.size)
        assert abs(keep.mean() - rate) < STANDARD_ERRORS * error
        # Drawn anew for each step, sequence and unit.
        for axis in range(3):
            assert (np.diff(keep, axis=axis) != 0).any()
    assert (keeps[0] != keeps[1]).any()


def test_zoneout_of_nothing_is_the_cell():
    cell = jaxrnn.wrappers.zoneout(jaxrnn.lstm(H), untyped.cells.LSTMState(0.0, 0))
    params, inputs, state = problem(cell)
    expected = jaxrnn.unroll(jaxrnn.lstm(H), params, inputs, state)
    for key in (None, KEY):
        got = jaxrnn.unroll(cell, params, inputs, state, key=key)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_recurrent_dropout_has_one_mask_for_each_sequence():
    cell, rate = jaxrnn.wrappers.recurrent_dropout(jaxrnn.elman(50), 0.3), 0.3
    inputs = jnp.ones((9, 200, 1))
    mask, _ = cell.noise(inputs, KEY)
    assert mask.shape == (9, 200, 50)
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[0], mask.shape))
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], **FLOAT32)
    assert len(np.unique(mask[0], axis=0)) == 200
    error = np.sqrt(rate / (1 - rate) / mask[0].size)
    assert abs(mask[0].mean() - 1) < STANDARD_ERRORS * error
    # The same key has the same masks, however long the sequence.
    np.testing.assert_array_equal(cell.noise(inputs[:2], KEY)[0], mask[:2])


@pytest.mark.parametrize("wrap", [jaxrnn.wrappers.recurrent_dropout, jaxrnn.wrappers.state_noise])
def test_what_acts_in_training_only_evaluates_as_the_cell(wrap):
    inner = jaxrnn.gru(H)
    cell = wrap(inner, 0.5)
    params, inputs, state = problem(cell)
    got = jaxrnn.unroll(cell, params, inputs, state)
    jax.tree.map(np.testing.assert_array_equal, got, jaxrnn.unroll(inner, params, inputs, state))


def test_state_noise_is_normal():
    scales = untyped.cells.LSTMState(hidden=0.5, cell=2.0)
    (of_hidden, of_cell), _ = jaxrnn.wrappers.state_noise(jaxrnn.lstm(50), scales).noise(
        jnp.ones((20, 30, 1)), KEY
    )
    for noise, scale in ((of_hidden, 0.5), (of_cell, 2.0)):
        standard = np.asarray(noise, np.float64).ravel() / scale
        count = standard.size
        assert abs(standard.mean()) < STANDARD_ERRORS / np.sqrt(count)
        assert abs((standard**2).mean() - 1) < STANDARD_ERRORS * np.sqrt(2 / count)
        assert abs((standard**4).mean() - 3) < STANDARD_ERRORS * np.sqrt(96 / count)


def test_residual_cells_and_residual_layers_agree():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell)
    got = jaxrnn.unroll(jaxrnn.wrappers.residual(cell), params, inputs, state)
    expected = jaxrnn.layers.residual(jaxrnn.rnn(cell)).apply(params, state, inputs)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    wide = jnp.ones((T, 2, 5))
    params = cell.init(KEY, 5)
    message = r"inputs: got float32\[2, 5\], expected the shape of gru's output float32\[2, 3\]"
    with pytest.raises(ValueError, match=message):
        jaxrnn.unroll(jaxrnn.wrappers.residual(cell), params, wide, engine=jaxrnn.engines.scan())


def test_layer_norm_leaves_the_forget_bias():
    cell = jaxrnn.wrappers.layer_norm(jaxrnn.lstm(H, forget_bias=2.0))
    params, inputs = cell.init(KEY, 3), jnp.zeros((T, 3))
    gates = jaxrnn.diagnostics.gate_statistics(cell, params, inputs)
    np.testing.assert_allclose(gates.forget, sigmoid(2.0), **FLOAT32)


def test_units_that_reach_others_have_no_saturation_of_their_own():
    for cell, measure in [
        (jaxrnn.wrappers.layer_norm(jaxrnn.gru(H)), jaxrnn.diagnostics.saturation),
        (jaxrnn.wrappers.projection(jaxrnn.lstm(H), 2), jaxrnn.diagnostics.saturation),
        (jaxrnn.wrappers.projection(jaxrnn.lstm(H), 2), jaxrnn.diagnostics.gate_statistics),
    ]:
        params, inputs, state = problem(cell)
        with pytest.raises(ValueError, match=r"cell: got .* in whose activate one unit reaches"):
            measure(cell, params, inputs, state)


def test_layer_norm_doesnt_see_the_scale_of_weights():
    """Ba et al. 2016, table 1: invariant to re-scaling of the weight matrix."""
    cell = jaxrnn.wrappers.layer_norm(jaxrnn.elman(H))
    with x64():
        params, inputs, state = problem(cell)
        weights = params.cell
        large = weights._replace(
            kernel=1e4 * weights.kernel, recurrent_kernel=1e4 * weights.recurrent_kernel
        )
        huge = large._replace(kernel=3 * large.kernel, recurrent_kernel=3 * large.recurrent_kernel)
        _, one = jaxrnn.unroll(cell, params._replace(cell=large), inputs, state)
        _, two = jaxrnn.unroll(cell, params._replace(cell=huge), inputs, state)
        # But for the epsilon under the root, which is 1e-5 beside variances of 1e6 and more.
        np.testing.assert_allclose(two, one, rtol=1e-9)


def test_projection_starts_with_orthonormal_rows():
    params: Any = jaxrnn.wrappers.projection(jaxrnn.lstm(8), 3).init(KEY, 5)
    assert params.projection.shape == (8, 3)
    for gate in np.split(np.asarray(params.cell.recurrent_kernel), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(3), atol=1e-5)
    assert (np.abs(params.projection) <= np.sqrt(6 / (8 + 3))).all()


def test_a_learned_initial_state_is_where_sequences_start():
    inner = jaxrnn.elman(H)
    cell = jaxrnn.wrappers.learned_initial_state(inner)
    with x64():
        params, inputs, _ = problem(cell, length=T, batch=(B,))
        start = cell.initial_state((B,), dtype=inputs.dtype, params=params)
        for leaf, learned in zip(start, params.initial_state, strict=True):
            np.testing.assert_array_equal(leaf, np.broadcast_to(learned, (B, H)))

        def ours(params, **options):
            return weighted(jaxrnn.unroll(cell, params, inputs, **options))

        def theirs(params, state):
            return weighted(jaxrnn.unroll(inner, params, inputs, state))

        got = jax.grad(ours)(params)
        of_params, of_state = jax.grad(theirs, argnums=(0, 1))(params.cell, start)
        # Each sequence has its part in the gradient.
        expected = of_params, jax.tree.map(lambda leaf: leaf.sum(0), of_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), tuple(got), expected)
        # At a reset the state is the learned one, whatever came before.
        everywhere = jnp.ones((T, B), bool)
        got = jaxrnn.unroll(cell, params, inputs, resets=everywhere)[1]
        for t in range(T):
            _, alone = jaxrnn.unroll(cell, params, inputs[t : t + 1])
            np.testing.assert_allclose(got[t], alone[0], **FLOAT64)


@pytest.mark.slow
def test_everything_that_makes_a_state_makes_the_learned_one():
    cell = jaxrnn.wrappers.learned_initial_state(jaxrnn.gru(H))
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    start = cell.initial_state((B,), params=params)
    _, expected = jaxrnn.unroll(cell, params, inputs, start)

    def loss(outputs, _=None):
        return jnp.square(outputs).sum()

    _, total = jaxrnn.unroll_loss(loss, cell, params, inputs, None)
    np.testing.assert_allclose(total, loss(expected), **FLOAT32)
    for measure in (
        functools.partial(jaxrnn.diagnostics.state_gradients, loss),
        functools.partial(jaxrnn.diagnostics.jacobian_spectrum, lags=[3]),
    ):
        got = measure(cell, params, inputs)
        np.testing.assert_array_equal(got, measure(cell, params, inputs, start))

    layers = jaxrnn.serial(jaxrnn.dropout(0.1), jaxrnn.rnn(cell), jaxrnn.bidirectional(cell))
    of_layers = ((), params, (params, params))
    state = layers.initial_state((B,), params=of_layers)
    jax.tree.map(np.testing.assert_array_equal, state, ((), start, (start, start)))
    with pytest.raises(TypeError, match="params: got None, expected those of learned_in") as caught:
        layers.initial_state((B,))
    assert "in layer 1 of serial" in caught.value.__notes__[0]


def test_a_wrapper_shows_a_structure_if_the_cell_does():
    for wrap in (
        jaxrnn.wrappers.residual,
        jaxrnn.wrappers.learned_initial_state,
        lambda cell: jaxrnn.wrappers.zoneout(cell, 0.1),
        lambda cell: jaxrnn.wrappers.state_noise(cell, 0.1),
    ):
        assert wrap(jaxrnn.gru(H)).split_step is not None
        assert wrap(jaxrnn.gru(H, reset_after=False)).split_step is None
        assert wrap(jaxrnn.gru(H)) is wrap(jaxrnn.gru(H))
        assert wrap(jaxrnn.gru(H)) is not wrap(jaxrnn.gru(H + 1))


# Ways to return the new state, and copies of it, as the output.
COPIES = {
    "same": lambda s: (s, s),
    "times one": lambda s: (s, 1.0 * s),
    "copy": lambda s: (s, s.copy()),
    "jit": jax.jit(lambda s: (s, s)),
    "checkpoint": jax.checkpoint(lambda s: (s, s)),
    "concatenate": lambda s: (s, jnp.concatenate([s[:1], s[1:]])),
}


def summing(returned, readout=None, split=False):
    """A cell of one unit that adds its inputs up."""
    step = (
        jaxrnn.SplitStep(
            lambda params, inputs: inputs,
            lambda params, state: state,
            lambda params, state, gates: returned(gates),
        )
        if split
        else lambda params, state, inputs: returned(state + inputs)
    )
    return jaxrnn.Cell(
        lambda *a: (), lambda batch, dtype: jnp.zeros((*batch, 1), dtype), step, readout=readout
    )


def scaled(returned, factor, state):
    state, output = returned(state)
    return state, factor * output


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("returned", COPIES.values(), ids=COPIES)
def test_the_output_follows_the_changed_state(returned, split):
    """Whatever array the step returns: it is read from the state."""
    ones = jnp.ones((2, 1))
    for readout, factor in ((lambda state: state, 1), (lambda state: 2 * state, 2)):
        output = functools.partial(scaled, returned, factor)
        cell = summing(output, readout, split)
        state, got = jaxrnn.wrappers.zoneout(cell, 0.25).step((), None, ones)
        np.testing.assert_array_equal(state, 0.75 * ones)
        np.testing.assert_array_equal(got, factor * 0.75 * ones)
        noisy = jaxrnn.wrappers.state_noise(cell, 0.5)
        state, got = noisy.step((), None, ones, key=KEY)
        assert (state != ones).all()
        np.testing.assert_array_equal(got, factor * state)


@pytest.mark.parametrize("wrap", [jaxrnn.wrappers.zoneout, jaxrnn.wrappers.state_noise])
def test_an_output_that_is_not_known_to_be_the_state_is_refused(wrap):
    state, got = wrap(summing(COPIES["same"]), 0.25).step((), None, jnp.ones((2, 1)))
    np.testing.assert_array_equal(state, got)
    for returned in (COPIES["times one"], lambda s: (s, 2 * s), lambda s: (s, jnp.zeros_like(s))):
        with pytest.raises(ValueError, match=r"changes the state: expected .*readout="):
            wrap(summing(returned), 0.25)


def test_bad_readout():
    cell = summing(COPIES["same"], readout=lambda state: state[..., 0])
    with pytest.raises(ValueError, match=r"cell's readout: got .*as its step returns"):
        cell.step((), None, jnp.ones((2, 1)))
    with pytest.raises(TypeError, match="readout: got int 3"):
        cell.replace(readout=3)


class Counting(NamedTuple):
    count: Any
    wide: Any
    narrow: Any


def counting():
    """A cell with a counter, and floating parts of two dtypes in its state."""

    def initial_state(batch_shape, dtype):
        zeros = functools.partial(jnp.zeros, batch_shape)
        return Counting(zeros(jnp.int32), zeros(dtype), zeros(jnp.bfloat16))

    def step(params, state, inputs):
        total = inputs.sum(-1)
        narrow = state.narrow + total.astype(jnp.bfloat16)
        wide = state.wide + total.astype(state.wide.dtype)
        new = Counting(state.count + 1, wide, narrow)
        return new, readout(new)

    def readout(state):
        return state.wide, state.narrow

    return jaxrnn.Cell(lambda *a: (), initial_state, step, readout=readout, name="counting")


@pytest.mark.parametrize("wrap", [jaxrnn.wrappers.zoneout, jaxrnn.wrappers.state_noise])
@pytest.mark.parametrize("key", [None, KEY])
def test_what_changes_the_state_leaves_counters_and_dtypes(wrap, key):
    inputs = jnp.ones((T, B, 2))
    cell = wrap(counting(), 0.3)
    state, (wide, _) = jaxrnn.unroll(cell, (), inputs, key=key)
    np.testing.assert_array_equal(state.count, [T] * B)
    np.testing.assert_array_equal(state.wide, wide[-1])
    assert [leaf.dtype for leaf in state] == [np.int32, np.float32, jnp.bfloat16]
    if key is not None or wrap is jaxrnn.wrappers.zoneout:
        assert (np.asarray(state.wide) != 2 * T).any()
    cell = wrap(counting(), Counting(0, 0.3, 0.3))
    again, _ = jaxrnn.unroll(cell, (), inputs, key=key)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    with pytest.raises(ValueError, match=r"\.count: got 0.3, expected 0 for a part of dtype int32"):
        wrap(counting(), Counting(0.3, 0.3, 0.3))


@pytest.mark.usefixtures("float64")
def test_compute_dtype_leaves_each_dtype():
    inputs = jnp.ones((T, B, 2), jnp.float64)
    expected = jaxrnn.unroll(counting(), (), inputs)
    got = jaxrnn.unroll(counting(), (), inputs, compute_dtype=jnp.float16)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class HiddenAndMore:
    """A state that is a dataclass."""

    hidden: Any
    more: Any


def test_recurrent_dropout_of_a_dataclass():
    elman = jaxrnn.elman(H)
    split_step: Any = elman.split_step

    def activate(params, state, *others):
        new, output = split_step.activate(params, None, *others)
        return HiddenAndMore(new.hidden, state.more), output

    step = dataclasses.replace(split_step, activate=activate)
    cell = elman.replace(
        initial_state=lambda *a: HiddenAndMore(jnp.zeros((*a[0], H)), jnp.zeros(a[0])), step=step
    )
    params, inputs, state = problem(elman)
    _, expected = jaxrnn.unroll(
        jaxrnn.wrappers.recurrent_dropout(elman, 0.5), params, inputs, state, key=KEY
    )
    state = HiddenAndMore(state.hidden, jnp.zeros(inputs.shape[1:-1]))
    cell = jaxrnn.wrappers.recurrent_dropout(cell, 0.5)
    _, outputs = jaxrnn.unroll(cell, params, inputs, state, key=KEY)
    np.testing.assert_allclose(outputs, expected, **FLOAT32)


def test_your_own_cell_may_draw():
    def step(params, state, inputs):
        if isinstance(inputs, jaxrnn.cells.NoisyInputs):
            state = state + inputs.inputs + inputs.noise["shift"]
        else:
            state = state + inputs
        return state, state

    def draw(key, shape, dtype):
        return {"shift": jax.random.normal(key, (*shape, 1), dtype)}

    cell = jaxrnn.Cell(
        lambda *a: (), lambda batch, dtype: jnp.zeros((*batch, 1), dtype), step, draw_noise=draw
    )
    inputs = jnp.ones((T, B, 1))
    _, outputs = jaxrnn.unroll(cell, (), inputs, key=KEY)
    expected = np.cumsum(1 + np.asarray(draw(KEY, (T, B), jnp.float32)["shift"]), axis=0)
    np.testing.assert_allclose(outputs, expected, **FLOAT32)
    for wrong, error in [
        (lambda key, shape, dtype: jnp.zeros(shape[1:], dtype), ValueError),
        (lambda key, shape, dtype: jnp.zeros(shape[::-1], dtype), ValueError),
        (lambda key, shape, dtype: jnp.zeros(shape, bool), TypeError),
    ]:
        with pytest.raises(error, match="draw_noise: noise: got"):
            jaxrnn.unroll(cell.replace(draw_noise=wrong), (), inputs, key=KEY)
    with pytest.raises(TypeError, match="draw_noise: got int 3"):
        cell.replace(draw_noise=3)


# Streaming --------------------------------------------------------------------------------------


def stack():
    return jaxrnn.serial(
        jaxrnn.rnn(
            jaxrnn.wrappers.zoneout(jaxrnn.wrappers.learned_initial_state(jaxrnn.lstm(H)), 0.2)
        ),
        jaxrnn.rnn(jaxrnn.wrappers.residual(jaxrnn.wrappers.layer_norm(jaxrnn.gru(H)))),
        jaxrnn.rnn(jaxrnn.wrappers.projection(jaxrnn.lstm(H), 2)),
        jaxrnn.rnn(jaxrnn.wrappers.recurrent_dropout(jaxrnn.gru(H), 0.5)),
        jaxrnn.dense(2),
    )


def windows(model, params, inputs, cuts, **flags):
    """Run a stack window by window, and put outputs together."""
    apply, state, parts = jax.jit(model.apply), None, []
    for start, end in zip([0, *cuts], [*cuts, len(inputs)], strict=True):
        of_window = {name: flag[start:end] for name, flag in flags.items()}
        state, part = apply(params, state, inputs[start:end], **of_window)
        parts.append(part)
    return state, jnp.concatenate(parts)


@pytest.mark.parametrize(
    "cuts", [pytest.param(c, marks=pytest.mark.slow) for c in ([1, 2, 3, 4, 5, 6], [2, 2, 5])]
)
def test_a_stack_of_wrapped_cells_streams(cuts):
    with x64():
        model = stack()
        params = jax.tree.map(
            lambda leaf: np.random.default_rng(0).normal(size=leaf.shape),
            jax.eval_shape(lambda: model.init(KEY, 3)),
        )
        inputs = np.random.default_rng(1).normal(size=(T, B, 3))
        mask = np.arange(T)[:, None] < LENGTHS
        for flags in ({}, {"mask": mask, "resets": RESETS & mask}):
            expected = jax.jit(model.apply)(params, None, inputs, **flags)
            got = windows(model, params, inputs, cuts, **flags)
            # Products over other numbers of steps sum in another order, so not to the last bit.
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


def test_windows_with_one_key_have_one_recurrent_dropout():
    cell = jaxrnn.wrappers.recurrent_dropout(jaxrnn.gru(H), 0.5)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    final, outputs = jaxrnn.unroll(cell, params, inputs, state, key=KEY)
    middle, first = jaxrnn.unroll(cell, params, inputs[:3], state, key=KEY)
    last, second = jaxrnn.unroll(cell, params, inputs[3:], middle, key=KEY)
    np.testing.assert_allclose(jnp.concatenate([first, second]), outputs, **FLOAT32)
    np.testing.assert_allclose(last.hidden, final.hidden, **FLOAT32)


# Mixed precision --------------------------------------------------------------------------------


def products(jaxpr):
    """Yield every matrix product of a jaxpr, and of what it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: v is not v):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (jaxrnn.lstm, jaxrnn.engines.hoisted()),
        *[
            pytest.param(make, engine, marks=pytest.mark.slow)
            for make, engine in [
                (jaxrnn.lstm, jaxrnn.engines.scan()),
                (lambda size: jaxrnn.gru(size, reset_after=False), jaxrnn.engines.scan()),
                (ROWS["zoneout_recurrent_dropout_lstm"].make, jaxrnn.engines.hoisted(2)),
            ]
        ],
    ],
)
def test_products_are_in_few_bits_and_nothing_else(make, engine):
    cell = make(8)
    arguments = problem(cell, length=T, batch=(B,), dtype=np.float32)

    def loss(compute_dtype, arguments):
        out = jaxrnn.unroll(cell, *arguments, key=KEY, compute_dtype=compute_dtype, engine=engine)
        return weighted(out), out

    def run(compute_dtype):
        return jax.jit(jax.value_and_grad(functools.partial(loss, compute_dtype), has_aux=True))

    jaxpr = jax.make_jaxpr(run(jnp.bfloat16))(arguments).jaxpr
    # All but the product in `weighted` itself and its transposes, which are of vectors.
    dtypes = {
        operand.aval.dtype
        for product in products(jaxpr)
        for operand in product.invars
        if operand.aval.ndim > 1
    }
    assert dtypes == {jnp.dtype("bfloat16")}
    (_, got), gradients = run(jnp.bfloat16)(arguments)
    (_, expected), wanted_gradients = run(None)(arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves((got, gradients))} == {np.dtype("float32")}
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert 0 < relative_error(ours, theirs) < SIXTEEN_BITS["bfloat16"]
    assert relative_error(flat(gradients), flat(wanted_gradients)) < SIXTEEN_BITS["bfloat16"]


def test_compute_dtype_of_layers_and_losses():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(B,))
    _, expected = jaxrnn.unroll(cell, params, inputs, state, compute_dtype="bfloat16")
    layer = jaxrnn.rnn(cell, compute_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(layer.apply(params, state, inputs)[1], expected)
    both = jaxrnn.bidirectional(cell, compute_dtype=jnp.bfloat16)
    _, outputs = both.apply((params, params), (state, state), inputs)
    np.testing.assert_array_equal(outputs[..., :H], expected)

    def loss(outputs, _):
        return outputs.sum()

    options = {"compute_dtype": jnp.bfloat16, "chunk": T}
    _, total = jaxrnn.unroll_loss(loss, cell, params, inputs, None, state, **options)
    np.testing.assert_allclose(total, expected.sum(), **FLOAT32)
    for call in (
        lambda: jaxrnn.unroll(cell, params, inputs, compute_dtype=jnp.int8),
        lambda: jaxrnn.rnn(cell, compute_dtype=jnp.int8),
        lambda: jaxrnn.bidirectional(cell, compute_dtype=jnp.int8),
    ):
        with pytest.raises(TypeError, match="compute_dtype: got int8"):
            call()


def train_adding():
    model = jaxrnn.serial(
        jaxrnn.rnn(jaxrnn.gru(32), return_sequences=False, compute_dtype=jnp.bfloat16),
        jaxrnn.dense(1),
    )

    def loss(params, batch, key):
        inputs, targets = batch
        _, predictions = model.apply(params, None, inputs)
        return jaxrnn.losses.squared_error(predictions, targets)

    def batches(key):
        return jaxrnn.tasks.adding(key, batch_size=32, length=100)

    params = model.init(jax.random.key(0), 2)
    result = jaxrnn.fit(
        loss, params, optax.adam(1e-2), batches, steps=500, key=jax.random.key(1), clip_norm=1.0
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {np.dtype("float32")}
    assert result.losses[-50:].mean() < jaxrnn.tasks.ADDING_CHANCE / 10


@pytest.mark.slow
def test_the_adding_problem_trains_in_mixed_precision():
    # On CPU XLA leaves out roundings that come right before a product, unless told not to.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_allow_excess_precision=false"
    run = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import train_adding; train_adding()"],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda cell: untyped.wrappers.zoneout(cell, 0.1),
        lambda cell: untyped.wrappers.recurrent_dropout(cell, 0.1),
        lambda cell: untyped.wrappers.state_noise(cell, 0.1),
        lambda cell: untyped.wrappers.projection(cell, 2),
        untyped.wrappers.layer_norm,
        untyped.wrappers.learned_initial_state,
    ],
)
def test_not_a_cell(wrap):
    for wrong in ("lstm", jaxrnn.lstm, jaxrnn.dense(3)):
        with pytest.raises(TypeError, match=r"cell: got .*, expected a jaxrnn\.Cell"):
            wrap(wrong)


UNGATED = jaxrnn.gru(H, reset_after=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda cell: untyped.wrappers.zoneout(cell, -0.1), ValueError, "rate: got -0.1"),
        (
            lambda cell: untyped.wrappers.zoneout(cell, 1.0),
            ValueError,
            "rate: got 1.0, expected less",
        ),
        (lambda cell: untyped.wrappers.zoneout(cell, "0.1"), TypeError, "rate: got str '0.1'"),
        (
            lambda cell: untyped.wrappers.zoneout(cell, None),
            TypeError,
            "rate: got NoneType None, expected a",
        ),
        (
            lambda cell: untyped.wrappers.zoneout(cell, untyped.cells.GRUState(0.1)),
            TypeError,
            "rate: got GRUState.*or one for each part of lstm's state LSTMState",
        ),
        (
            lambda cell: untyped.wrappers.zoneout(cell, untyped.cells.LSTMState(0.1, 2.0)),
            ValueError,
            "rate.cell: got 2.0",
        ),
        (lambda cell: untyped.wrappers.recurrent_dropout(cell, 1), ValueError, "rate: got 1.0"),
        (
            lambda cell: untyped.wrappers.recurrent_dropout(cell, True),
            TypeError,
            "rate: got bool True",
        ),
        (
            lambda _: untyped.wrappers.recurrent_dropout(UNGATED, 0.1),
            ValueError,
            "cell: got gru_reset_be",
        ),
        (lambda cell: untyped.wrappers.state_noise(cell, -1.0), ValueError, "scale: got -1.0"),
        (lambda cell: untyped.wrappers.state_noise(cell, np.nan), ValueError, "scale: got nan"),
        (
            lambda _: untyped.wrappers.layer_norm(UNGATED),
            ValueError,
            "cell: .*not split.*for layer_norm",
        ),
        (lambda cell: untyped.wrappers.projection(cell, 0), ValueError, "size: got 0"),
        (lambda cell: untyped.wrappers.projection(cell, 2.0), TypeError, "size: got float 2.0"),
        (
            lambda cell: untyped.wrappers.projection(cell, 4),
            ValueError,
            "size: got 4, expected at most the 3",
        ),
        (
            lambda cell: untyped.wrappers.projection(cell, 2, projection_init="glorot"),
            TypeError,
            "projection_init: got str",
        ),
        (
            lambda _: untyped.wrappers.projection(untyped.gru(H), 2),
            ValueError,
            "cell: got gru, which uses",
        ),
        (
            lambda _: untyped.wrappers.projection(UNGATED, 2),
            ValueError,
            "not split.* for projection",
        ),
        (
            lambda cell: untyped.wrappers.projection(
                cell.replace(learned_state=lambda *_: None, name="mine"), 2
            ),
            ValueError,
            "cell: got mine, which learns its initial state, expected one that doesn't",
        ),
        (
            lambda cell: untyped.wrappers.projection(untyped.wrappers.layer_norm(cell), 2),
            ValueError,
            "params LayerNormParams.* expected some with a recurrent_kernel",
        ),
        (
            lambda cell: untyped.wrappers.projection(
                untyped.wrappers.recurrent_dropout(cell, 0.1), 2
            ),
            ValueError,
            r"cell: got recurrent_dropout\(lstm\)",
        ),
        (
            lambda cell: untyped.wrappers.projection(untyped.wrappers.zoneout(cell, 0.1), 2),
            ValueError,
            r"cell: got zoneout\(lstm\), which uses its old hidden state",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make(jaxrnn.lstm(H))


def test_bad_arguments():
    cell: Any = jaxrnn.wrappers.learned_initial_state(jaxrnn.wrappers.zoneout(jaxrnn.lstm(H), 0.1))
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    for wrong in (None, params.cell, tuple(params)):
        with pytest.raises(TypeError, match="params: got"):
            cell.initial_state((B,), params=wrong)
        with pytest.raises(TypeError, match="params: got"):
            jaxrnn.unroll(cell, wrong, inputs)
    with pytest.raises(TypeError, match=r"params\.initial_state\.hidden: got float32.*bfloat16"):
        cell.initial_state((B,), dtype=jnp.bfloat16, params=params)
    for key in (3, "seed"):
        with pytest.raises(TypeError, match="key: got"):
            untyped.unroll(cell, params, inputs, key=key)
        with pytest.raises(TypeError, match="key: got"):
            untyped.unroll_loss(lambda *a: 0.0, cell, params, inputs, None, key=key)
        with pytest.raises(TypeError, match="key: got"):
            cell.step(params, None, inputs[0], key=key)
    with pytest.raises(ValueError, match=r"key: got .*expected one key"):
        jaxrnn.unroll(cell, params, inputs, key=jax.random.split(KEY))
