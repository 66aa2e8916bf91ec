"""The gradient-flow laboratory against NumPy loops that disturb the hidden state at each step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxrnn
from jaxrnn.diagnostics import gradient_norms, state_gradients
from jaxrnn.diagnostics._norm import norm
from tests.cells import CELLS, complex_step_gradient, sigmoid
from tests.tolerances import FLOAT32, FLOAT64, x64

T, H, I = 5, 3, 2
ROWS = {row.name: row for row in CELLS}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, tree)


def random_problem(cell, *, length=T, batch=(2,)):
    """Return random params, inputs and state in float64, drawn by NumPy."""
    params = random_like(jax.eval_shape(lambda: cell.init(jax.random.key(0), I)), seed=1)
    state = random_like(cell.state_spec(batch), seed=2)
    return params, normal(length, *batch, I, seed=3), state


def loss(outputs):
    """Weigh every output differently, and none in proportion, so that no two can swap."""
    weights = np.cos(np.arange(outputs.size)).reshape(outputs.shape)
    return (weights * outputs * (1 + outputs)).sum()


def run(cell, *arguments, loss=loss, part: str | None = "hidden") -> Any:
    return jax.jit(functools.partial(state_gradients, loss, cell, part=part))(*arguments)


def numpy_state_gradients(step, params, inputs, state, disturbed_shape):
    """Gradient with respect to what is added to the hidden state after each step.

    `step` is `(params, state, x, disturbance) -> (state, output)` in NumPy, on complex numbers too.
    """

    def disturbed_loss(disturbances):
        current, outputs = state, []
        for x, disturbance in zip(inputs, disturbances, strict=True):
            current, output = step(params, current, x, disturbance)
            outputs.append(output)
        return loss(np.stack(outputs))

    return complex_step_gradient(disturbed_loss, np.zeros(disturbed_shape))


# The cells of the library ------------------------------------------------------------------------


def test_state_gradients_are_those_of_a_disturbed_numpy_loop(row):
    def step(params, state, x, disturbance):
        (hidden, *others), _ = row.numpy_step(params, state, x)
        hidden = hidden + disturbance
        return (hidden, *others), hidden

    cell = row.make(H)
    params, inputs, state = random_problem(cell)
    with x64():
        got = run(cell, params, inputs, state)
    expected = numpy_state_gradients(step, params, inputs, tuple(state), (T, 2, H))
    np.testing.assert_allclose(got, expected, **FLOAT64)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[] if row.name == "lstm" else [pytest.mark.slow])
        for row in CELLS
    ],
)
def test_state_gradients_agree_with_finite_differences(row):
    cell = row.make(H)
    params, inputs, state = random_problem(cell)

    def value(place, size):
        current, outputs = tuple(state), []
        for t, x in enumerate(inputs):
            (h, *others), _ = row.numpy_step(params, current, x)
            if t == place[0]:
                h = h.copy()
                h[place[1:]] += size
            current = (h, *others)
            outputs.append(h)
        return loss(np.stack(outputs))

    size = 1e-6  # the central difference's error is size**2 and rounding / size
    expected = np.zeros((T, 2, H))
    for place in np.ndindex(T, 2, H):
        expected[place] = (value(place, size) - value(place, -size)) / (2 * size)
    with x64():
        np.testing.assert_allclose(run(cell, params, inputs, state), expected, rtol=1e-7, atol=1e-8)


def test_a_linear_cells_gradients_are_powers_of_its_kernel():
    cell = jaxrnn.elman(H, activation=jax.nn.identity, use_bias=False)
    params, inputs, _ = random_problem(cell, length=9, batch=())
    weights = normal(H, seed=4)
    with x64():
        got = run(cell, params, inputs, loss=lambda outputs: outputs[-1] @ weights)
    kernel = params.recurrent_kernel
    expected = [np.linalg.matrix_power(kernel, 8 - t) @ weights for t in range(9)]
    np.testing.assert_allclose(got, expected, **FLOAT64)


def test_no_gradient_comes_from_before_its_cause():
    cell = jaxrnn.gru(H)
    params, inputs, state = random_problem(cell)
    with x64():
        got = np.asarray(run(cell, params, inputs, state, loss=lambda outputs: outputs[2].sum()))
    # The loss is of step 2: that output is the hidden state itself, and later ones don't count.
    np.testing.assert_array_equal(got[2], 1)
    np.testing.assert_array_equal(got[3:], 0)
    assert (got[:2] != 0).all()


def test_zeros_are_the_state_where_none_is_given():
    cell = jaxrnn.lstm(H)
    params, inputs, _ = random_problem(cell)
    with x64():
        zeros = jaxrnn.cells.LSTMState(jnp.zeros((2, H)), jnp.zeros((2, H)))
        expected = run(cell, params, inputs, zeros)
        np.testing.assert_array_equal(run(cell, params, inputs), expected)


# Other parts of the state, and stacks -------------------------------------------------------------


def numpy_lstm_disturbed(params, state, x, on_hidden, on_cell):
    h, c = state
    to_i, to_f, to_o = getattr(params, "peepholes", np.zeros((3, H)))
    total = x @ params.kernel + h @ params.recurrent_kernel + params.bias
    i, f, g, o = np.split(total, 4, axis=-1)
    c = sigmoid(f + to_f * c) * c + sigmoid(i + to_i * c) * np.tanh(g) + on_cell
    h = sigmoid(o + to_o * c) * np.tanh(c) + on_hidden
    return (h, c), h


@pytest.mark.parametrize("name", ["lstm", pytest.param("peephole_lstm", marks=pytest.mark.slow)])
def test_every_part_of_an_lstms_state_is_disturbed_by_itself(name):
    cell = ROWS[name].make(H)
    params, inputs, state = random_problem(cell)
    with x64():
        together = run(cell, params, inputs, state, part=None)
        alone = np.asarray(run(cell, params, inputs, state, part="cell"))

    def on_cell(params, state, x, disturbance):
        return numpy_lstm_disturbed(params, state, x, 0, disturbance)

    def on_hidden(params, state, x, disturbance):
        return numpy_lstm_disturbed(params, state, x, disturbance, 0)

    for got, step in [(together.hidden, on_hidden), (together.cell, on_cell), (alone, on_cell)]:
        expected = numpy_state_gradients(step, params, inputs, tuple(state), (T, 2, H))
        np.testing.assert_allclose(got, expected, **FLOAT64)
    # The check sees a step too early or late, and time reversed.
    for planted in (np.roll(alone, 1, axis=0), np.roll(alone, -1, axis=0), alone[::-1]):
        assert np.abs(planted - expected).max() > 0.01


def test_a_single_arrays_whole_is_its_hidden_state():
    cell = jaxrnn.gru(H)
    arguments = random_problem(cell)
    with x64():
        whole = run(cell, *arguments, part=None)
        np.testing.assert_array_equal(whole.hidden, run(cell, *arguments))


STACK = jaxrnn.serial(
    jaxrnn.embedding(4, I), jaxrnn.rnn(jaxrnn.elman(H)), jaxrnn.rnn(jaxrnn.gru(H)), jaxrnn.dense(2)
)


@pytest.mark.slow
def test_a_stacks_gradients_are_those_of_a_disturbed_numpy_loop():
    params = random_like(jax.eval_shape(lambda: STACK.init(jax.random.key(0))), seed=1)
    table, below, above, dense = params
    tokens = np.random.default_rng(0).integers(4, size=(T, 2))
    rows = ROWS["elman"], ROWS["gru"]

    def disturbed_loss(disturbances):
        states, outputs = [(np.zeros((2, H)),)] * 2, []
        for t, x in enumerate(table[tokens]):
            for layer, of_layer in enumerate((below, above)):
                (hidden,), _ = rows[layer].numpy_step(of_layer, states[layer], x)
                x = hidden + disturbances[t, layer]
                states[layer] = (x,)
            outputs.append(x @ dense.kernel + dense.bias)
        return loss(np.stack(outputs))

    with x64():
        arguments = jax.tree.map(jnp.asarray, (params, tokens))
        got = run(STACK, *arguments)
        norms = jax.jit(functools.partial(gradient_norms, loss, STACK))(*arguments)
        units = gradient_norms(loss, STACK, *arguments, by_unit=True)
    expected = complex_step_gradient(disturbed_loss, np.zeros((T, 2, 2, H)))
    assert len(got) == 2
    for layer in range(2):
        np.testing.assert_allclose(got[layer], expected[:, layer], **FLOAT64)
        by_unit = np.linalg.norm(expected[:, layer], axis=1)
        np.testing.assert_allclose(units[layer], by_unit, **FLOAT64)
        np.testing.assert_allclose(norms[:, layer], np.linalg.norm(by_unit, axis=1), **FLOAT64)


@pytest.mark.slow
def test_a_stack_within_layers_is_its_cells_one_by_one():
    model = jaxrnn.serial(
        jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.lstm(I))),
        jaxrnn.bidirectional(jaxrnn.gru(H), return_sequences=False),
    )
    params = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), I)), seed=1)
    of_lstm, (forwards, backwards) = params
    inputs: Any = normal(T, 2, I)
    with x64():
        lstm, gru = jaxrnn.lstm(I), jaxrnn.gru(H)
        states = run(model, params, inputs, part=None)
        assert [type(state).__name__ for state in states] == ["LSTMState", "GRUState", "GRUState"]

        def both(first, last):
            return loss(jnp.concatenate([first, last], -1))

        def above_lstm(outputs):
            middle = inputs + outputs
            first = jaxrnn.unroll(gru, forwards, middle)[1][-1]
            return both(first, jaxrnn.unroll(gru, backwards, middle, reverse=True)[1][0])

        expected = run(lstm, of_lstm, inputs, part=None, loss=above_lstm)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), states[0], expected)
        middle = inputs + jaxrnn.unroll(lstm, of_lstm, inputs)[1]
        first = jaxrnn.unroll(gru, forwards, middle)[1][-1]
        last = jaxrnn.unroll(gru, backwards, middle[::-1])[1][-1]
        expected = run(gru, forwards, middle, loss=lambda outputs: both(outputs[-1], last))
        np.testing.assert_allclose(states[1].hidden, expected, **FLOAT64)
        expected = run(gru, backwards, middle[::-1], loss=lambda outputs: both(first, outputs[-1]))
        np.testing.assert_allclose(states[2].hidden, expected[::-1], **FLOAT64)


@pytest.mark.slow
def test_norms_of_the_whole_state_and_by_unit():
    cell = jaxrnn.lstm(H)
    arguments = jax.tree.map(np.float32, random_problem(cell, batch=(2, 3)))
    gradients = run(cell, *arguments, part=None)
    squares = np.sum([np.square(np.asarray(leaf, float)) for leaf in gradients], axis=0)
    norms = gradient_norms(loss, cell, *arguments, part=None)
    np.testing.assert_allclose(norms, np.sqrt(squares.sum((1, 2, 3))), **FLOAT32)
    units = gradient_norms(loss, cell, *arguments, part="cell", by_unit=True)
    expected = np.linalg.norm(np.asarray(gradients.cell, float), axis=(1, 2))
    np.testing.assert_allclose(units, expected, **FLOAT32)


# Cells of one's own -------------------------------------------------------------------------------


class KeepingState(NamedTuple):
    count: Any
    gain: Any
    previous: Any
    hidden: Any


def advance(params, hidden, x):
    return np.tanh(x @ params["kernel"] + hidden @ params["recurrent_kernel"])


def read(params, hidden):
    return hidden**2 @ params["readout"]


def step(params, state, x):
    hidden = jnp.tanh(x @ params["kernel"] + state.hidden @ params["recurrent_kernel"])
    return jaxrnn.cells.ElmanState(hidden), read(params, hidden)


def step_of_a_bare_array(params, state, x):
    state, output = step(params, jaxrnn.cells.ElmanState(state), x)
    return state.hidden, output


def step_jitted_at_its_end(params, state, x):
    # What is jitted gets the new state, and passes it on beside the output.
    return jax.jit(lambda state: (state, read(params, state.hidden)))(step(params, state, x)[0])


def step_jitted_in_itself(params, state, x):
    @jax.jit
    def outer(state):
        state, output = jax.jit(step)(params, state, x)
        return jax.jit(lambda state, output: (state, 2 * output))(state, output)

    return outer(state)


def step_with_a_loop(params, state, x):
    hidden = lax.fori_loop(
        0, 2, lambda _, h: step(params, jaxrnn.cells.ElmanState(h), x)[0].hidden, state.hidden
    )
    return jaxrnn.cells.ElmanState(hidden), read(params, hidden)


def step_that_keeps(params, state, x):
    (hidden,), output = step(params, state, x)
    kept = KeepingState(state.count + 1, state.gain, state.hidden, hidden)
    return kept, state.gain * output + state.previous


def numpy_step(params, state, x, disturbance, *, factor=1, times=1):
    (hidden,) = state
    for _ in range(times):
        hidden = advance(params, hidden, x)
    hidden = hidden + disturbance
    return (hidden,), factor * read(params, hidden)


def numpy_step_that_keeps(params, state, x, disturbance):
    count, gain, previous, old = state
    hidden = advance(params, old, x) + disturbance
    return (count + 1, gain, old, hidden), gain * read(params, hidden) + previous


def initial_hidden(batch_shape, dtype):
    return jaxrnn.cells.ElmanState(jnp.full((*batch_shape, H), 0.5, dtype))


def initial_bare(batch_shape, dtype):
    return jnp.full((*batch_shape, H), 0.5, dtype)


def initial_kept(batch_shape, dtype):
    half = jnp.full((*batch_shape, H), 0.5, dtype)
    return KeepingState(jnp.zeros(batch_shape, jnp.int32), 3 * half, half, half)


class Own(NamedTuple):
    name: str
    step: Callable
    numpy_step: Callable = numpy_step
    initial_state: Callable = initial_hidden


OWN = [
    Own("output_is_a_function_of_the_state", step),
    Own("jitted", jax.jit(step)),
    Own("jitted_at_its_end", step_jitted_at_its_end),
    Own("jitted_in_itself", step_jitted_in_itself, functools.partial(numpy_step, factor=2)),
    Own("checkpointed", jax.checkpoint(step)),  # pyright: ignore[reportPrivateImportUsage]
    Own("with_a_loop", step_with_a_loop, functools.partial(numpy_step, times=2)),
    Own("bare_array", step_of_a_bare_array, initial_state=initial_bare),
    Own("keeps_parts", step_that_keeps, numpy_step_that_keeps, initial_kept),
    Own("keeps_parts_jitted", jax.jit(step_that_keeps), numpy_step_that_keeps, initial_kept),
]


def own_cell(step, initial_state=initial_hidden):
    def init(key, input_size, dtype):
        shapes = {"kernel": (input_size, H), "recurrent_kernel": (H, H), "readout": (H, H)}
        return {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}

    return jaxrnn.Cell(init, initial_state, step, name="own")


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.name)
def test_any_cells_state_gradients(own):
    cell = own_cell(own.step, own.initial_state)
    params, inputs, _ = random_problem(own_cell(step))
    with x64():
        state = cell.initial_state((2,), dtype="float64")
        got = run(cell, params, inputs)
        numpy_state = tuple(np.asarray(leaf) for leaf in jax.tree.leaves(state))
    expected = numpy_state_gradients(own.numpy_step, params, inputs, numpy_state, (T, 2, H))
    np.testing.assert_allclose(got, expected, **FLOAT64)


def test_a_bare_steps_gradients_are_its_cells():
    params, inputs, _ = random_problem(own_cell(step))
    with x64():
        state = initial_hidden((2,), "float64")
        got = run(step, params, inputs, state)
        np.testing.assert_array_equal(got, run(own_cell(step), params, inputs))


def test_a_state_made_out_of_sight_is_refused():
    def conditional(params, state, x):
        return lax.cond(x.sum() > 0, step, step, params, state, x)

    with pytest.raises(ValueError, match="cell: got a step that makes its new state in a `cond`"):
        state_gradients(loss, own_cell(conditional), *random_problem_specs())


def random_problem_specs():
    return jax.tree.map(np.float32, random_problem(own_cell(step))[:2])


# Transformations and shapes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gru():
    """A GRU with batch (2, 3), and its gradients; in float32."""
    cell = jaxrnn.gru(H)
    params, inputs, state = jax.tree.map(np.float32, random_problem(cell, batch=(2, 3)))

    def square(outputs):
        return jnp.square(outputs).sum()

    return (
        cell,
        square,
        (params, inputs, state),
        np.asarray(run(cell, params, inputs, state, loss=square)),
    )


def test_batch_dimensions(gru):
    cell, square, (params, inputs, state), together = gru
    assert together.shape == (T, 2, 3, H)
    for index in [(0, 0), (1, 2)]:
        one = jaxrnn.cells.GRUState(state.hidden[index])
        got = run(cell, params, inputs[:, *index], one, loss=square)
        np.testing.assert_allclose(got, together[:, *index], **FLOAT32)


def test_vmap_is_batch(gru):
    cell, square, (params, inputs, state), together = gru
    over = functools.partial(state_gradients, square, cell)
    got = jax.vmap(over, (None, 1, 0), 1)(params, inputs, state)
    np.testing.assert_allclose(got, together, **FLOAT32)


def test_eager_is_jit(gru):
    cell, square, arguments, together = gru
    np.testing.assert_allclose(state_gradients(square, cell, *arguments), together, **FLOAT32)


def test_gradient_norms(gru):
    cell, square, arguments, gradients = gru
    got = jax.jit(functools.partial(gradient_norms, square, cell))(*arguments)
    expected = [np.linalg.norm(step.astype(float).ravel()) for step in gradients]
    np.testing.assert_allclose(got, expected, **FLOAT32)


@pytest.mark.parametrize(("factor", "by_unit"), [(0.5, True), (2.0, False)])
def test_norms_as_small_and_as_large_as_the_dtype_holds(factor, by_unit):
    cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
    params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), factor * jnp.eye(2), None)
    norms = gradient_norms(
        lambda outputs: outputs[-1].sum(), cell, params, jnp.zeros((120, 1)), by_unit=by_unit
    )
    expected = factor ** np.arange(120.0)[::-1]
    expected = np.stack([expected, expected], -1) if by_unit else np.sqrt(2) * expected
    np.testing.assert_allclose(norms, expected, rtol=FLOAT32["rtol"])


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2])
def test_a_norm_of_many_numbers_is_numpys(dtype, size):
    numbers = jnp.full((3, 100_000), size, dtype).at[1].set(0)
    got = norm(numbers, [1])
    assert got.dtype == max(numbers.real.dtype, np.dtype(np.float32))
    expected = np.linalg.norm(np.asarray(numbers, complex), axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_norms_derivatives_and_what_is_not_finite():
    np.testing.assert_allclose(jax.grad(norm)(jnp.array([3.0, 4.0]), [0]), [0.6, 0.8], **FLOAT32)
    np.testing.assert_array_equal(jax.grad(norm)(jnp.zeros(2), [0]), [0, 0])
    assert norm(jnp.array([0.0, jnp.inf]), [0]) == jnp.inf
    assert jnp.isnan(norm(jnp.array([0.0, jnp.nan]), [0]))


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(gru, length):
    cell, square, (params, inputs, state), _ = gru
    gradients = run(cell, params, inputs[:length], state, loss=square)
    _, outputs = jaxrnn.unroll(cell, params, inputs[:length], state)
    assert gradients.shape == (length, 2, 3, H)
    np.testing.assert_allclose(gradients, 2 * np.asarray(outputs), **FLOAT32)
    norms = gradient_norms(square, cell, params, inputs[:length], state)
    assert norms.shape == (length,)


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [state_gradients, gradient_norms])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mean"}, TypeError, "loss: got str 'mean', expected a function"),
        (
            {"loss": lambda outputs: outputs},
            TypeError,
            r"loss: returned float32\[5, 2, 3\], expected",
        ),
        ({"loss": lambda outputs: (outputs.sum(), 0)}, TypeError, r"loss: returned tuple\(float32"),
        ({"loss": lambda outputs: 1}, TypeError, "loss: returned int 1"),
        ({"loss": lambda outputs: outputs.argmax()}, TypeError, r"loss: returned int32\[\]"),
        ({"cell": "gru"}, TypeError, "cell: got str 'gru', expected a jaxrnn.Cell"),
        ({"cell": jaxrnn.lstm(H)}, TypeError, "params: got GRUParams.*expected LSTMParams"),
        ({"params": None}, TypeError, "params: got NoneType"),
        ({"inputs": np.ones((2,), np.float32)}, ValueError, r"inputs: got float32\[2\]"),
        ({"inputs": np.ones((5, 2, 2), int)}, TypeError, "inputs: got int64"),
        ({"inputs": np.ones((5, 2, 7), np.float32)}, ValueError, "params.kernel: got"),
        ({"inputs": np.ones((5, 4, 2), np.float32)}, ValueError, "state.hidden: got"),
        ({"state": np.ones((2, H), np.float32)}, TypeError, "state: got float32"),
        ({"inputs": np.full((5, 2, 2), np.nan, np.float32)}, ValueError, "inputs: got NaN or inf"),
        (
            {"cell": jaxrnn.dense(2)},
            ValueError,
            r"cell: got dense\(2\), expected a layer that unrolls",
        ),
        ({"cell": lambda *_: _, "state": None}, TypeError, "state: got None, expected a state"),
        (
            {"part": "cell"},
            ValueError,
            "cell: got gru, .* expected a state with a field named cell",
        ),
        ({"part": "index"}, ValueError, "expected a state with a field named index"),
        ({"part": 0}, TypeError, "part: got int 0, expected a field's name or None"),
    ],
)
def test_bad_input(measure, change, error, message):
    cell = jaxrnn.gru(H)
    params, inputs, state = jax.tree.map(np.float32, random_problem(cell))
    arguments = {
        "loss": loss,
        "cell": cell,
        "params": params,
        "inputs": inputs,
        "state": state,
        **change,
    }
    with pytest.raises(error, match=message):
        measure(**arguments)


def test_a_bare_steps_state_must_have_the_inputs_batch():
    params, inputs = random_problem_specs()
    with pytest.raises(ValueError, match=r"state.hidden: got float32\[4, 3\], .* with \[2\], the"):
        state_gradients(loss, step, params, inputs, initial_hidden((4,), "float32"))


def test_within_shard_map_each_device_has_its_own_gradients():
    cell = jaxrnn.gru(H)
    params, inputs, _ = jax.tree.map(np.float32, random_problem(cell))
    batch = jax.sharding.PartitionSpec(None, "batch")

    def gradients(params, inputs):
        return state_gradients(lambda outputs: jnp.sin(outputs).sum(), cell, params, inputs)

    mapped = jax.shard_map(
        gradients,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",)),
        in_specs=(jax.sharding.PartitionSpec(), batch),
        out_specs=batch,
    )
    got, expected = jax.jit(mapped)(params, inputs), gradients(params, inputs)
    np.testing.assert_allclose(got, expected, **FLOAT32)


@pytest.mark.parametrize(
    ("wrong", "state", "error", "message"),
    [
        (lambda p, h, x: None, np.zeros((2, 3), "float32"), TypeError, "cell: the step: got NoneT"),
        (
            lambda p, h, x: (h, h, h),
            np.zeros((2, 3), "float32"),
            TypeError,
            r"expected \(state, out",
        ),
        (
            lambda p, h, x: (h[:1], h),
            np.zeros((2, 3), "float32"),
            ValueError,
            "step's new state: g",
        ),
        (lambda p, h, x: (h > 0, h), np.zeros((2, 3), "float32"), TypeError, "step's new state: g"),
        (lambda p, h, x: (h, x), (), TypeError, r"state: got tuple\(\), expected at least one"),
        (lambda p, h, x: (h, h), 0.0, TypeError, "state: got float 0.0, expected "),
        (lambda p, h, x: (h, h), np.zeros((2, 3)), (TypeError, ValueError), "state: got float64"),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [
        lambda *arguments: state_gradients(loss, *arguments, part=None),
        jaxrnn.diagnostics.lyapunov_exponents,
    ],
)
def test_bare_steps_are_checked_as_cells_are(measure, wrong, state, error, message):
    with pytest.raises(error, match=message):
        measure(wrong, (), np.ones((5, 2, 1), np.float32), state)


def test_a_state_without_a_hidden_part_is_refused():
    cell = own_cell(
        lambda params, state, x: (state, state[0]),
        lambda batch, dtype: (jnp.zeros((*batch, H)), jnp.zeros((*batch, H))),
    )
    with pytest.raises(ValueError, match=r"cell: got own, .* or with a field named hidden"):
        state_gradients(loss, cell, *random_problem_specs())


def test_a_layer_that_masks_its_steps_is_refused():
    cell = jaxrnn.gru(H)
    params, inputs, state = jax.tree.map(np.float32, random_problem(cell))
    plain = jaxrnn.rnn(cell)

    def apply(params, state, inputs, **options):
        return plain.apply(params, state, inputs, lengths=jnp.array([1, 2]), **options)

    masked = dataclasses.replace(plain, apply=apply)
    with pytest.raises(ValueError, match=r"cell: got a layer that gives \['lengths'\] to unroll"):
        state_gradients(loss, masked, params, inputs, state)


def test_a_part_that_is_not_floating_is_refused():
    cell = own_cell(step_that_keeps, initial_kept)
    with pytest.raises(TypeError, match=r"state: got int32\[2\], expected a floating"):
        state_gradients(loss, cell, *random_problem_specs(), part="count")


def test_integers_in_the_state_have_no_gradient():
    cell = own_cell(step_that_keeps, initial_kept)
    arguments = random_problem_specs()
    gradients = state_gradients(loss, cell, *arguments, part=None)
    assert gradients.count is None
    for part in ("gain", "previous", "hidden"):
        alone = state_gradients(loss, cell, *arguments, part=part)
        np.testing.assert_array_equal(getattr(gradients, part), alone)
    assert gradient_norms(loss, cell, *arguments, part=None).shape == arguments[1].shape[:1]


# Inputs that failed once -------------------------------------------------------------------------


def halving(dtype):
    """A linear network whose state is halved at each step, on inputs of zero."""
    cell = jaxrnn.elman(4, activation=jax.nn.identity, use_bias=False)
    params = jaxrnn.cells.ElmanParams(jnp.ones((1, 4), dtype), 0.5 * jnp.eye(4, dtype=dtype), None)
    return cell, params, jnp.zeros((20, 1), dtype)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_norms_in_half_precision(dtype):
    norms = gradient_norms(lambda outputs: outputs[-1].sum(), *halving(dtype))
    # sqrt(4) at the end, and half as much with each step back: 2 ** -18 is no normal float16.
    np.testing.assert_allclose(norms, 2.0 ** np.arange(-18, 2), rtol=1e-6)
    penalty = jaxrnn.regularizers.pascanu(lambda outputs: outputs[-1].sum(), *halving(dtype))
    np.testing.assert_allclose(penalty, 19 * 0.25, rtol=1e-6)  # (1 / 2 - 1) ** 2 for each pair


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1.0, 1.0),))


def test_cells_with_a_derivative_of_their_own():
    def step(params, hidden, x):
        hidden = clipped(jnp.tanh(x @ params[0] + hidden @ params[1]))
        return hidden, hidden

    cell = jaxrnn.Cell(
        lambda key, size, dtype: (
            jax.random.normal(key, (size, 4), dtype),
            jnp.eye(4, dtype=dtype),
        ),
        lambda batch, dtype: jnp.zeros((*batch, 4), dtype),
        step,
        name="clipping",
    )
    params, inputs = cell.init(jax.random.key(0), 3), jnp.ones((20, 3))

    def loss(outputs):
        return outputs[-1].sum()

    assert np.isfinite(gradient_norms(loss, cell, params, inputs)).all()
    assert jaxrnn.diagnostics.report(loss, cell, params, inputs, write=None).findings
    for measure in (
        lambda: jaxrnn.diagnostics.jacobian_spectrum(cell, params, inputs, lags=[1]),
        lambda: jaxrnn.diagnostics.lyapunov_exponents(cell, params, inputs),
    ):
        with pytest.raises(TypeError, match=r"cell: got clipping, .*custom_vjp.*custom_jvp"):
            measure()
