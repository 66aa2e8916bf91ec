"""Programs that once went wrong, with their siblings; the truth of each comes from outside."""

import copy
import dataclasses
import functools
import gc
import pickle
import weakref
from typing import Any

import cloudpickle
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec

import jaxrnn
from jaxrnn import engines, initializers, unroll, wrappers
from jaxrnn._jaxpr import primitives
from tests.engines import ON_A_CPU
from tests.problems import problem
from tests.tolerances import FLOAT64, x64

T, B, H, I = 6, 4, 4, 3

ENGINES = [None, engines.scan(2), engines.hoisted(4, keep="products"), engines.checkpointed()]
# Each compiles for a second or more: in the plain run stands the default for all.
BY_ENGINE = pytest.mark.parametrize(
    "engine",
    [None, *(pytest.param(engine, marks=pytest.mark.slow) for engine in ENGINES[1:])],
    ids=str,
)
TWO_DEVICES = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")


def close(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


def tanh(params, hidden, gates):
    hidden = jnp.tanh(gates)
    return hidden, hidden


def split_cell(
    project, recur: Any = None, activate: Any = tanh, *, shapes=None, units=H, **options
):
    """An Elman network some of whose parts are given; its params are a dict."""
    shapes = shapes or {"w": (I, H), "u": (H, H)}

    def init(key, input_size, dtype):
        keys = jax.random.split(key, len(shapes))
        draw = zip(keys, shapes.items(), strict=True)
        return {name: 0.5 * jax.random.normal(key, shape, dtype) for key, (name, shape) in draw}

    step = jaxrnn.SplitStep(
        project,
        recur or (lambda p, h: h @ p["u"]),
        activate,
    )
    return jaxrnn.Cell(
        init, lambda batch, dtype: jnp.zeros((*batch, units), dtype), step, **options
    )


def loop(step, params, state, inputs, *, reverse=False):
    """A scan by hand: outputs of a step that is written in the test."""
    body = functools.partial(step, params)
    return jax.lax.scan(body, state, inputs, reverse=reverse)[1]


def weighted(outputs):
    weights = jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape)
    return (weights * outputs).sum()


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def normalised(a, axis=-2):
    return (a - a.mean(axis, keepdims=True)) / jnp.sqrt(a.var(axis, keepdims=True) + 1e-5)


# Rows that meet


def test_a_norm_over_the_batch_has_the_gradients_of_torch():
    torch = pytest.importorskip("torch")
    cell = split_cell(lambda p, x: normalised(x @ p["w"]))
    with x64():
        params = {"w": drawn(I, H), "u": drawn(H, H, seed=1)}
        inputs = drawn(T, B, I, seed=2)
        w, u = (torch.tensor(np.array(params[name]), requires_grad=True) for name in "wu")
        hidden, outputs = torch.zeros(B, H, dtype=torch.float64), []
        for x in torch.tensor(np.array(inputs)):
            norm = torch.nn.functional.batch_norm(x @ w, None, None, training=True, eps=1e-5)
            hidden = torch.tanh(norm + hidden @ u)
            outputs.append(hidden)
        outputs = torch.stack(outputs)
        weights = np.cos(np.arange(T * B * H)).reshape(T, B, H)
        (torch.tensor(weights) * outputs).sum().backward()
        for engine in ENGINES:
            value, gradient = jax.value_and_grad(
                lambda p, engine=engine: weighted(unroll(cell, p, inputs, engine=engine)[1])
            )(params)
            np.testing.assert_allclose(value, (weights * outputs.detach().numpy()).sum(), **FLOAT64)
            close(gradient, {"w": w.grad.numpy(), "u": u.grad.numpy()})


def spatial(p, x):
    """A convolution over the batch, as over the places of a picture."""
    padded = jnp.concatenate([x[-1:], x, x[:1]])
    return (padded[:-2] + 2 * padded[1:-1] - padded[2:]) @ p["w"]


MEETING = {
    "project": {"project": spatial},
    "recur": {"recur": lambda p, h: normalised(h @ p["u"])},
    "activate": {"activate": lambda p, h, gates: 2 * (jnp.tanh(gates - gates.mean(0)),)},
    # As single sequences are written: parts that reduce all axes.
    "norm": {"project": lambda p, x: x / jnp.linalg.norm(x) @ p["w"]},
    "drive": {"project": lambda p, x: x @ p["w"][:, :1]},
}


@pytest.mark.parametrize("parts", MEETING.values(), ids=list(MEETING))
@BY_ENGINE
@pytest.mark.usefixtures("float64")
def test_parts_in_which_rows_meet(parts, engine):
    cell = split_cell(**{"project": lambda p, x: x @ p["w"], **parts})
    step = cell.split_step
    assert step is not None
    params, inputs, state = problem(cell, length=T, batch=(B,), dtype=jnp.float64)

    def by_hand(params, inputs, state):
        def body(params, h, x):
            return step.activate(params, h, step.project(params, x) + step.recur(params, h))

        return weighted(loop(body, params, state, inputs))

    def ours(params, inputs, state):
        return weighted(unroll(cell, params, inputs, state, engine=engine)[1])

    def in_chunks(params, inputs, state):
        weights = jnp.cos(jnp.arange(T * B * H, dtype=jnp.float64)).reshape(T, B, H)
        return jaxrnn.unroll_loss(
            lambda outputs, weights: (outputs * weights).sum(),
            *(cell, params, inputs, weights, state),
            engine=None if getattr(engine, "chunk", None) else engine,
        )[1]

    expected = jax.jit(jax.value_and_grad(by_hand, argnums=(0, 1, 2)))(params, inputs, state)
    for function in (ours, in_chunks):
        got = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(params, inputs, state)
        close(got, expected)


@TWO_DEVICES
@pytest.mark.parametrize("name", ["project", "recur", "activate", "norm"])
def test_a_batch_whose_rows_meet_is_not_divided(name):
    cell = split_cell(**{"project": lambda p, x: x @ p["w"], **MEETING[name]})
    params, inputs, _ = problem(cell, length=T, batch=(B,))
    engine = engines.sharded(2)
    with pytest.raises(ValueError, match=r"engine: got sharded\(\) for cell, whose step mixes"):
        jax.jit(lambda p, x: unroll(cell, p, x, engine=engine))(params, inputs)


@pytest.mark.usefixtures("float64")
def test_rows_that_meet_in_truncated_training():
    cell = split_cell(lambda p, x: normalised(x @ p["w"]))
    params, inputs, _ = problem(cell, length=T, batch=(B,), dtype=jnp.float64)

    def by_hand(params):
        def body(params, h, x):
            h = jnp.tanh(normalised(x @ params["w"]) + h @ params["u"])
            return h, h

        return jnp.square(loop(body, params, jnp.zeros((B, H)), inputs)).sum()

    loss = jaxrnn.training.truncated_loss(
        jaxrnn.rnn(cell), lambda outputs, _: jnp.square(outputs).sum(), k1=T, k2=T
    )
    carry = loss.initial_carry(inputs)
    got = jax.grad(lambda params: loss(params, carry, (inputs, None))[0])(params)
    close(got, jax.grad(by_hand)(params))


@BY_ENGINE
@pytest.mark.usefixtures("float64")
def test_a_rule_that_is_not_pointwise(engine):
    @jax.custom_jvp
    def centred(x):
        return x

    centred.defjvp(lambda at, by: (at[0], by[0] - by[0].mean(-1, keepdims=True)))

    def activate(p, h, gates):
        z, n = gates
        z = jax.nn.sigmoid(z)
        h = z * h + (1 - z) * jnp.tanh(centred(n))
        return h, h

    cell = split_cell(
        lambda p, x: jnp.split(x @ p["w"], 2, -1),
        lambda p, h: jnp.split(h @ p["u"], 2, -1),
        activate,
        shapes={"w": (I, 2 * H), "u": (H, 2 * H)},
    )
    params, inputs, state = problem(cell, length=T, dtype=jnp.float64)

    def by_hand(params):
        def body(params, h, x):
            return activate(params, h, jnp.split(x @ params["w"] + h @ params["u"], 2, -1))

        return weighted(loop(body, params, state, inputs))

    got = jax.grad(lambda p: weighted(unroll(cell, p, inputs, state, engine=engine)[1]))(params)
    close(got, jax.grad(by_hand)(params))


@pytest.mark.parametrize("units", [3, 256])
@pytest.mark.usefixtures("float64")
def test_an_addend_for_all_units(units):
    cell = split_cell(
        lambda p, x: x @ p["w"], shapes={"w": (I, 1), "u": (units, units)}, units=units
    )
    params, inputs, state = problem(cell, length=5, batch=(8,), dtype=jnp.float64)
    params["u"] /= units

    def by_hand(params):
        def body(params, h, x):
            return 2 * (jnp.tanh(x @ params["w"] + h @ params["u"]),)

        return weighted(loop(body, params, state, inputs))

    expected = jax.grad(by_hand)(params)
    for engine in ENGINES[::2]:
        got = jax.grad(
            lambda p, engine=engine: weighted(unroll(cell, p, inputs, state, engine=engine)[1])
        )(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, expected
        )


# What is masked has no effect


DEAD = {
    "lengths": {"lengths": np.array([T, 0])},
    "mask": {"mask": np.array([[True, False]] * T)},
    "lengths and resets": {
        "lengths": np.array([T, 0]),
        "resets": np.array([[n == 3, n == 3] for n in range(T)]),
    },
    "mask and resets": {
        "mask": np.array([[True, False]] * T),
        "resets": np.array([[n == 3, False] for n in range(T)]),
    },
}


@BY_ENGINE
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", DEAD.values(), ids=list(DEAD))
@pytest.mark.usefixtures("float64")
def test_a_dead_row(options, reverse, engine):
    """Sequence 1 has no real step, and NaN in its state and inputs: as if it were not there."""
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell, length=T, batch=(2,), dtype=jnp.float64)
    dead = jax.tree.map(lambda a: jnp.asarray(a).at[1].set(np.nan), state)

    def ours(params, inputs, state, options):
        final, outputs, states = unroll(
            *(cell, params, inputs, state),
            reverse=reverse,
            engine=engine,
            return_states=True,
            **options,
        )
        alive = jax.tree.map(lambda a: a[:1].sum(), final)
        return weighted(outputs[:, :1]) + alive.hidden + states.cell[:, :1].sum(), (final, outputs)

    inputs = jnp.asarray(inputs).at[:, 1].set(np.nan)
    differentiate = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True))
    (value, (final, outputs)), got = differentiate(params, inputs, dead, options)
    alone = {name: np.asarray(flag)[..., :1] for name, flag in options.items()}
    alone["lengths"] = np.array([T])
    alone.pop("mask", None)
    (expected_value, _), expected = differentiate(
        params, inputs[:, :1], jax.tree.map(lambda a: a[:1], state), alone
    )
    np.testing.assert_allclose(value, expected_value, **FLOAT64)
    close(got[0], expected[0])
    close(got[1][:, :1], expected[1])
    close(jax.tree.map(lambda a: a[:1], got[2]), expected[2])
    assert (got[1][:, 1] == 0).all()
    assert all((leaf[1] == 0).all() for leaf in got[2])
    assert (outputs[:, 1] == 0).all()
    assert np.isnan(final.hidden[1]).all()  # the state is kept, whatever it is


@pytest.mark.usefixtures("float64")
def test_a_dead_row_in_losses_by_chunks_and_truncated():
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell, length=T, batch=(2,), dtype=jnp.float64)
    dead = jax.tree.map(lambda a: jnp.asarray(a).at[1].set(np.nan), state)
    alive = jax.tree.map(lambda a: a[:1], state)

    def square(outputs, _):
        return jnp.square(outputs).sum()

    def by_chunks(params, inputs, state, lengths):
        return jaxrnn.unroll_loss(square, cell, params, inputs, None, state, lengths=lengths)[1]

    def plain(params):
        return jnp.square(unroll(cell, params, inputs[:, :1], alive)[1]).sum()

    expected = jax.grad(plain)(params)
    close(jax.grad(by_chunks)(params, inputs, dead, jnp.array([T, 0])), expected)

    *_, gradient = jaxrnn.training.truncated_gradient(
        *(jaxrnn.rnn(cell), square, params, inputs, None),
        k1=T,
        state=dead,
        lengths=jnp.array([T, 0]),
    )
    close(gradient, expected)


@pytest.mark.parametrize("padding", [0.0, 1.0, np.nan])
@BY_ENGINE
@pytest.mark.usefixtures("float64")
def test_padding_where_a_norm_has_no_gradient(padding, engine):
    def step(p, h, x):
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        h = jnp.tanh(x @ p["w"] + h @ p["u"])
        return h, h

    split = split_cell(lambda p, x: x / jnp.linalg.norm(x, axis=-1, keepdims=True) @ p["w"])
    cell = split if isinstance(engine, engines.hoisted) else split.replace(step=step)
    params, inputs, state = problem(cell, length=T, batch=(2,), dtype=jnp.float64)
    padded = jnp.asarray(inputs).at[3:, 1].set(padding)

    def by_hand(params):
        return sum(
            jnp.square(loop(step, params, state[row], inputs[:length, row])).sum()
            for row, length in enumerate((T, 3))
        )

    def ours(params):
        lengths = jnp.array([T, 3])
        return jnp.square(
            unroll(cell, params, padded, state, lengths=lengths, engine=engine)[1]
        ).sum()

    close(jax.grad(ours)(params), jax.grad(by_hand)(params))


# JAX's modes, and what interprets a program


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_checkify_finds_what_is_not_a_number(engine, gradient):
    cell = jaxrnn.elman(H)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), I))
    inputs = jnp.ones((T, 2, I))

    def outputs(params, inputs):
        return unroll(cell, params, inputs, engine=engine)[1].sum()

    function = jax.grad(outputs) if gradient else outputs
    checked = jax.jit(checkify.checkify(function, errors=checkify.nan_checks))
    assert checked(params, inputs)[0].get() is None
    error, _ = checked(params, inputs.at[3].set(jnp.inf))  # infinity times zero
    assert "nan generated by primitive" in error.get()


def everything(cell, engine=None, **options):
    """Run a cell forwards and backwards, with and without ragged sequences."""
    params = cell.init(jax.random.key(0), I)
    inputs = jnp.ones((T, 2, I))
    evaluating: dict[str, Any] = {**options, "key": None}
    evaluated = unroll(cell, params, inputs, engine=engine, **evaluating)[1]

    def loss(params):
        return jax.tree.leaves(unroll(cell, params, inputs, engine=engine, **options)[1])[0].sum()

    return evaluated, jax.grad(loss)(params)


MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "key reuse": lambda: jax.debug_key_reuse(True),
}
RAGGED = {"lengths": np.array([2, 6]), "resets": np.arange(2 * T).reshape(T, 2) % 5 == 3}
CELLS = {
    "elman": lambda: jaxrnn.elman(H),
    "no bias": lambda: jaxrnn.elman(H, use_bias=False),
    "lstm": lambda: jaxrnn.lstm(H),
    "gru": lambda: jaxrnn.gru(H),
    "peephole_lstm": lambda: jaxrnn.cells.peephole_lstm(H),
    "reset before": lambda: jaxrnn.gru(H, reset_after=False),
    "wrapped": lambda: wrappers.zoneout(
        wrappers.recurrent_dropout(wrappers.layer_norm(jaxrnn.lstm(H)), 0.2), 0.1
    ),
    "projection": lambda: wrappers.projection(jaxrnn.lstm(H), 2),
    "learned": lambda: wrappers.learned_initial_state(jaxrnn.gru(H)),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "wrapped" else pytest.param(name, marks=pytest.mark.slow) for name in CELLS],
)
@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
def test_cells_in_strict_modes(mode, name):
    cell = CELLS[name]()
    with mode():
        for seed, options in enumerate([{}, {"reverse": True, **RAGGED}]):
            everything(cell, key=jax.random.key(seed), **options)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:], ids=str)
@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
def test_engines_in_strict_modes(mode, engine):
    with mode():
        everything(jaxrnn.gru(H), engine, key=jax.random.key(3), **RAGGED)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
@pytest.mark.usefixtures("float64")
def test_lengths_of_any_type_in_strict_modes(dtype):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(2,), dtype=jnp.float32)
    expected, _ = unroll(cell, params, inputs, state, lengths=jnp.array([2, 6]))
    lengths = np.array([2, 6], dtype)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got, _ = jax.jit(lambda lengths: unroll(cell, params, inputs, state, lengths=lengths))(
            lengths
        )
    np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
def test_layers_and_tasks_in_strict_modes(mode):
    model = jaxrnn.serial(
        jaxrnn.rnn(jaxrnn.gru(H)),
        jaxrnn.bidirectional(jaxrnn.lstm(H)),
        jaxrnn.dropout(0.1),
        jaxrnn.dense(2),
    )
    with mode():
        params = model.init(jax.random.key(0), I)

        def loss(params, key):
            outputs = model.apply(
                params, None, jnp.ones((T, 2, I)), key=key, lengths=jnp.array([2, 6])
            )[1]
            return outputs.sum()

        jax.grad(loss)(params, jax.random.key(1))
        jaxrnn.tasks.adding(jax.random.key(2), batch_size=3, length=20)


# Programs for sizes that are not known yet


@pytest.mark.parametrize(
    "engine", [None, engines.scan(), engines.hoisted(), engines.checkpointed()], ids=str
)
@pytest.mark.parametrize("options", [{}, {"lengths": True, "reverse": True}], ids=str)
def test_export_for_sizes_unknown(engine, options):
    cell = jaxrnn.lstm(H)
    params = cell.init(jax.random.key(0), I)

    def function(params, inputs, lengths):
        chosen = {**options, **({"lengths": lengths} if "lengths" in options else {})}

        def loss(params):
            state, outputs = unroll(cell, params, inputs, engine=engine, **chosen)
            return jnp.square(outputs).sum(), (state, outputs)

        return jax.value_and_grad(loss, has_aux=True)(params)

    steps, batch = export.symbolic_shape("t, b")
    exported = export.export(jax.jit(function))(
        params,
        jax.ShapeDtypeStruct((steps, batch, I), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    for shape in ((7, 2, I), (1, 5, I)):
        inputs, lengths = drawn(*shape).astype(jnp.float32), jnp.arange(shape[1]) % (shape[0] + 1)
        lengths = lengths.astype(jnp.int32)
        got, expected = exported.call(params, inputs, lengths), function(params, inputs, lengths)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, expected
        )


# Several devices


def explicit_mesh():
    """Return a mesh whose axes are part of an array's type, JAX's default since 0.7."""
    return jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))


@TWO_DEVICES
@pytest.mark.parametrize("engine", [*ENGINES, engines.sharded()], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"lengths": np.array([T, 2, 0, 5]), "reverse": True}], ids=["plain", "ragged"]
)
@pytest.mark.usefixtures("float64")
def test_a_batch_divided_in_its_type(engine, options):
    cell = jaxrnn.lstm(H)
    params, inputs, _ = problem(cell, length=T, batch=(B,), dtype=jnp.float64)

    def loss(params, inputs, engine):
        outputs = unroll(cell, params, inputs, engine=engine, **options)[1]
        return jnp.square(outputs).sum(), outputs

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    expected = differentiate(params, inputs, engines.scan())
    mesh = explicit_mesh()
    with jax.set_mesh(mesh):
        divided = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec(None, "batch")))
        got = differentiate(
            jax.device_put(params, NamedSharding(mesh, PartitionSpec())), divided, engine
        )
        got = jax.tree.map(np.asarray, got)
    close(got, jax.tree.map(np.asarray, expected))


@TWO_DEVICES
@pytest.mark.usefixtures("float64")
def test_a_divided_batch_without_a_mesh_that_is_set():
    cell = jaxrnn.lstm(H)
    params, inputs, _ = problem(cell, length=T, batch=(B,), dtype=jnp.float64)
    _, expected = unroll(cell, params, inputs)
    where = NamedSharding(explicit_mesh(), PartitionSpec(None, "batch"))
    divided = jax.device_put(inputs, where)
    close(np.asarray(unroll(cell, params, divided)[1]), expected)
    close(np.asarray(jax.jit(lambda p, x: unroll(cell, p, x)[1])(params, divided)), expected)


# Memory


def temporary_bytes(function, *arguments):
    analysis = jax.jit(jax.grad(function)).lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@ON_A_CPU
@pytest.mark.parametrize(
    "cell",
    [wrappers.projection(jaxrnn.lstm(512), 256), jaxrnn.cells.peephole_lstm(512)],
    ids=repr,
)
@pytest.mark.parametrize("batch", [1, 4])
def test_memory_of_params_in_activate(cell, batch):
    inputs = jax.ShapeDtypeStruct((1000, batch, I), jnp.float32)
    by_scan, ours = (
        temporary_bytes(
            lambda p, x, engine=engine: unroll(cell, p, x, engine=engine)[1][-1].sum(),
            *(cell.params_spec(I), inputs),
        )
        for engine in (engines.scan(), engines.hoisted())
    )
    assert ours < 2 * by_scan


LAST = {
    "plain": {},
    "lengths": {"lengths": jnp.array([900, 1000])},
    "mask": {"mask": jnp.arange(2000).reshape(1000, 2) % 3 > 0},
}


@ON_A_CPU
@pytest.mark.parametrize("options", LAST.values(), ids=list(LAST))
@pytest.mark.parametrize("make", ["forwards", "reverse", "bidirectional"])
def test_the_last_output_keeps_no_others(make, options):
    cell, engine = jaxrnn.lstm(32), engines.checkpointed()
    both = {"return_sequences": False, "engine": engine}
    layer = {
        "forwards": lambda: jaxrnn.rnn(cell, **both),
        "reverse": lambda: jaxrnn.rnn(cell, reverse=True, **both),
        "bidirectional": lambda: jaxrnn.bidirectional(cell, **both),
    }[make]()
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), 8))
    inputs = jax.ShapeDtypeStruct((1000, 2, 8), jnp.float32)

    def of_layer(params, inputs):
        return jnp.square(layer.apply(params, None, inputs, **options)[1]).sum()

    def of_states(params, inputs):
        ways = [(params, make == "reverse")]
        if make == "bidirectional":
            ways = [(params[0], False), (params[1], True)]
        return sum(
            jnp.square(
                unroll(cell, p, inputs, reverse=reverse, engine=engine, **options)[0].hidden
            ).sum()
            for p, reverse in ways
        )

    outputs = 1000 * 2 * 32 * 4
    ours, expected = (temporary_bytes(f, params, inputs) for f in (of_layer, of_states))
    assert ours < expected + outputs / 4


@pytest.mark.parametrize("cell", [make() for make in CELLS.values()], ids=list(CELLS))
def test_fresh_states_and_params_can_be_donated(cell):
    params, inputs = cell.init(jax.random.key(0), I), jnp.ones((2, I))
    expected = cell.step(params, None, inputs)
    state = cell.initial_state((2,), params=params)
    step = jax.jit(lambda params, state: cell.step(params, state, inputs), donate_argnums=(0, 1))
    got = step(params, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, expected)


def test_cells_are_freed():
    alive = []
    for n in range(5):
        functional = jaxrnn.elman(8, activation=lambda x, n=n: jnp.tanh(x) * (1 + n / 100))
        own = split_cell(lambda p, x, n=n: x @ p["w"] + n, readout=lambda state: state)
        both: list[jaxrnn.Cell[Any, Any]] = [functional, own]
        for cell in both:
            params = cell.init(jax.random.key(0), I)
            unroll(cell, params, jnp.ones((3, I)))
            alive.append(weakref.ref(cell))
    del cell, functional, own, both  # pyright: ignore[reportPossiblyUnboundVariable]
    jax.clear_caches()  # whose compiled programs name what they were compiled for
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.learned_initial_state,
        wrappers.residual,
        wrappers.layer_norm,
        lambda cell: wrappers.zoneout(cell, 0.1),
        lambda cell: wrappers.recurrent_dropout(cell, 0.1),
        lambda cell: wrappers.state_noise(cell, 0.1),
        lambda cell: wrappers.projection(cell, 2),
    ],
)
def test_wrapped_cells_are_freed(wrap):
    class Big:
        """What a cell closes over."""

    big = Big()
    cell = jaxrnn.elman(H, activation=lambda x, big=big: (jnp.tanh(x), big)[0])
    wrapped = wrap(cell)
    wrapped.init(jax.random.key(0), H)
    alive = [weakref.ref(value) for value in (big, cell, wrapped)]
    del big, cell, wrapped
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


# Copies


def module_init(key, input_size, dtype):
    return jnp.full((input_size, H), 0.1, dtype)


def module_state(batch, dtype):
    return jnp.zeros((*batch, H), dtype)


def module_step(params, state, inputs):
    state = jnp.tanh(inputs @ params + state)
    return state, state


def module_readout(state):
    return state


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}


@dataclasses.dataclass
class Config:
    cell: Any


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("cell", [make() for make in CELLS.values()], ids=list(CELLS))
def test_copies_of_cells(cell, copied):
    assert copied(cell) is cell
    assert copied(Config(cell)) == Config(cell)
    assert dataclasses.asdict(Config(cell)) == {"cell": cell}


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize(
    "initializer",
    [
        initializers.glorot_uniform,
        initializers.zeros,
        initializers.orthogonal(2.0),
        initializers.identity(0.5),
        initializers.near_identity(),
        initializers.scaled_gaussian(),
        initializers.unitary(),
        initializers.chrono(10),
    ],
)
def test_copies_of_initializers_and_cells_with_them(initializer, copied):
    assert copied(initializer) is initializer
    cell = jaxrnn.lstm(H, recurrent_init=initializer)
    assert copied(cell) is cell


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("engine", [*ENGINES[1:], engines.sharded(2, engines.scan(3))], ids=str)
def test_copies_of_engines(engine, copied):
    assert copied(engine) == engine
    assert hash(copied(engine)) == hash(engine)


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
def test_copies_of_own_cells(copied):
    cell = jaxrnn.Cell(module_init, module_state, module_step, readout=module_readout, name="own")
    for own in (cell, wrappers.zoneout(cell, 0.1), wrappers.learned_initial_state(cell)):
        other = copied(own)
        assert repr(other) == repr(own)
        params, inputs = own.init(jax.random.key(0), I), jnp.ones((T, I))
        np.testing.assert_array_equal(
            unroll(other, params, inputs)[1], unroll(own, params, inputs)[1]
        )


def test_own_cells_of_closures_need_cloudpickle():
    cell = split_cell(lambda p, x: x @ p["w"])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(cell)
    other = COPIES["cloudpickle"](cell)
    params = cell.init(jax.random.key(0), I)
    inputs = jnp.ones((T, I))
    np.testing.assert_array_equal(unroll(other, params, inputs)[1], unroll(cell, params, inputs)[1])


# Values that are traced


@pytest.mark.parametrize("engine", [None, engines.scan()], ids=str)
@pytest.mark.parametrize("around", [jax.vmap, jax.jit, lambda f: lambda a: jax.jvp(f, (a,), (a,))])
@pytest.mark.usefixtures("float64")
def test_a_surrogate_gradient_of_a_traced_slope(around, engine):
    inputs, params = jnp.ones((5, 2, 2)), jnp.ones((2, 3))

    def spiking(slope):
        @jax.custom_jvp
        def spike(v):
            return (v > 0).astype(v.dtype)

        spike.defjvp(lambda at, by: (spike(at[0]), by[0] / (1 + slope * jnp.abs(at[0])) ** 2))

        def step(params, v, x):
            v = 0.9 * v * (1 - spike(v - 1)) + x @ params
            return v, spike(v - 1)

        return step

    def by_hand(slope):
        return jax.grad(lambda w: loop(spiking(slope), w, jnp.zeros((2, 3)), inputs).sum())(params)

    def ours(slope):
        cell = jaxrnn.Cell(
            lambda key, input_size, dtype: jnp.ones((input_size, 3), dtype),
            lambda batch, dtype: jnp.zeros((*batch, 3), dtype),
            spiking(slope),
        )
        return jax.grad(lambda w: unroll(cell, w, inputs, engine=engine)[1].sum())(params)

    slopes = jnp.array([1.0, 10.0]) if around is jax.vmap else jnp.array(3.0)
    close(around(ours)(slopes), around(by_hand)(slopes))


# A context


def attention(params, hidden, context):
    """Read the context `(*batch, K, D)` by the hidden state."""
    keys, values = context
    scores = jax.nn.softmax((keys * (hidden @ params["q"])[..., None, :]).sum(-1), -1)
    return (scores[..., None] * values).sum(-2)


SHAPES = {"w": (I, H), "u": (H, H), "q": (H, 2), "v": (2, H)}


def attend(params, hidden, gates, context):
    hidden = jnp.tanh(gates + attention(params, hidden, context) @ params["v"])
    return hidden, hidden


def reading_cell():
    def project(params, inputs, context):
        return inputs @ params["w"] + context[1].mean(-2) @ params["v"]

    return split_cell(project, activate=attend, shapes=SHAPES, takes_context=True, name="reader")


def plain_reading_cell():
    def step(params, hidden, inputs, context):
        gates = inputs @ params["w"] + context[1].mean(-2) @ params["v"] + hidden @ params["u"]
        return attend(params, hidden, gates, context)

    return reading_cell().replace(step=step)


def reading_by_hand(params, inputs, state, context, real=None):
    real = jnp.ones(inputs.shape[:-1], bool) if real is None else real

    def body(params, hidden, of_step):
        x, real = of_step
        gates = x @ params["w"] + context[1].mean(-2) @ params["v"] + hidden @ params["u"]
        new = jnp.tanh(gates + attention(params, hidden, context) @ params["v"])
        real = real[..., None]
        return jnp.where(real, new, hidden), jnp.where(real, new, 0)

    return loop(body, params, state, (inputs, real))


READERS = {"split": reading_cell(), "plain": plain_reading_cell()}


def reading_problem(batch=(2,)):
    params = {name: drawn(*shape, seed=n) for n, (name, shape) in enumerate(SHAPES.items())}
    context = drawn(*batch, 5, 2, seed=7), drawn(*batch, 5, 2, seed=8)
    return params, drawn(T, *batch, I, seed=9), 0.5 * drawn(*batch, H, seed=10), context


@pytest.mark.parametrize(
    "engine", [*ENGINES, pytest.param(engines.sharded(2), marks=TWO_DEVICES)], ids=str
)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("ragged", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.usefixtures("float64")
def test_a_context_is_read_at_every_step(name, engine, ragged):
    cell = READERS[name]
    if name == "plain" and isinstance(engine, engines.hoisted):
        pytest.skip("hoisted() needs a split step")
    arguments = reading_problem()
    lengths = jnp.array([T, 2]) if ragged else None
    real = None if lengths is None else jnp.arange(T)[:, None] < lengths

    def ours(params, inputs, state, context):
        options = {"context": context, "lengths": lengths, "engine": engine}
        return weighted(unroll(cell, params, inputs, state, **options)[1])

    def by_hand(params, inputs, state, context):
        return weighted(reading_by_hand(params, inputs, state, context, real))

    got, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(*arguments) for f in (ours, by_hand)
    )
    close(got, expected)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("float64")
def test_a_context_in_a_single_step(name):
    params, inputs, state, context = reading_problem()
    got, _ = READERS[name].step(params, state, inputs[0], context=context)
    close(got, reading_by_hand(params, inputs[:1], state, context)[0])


@pytest.mark.parametrize("engine", ENGINES[::2], ids=str)
@pytest.mark.usefixtures("float64")
def test_a_context_under_vmap(engine):
    params, inputs, state, context = reading_problem((3,))

    def gradient(f):
        def of_one(inputs, state, context):
            return jax.grad(lambda *a: weighted(f(*a)), argnums=(0, 3))(
                params, inputs, state, context
            )

        return jax.vmap(of_one, in_axes=(1, 0, 0))(inputs, state, context)

    def ours(params, inputs, state, context):
        return unroll(READERS["split"], params, inputs, state, context=context, engine=engine)[1]

    close(gradient(ours), gradient(reading_by_hand))


@pytest.mark.usefixtures("float64")
def test_a_context_through_layers():
    params, inputs, _, context = reading_problem()
    zeros = jnp.zeros((2, H))
    cell = READERS["split"]
    there = reading_by_hand(params, inputs, zeros, context)
    back = reading_by_hand(params, inputs[::-1], zeros, context)[::-1]

    _, outputs = jaxrnn.rnn(cell).apply(params, None, inputs, context=context)
    close(outputs, there)
    _, outputs = jaxrnn.bidirectional(cell).apply((params, params), None, inputs, context=context)
    close(outputs, jnp.concatenate([there, back], -1))

    gru = jaxrnn.gru(I)
    model = jaxrnn.serial(jaxrnn.rnn(gru), jaxrnn.rnn(cell))
    of_gru, between, _ = problem(gru, length=T, batch=(2,), dtype=jnp.float64)
    _, hidden = unroll(gru, of_gru, between)
    _, outputs = model.apply((of_gru, params), None, between, context=context)
    close(outputs, reading_by_hand(params, hidden, zeros, context))


def test_a_context_that_is_wrong():
    cell = READERS["split"]
    params, inputs, _, context = jax.tree.map(lambda a: a.astype(jnp.float32), reading_problem())
    with pytest.raises(TypeError, match="context: got none, expected one: reader reads a context"):
        unroll(cell, params, inputs)
    gru = jaxrnn.gru(H)
    of_gru = gru.init(jax.random.key(0), I)
    with pytest.raises(TypeError, match="context: got one, expected none: gru reads no context"):
        unroll(gru, of_gru, inputs, context=context)
    short = jax.tree.map(lambda a: a[:1], context)
    with pytest.raises(ValueError, match=r"context\[0\]: got float32\[1, 5, 2\].*begins with.*2"):
        unroll(cell, params, inputs, context=short)
    with pytest.raises(TypeError, match=r"context\[0\]: got int.*expected an array"):
        unroll(cell, params, inputs, context=[1, 2])
    model = jaxrnn.serial(jaxrnn.rnn(gru))
    with pytest.raises(TypeError, match="context: got one, expected none"):
        model.apply(model.init(jax.random.key(0), I), None, inputs, context=context)


# Products that meet otherwise


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda a, b: a * b, "combine: .* is not linear"),
        (lambda a, b: jnp.tanh(a + b), "combine: .* is not linear"),
        (lambda a, b: a + b + 1, "combine: .* is not linear"),
        (lambda a, b: a, "combine: .* loses recurrent"),
        (lambda a, b: 2 * b, "combine: .* loses projected"),
    ],
)
def test_products_that_cannot_meet_so(combine, message):
    cell = split_cell(lambda p, x: x @ p["w"])
    assert cell.split_step is not None
    cell = cell.replace(step=dataclasses.replace(cell.split_step, combine=combine))
    with pytest.raises(ValueError, match=message):
        unroll(cell, cell.init(jax.random.key(0), I), jnp.ones((T, I)))


MATRIX = np.linspace(-1, 1, H * H).reshape(H, H).astype(np.float32)


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: jnp.stack([a, b]).sum(0),
        lambda a, b: (a + b) @ MATRIX,
        lambda a, b: (a + b)[..., np.array([1, 0, 3, 2])],
        lambda a, b: jnp.cumsum(a - b, -1) / 4,
        lambda a, b: jnp.tile(a, 2)[..., :H] + jnp.flip(b, -1),
    ],
)
def test_linear_functions_of_products(combine):
    cell = split_cell(lambda p, x: x @ p["w"])
    assert cell.split_step is not None
    cell = cell.replace(step=dataclasses.replace(cell.split_step, combine=combine))
    params, inputs, state = problem(cell, length=T, dtype=jnp.float32)

    def by_hand(params):
        def body(params, h, x):
            return 2 * (jnp.tanh(combine(x @ params["w"], h @ params["u"])),)

        return weighted(loop(body, params, state, inputs))

    got = jax.grad(lambda p: weighted(unroll(cell, p, inputs, state)[1]))(params)
    expected = jax.grad(by_hand)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, expected)


# openxla/xla#49176: a slice of an array, written into the same array a step further, reads what it
# has written where it is fused into one update in place.


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("engine", [*ENGINES, engines.hoisted(2)], ids=str)
def test_no_program_updates_an_array_in_place(engine, reverse):
    cell = jaxrnn.cells.peephole_lstm(H)
    params, inputs, state = problem(cell, length=7, batch=(2,))

    def gradient(params, inputs, state):
        options = {"lengths": jnp.array([7, 3]), "reverse": reverse, "return_states": True}

        def loss(*arguments):
            leaves = jax.tree.leaves(unroll(cell, *arguments, engine=engine, **options))
            return sum(leaf.sum() for leaf in leaves)

        return jax.grad(loss, argnums=(0, 1, 2))(params, inputs, state)

    used = primitives(gradient, params, inputs, state)
    assert "dot_general" in used
    assert not [name for name in used if "update" in name or "scatter" in name]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("keep", ["states", "products"])
@pytest.mark.parametrize("chunk", [2, 7])
def test_states_shifted_by_a_step_stay_what_they_are(chunk, keep, reverse):
    """The way back starts each step from the state after the one before, shifted in one array."""
    cell = jaxrnn.Cell(
        lambda key, input_size, dtype: jnp.ones((), dtype),
        lambda batch, dtype: jnp.zeros((*batch, 1), dtype),
        jaxrnn.SplitStep(lambda p, x: x, lambda p, h: p * h, lambda p, h, gates: (gates, gates)),
    )
    inputs = 2.0 ** np.arange(7, dtype=np.float32)[:, None]
    ordered = inputs[::-1] if reverse else inputs
    # The state is a sum of inputs times powers of p, whose derivative at p = 1 counts the steps.
    expected = sum(float(x) * (6 - n) for n, x in enumerate(ordered[:, 0]))

    def last(params, inputs):
        engine = engines.hoisted(chunk, keep)
        return unroll(cell, params, inputs, reverse=reverse, engine=engine)[0].sum()

    assert jax.jit(jax.grad(last))(jnp.ones(()), jnp.array(inputs)) == expected
