"""Layers: each against NumPy, stacks that stream, and what they refuse."""

import copy
import dataclasses
import functools
import gc
import pickle
import re
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.cells import CELLS, numpy_unroll
from tests.tolerances import FLOAT32, FLOAT64, STANDARD_ERRORS, x64

KEY = jax.random.key(0)
ROWS = {row.name: row for row in CELLS}


T, B = 12, 2


def normal(*shape, seed=0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def spec(*shape, dtype=jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def apply_spec(layer, params, *args, **kwargs):
    """Apply a layer abstractly: shapes, dtypes and errors without compiling anything."""
    return jax.eval_shape(functools.partial(layer.apply, **kwargs), params, *args)


def init_spec(layer, *args, **kwargs):
    return jax.eval_shape(lambda: layer.init(KEY, *args, **kwargs))


def random_params(layer, *args):
    """Return parameters in float64, no bias zero; drawn by NumPy, which has nothing to compile."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, init_spec(layer, *args))


def notes(error):
    return [note for note in error.__notes__ if note.startswith("in layer")]


# Streaming --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack():
    """A stack with one of each layer that streams, its parameters, and its jitted `apply`."""
    model = jaxrnn.serial(
        jaxrnn.embedding(11, 6),
        jaxrnn.rnn(jaxrnn.lstm(5)),
        jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.elman(5))),
        jaxrnn.dropout(0.3),
        jaxrnn.rnn(jaxrnn.gru(4)),
        jaxrnn.dense(3),
    )
    params = jax.tree.map(np.float32, random_params(model))
    return model, params, jax.jit(model.apply)


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(0).integers(0, 11, (T, B))


def numpy_stack(params, text):
    table, lstm, elman, _, gru, dense = params

    def run(name, params, xs):
        size = params.recurrent_kernel.shape[0]
        return numpy_unroll(ROWS[name], params, xs, [np.zeros((B, size))] * (1 + (name == "lstm")))

    lstm_state, xs = run("lstm", lstm, table[text])
    elman_state, ys = run("elman", elman, xs)
    gru_state, xs = run("gru", gru, xs + ys)
    return ((), lstm_state, elman_state, (), gru_state, ()), xs @ dense.kernel + dense.bias


def test_a_stack_is_its_layers_in_numpy(stack, text):
    model, params, _ = stack
    with x64():
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        state, outputs = jax.jit(model.apply)(params, None, text)
        wanted_state, expected = numpy_stack(params, text)
        np.testing.assert_allclose(outputs, expected, **FLOAT64)
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(wanted_state), strict=True)
        for ours, theirs in leaves:
            np.testing.assert_allclose(ours, theirs, **FLOAT64)


@pytest.mark.parametrize("windows", [[1] * T, [5, 1, 5, 1]])
def test_a_stack_streams(stack, text, windows):
    model, params, apply = stack
    whole_state, whole = apply(params, None, text)
    state, parts, start = model.initial_state((B,)), [], 0
    for length in windows:
        state, outputs = apply(params, state, text[start : start + length])
        parts.append(outputs)
        start += length
    assert start == T
    # A product over another number of steps may sum in another order, so not to the last bit.
    np.testing.assert_allclose(np.concatenate(parts), whole, **FLOAT32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), state, whole_state)


def test_no_state_is_the_initial_state(stack, text):
    model, params, apply = stack
    given = apply(params, model.initial_state((B,)), text)
    jax.tree.map(np.testing.assert_array_equal, given, apply(params, None, text))


def test_no_steps_leave_the_state_as_it_was(stack, text):
    _, params, apply = stack
    state, _ = apply(params, None, text)
    after, outputs = apply(params, state, text[:0])
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert outputs.shape == (0, B, 3)


def test_a_key_trains_and_no_key_evaluates(stack, text):
    _, params, apply = stack
    _, plain = apply(params, None, text)
    runs = [
        np.asarray(apply(params, None, text, key=key)[1]) for key in (KEY, KEY, jax.random.key(1))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    assert (runs[0] != np.asarray(plain)).any()


def test_gradients_reach_every_parameter(stack, text):
    model, params, _ = stack

    def loss(params):
        return jnp.square(model.apply(params, None, text, key=KEY)[1]).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf) != 0).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes_and_dtypes_of_a_stack(stack, dtype, batch):
    model = stack[0]
    with x64():
        params = init_spec(model, dtype=dtype)
        text = spec(T, *batch, dtype=jnp.int32)
        state, outputs = apply_spec(model, params, None, text)
        assert outputs.shape == (T, *batch, 3)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs, state))} == {
            jnp.dtype(dtype)
        }
        initial = jax.eval_shape(lambda: model.initial_state(batch, dtype=dtype))
        assert [(s.shape, s.dtype) for s in jax.tree.leaves(initial)] == [
            (s.shape, s.dtype) for s in jax.tree.leaves(state)
        ]
        assert jax.tree.structure(initial) == jax.tree.structure(state)


# Serial -----------------------------------------------------------------------------------------


def test_serial_tells_each_layer_its_input_size():
    model = jaxrnn.serial(
        jaxrnn.embedding(7, 3),
        jaxrnn.rnn(jaxrnn.elman(4)),
        jaxrnn.layers.residual(jaxrnn.dense(4)),
        jaxrnn.bidirectional(jaxrnn.gru(5)),
        jaxrnn.dropout(0.1),
        jaxrnn.serial(jaxrnn.dense(6), jaxrnn.rnn(jaxrnn.lstm(2), return_sequences=False)),
        jaxrnn.dense(8),
    )
    params = init_spec(model)
    assert params[0].shape == (7, 3)
    assert params[1].kernel.shape == (3, 4)
    assert params[2].kernel.shape == (4, 4)
    assert [direction.kernel.shape for direction in params[3]] == [(4, 15), (4, 15)]
    assert params[4] == ()
    assert params[5][0].kernel.shape == (10, 6)
    assert params[5][1].kernel.shape == (6, 8)
    assert params[6].kernel.shape == (2, 8)
    _, outputs = apply_spec(model, params, None, spec(T, B, dtype=jnp.int32))
    assert outputs.shape == (B, 8)


def test_serial_of_float_inputs_is_told_their_size():
    params = init_spec(jaxrnn.serial(jaxrnn.dropout(0.5), jaxrnn.dense(3)), 9)
    assert params[1].kernel.shape == (9, 3)


def test_each_layer_is_drawn_with_a_key_of_its_own():
    first, second = jaxrnn.serial(jaxrnn.dense(4), jaxrnn.dense(4)).init(KEY, 4)
    assert (np.asarray(first.kernel) != np.asarray(second.kernel)).all()


def test_layers_of_a_serial_draw_different_masks():
    model = jaxrnn.serial(jaxrnn.dropout(0.5), jaxrnn.layers.residual(jaxrnn.dropout(0.5)))
    ones = np.ones(10_000, np.float32)
    _, outputs = jax.jit(model.apply)(((), ()), None, ones, key=KEY)
    # 2 and 2 + 4 where the first mask keeps: as often the one as the other if masks are apart.
    values, counts = np.unique(outputs, return_counts=True)
    np.testing.assert_array_equal(values, [0, 2, 6])
    error = 0.5 / np.sqrt(ones.size)
    np.testing.assert_allclose(
        counts / ones.size, [1 / 2, 1 / 4, 1 / 4], atol=STANDARD_ERRORS * error
    )


def test_an_error_says_which_layer():
    inner = jaxrnn.serial(jaxrnn.dropout(0.1), jaxrnn.dense(3))
    model = jaxrnn.serial(jaxrnn.rnn(jaxrnn.gru(4)), inner)
    params = init_spec(model, 5)
    wrong = (params[0], (params[1][0], params[1][1]._replace(kernel=spec(9, 3))))
    with pytest.raises(ValueError, match=r"params\.kernel: got") as caught:
        apply_spec(model, wrong, None, spec(T, 5))
    assert notes(caught.value) == [
        "in layer 1 of serial: dense(3)",
        "in layer 1 of serial: serial(2 layers)",
    ]
    with pytest.raises(ValueError, match="input_size") as caught:
        jaxrnn.serial(jaxrnn.dense(2), jaxrnn.embedding(3, 4)).init(KEY, 5)
    assert notes(caught.value) == ["in layer 1 of serial: embedding(3, 4)"]
    with pytest.raises(TypeError, match="input_size") as caught:
        jaxrnn.serial(jaxrnn.rnn(jaxrnn.gru(4))).init(KEY)
    assert notes(caught.value) == ["in layer 0 of serial: rnn(gru)"]


# Embedding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("rows", [5, 300])
def test_embedding_looks_rows_up(dtype, rows):
    layer, table = jaxrnn.embedding(rows, 2), normal(rows, 2)
    indices = np.array([[0, 4], [3, 3]], dtype)
    state, outputs = layer.apply(table, None, indices)
    assert state == ()
    np.testing.assert_array_equal(outputs, table[indices])


@pytest.mark.parametrize(
    ("index", "dtype"), [(-1, np.int32), (5, np.int32), (-3, np.int8), (200, np.uint8)]
)
def test_embedding_out_of_range(index, dtype):
    layer, table = jaxrnn.embedding(5, 2), normal(5, 2)
    indices = np.array([1, index], dtype)
    with pytest.raises(ValueError, match=f"inputs: got integers .*{index}.*, expected 0 to 4"):
        layer.apply(table, None, indices)
    _, outputs = jax.jit(layer.apply)(table, None, indices)
    np.testing.assert_array_equal(outputs, [table[1], [np.nan, np.nan]])


def test_a_negative_index_of_few_bits_is_not_in_a_large_table():
    layer, table = jaxrnn.embedding(300, 1), normal(300, 1)
    _, outputs = jax.jit(layer.apply)(table, None, np.array([-2, 7], np.int8))
    np.testing.assert_array_equal(outputs, [[np.nan], table[7]])


def test_embeddings_rows_have_norm_one_on_average():
    table = jax.jit(lambda: jaxrnn.embedding(1000, 50).init(KEY))()
    squares = np.square(np.asarray(table)).sum(-1)
    assert abs(squares.mean() - 1) < STANDARD_ERRORS * squares.std() / np.sqrt(1000)


# Dense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_dense_is_numpys(use_bias, activation):
    layer = jaxrnn.dense(3, use_bias=use_bias, activation=activation)
    assert (init_spec(layer, 4).bias is not None) == use_bias
    with x64():
        kernel, bias = normal(4, 3, dtype=float), normal(3, seed=1, dtype=float)
        inputs = normal(5, 2, 4, seed=2, dtype=float)
        params = jaxrnn.layers.DenseParams(kernel, bias if use_bias else None)
        state, outputs = layer.apply(params, None, inputs)
        expected = inputs @ kernel + (bias if use_bias else 0)
        assert state == ()
        np.testing.assert_allclose(
            outputs, np.tanh(expected) if activation else expected, **FLOAT64
        )


def test_denses_bias_starts_at_zero():
    np.testing.assert_array_equal(jaxrnn.dense(3).init(KEY, 4).bias, [0, 0, 0])


# Dropout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    ones = np.ones((200, 10, 20), np.float32)
    _, outputs = jax.jit(jaxrnn.dropout(rate).apply)((), None, ones, key=KEY)
    outputs = np.asarray(outputs)
    np.testing.assert_allclose(np.unique(outputs), [0, 1 / (1 - rate)], **FLOAT32)
    for axes in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):  # in all, and at every step, sequence, unit
        dropped = (outputs == 0).mean(axes)
        count = np.prod([ones.shape[axis] for axis in axes])
        error = np.sqrt(rate * (1 - rate) / count)
        np.testing.assert_allclose(dropped, rate, atol=STANDARD_ERRORS * error)


def test_dropout_scales_what_it_keeps():
    inputs = normal(100)
    _, outputs = jaxrnn.dropout(0.5).apply((), None, inputs, key=KEY)
    kept = np.asarray(outputs) != 0
    assert 0 < kept.sum() < 100
    np.testing.assert_array_equal(outputs, np.where(kept, 2 * inputs, 0))


def test_dropout_without_a_key_or_rate_is_the_identity():
    inputs = normal(5)
    assert jaxrnn.dropout(0.5).apply((), None, inputs)[1] is inputs
    assert jaxrnn.dropout(0).apply((), None, inputs, key=KEY)[1] is inputs


# Rnn, bidirectional and residual ----------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_rnn_is_a_numpy_loop(reverse, return_sequences):
    layer = jaxrnn.rnn(jaxrnn.elman(4), reverse=reverse, return_sequences=return_sequences)
    inputs = normal(T, B, 3, dtype=float)
    params = random_params(layer, 3)
    with x64():
        state, outputs = layer.apply(params, None, inputs)
        steps = inputs[::-1] if reverse else inputs
        wanted_state, expected = numpy_unroll(ROWS["elman"], params, steps, [np.zeros((B, 4))])
        last = expected[-1]
        expected = expected[::-1] if reverse else expected
        np.testing.assert_allclose(outputs, expected if return_sequences else last, **FLOAT64)
        np.testing.assert_allclose(state.hidden, wanted_state[0], **FLOAT64)


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_bidirectional_is_two_numpy_loops(return_sequences, given):
    layer = jaxrnn.bidirectional(jaxrnn.elman(4), jaxrnn.gru(2), return_sequences=return_sequences)
    inputs = normal(T, B, 3, dtype=float)
    hidden = normal(B, 4, dtype=float), normal(B, 2, dtype=float)
    if not given:
        hidden = normal(B, 4) * 0, normal(B, 2) * 0
    elman, gru = params = random_params(layer, 3)
    with x64():
        state = jaxrnn.cells.ElmanState(hidden[0]), jaxrnn.cells.GRUState(hidden[1])
        state, outputs = layer.apply(params, state if given else None, inputs)
        (last_forward,), forwards = numpy_unroll(ROWS["elman"], elman, inputs, [hidden[0]])
        (last_backward,), flipped = numpy_unroll(ROWS["gru"], gru, inputs[::-1], [hidden[1]])
        expected = np.concatenate([forwards, flipped[::-1]], axis=-1)
        if not return_sequences:
            expected = np.concatenate([last_forward, last_backward], axis=-1)
        np.testing.assert_allclose(outputs, expected, **FLOAT64)
        np.testing.assert_allclose(state[0].hidden, last_forward, **FLOAT64)
        np.testing.assert_allclose(state[1].hidden, last_backward, **FLOAT64)


def test_bidirectional_draws_each_direction_apart():
    # Glorot's kernels alone: jitted, the unused orthogonal ones are not even compiled.
    init = jaxrnn.bidirectional(jaxrnn.elman(4)).init
    forward, backward = jax.jit(lambda: [params.kernel for params in init(KEY, 3)])()
    assert (np.asarray(forward) != np.asarray(backward)).all()


@pytest.mark.parametrize("return_sequences", [False, True])
def test_bidirectional_joins_features_of_any_outputs(return_sequences):
    def cell(output):
        return jaxrnn.Cell(lambda *a: (), jnp.zeros, lambda _, s, x: (s, output(x)))

    both = functools.partial(jaxrnn.bidirectional, return_sequences=return_sequences)
    steps, none = ((T,) if return_sequences else ()), ((), ())
    layer = both(cell(lambda x: {"same": x, "outer": x[..., None] * x[..., None, :]}))
    _, outputs = apply_spec(layer, none, None, spec(T, B, 3))
    shapes = {name: leaf.shape for name, leaf in outputs.items()}
    assert shapes == {"same": (*steps, B, 6), "outer": (*steps, B, 3, 6)}
    with pytest.raises(ValueError, match=r"outputs of .*, expected some with features"):
        apply_spec(both(cell(lambda x: x.sum(-1))), none, None, spec(T, B, 3))


def test_bidirectionals_initial_state():
    layer = jaxrnn.bidirectional(jaxrnn.elman(4), jaxrnn.lstm(2))
    forward, backward = layer.initial_state((3,), dtype=jnp.bfloat16)
    assert forward.hidden.shape == (3, 4)
    assert backward.cell.shape == (3, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves((forward, backward))} == {jnp.dtype("bfloat16")}


def test_residual_adds_the_inputs():
    inner = jaxrnn.dense(3)
    layer = jaxrnn.layers.residual(inner)
    kernel, bias = params = jaxrnn.layers.DenseParams(normal(3, 3), normal(3))
    inputs = normal(5, 3, seed=1)
    _, outputs = layer.apply(params, None, inputs)
    np.testing.assert_allclose(outputs, inputs + inputs @ kernel + bias, **FLOAT32)


def test_residual_passes_the_key_on():
    layer = jaxrnn.layers.residual(jaxrnn.dropout(0.5))
    _, outputs = layer.apply((), None, np.ones(100, np.float32), key=KEY)
    assert set(np.unique(outputs)) == {1, 3}


# Time first or last ---------------------------------------------------------------------------


def batch_major(leaf):
    return np.moveaxis(leaf, 0, 1)


TIMED = [
    jaxrnn.rnn(jaxrnn.lstm(3)),
    jaxrnn.rnn(jaxrnn.elman(3), reverse=True, return_sequences=False),
    jaxrnn.bidirectional(jaxrnn.gru(3)),
    jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.elman(5))),
    jaxrnn.serial(jaxrnn.dropout(0.5), jaxrnn.rnn(jaxrnn.elman(3)), jaxrnn.dense(2)),
]


@pytest.mark.parametrize("layer", TIMED, ids=repr)
@pytest.mark.parametrize("raggedness", ["whole", "lengths", "flags"])
def test_time_may_come_after_the_batch(layer, raggedness):
    params = jax.tree.map(np.float32, random_params(layer, 5))
    rng = np.random.default_rng(0)
    inputs, flags = normal(T, B, 5), rng.random((2, T, B)) < 0.7
    first: dict[str, Any] = {"key": KEY}
    if raggedness == "lengths":
        first["lengths"] = np.array([T, 3])
    if raggedness == "flags":
        first |= {"mask": flags[0], "resets": flags[1]}
    last = {name: batch_major(o) if name in ("mask", "resets") else o for name, o in first.items()}
    state, outputs = layer.apply(params, None, inputs, **first)
    moved_state, moved = layer.apply(params, None, batch_major(inputs), **last, time_major=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), state, moved_state)
    outputs = batch_major(outputs) if layer.return_sequences else outputs
    np.testing.assert_allclose(outputs, moved, **FLOAT32)


def test_integers_have_time_last(stack, text):
    model, params, apply = stack
    _, outputs = apply(params, None, text)
    _, moved = model.apply(params, None, text.T, time_major=False)
    np.testing.assert_allclose(moved, batch_major(outputs), **FLOAT32)
    _, single = model.apply(params, None, text[:, 0], time_major=False)
    np.testing.assert_allclose(single, outputs[:, 0], **FLOAT32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": normal(5)}, ValueError, r"inputs: got .*expected an array \(\*batch, T, feat"),
        ({"inputs": [1.0]}, TypeError, "inputs: got list"),
        ({"mask": np.ones((T, B), bool)}, ValueError, r"mask: got .*, expected bool\[2, 12\]"),
        ({"time_major": 0}, TypeError, "time_major: got int 0"),
    ],
)
def test_bad_arguments_with_time_last(options, error, message):
    arguments = {"inputs": normal(B, T, 5), "time_major": False, **options}
    with pytest.raises(error, match=message):
        GRU.apply(init_spec(GRU, 5), None, **arguments)


# Copies, pickles and prints ---------------------------------------------------------------------


def makers():
    cell, engine = jaxrnn.gru(3), jaxrnn.engines.hoisted(2)
    yield lambda: jaxrnn.dense(3, activation=jax.nn.silu)
    yield lambda: jaxrnn.dropout(0.5)
    yield lambda: untyped.embedding(np.int64(5), 4)
    yield lambda: jaxrnn.rnn(cell, compute_dtype="bfloat16", engine=engine)
    yield lambda: jaxrnn.rnn(jaxrnn.elman(3, activation=jax.nn.relu))
    yield lambda: jaxrnn.rnn(jaxrnn.wrappers.zoneout(cell, 0.1), return_sequences=False)
    yield lambda: jaxrnn.bidirectional(cell, jaxrnn.lstm(2))
    yield lambda: jaxrnn.layers.residual(jaxrnn.rnn(cell))
    yield lambda: jaxrnn.serial(jaxrnn.rnn(cell), jaxrnn.serial(jaxrnn.dense(3)), jaxrnn.dense(3))


@pytest.mark.parametrize("make", list(makers()))
@pytest.mark.parametrize(
    "rebuild",
    [
        copy.copy,
        copy.deepcopy,
        lambda value: pickle.loads(pickle.dumps(value)),
        lambda value: pytest.importorskip("cloudpickle").loads(
            pytest.importorskip("cloudpickle").dumps(value)
        ),
    ],
    ids=["copy", "deepcopy", "pickle", "cloudpickle"],
)
def test_equal_settings_give_one_layer_and_copies_are_it(make, rebuild):
    layer = make()
    assert make() is layer
    assert rebuild(layer) is layer
    assert rebuild({"model": [layer]})["model"][0] is layer


def test_other_settings_give_another_layer():
    assert jaxrnn.dense(3) is not jaxrnn.dense(4)
    assert jaxrnn.dense(3) is untyped.dense(features=np.int32(3), use_bias=np.bool_(True))
    assert jaxrnn.serial(DENSE, DENSE) is not jaxrnn.serial(DENSE)


def double(params, state, inputs, *, key=None):
    return state, 2 * inputs


def test_a_layer_of_your_own_is_pickled_if_its_functions_are():
    mine = jaxrnn.Layer(DENSE.init, DENSE.initial_state, double, "mine")
    assert copy.deepcopy(mine) is mine
    with pytest.raises(AttributeError):  # a layer's closures can't be
        pickle.dumps(mine)
    mine = jaxrnn.Layer(normal, normal, double, "mine")
    again = pickle.loads(pickle.dumps(mine))
    assert (again.apply, again.name, again.causal) == (double, "mine", True)


@pytest.mark.parametrize(
    "value",
    [
        jaxrnn.engines.scan(2),
        jaxrnn.engines.hoisted(3, keep="states"),
        jaxrnn.engines.checkpointed(4, jaxrnn.engines.scan()),
        jaxrnn.engines.sharded(1),
        jaxrnn.engines.EngineChoice(jaxrnn.engines.scan(), "why"),
    ],
    ids=repr,
)
def test_engines_are_copied_and_pickled(value):
    cloudpickle = pytest.importorskip("cloudpickle")
    for again in (
        copy.copy(value),
        copy.deepcopy(value),
        pickle.loads(pickle.dumps(value)),
        cloudpickle.loads(cloudpickle.dumps(value)),
    ):
        assert again == value
        assert hash(again) == hash(value)


def test_layers_that_nobody_uses_are_freed():
    def made():
        cell = jaxrnn.Cell(lambda *a: (), jnp.zeros, lambda _, s, x: (s, x))
        layer = jaxrnn.rnn(cell)
        model = jaxrnn.serial(layer, jaxrnn.layers.residual(layer), jaxrnn.dense(977))
        apply_spec(model, init_spec(model, 2), None, spec(T, B, 2))
        return [weakref.ref(value) for value in (cell, layer, model)]

    references = made()
    jax.clear_caches()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_print_says_what_a_model_is():
    cell = jaxrnn.wrappers.zoneout(jaxrnn.lstm(4), 0.1)
    assert str(jaxrnn.lstm(64)) == "lstm: state hidden[64], cell[64]"
    assert str(cell) == "zoneout(lstm): state hidden[4], cell[4]"
    both = jaxrnn.bidirectional(jaxrnn.gru(3), jaxrnn.elman(2))
    inner = jaxrnn.serial(both, jaxrnn.layers.residual(jaxrnn.dense(5)))
    model = jaxrnn.serial(jaxrnn.embedding(7, 4), jaxrnn.rnn(cell), inner)
    assert str(model).splitlines() == [
        "serial(3 layers)",
        "  embedding(7, 4)",
        "  rnn(zoneout(lstm)): state hidden[4], cell[4]",
        "  serial(2 layers)",
        "    bidirectional(gru): state hidden[3] and hidden[2]",
        "    residual(dense(5))",
    ]
    assert repr(model) == "Layer(serial(3 layers))"


def test_states_of_any_structure_are_printed():
    def cell(state):
        return jaxrnn.Cell(lambda *a: (), lambda *a: state, lambda _, s, x: (s, x), name="own")

    assert str(cell(())) == "own: state ()"
    assert str(cell(np.zeros(3))) == "own: state [3]"
    assert str(cell({"a": (np.zeros(()), np.zeros((2, 1)))})) == "own: state a.0[], a.1[2, 1]"


def test_parameters_are_counted():
    inner = jaxrnn.serial(jaxrnn.rnn(jaxrnn.elman(2)), jaxrnn.dropout(0.5))
    model = jaxrnn.serial(jaxrnn.dense(40), jaxrnn.layers.residual(jaxrnn.dense(40)), inner)
    lines = jaxrnn.layers.describe(model, 30).splitlines()
    elman = 40 * 2 + 2 * 2 + 2
    counts = [1240 + 1640 + elman, 1240, 1640, elman, elman, 0]
    assert [line.split()[-1] for line in lines[1:]] == [f"{count:,}" for count in counts]
    assert len({len(line) for line in lines}) == 1
    assert jaxrnn.layers.describe(jaxrnn.lstm(2), 3).endswith(str(8 * 6))


def test_bad_arguments_of_describe():
    with pytest.raises(TypeError, match="input_size: got NoneType"):
        jaxrnn.layers.describe(jaxrnn.dense(3))
    with pytest.raises(TypeError, match="model: got int 3"):
        jaxrnn.layers.describe(3)  # pyright: ignore[reportArgumentType]


# Bad input --------------------------------------------------------------------------------------


untyped: Any = jaxrnn  # a wrong setting is one of the wrong type too


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: untyped.embedding(0, 3), ValueError, "num_embeddings: got 0"),
        (lambda: untyped.embedding(3.0, 3), TypeError, "num_embeddings: got float"),
        (lambda: untyped.embedding(3, -1), ValueError, "features: got -1"),
        (lambda: untyped.embedding(3, "100"), TypeError, "features: got str '100'"),
        (
            lambda: untyped.embedding(3, 4, embedding_init="normal"),
            TypeError,
            "embedding_init: got",
        ),
        (lambda: untyped.dense(0), ValueError, "features: got 0"),
        (lambda: untyped.dense(np.ones(2)), TypeError, r"features: got float64\[2\]"),
        (lambda: untyped.dense(3, activation="relu"), TypeError, "activation: got str 'relu'"),
        (lambda: untyped.dense(3, use_bias=0), TypeError, "use_bias: got int 0"),
        (lambda: untyped.dense(3, kernel_init=None), TypeError, "kernel_init: got NoneType"),
        (lambda: untyped.dropout(-0.1), ValueError, "rate: got -0.1"),
        (lambda: untyped.dropout(1.0), ValueError, "rate: got 1.0"),
        (lambda: untyped.dropout(1), ValueError, "rate: got 1.0"),
        (lambda: untyped.dropout(50), ValueError, "rate: got 50"),
        (lambda: untyped.dropout(float("nan")), ValueError, "rate: got nan"),
        (lambda: untyped.dropout("0.5"), TypeError, "rate: got str '0.5'"),
        (lambda: untyped.dropout(True), TypeError, "rate: got bool True"),
        (lambda: untyped.dropout(np.array([0.5])), TypeError, r"rate: got float64\[1\]"),
        (lambda: untyped.rnn("gru"), TypeError, "cell: got str 'gru', expected a jaxrnn.Cell"),
        (lambda: untyped.rnn(untyped.gru), TypeError, "cell: got function"),
        (lambda: untyped.rnn(untyped.gru(3), reverse=1), TypeError, "reverse: got int 1"),
        (
            lambda: untyped.rnn(untyped.gru(3), return_sequences="last"),
            TypeError,
            "return_sequences: got str 'last'",
        ),
        (lambda: untyped.bidirectional(untyped.dense(3)), TypeError, "forward: got Layer"),
        (
            lambda: untyped.bidirectional(untyped.gru(3), "gru"),
            TypeError,
            "backward: got str 'gru'",
        ),
        (
            lambda: untyped.bidirectional(untyped.gru(3), return_sequences=None),
            TypeError,
            "return_sequences: got NoneType",
        ),
        (
            lambda: untyped.layers.residual("gru"),
            TypeError,
            "layer: got str",
        ),
        (lambda: untyped.serial(), TypeError, "layers: got none"),
        (
            lambda: untyped.serial(untyped.dense(3), untyped.gru(3)),
            TypeError,
            r"layers\[1\]: got Cell Cell\(gru\), expected a Layer",
        ),
        (lambda: untyped.serial([untyped.dense(3)]), TypeError, r"layers\[0\]: got list"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "arguments", "error", "message"),
    [
        (jaxrnn.embedding(3, 4), {"input_size": 5}, ValueError, "input_size: got 5, expected None"),
        (jaxrnn.embedding(3, 4), {"key": 0}, TypeError, "key: got int 0"),
        (jaxrnn.embedding(3, 4), {"dtype": int}, TypeError, "dtype: got int"),
        (jaxrnn.dense(3), {}, TypeError, "input_size: got NoneType"),
        (jaxrnn.dense(3), {"input_size": 0}, ValueError, "input_size: got 0"),
        (jaxrnn.dense(3), {"input_size": 2, "key": None}, TypeError, "key: got NoneType"),
        (jaxrnn.dense(3), {"input_size": 2, "dtype": "float64"}, ValueError, "dtype: got float64"),
        (jaxrnn.rnn(jaxrnn.gru(3)), {"input_size": 2.0}, TypeError, "input_size: got float 2.0"),
        (jaxrnn.bidirectional(jaxrnn.gru(3)), {"key": 1}, TypeError, "key: got int 1"),
        (jaxrnn.bidirectional(jaxrnn.gru(3)), {"input_size": -1}, ValueError, "input_size: got -1"),
        (jaxrnn.serial(jaxrnn.dense(3)), {"input_size": "2"}, TypeError, "input_size: got str '2'"),
        (jaxrnn.serial(jaxrnn.dense(3)), {"key": "seed"}, TypeError, "key: got str 'seed'"),
    ],
)
def test_bad_arguments_of_init(layer, arguments, error, message):
    arguments = {"key": KEY, "input_size": None, **arguments}
    with pytest.raises(error, match=message):
        layer.init(**arguments)


DENSE, GRU = jaxrnn.dense(3), jaxrnn.rnn(jaxrnn.gru(3))
LAST = jaxrnn.rnn(jaxrnn.gru(3), return_sequences=False)
BOTH = jaxrnn.bidirectional(jaxrnn.gru(3))
TWO = jaxrnn.serial(jaxrnn.dropout(0.5), DENSE)


@pytest.mark.parametrize(
    ("layer", "change", "error", "message"),
    [
        (DENSE, {"inputs": spec(5, dtype=jnp.int32)}, TypeError, "inputs: got int32"),
        (DENSE, {"inputs": spec()}, ValueError, r"inputs: got float32\[\]"),
        (DENSE, {"inputs": spec(T, 9)}, ValueError, r"params.kernel: got float32\[5, 3\], .*9, 3"),
        (DENSE, {"inputs": spec(5, dtype=jnp.bfloat16)}, TypeError, "params.kernel: got float32"),
        (DENSE, {"params": (1, 2)}, TypeError, "params: got tuple.*expected DenseParams"),
        (
            GRU,
            {"inputs": spec(5)},
            ValueError,
            r"inputs: got float32\[5\], expected .*\(T, \*batch",
        ),
        (GRU, {"state": jaxrnn.cells.ElmanState(spec(3))}, TypeError, "state: got ElmanState"),
        (LAST, {"inputs": spec(0, 5)}, ValueError, "inputs: got 0 steps, expected at least 1"),
        (BOTH, {"params": None}, TypeError, "params: got NoneType None, expected a tuple of 2"),
        (BOTH, {"params": (1, 2, 3)}, ValueError, "params: got 3 entries, expected 2"),
        (BOTH, {"state": ()}, ValueError, "state: got 0 entries, expected 2"),
        (
            BOTH,
            {"state": (None, jaxrnn.cells.GRUState(spec(4)))},
            ValueError,
            r"state.hidden: got float",
        ),
        (TWO, {"params": ((),)}, ValueError, "params: got 1 entries, expected 2"),
        (TWO, {"state": {}}, TypeError, r"state: got dict \{\}, expected a tuple of 2 entries"),
        (TWO, {"key": 3}, TypeError, "key: got int 3, expected a key"),
        (TWO, {"inputs": spec(T, 4)}, ValueError, "params.kernel: got"),
        (
            jaxrnn.layers.residual(DENSE),
            {},
            ValueError,
            r"inputs: got float32\[12, 5\], .*\(12, 3\) of",
        ),
        (jaxrnn.dropout(0.5), {"inputs": spec(5, dtype=jnp.int32)}, TypeError, "inputs: got int32"),
        (jaxrnn.dropout(0.5), {"key": 3}, TypeError, "key: got int 3"),
    ],
)
def test_bad_arguments_of_apply(layer, change, error, message):
    arguments = {"state": None, "inputs": spec(T, 5), "key": None, **change}
    if "params" not in change:
        arguments["params"] = init_spec(layer, 5)
    with pytest.raises(error, match=message):
        apply_spec(
            layer,
            *(arguments[name] for name in ("params", "state", "inputs")),
            key=arguments["key"],
        )


@pytest.mark.parametrize(
    ("params", "inputs", "error", "message"),
    [
        (
            spec(3, 4),
            np.ones(5, np.float32),
            TypeError,
            r"inputs: got float32\[5\], expected .*int",
        ),
        (spec(3, 4), "text", TypeError, "inputs: got str 'text'"),
        (spec(3, 4), [1, 2], TypeError, "inputs: got list"),
        (spec(3, 4), np.array([True]), TypeError, "inputs: got bool"),
        (spec(4, 3), np.array([1]), ValueError, r"params: got float32\[4, 3\], expected a table"),
        (None, np.array([1]), TypeError, "params: got NoneType"),
        (spec(3, 4, dtype=jnp.int32), np.array([1]), TypeError, "params: got int32"),
    ],
)
def test_bad_arguments_of_embeddings_apply(params, inputs, error, message):
    with pytest.raises(error, match=message):
        jaxrnn.embedding(3, 4).apply(params, None, inputs)


@pytest.mark.parametrize("layer", [TWO, jaxrnn.serial(GRU)])
def test_a_misspelt_argument_of_serials_apply(layer):
    with pytest.raises(
        TypeError, match="got an unexpected argument 'lenghts'; it takes lengths, mask"
    ):
        apply_spec(layer, init_spec(layer, 5), None, spec(T, 5), lenghts=np.array(3))


@pytest.mark.parametrize("make", [jaxrnn.rnn, jaxrnn.bidirectional])
def test_bad_engine(make):
    with pytest.raises(TypeError, match="engine: got str 'fast'"):
        make(jaxrnn.gru(3), engine="fast")


@pytest.mark.parametrize("before", [LAST, jaxrnn.serial(LAST, TWO), jaxrnn.layers.residual(LAST)])
@pytest.mark.parametrize("after", [GRU, BOTH, jaxrnn.serial(DENSE, GRU)])
def test_serial_refuses_to_take_the_batch_for_time(before, after):
    message = rf"layers\[2\]: got {re.escape(after.name)}, .* after {re.escape(before.name)}, whose"
    with pytest.raises(ValueError, match=message):
        jaxrnn.serial(before, DENSE, after)


def test_a_layer_of_your_own_that_carries_a_state_runs_over_time():
    mine = jaxrnn.Layer(GRU.init, GRU.initial_state, GRU.apply, "mine")
    with pytest.raises(ValueError, match=r"layers\[1\]: got mine, which runs over time"):
        jaxrnn.serial(LAST, mine)


def test_what_has_outputs_with_a_time_axis():
    last = jaxrnn.bidirectional(jaxrnn.gru(3), return_sequences=False)
    for layer in (DENSE, GRU, BOTH, TWO, jaxrnn.serial(GRU, TWO, BOTH)):
        assert layer.return_sequences
        assert jaxrnn.layers.residual(layer).return_sequences
    for layer in (LAST, last, jaxrnn.serial(last, TWO), jaxrnn.layers.residual(last)):
        assert not layer.return_sequences


def test_a_layer_is_frozen_and_named():
    layer = jaxrnn.layers.residual(jaxrnn.rnn(jaxrnn.gru(3)))
    assert repr(layer) == "Layer(residual(rnn(gru)))"
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
