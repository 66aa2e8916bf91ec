"""Every engine against `scan()` on every cell: values, and derivatives of every kind."""

import functools
import re
from typing import Any, cast

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn._jaxpr import inner_jaxpr
from jaxrnn.engines._chunks import nearby_divisor
from jaxrnn.engines._hoisted._info import analyse_step
from tests.cells import CELLS, innermost
from tests.engines import ENGINES, ON_A_CPU
from tests.problems import drawn, problem
from tests.tolerances import FLOAT64, x64

T, H = 5, 3


def peephole(hidden_size):
    """A split-step cell with all that one may have.

    Its `activate` has weights of its own, its product sees of the state what the inputs let
    through, and its output is not its state.
    """

    def init(key, input_size, dtype):
        shapes = {
            "kernel": (input_size, 2 * hidden_size),
            "recurrent_kernel": (hidden_size, 2 * hidden_size),
            "peephole": (hidden_size,),
            "scale": (hidden_size,),
        }
        return {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}

    def activate(params, state, gates):
        gate, candidate = jnp.split(gates, 2, axis=-1)
        gate = jax.nn.sigmoid(gate + params["peephole"] * state)
        state = gate * state + (1 - gate) * jnp.tanh(candidate)
        return state, {"scaled": params["scale"] * state, "gate": gate}

    gates = jaxrnn.SplitStep(
        project=lambda params, inputs: inputs @ params["kernel"],
        recur=lambda params, state: state @ params["recurrent_kernel"],
        activate=activate,
        mask_state=lambda state, projected: state * jax.nn.sigmoid(projected[..., :hidden_size]),
    )
    return jaxrnn.Cell(
        init, lambda batch, dtype: jnp.zeros((*batch, hidden_size), dtype), gates, name="peephole"
    )


MAKERS = [(row.name, row.make) for row in CELLS if not row.wrapped] + [("peephole", peephole)]
WRAPPED = [(row.name, row.make) for row in CELLS if row.wrapped]


def pairs(fast, *engines, makers=MAKERS):
    """Return every cell with every engine that runs it, or with those named.

    All but the pairs named as fast run with the slow tests: each compiles for a second or more.
    """
    return [
        pytest.param(
            make(H),
            row.engine,
            id=f"{name}-{row.name}",
            marks=[] if f"{name}-{row.name}" in fast.split() else [pytest.mark.slow],
        )
        for name, make in makers
        for row in ENGINES
        if row.runs(make(H)) and row.name in (engines or [row.name])
    ]


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def run(cell, engine, options, arguments):
    """A number that depends on everything that `unroll` returns, each part in another way."""
    everything = flat(jaxrnn.unroll(cell, *arguments, engine=engine, **options))
    return jnp.sin(everything) @ jnp.cos(jnp.arange(everything.size))


def compare(cell, engine, derivative, *arguments, **options):
    """Compare a derivative of `run` on the engine with the same on the reference."""
    got, expected = (
        jax.jit(functools.partial(derivative, functools.partial(run, cell, each, options)))(
            *arguments
        )
        for each in (engine, jaxrnn.engines.scan())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), got, expected)


@pytest.mark.parametrize(
    ("cell", "engine"),
    pairs(
        "lstm-hoisted peephole-hoisted lstm-scan(3) gru-hoisted(2) elman-hoisted(unrolled) "
        "gru_reset_before-checkpointed(2) lstm-sharded"
    )
    # Wrapped cells run on every engine where they train, in tests/test_wrappers.py.
    + pairs("", "hoisted(2)", makers=WRAPPED),
)
@pytest.mark.parametrize("options", [{}, {"reverse": True, "return_states": True}], ids=str)
def test_values_and_gradients(cell, engine, options):
    with x64():
        arguments = problem(cell, length=T, dtype=jnp.float64)
        compare(cell, engine, lambda f, a: jax.value_and_grad(f)(a), arguments, **options)


LARGE = 40  # of which the tests' batch of 3 no longer counts as small


@pytest.mark.parametrize(
    "cell",
    [jaxrnn.gru(LARGE), pytest.param(jaxrnn.lstm(LARGE), marks=pytest.mark.slow)],
    ids=repr,
)
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        pytest.param(jaxrnn.engines.hoisted(2, keep="states"), {}, marks=pytest.mark.slow),
        (jaxrnn.engines.hoisted(2, keep="products"), {"reverse": True, "return_states": True}),
    ],
    ids=["states", "products"],
)
def test_large_steps(cell, engine, options):
    with x64():
        arguments = problem(cell, length=T, batch=(3,), dtype=jnp.float64)
        compare(cell, engine, lambda f, a: jax.value_and_grad(f)(a), arguments, **options)


@pytest.mark.parametrize(
    "engine", [jaxrnn.engines.hoisted(2), jaxrnn.engines.checkpointed(2)], ids=str
)
def test_axes_of_length_one(engine):
    with x64():
        arguments = problem(jaxrnn.gru(1), length=T, batch=(1, 2, 1), features=1, dtype=jnp.float64)
        compare(jaxrnn.gru(1), engine, lambda f, a: jax.value_and_grad(f)(a), arguments)


def test_a_single_sequence_is_not_copied():
    steps, cell = 3000, jaxrnn.lstm(H)
    inputs = jax.ShapeDtypeStruct((steps, 1, 3), jnp.float32)
    states = steps * sum(leaf.size * 4 for leaf in jax.tree.leaves(cell.state_spec((1,))))
    # The states and half as much again for a chunk; a copy of the states would be as much as they.
    assert memory(cell, inputs, jaxrnn.engines.hoisted(30)) < 1.5 * states


def two_parts(mix):
    """A cell of two products and two states, one of which is no output, that mixes entries.

    Or not, if `mix` is the identity.
    """

    def activate(params, state, gates):
        (fast, slow), (projected, recurrent) = state, gates
        gate = jax.nn.sigmoid(projected[0] * recurrent[0])
        fast = jnp.where(slow > 0, gate * mix(fast), jax.nn.relu(recurrent[1]) ** 2)
        return (fast, slow + jnp.tanh(projected[1] - gate)), {"slow": slow, "gate": gate}

    def init(key, input_size, dtype):
        return jnp.ones((input_size + H, 2 * H), dtype)

    gates = jaxrnn.SplitStep(
        project=lambda params, inputs: jnp.split(inputs @ params[:-H], 2, axis=-1),
        recur=lambda params, state: jnp.split(state[0] @ params[-H:], 2, axis=-1),
        combine=lambda projected, recurrent: (projected, recurrent),
        activate=activate,
    )
    return jaxrnn.Cell(init, lambda batch, dtype: 2 * (jnp.zeros((*batch, H), dtype),), gates)


@pytest.mark.parametrize(
    "cell",
    [
        two_parts(lambda x: x),
        two_parts(lambda x: jnp.flip(x, axis=-1)),
        pytest.param(two_parts(lambda x: jnp.cumsum(x, axis=0)), marks=pytest.mark.slow),
        pytest.param(two_parts(lambda x: x - x.mean(-1, keepdims=True)), marks=pytest.mark.slow),
    ],
    ids=["pointwise", "flip", "cumsum", "mean"],
)
def test_small_steps(cell):
    with x64():
        arguments = problem(cell, length=T, dtype=jnp.float64)
        compare(cell, jaxrnn.engines.hoisted(2), lambda f, a: jax.value_and_grad(f)(a), arguments)


@pytest.mark.parametrize(
    ("cell", "batch", "carried", "stored"),
    [
        (jaxrnn.lstm(H), 1, 2, 1),
        (jaxrnn.lstm(200), LARGE, 2, 4),
        (jaxrnn.gru(H), 1, 1, 1),
        (jaxrnn.gru(200), LARGE, 1, 4),  # the candidate's two products get different cotangents
        (jaxrnn.elman(H), 1, 1, 1),
    ],
)
def test_the_loop_back_handles_few_arrays(cell, batch, carried, stored):
    back = loop_back(cell, batch)
    of_step, _ = inner_jaxpr(back)
    # What a loop stores has an entry for each step, and what it carries is as a step leaves it.
    pairs = zip(back.outvars, of_step.outvars, strict=True)
    kinds = [loop.aval.shape == step.aval.shape for loop, step in pairs]
    assert (kinds.count(True), kinds.count(False)) == (carried, stored)


def loop_back(cell, batch):
    """Return the last loop of a gradient."""
    params, inputs, _ = problem(cell, batch=(batch,))

    def loss(params):
        return jaxrnn.unroll(cell, params, inputs, engine=jaxrnn.engines.hoisted(unroll=1))[1].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    return [equation for equation in equations(jaxpr) if equation.primitive.name == "scan"][-1]


def own_gates(**parts):
    """A small split-step cell with some of its parts given."""
    gates = {
        "project": lambda params, inputs: inputs @ params,
        "recur": lambda params, state: state * params[0],
        "activate": lambda params, state, gates: 2 * (jnp.tanh(gates),),
    }
    return jaxrnn.Cell(
        lambda key, input_size, dtype: jax.random.normal(key, (input_size, H), dtype),
        lambda batch, dtype: jnp.zeros((*batch, H), dtype),
        jaxrnn.SplitStep(**{**gates, **parts}),
    )


@pytest.mark.parametrize(
    "part",
    [*(pytest.param(part, marks=pytest.mark.slow) for part in ("project", "recur")), "activate"],
)
@pytest.mark.parametrize(
    "around",
    [jax.jit, jax.vmap, jax.grad, lambda f: lambda at: jax.jvp(f, (at,), (at,))],
    ids=["jit", "vmap", "grad", "jvp"],
)
def test_cells_that_close_over_a_traced_value(part, around):
    def gradient(engine, gain):
        plain = getattr(own_gates().split_step, part)

        def scaled(*arguments):
            return jax.tree.map(lambda leaf: gain * leaf, plain(*arguments))

        cell = own_gates(**{part: scaled})
        params, inputs, _ = problem(cell)

        def loss(params):
            return jnp.square(jaxrnn.unroll(cell, params, inputs, engine=engine)[1]).sum()

        return jax.grad(loss)(params).sum()

    at = jnp.array([0.5, 0.6]) if around is jax.vmap else 0.5
    with x64():
        got, expected = (
            around(functools.partial(gradient, engine))(at)
            for engine in (None, jaxrnn.engines.scan())
        )
        np.testing.assert_allclose(got, expected, **FLOAT64)


def test_cells_that_sum_over_a_named_axis():
    def activate(params, state, gates):
        return 2 * (jnp.tanh(gates - jax.lax.pmean(gates, "batch")),)

    cell = own_gates(activate=activate)
    with x64():
        params, inputs, _ = problem(cell, dtype=jnp.float64)

        def loss(params, engine):
            def outputs(inputs):
                return jaxrnn.unroll(cell, params, inputs, engine=engine)[1]

            return jnp.square(jax.vmap(outputs, 1, axis_name="batch")(inputs)).sum()

        got, expected = (jax.grad(loss)(params, engine) for engine in (None, jaxrnn.engines.scan()))
        np.testing.assert_allclose(got, expected, **FLOAT64)


def normalised(axis):
    def function(params, inputs):
        projected = inputs @ params
        return projected / jnp.sqrt(1 + jnp.square(projected).sum(axis, keepdims=True))

    return function


@pytest.mark.parametrize(
    ("part", "function"),
    [
        ("project", lambda params, inputs: params[0]),
        ("recur", lambda params, state: params[0]),
        # For a single sequence, a batch, and each sequence by its place in the batch.
        ("project", normalised(None)),
        ("project", normalised(-2)),
        ("project", lambda params, inputs: jnp.cumsum(inputs @ params, axis=0)),
        ("recur", lambda params, state: state - state.mean(0, keepdims=True)),
        ("recur", lambda params, state: jnp.arange(2.0)[:, None] * (state @ params)),
    ],
)
def test_parts_may_mix_the_batch(part, function):
    cell = own_gates(**{part: function})
    with x64():
        arguments = problem(cell, length=T, batch=(2,), features=H, dtype=jnp.float64)
        for engine in (jaxrnn.engines.hoisted(2), jaxrnn.engines.hoisted(3, keep="products")):
            compare(cell, engine, lambda f, a: jax.value_and_grad(f)(a), arguments)


@pytest.mark.parametrize(
    ("cell", "engine"), pairs("lstm-hoisted gru-checkpointed(2) elman-sharded peephole-hoisted(2)")
)
def test_forward_mode(cell, engine):
    with x64():
        arguments = problem(cell, length=T, dtype=jnp.float64)
        tangents = drawn(arguments, 7)
        compare(cell, engine, lambda f, a, t: jax.jvp(f, (a,), (t,)), arguments, tangents)


@pytest.mark.parametrize(("cell", "engine"), pairs("lstm-hoisted", "hoisted", "hoisted(2)"))
@pytest.mark.parametrize(
    "second",
    [
        lambda f, a, t: jax.jvp(jax.grad(f), (a,), (t,))[1],
        lambda f, a, t: jax.grad(lambda a: flat(jax.grad(f)(a)) @ flat(t))(a),
        lambda f, a, t: jax.grad(lambda a: jax.jvp(f, (a,), (t,))[1])(a),
    ],
    ids=["forward over reverse", "reverse over reverse", "reverse over forward"],
)
def test_second_derivatives(cell, engine, second):
    with x64():
        arguments = problem(cell, length=3, batch=(), dtype=jnp.float64)
        compare(cell, engine, second, arguments, drawn(arguments, 7))


@pytest.mark.usefixtures("float64")
def test_second_derivatives_where_xla_may_stack_wrongly():
    """Of 4 sequences of 5 units in float64, of a cell with three gates of its own."""

    def init(key, input_size, dtype):
        shapes = {"kernel": (input_size, 15), "recurrent_kernel": (5, 15)}
        return {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}

    def initial_state(batch, dtype):
        return jaxrnn.cells.LSTMState(*jnp.zeros((2, *batch, 5), dtype))

    def activate(params, state, gates):
        f, g, o = gates
        keep = jax.nn.sigmoid(f)
        memory = keep * state.cell + (1 - keep) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return jaxrnn.cells.LSTMState(hidden, memory), hidden

    step = jaxrnn.SplitStep(
        lambda params, inputs: jnp.split(inputs @ params["kernel"], 3, -1),
        lambda params, state: jnp.split(state.hidden @ params["recurrent_kernel"], 3, -1),
        activate,
    )
    cell = jaxrnn.Cell(init, initial_state, step, name="coupled")
    arguments = problem(cell, length=3, batch=(4,), dtype=jnp.float64)

    def second(f, a, t):
        return jax.jit(jax.grad(lambda a: flat(jax.grad(f)(a)) @ flat(t)))(a)

    compare(cell, jaxrnn.engines.hoisted(), second, arguments, drawn(arguments, 7))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("cell", "engine"),
    pairs("lstm-hoisted(2)", "scan(3)", "hoisted", "hoisted(2)", "checkpointed(2)"),
)
def test_within_shard_map(cell, engine):
    """With JAX's check of what differs between devices, which is on unless switched off."""
    params, inputs, _ = problem(cell, length=T, batch=(4,))
    batch = jax.sharding.PartitionSpec(None, "batch")

    def outputs(params, inputs):
        return jaxrnn.unroll(cell, params, inputs, engine=engine)[1]

    mapped = jax.shard_map(
        outputs,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",)),
        in_specs=(jax.sharding.PartitionSpec(), batch),
        out_specs=batch,
    )

    def everything(function):
        values, pullback = jax.vjp(function, params, inputs)
        return flat((values, pullback(jax.tree.map(jnp.cos, values))))

    got, expected = (jax.jit(functools.partial(everything, each))() for each in (mapped, outputs))
    np.testing.assert_allclose(got, expected, **FLOAT64)


def test_a_random_key_in_the_state_within_jit():
    def step(params, state, x):
        hidden = 0.5 * state[0] + x.sum(-1)
        return (hidden, state[1]), hidden

    cell = jaxrnn.Cell(
        lambda key, input_size, dtype: (),
        lambda batch, dtype: (jnp.zeros(batch, dtype), jax.random.split(jax.random.key(0), batch)),
        step,
    )
    _, outputs = jax.jit(lambda xs: jaxrnn.unroll(cell, (), xs))(jnp.ones((3, 2, 1)))
    assert outputs[:, 0].tolist() == [1.0, 1.5, 1.75]


def compare_under_vmap(cell, engine):
    """Map over params and inputs, over params, in a gradient, and over two axes."""
    with x64():
        params, inputs, state = problem(cell, length=T, dtype=jnp.float64)
        seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
        sequences = jnp.stack([inputs, -inputs, inputs**2])

        def over_both(f, params, inputs):
            return jax.vmap(lambda *pair: jax.grad(f)((*pair, state)))(params, inputs)

        def over_params(f, params, inputs):
            return jax.vmap(lambda p: jax.grad(f)((p, inputs[0], state)))(params)

        def inside_the_gradient(f, params, inputs):
            def total(pair):
                return jax.vmap(lambda *pair: f((*pair, state)))(*pair).sum()

            return jax.grad(total)((params, inputs))

        def over_each(f, params, inputs):
            return jax.vmap(lambda x: over_params(f, params, x[None]))(inputs)

        for derivative in (over_both, over_params, inside_the_gradient, over_each):
            compare(cell, engine, derivative, seeds, sequences)


@pytest.mark.parametrize(("cell", "engine"), pairs("lstm-hoisted", "hoisted", "hoisted(2)"))
def test_vmap(cell, engine):
    compare_under_vmap(cell, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [row.engine for row in ENGINES], ids=str)
def test_no_tracer_leaks(engine):
    # One whose steps back are taken by pullbacks too.
    cells = jaxrnn.lstm(H), jaxrnn.cells.peephole_lstm(H)
    problems = [problem(cell, batch=(2,), length=T) for cell in cells]
    params = [params for params, _, _ in problems]

    def loss(params):
        return sum(
            flat(jaxrnn.unroll(cell, of_cell, inputs, state, engine=engine)).sum()
            for cell, of_cell, (_, inputs, state) in zip(cells, params, problems, strict=True)
        )

    seeds = jax.tree.map(lambda leaf: leaf[None], params)
    with jax.checking_leaks():
        jax.jit(jax.vmap(jax.grad(loss))).trace(seeds)


def test_the_choice_gives_its_reason():
    inputs = jax.ShapeDtypeStruct((T, 2, 3), jnp.float32)
    choice = jaxrnn.engines.choose_engine(jaxrnn.lstm(H), inputs)
    assert choice.engine == jaxrnn.engines.hoisted()
    assert choice.reason.startswith("lstm has a split step")
    choice = jaxrnn.engines.choose_engine(jaxrnn.gru(H, reset_after=False), inputs)
    assert choice.engine == jaxrnn.engines.scan(8 if jax.default_backend() == "gpu" else 1)
    assert choice.reason.startswith("the step of gru_reset_before is not split")


def test_the_choice_keeps_no_more_states_than_fit():
    cell = jaxrnn.lstm(64)
    few, many = (jax.ShapeDtypeStruct((T, 1, 8), jnp.float32) for T in (10**6, 10**7))
    assert jaxrnn.engines.choose_engine(cell, few).engine == jaxrnn.engines.hoisted()
    choice = jaxrnn.engines.choose_engine(cell, many)
    assert choice.engine == jaxrnn.engines.checkpointed()
    assert "10000000 steps would take 4.8 GiB" in choice.reason
    with pytest.raises(TypeError, match="model: got str"):
        jaxrnn.engines.choose_engine("lstm", few)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(TypeError, match="inputs: got tuple"):
        jaxrnn.engines.choose_engine(cell, (10, 1, 8))  # pyright: ignore[reportCallIssue, reportArgumentType]


def kept_bytes(reason):
    return float(re.search(r"([\d.]+) MiB for a gradient", reason)[1]) * 2**20  # pyright: ignore[reportOptionalSubscript]


@ON_A_CPU
@pytest.mark.parametrize("make", [jaxrnn.gru, jaxrnn.lstm, jaxrnn.elman])
@pytest.mark.parametrize("hidden_size", [8, 128])
def test_the_choice_says_what_a_gradient_keeps(make, hidden_size):
    cell, steps, batch = make(hidden_size), 1000, 32
    inputs = jax.ShapeDtypeStruct((steps, batch, hidden_size), jnp.float32)
    reason = jaxrnn.engines.choose_engine(cell, inputs).reason
    arguments = cell.params_spec(hidden_size), cell.state_spec((batch,)), inputs
    info = analyse_step(cell.split_step, *arguments)
    plan = jaxrnn.engines.hoisted()._plan(info, arguments[0], inputs, reverse=False)
    assert f"chunks have {plan.chunk} steps, and {plan.keep} are kept of each step" in reason
    products = jax.tree.leaves(info.gates) if plan.keep == "products" else []
    leaves = [*products, *jax.tree.leaves(arguments[1])]
    expected = 4 * steps * sum(leaf.size for leaf in leaves)
    assert abs(kept_bytes(reason) - expected) < 2**20 / 10


@ON_A_CPU
def test_the_choice_says_what_xla_keeps():
    inputs = jax.ShapeDtypeStruct((20_000, 4, 64), jnp.float32)
    for cell in (jaxrnn.gru(64), jaxrnn.gru(64, reset_after=False)):
        engine, reason = jaxrnn.engines.choose_engine(cell, inputs)
        got = memory(cell, inputs, engine)
        assert 1 <= got / kept_bytes(reason) < 1.6


def test_the_choice_for_the_cells_of_a_layer():
    given = jaxrnn.engines.scan(2)
    model = jaxrnn.serial(
        jaxrnn.embedding(5, 4),
        jaxrnn.rnn(jaxrnn.lstm(3)),
        jaxrnn.bidirectional(jaxrnn.gru(2), jaxrnn.gru(2, reset_after=False)),
        jaxrnn.serial(jaxrnn.dropout(0.5), jaxrnn.rnn(jaxrnn.elman(3), engine=given)),
        jaxrnn.dense(2),
    )
    choices = jaxrnn.engines.choose_engine(model, jax.ShapeDtypeStruct((T, 2), jnp.int32))
    inputs = [jax.ShapeDtypeStruct((T, 2, size), jnp.float32) for size in (4, 3, 3)]
    cells = jaxrnn.lstm(3), jaxrnn.gru(2), jaxrnn.gru(2, reset_after=False)
    assert choices[:3] == [
        jaxrnn.engines.choose_engine(cell, xs) for cell, xs in zip(cells, inputs, strict=True)
    ]
    assert [choice.engine for choice in choices[3:]] == [given]
    assert choices[3].reason.startswith("the layer of elman asks for it; what a step's")
    dense = jaxrnn.dense(3)
    assert jaxrnn.engines.choose_engine(dense, jax.ShapeDtypeStruct((T, 2), jnp.float32)) == []


def test_the_choice_for_a_cell_that_reads_a_context():
    def step(params, state, inputs, context):
        return (state := jnp.tanh(state + context.sum(-2) + inputs[..., :H])), state

    cell = jaxrnn.Cell(
        lambda *_: (), lambda batch, dtype: jnp.zeros((*batch, H), dtype), step, takes_context=True
    )
    inputs = jax.ShapeDtypeStruct((7, 2, H), jnp.float32)
    context = jax.ShapeDtypeStruct((2, 5, H), jnp.float32)
    choice = jaxrnn.engines.choose_engine(cell, inputs, context=context)
    assert choice.engine == jaxrnn.engines.scan(8 if jax.default_backend() == "gpu" else 1)
    assert jaxrnn.engines.choose_engine(jaxrnn.rnn(cell), inputs, context=context) == [choice]
    with pytest.raises(TypeError, match="context: got none, expected one"):
        jaxrnn.engines.choose_engine(cell, inputs)


CHUNKS = [jaxrnn.engines.hoisted(2), jaxrnn.engines.checkpointed(), jaxrnn.engines.checkpointed(2)]


@pytest.mark.parametrize("engine", [jaxrnn.engines.scan(), jaxrnn.engines.hoisted(), *CHUNKS])
def test_an_empty_sequence(engine):
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell)

    def loss(params, state):
        return flat(jaxrnn.unroll(cell, params, inputs[:0], state, engine=engine)).sum()

    d_params, d_state = jax.grad(loss, argnums=(0, 1))(params, state)
    assert (flat(d_params) == 0).all()
    assert (flat(d_state) == 1).all()


@pytest.mark.parametrize("cell", [jaxrnn.lstm(H), jaxrnn.cells.peephole_lstm(H)], ids=repr)
def test_an_empty_batch(cell):
    params, inputs, state = problem(cell, batch=(0,))

    def loss(params):
        return flat(
            jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.hoisted(2))
        ).sum()

    assert (flat(jax.grad(loss)(params)) == 0).all()


def test_integers_in_state_and_output_are_carried():
    def step(params, state, gates):
        count, total = state
        return (count + 1, total + params * gates), (total, count)

    cell = jaxrnn.Cell(
        init=lambda key, input_size, dtype: jnp.ones((), dtype),
        initial_state=lambda batch, dtype: (
            jnp.zeros((), jnp.int32),
            jnp.zeros((*batch, 1), dtype),
        ),
        step=jaxrnn.SplitStep(lambda params, inputs: inputs, lambda params, state: (), step),
    )
    inputs = jnp.ones((4, 1))
    for engine in (jaxrnn.engines.scan(), jaxrnn.engines.hoisted()):

        def loss(params, engine=engine):
            (count, _), (totals, counts) = jaxrnn.unroll(cell, params, inputs, engine=engine)
            return totals.sum(), (count, counts)

        gradient, (count, counts) = jax.grad(loss, has_aux=True)(jnp.ones(()))
        assert count == 4
        np.testing.assert_array_equal(counts, [0, 1, 2, 3])
        assert gradient == 0 + 1 + 2 + 3


@pytest.mark.parametrize(
    "engine",
    [jaxrnn.engines.hoisted(), jaxrnn.engines.checkpointed(engine=jaxrnn.engines.hoisted())],
    ids=str,
)
def test_hoisted_needs_a_split_step(engine):
    cell = jaxrnn.gru(H, reset_after=False)
    params, inputs, state = problem(cell)
    message = r"hoisted\(\) for gru_reset_before.*expected.*scan\(\) or checkpointed\(\)"
    with pytest.raises(ValueError, match=message):
        jaxrnn.unroll(cell, params, inputs, state, engine=engine)


@pytest.mark.parametrize("make", [jaxrnn.engines.hoisted, jaxrnn.engines.checkpointed])
def test_bad_chunks(make):
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T)
    jaxrnn.unroll(cell, params, inputs, state, engine=make(T))
    with pytest.raises(ValueError, match=r"chunk: got 6 for inputs of 5 steps, expected.*scan\(\)"):
        jaxrnn.unroll(cell, params, inputs, state, engine=make(T + 1))
    for chunk, error in [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="chunk: got"):
            make(chunk)


@ON_A_CPU
@pytest.mark.parametrize(
    ("cell", "shape", "expected"),
    [
        (jaxrnn.elman(8), (6, 2, 8), "states"),
        (jaxrnn.gru(16), (6, 2, 8), "states"),
        (jaxrnn.lstm(200), (6, 2, 8), "products"),
        # Measured on both sides of the choice: products are 1.05 times as fast, and 0.85 times.
        (jaxrnn.gru(64), (6, 16, 64), "products"),
        pytest.param(jaxrnn.gru(64), (6, 1, 64), "states", marks=pytest.mark.slow),
    ],
    ids=["elman", "gru", "large lstm", "many sequences", "one sequence"],
)
def test_hoisted_keeps_what_is_less_work(cell, shape, expected):
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    sizes = {keep: memory(cell, spec, jaxrnn.engines.hoisted(2, keep=keep)) for keep in KEEP}
    chosen = sizes.pop(None)
    assert [keep for keep, size in sizes.items() if size == chosen] == [expected]


KEEP = (None, "states", "products")


def memory(cell, inputs, engine):
    """Return the temporary memory of a gradient, in bytes."""

    def loss(params, inputs):
        return jaxrnn.unroll(cell, params, inputs, engine=engine)[1].sum()

    params = cell.params_spec(inputs.shape[-1])
    analysis = jax.jit(jax.grad(loss)).lower(params, inputs).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    ("cell", "arrays"),
    [
        (jaxrnn.elman(H), 1),
        (jaxrnn.lstm(H), 4),
        (jaxrnn.cells.peephole_lstm(H), 4),
        (jaxrnn.gru(H), 4),  # the reset gate acts between the candidate's products
        (jaxrnn.wrappers.zoneout(jaxrnn.lstm(H), 0.5), 4),
        (jaxrnn.wrappers.layer_norm(jaxrnn.elman(H)), 2),  # each of the two is normalised
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gates_are_few(cell, arrays):
    arguments = cell.params_spec(3), cell.state_spec((2,)), jax.ShapeDtypeStruct((5, 2, 3), "f4")
    assert len(jax.tree.leaves(analyse_step(cell.split_step, *arguments).gates)) == arrays


@pytest.mark.parametrize("cell", [jaxrnn.lstm(H), jaxrnn.gru(LARGE)], ids=repr)
def test_programs_for_a_gpu(cell, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps = 27  # as in no other test, whose programs would be found again
    with x64():
        arguments = problem(cell, length=steps, dtype=jnp.float64)
        compare(cell, jaxrnn.engines.hoisted(), lambda f, a: jax.value_and_grad(f)(a), arguments)

    params, inputs, _ = problem(cell, length=steps)

    def lowered(**options):
        def loss(params):
            engine = jaxrnn.engines.hoisted(**options)
            return jaxrnn.unroll(cell, params, inputs, engine=engine)[1].sum()

        return jax.jit(jax.grad(loss)).lower(params).as_text()

    default = lowered()
    assert default == lowered(keep="states", unroll=9)  # the divisor of 27 nearest to 8
    assert default != lowered(keep="products", unroll=9)
    assert default != lowered(keep="states", unroll=8)
    choice = jaxrnn.engines.choose_engine(jaxrnn.gru(H, reset_after=False), inputs)
    assert choice.engine == jaxrnn.engines.scan(8)
    assert choice.reason.endswith("; on a gpu launching kernels dominates, so loops hold 8 steps")


# The lengths are those of no other test, whose programs would be found again.
@pytest.mark.parametrize(
    ("backend", "steps", "kept"), [("cpu", 28, "products"), ("gpu", 29, "states")]
)
def test_a_gpu_keeps_states_where_a_cpu_keeps_products(backend, steps, kept, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    cell = jaxrnn.gru(64)
    arguments = cell.params_spec(64), jax.ShapeDtypeStruct((steps, 16, 64), jnp.float32)

    def lowered(keep):
        def loss(params, inputs):
            engine = jaxrnn.engines.hoisted(unroll=1, keep=keep)
            return jaxrnn.unroll(cell, params, inputs, engine=engine)[1].sum()

        return jax.jit(jax.grad(loss)).lower(*arguments).as_text()

    texts = {keep: lowered(keep) for keep in KEEP}
    assert texts["products"] != texts["states"]
    assert texts[None] == texts[kept]


def test_bad_unroll():
    for unroll, error in [(0, ValueError), (2.0, TypeError)]:
        with pytest.raises(error, match="unroll: got"):
            jaxrnn.engines.hoisted(unroll=unroll)


def test_bad_keep():
    with pytest.raises(
        ValueError, match=r"keep: got 'all', expected one of \('states', 'products'"
    ):
        jaxrnn.engines.hoisted(keep=cast(Any, "all"))


@pytest.mark.parametrize("make", [jaxrnn.engines.checkpointed, jaxrnn.engines.sharded])
def test_bad_inner_engine(make):
    with pytest.raises(TypeError, match="engine: got str 'scan'"):
        make(engine="scan")


def test_bad_devices():
    cell = jaxrnn.gru(H)
    params, inputs, state = problem(cell, length=T, batch=(3,))
    for devices, error in [(0, ValueError), (1.0, TypeError)]:
        with pytest.raises(error, match="devices: got"):
            jaxrnn.engines.sharded(devices)
    with pytest.raises(ValueError, match=r"devices: got 9999, expected at most the \d+"):
        jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.sharded(9999))
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    with pytest.raises(ValueError, match=r"inputs: got .* \(3,\), .*that 2 devices divide"):
        jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.sharded(2))
    params, inputs, state = problem(cell, length=T, batch=())
    with pytest.raises(ValueError, match=r"inputs: got .* \(\), expected \(batch"):
        jaxrnn.unroll(cell, params, inputs, state, engine=jaxrnn.engines.sharded(2))


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
@pytest.mark.slow
def test_training_on_a_divided_batch_is_training():
    def train(engine):
        model = jaxrnn.serial(jaxrnn.rnn(jaxrnn.gru(H), engine=engine), jaxrnn.dense(1))

        def loss(params, batch, key):
            _, outputs = model.apply(params, None, batch)
            return jnp.square(outputs[-1]).mean()

        params = model.init(jax.random.key(0), 2, dtype=jnp.float64)
        inputs = jax.random.normal(jax.random.key(1), (3, T, 4, 2), jnp.float64)
        return jaxrnn.fit(
            loss, params, optax.sgd(0.1), inputs, steps=3, key=jax.random.key(2), clip_norm=1.0
        )

    with x64():
        one, two = train(None), train(jaxrnn.engines.sharded(2))
        np.testing.assert_allclose(two.losses, one.losses, **FLOAT64)
        np.testing.assert_allclose(flat(two.params), flat(one.params), **FLOAT64)


@ON_A_CPU
def test_checkpointed_keeps_little():
    cell = jaxrnn.lstm(H)
    params, inputs, state = problem(cell, length=400)

    def memory(engine):
        def loss(params):
            final, _ = jaxrnn.unroll(cell, params, inputs, state, engine=engine)
            return jnp.square(final.hidden).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    states = 400 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory(jaxrnn.engines.hoisted(20)) > states
    assert memory(jaxrnn.engines.checkpointed(20)) < states


@pytest.mark.parametrize(
    ("length", "target", "expected"),
    [(100, 10, 10), (100, 9, 10), (99, 10, 11), (97, 10, 10), (5, 10, 5), (0, 10, 1), (12, 5, 6)],
)
def test_chunks_are_equal_where_they_can_be(length, target, expected):
    assert nearby_divisor(length, target) == expected


def equations(jaxpr):
    """Return a jaxpr's equations; in the place of a call, which some JAX releases keep, its own."""
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "eqns")]
        if equation.primitive.name == "scan" or not inner:
            yield equation
        else:
            for called in inner:
                yield from equations(called)


@pytest.mark.parametrize(
    "cell",
    [
        jaxrnn.lstm(H),
        pytest.param(
            jaxrnn.wrappers.zoneout(
                jaxrnn.wrappers.recurrent_dropout(jaxrnn.wrappers.layer_norm(jaxrnn.lstm(H)), 0.2),
                0.1,
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hoisted_leaves_no_weight_gradient_in_the_loop(cell):
    """In a loop of `scan` products make arrays of the weights' size; in one of `hoisted` none."""
    arguments = problem(cell, batch=(5,), features=2)
    params = innermost(arguments[0])
    weights = {params.kernel.size, params.recurrent_kernel.size}

    key = jax.random.key(3)

    def weight_gradients_in_loops(engine):
        def loss(*arguments):
            return flat(jaxrnn.unroll(cell, *arguments, engine=engine, key=key)).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
        loops = [e.params["jaxpr"] for e in equations(jaxpr) if e.primitive.name == "scan"]
        assert len(loops) == 2
        products = [e for loop in loops for e in loop.eqns if e.primitive.name == "dot_general"]
        return sum(product.outvars[0].aval.size in weights for product in products)

    assert weight_gradients_in_loops(jaxrnn.engines.scan()) >= 2
    assert weight_gradients_in_loops(jaxrnn.engines.hoisted()) == 0
    assert weight_gradients_in_loops(None) == 0  # the default
