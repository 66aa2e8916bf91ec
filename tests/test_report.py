"""The report names the fault that was planted, mends it, and finds none where there is none."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.diagnostics import gradient_horizon, gradient_norms, report
from tests.tolerances import FLOAT32

H, I = 16, 4
ELMAN, LSTM, GRU = jaxrnn.elman(H), jaxrnn.lstm(H), jaxrnn.gru(H)
GRU_BEFORE = jaxrnn.gru(H, reset_after=False)
LOGISTIC = jaxrnn.elman(H, activation=jax.nn.sigmoid)
RELU = jaxrnn.elman(H, activation=jax.nn.relu)
IDENTITY = jaxrnn.elman(H, activation=jax.nn.identity)
STACK = jaxrnn.serial(jaxrnn.embedding(7, I), jaxrnn.rnn(LSTM), jaxrnn.rnn(ELMAN), jaxrnn.dense(3))
STACK_OF_LSTMS = jaxrnn.serial(
    jaxrnn.embedding(7, H), jaxrnn.rnn(LSTM), jaxrnn.rnn(LSTM), jaxrnn.dense(3)
)


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def drawn(cell, rng, features=I) -> Any:
    """Return a cell's parameters as the library draws them, by NumPy, which compiles nothing."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    gates = params.recurrent_kernel.shape[1] // H
    limit = np.sqrt(6 / (features + H))
    fields = {
        "kernel": rng.uniform(-limit, limit, params.kernel.shape),
        "recurrent_kernel": np.concatenate([orthogonal(rng, H) for _ in range(gates)], -1),
        "bias": np.zeros(gates * H),
    }
    if isinstance(params, jaxrnn.cells.LSTMParams):
        fields["bias"][H : 2 * H] = 1.0
    if isinstance(params, jaxrnn.cells.GRUParams):
        fields["recurrent_bias"] = params.recurrent_bias and np.zeros(gates * H)
    return jax.tree.map(jnp.float32, type(params)(**fields))


def drawn_stack(cells, rng) -> Any:
    features = I if cells == (LSTM, ELMAN) else H
    return (
        jnp.float32(rng.normal(size=(7, features)) / np.sqrt(features)),
        drawn(cells[0], rng, features),
        drawn(cells[1], rng, H),
        jaxrnn.layers.DenseParams(jnp.float32(rng.normal(size=(H, 3)) / 4), jnp.zeros(3)),
    )


def normal(rng, steps, scale=1.0):
    return jnp.float32(scale * rng.normal(size=(steps, 4, I)))


def last(outputs):
    return jnp.square(outputs[-1] - 0.3).sum()


def mean(outputs):
    return jnp.square(outputs - 0.3).mean()


def kernel_times(factor):
    return lambda params: params._replace(recurrent_kernel=factor * params.recurrent_kernel)


def bias_set(value, gate):
    place = slice(gate * H, (gate + 1) * H)
    return lambda params: params._replace(bias=params.bias.at[place].set(value))


class Broken(NamedTuple):
    """A model with one fault, and what the report should call it."""

    name: str
    cause: str
    model: Any
    steps: int
    plant: Any = lambda params: params
    input_scale: float = 1.0
    loss: Any = last
    layer: int | None = 0


BROKEN = [
    Broken("small_kernel", "spectral radius too small", ELMAN, 40, kernel_times(0.3), 0.3),
    Broken("large_kernel", "spectral radius too large", ELMAN, 60, kernel_times(3.0), 0.1),
    Broken("overflow", "spectral radius too large", IDENTITY, 300, kernel_times(1.6), loss=mean),
    Broken("relu_overflow", "spectral radius too large", RELU, 100, kernel_times(4.2)),
    Broken("closed_lstm", "forget bias too low", LSTM, 20, bias_set(-3.0, 1)),
    Broken("closed_gru", "forget bias too low", GRU, 20, bias_set(-4.0, 1), loss=mean),
    Broken(
        "closed_gru_without_structure", "forget bias too low", GRU_BEFORE, 20, bias_set(-4.0, 1)
    ),
    Broken("large_inputs", "input scale", ELMAN, 10, input_scale=50.0),
    Broken("logistic", "flat activation", LOGISTIC, 10),
    Broken("dead_relu", "saturation", RELU, 10, bias_set(-5.0, 0), loss=lambda o: o[-1].sum()),
    Broken("long", "length", LSTM, 1000, input_scale=0.3),
    Broken(
        "stack_with_nan",
        "not finite",
        STACK,
        20,
        lambda params: (*params[:2], bias_set(np.nan, 0)(params[2]), params[3]),
        layer=None,
    ),
    Broken(
        "stack_with_biased_units",
        "saturation",
        STACK,
        20,
        lambda params: (*params[:2], bias_set(5.0, 0)(params[2]), params[3]),
        layer=1,
    ),
    Broken(
        "stack_of_closed_lstms",
        "forget bias too low",
        STACK_OF_LSTMS,
        20,
        lambda params: (params[0], *map(bias_set(-4.0, 1), params[1:3]), params[3]),
        loss=mean,
    ),
    Broken(
        "stack_without_readout",
        "no gradient",
        STACK,
        20,
        lambda params: (*params[:3], params[3]._replace(kernel=0 * params[3].kernel)),
    ),
]
HEALTHY = [
    Broken("elman", "", ELMAN, 10),
    Broken("elman_driven_little", "", ELMAN, 60, input_scale=0.1),
    Broken("identity", "", IDENTITY, 200),
    Broken("lstm", "", LSTM, 20, loss=mean),
    Broken("lstm_open", "", LSTM, 100, bias_set(5.0, 1)),
    Broken("gru", "", GRU, 8),
    Broken("gru_open", "", GRU, 100, bias_set(4.0, 1)),
    Broken("stack", "", STACK, 15, loss=mean),
]


def arguments(broken: Broken) -> tuple[Any, ...]:
    seed = [*BROKEN, *HEALTHY].index(broken)
    rng = np.random.default_rng(seed)
    if isinstance(broken.model, jaxrnn.Layer):
        cells = (LSTM, ELMAN if broken.model is STACK else LSTM)
        params = drawn_stack(cells, rng)
        inputs = jnp.asarray(rng.integers(7, size=(broken.steps, 4)))
    else:
        params, inputs = drawn(broken.model, rng), normal(rng, broken.steps, broken.input_scale)
    return broken.loss, broken.model, broken.plant(params), inputs


QUICK = {"stack_with_nan"}


def rows(models):
    return [
        pytest.param(row, id=row.name, marks=[] if row.name in QUICK else [pytest.mark.slow])
        for row in models
    ]


@pytest.mark.parametrize("broken", rows(BROKEN))
def test_it_names_the_planted_fault_and_the_remedy_helps(broken):
    found = report(*arguments(broken), write=None)
    finding = found.findings[0]
    assert (found.cause, finding.layer) == (broken.cause, broken.layer)
    if broken.cause in ("not finite", "no gradient"):
        return
    assert finding.before is not None
    assert finding.after is not None
    before, after = (float(each.decay_rate) for each in (finding.before, finding.after))
    if broken.cause.endswith("large"):
        assert found.layers[finding.layer or 0].verdict == "explodes"
        assert np.isnan(before) or before < -0.1
        assert after > -0.01
    else:
        assert found.layers[finding.layer or 0].verdict == "vanishes"
        assert np.isnan(before) or abs(after) < before / 2
        assert finding.after.steps > 2 * finding.before.steps


NAMES = {"kernel": "W", "recurrent_kernel": "U", "bias": "b", "recurrent_bias": "c"}


def renamed(params) -> Any:
    """Return a cell's parameters as a dictionary, with names that the library doesn't know."""
    return {NAMES[name]: leaf for name, leaf in params._asdict().items() if leaf is not None}


@pytest.mark.parametrize(
    "broken", rows(row for row in BROKEN if isinstance(row.model, jaxrnn.Cell))
)
def test_it_names_the_fault_of_a_bare_step_with_parameters_of_other_names(broken):
    loss, cell, params, inputs = arguments(broken)

    def step(given, state, x):
        fields = {name: given[other] for name, other in NAMES.items() if other in given}
        return cell.step(params._replace(**fields), state, x)

    state = cell.initial_state((4,))
    found = report(loss, step, renamed(params), inputs, state, write=None)
    assert found.cause == broken.cause


@pytest.mark.slow
def test_a_readout_is_no_recurrent_kernel_nor_a_leak_a_flat_activation():
    """A leaky network whose step reads its state out, too, by a square matrix."""

    def step(params, hidden, x):
        hidden = 0.9 * hidden + 0.1 * jnp.tanh(x @ params["W"] + hidden @ params["U"])
        return hidden, jax.jit(jnp.matmul)(hidden, params["readout"])

    rng = np.random.default_rng(0)
    params = {
        "W": jnp.float32(rng.normal(size=(I, H))),
        "U": jnp.float32(-8 * np.eye(H)),
        "readout": jnp.float32(rng.normal(size=(H, H))),
    }
    inputs = normal(rng, 60, 0.1)
    found = report(last, step, params, inputs, jnp.zeros((4, H)), write=None)
    finding: Any = found.findings[0]
    assert finding.cause == "spectral radius too large"
    assert finding.after.steps > 2 * finding.before.steps


@pytest.mark.parametrize("healthy", rows(HEALTHY))
def test_it_finds_no_fault_where_there_is_none(healthy):
    found = report(*arguments(healthy), write=None)
    assert found.cause is None
    assert all(layer.verdict == "reaches" for layer in found.layers)
    assert str(found).endswith("The gradient reaches the first step in every recurrent layer.")


@pytest.mark.slow
def test_its_norms_and_horizon_are_those_of_the_last_steps_gradient():
    """Of a loss over all steps only what enters at the last is sent back."""
    _, cell, params, inputs = arguments(HEALTHY[0])
    outputs = jaxrnn.unroll(cell, params, inputs)[1]
    found = report(mean, cell, params, inputs, write=None)
    slopes = jax.grad(mean)(outputs)[-1]
    norms = gradient_norms(lambda outputs: (outputs[-1] * slopes).sum(), cell, params, inputs)
    np.testing.assert_allclose(found.layers[0].norms, norms, rtol=1e-4, atol=1e-12)
    horizon = gradient_horizon(norms)
    np.testing.assert_allclose(found.layers[0].horizon, horizon, **FLOAT32)
    # A loss of a step in the middle: the steps after it are left out.
    found = report(lambda outputs: outputs[5].sum(), cell, params, inputs, write=None)
    assert found.steps == len(found.layers[0].norms) == 6


@pytest.mark.slow
def test_an_output_without_time_and_a_bare_step():
    _, cell, params, inputs = arguments(BROKEN[0])
    model = jaxrnn.rnn(cell, return_sequences=False)
    of_layer = report(lambda output: output.sum(), model, params, inputs, write=None)
    state = cell.initial_state((4,))
    of_step = report(
        lambda outputs: outputs[-1].sum(), cell.step, params, inputs, state, write=None
    )
    assert of_layer.cause == of_step.cause == "spectral radius too small"
    np.testing.assert_allclose(
        of_layer.layers[0].norms, of_step.layers[0].norms, rtol=1e-5, atol=1e-12
    )
    # Of as many steps as units, and of no batch, an output says by its shape neither.
    square = report(lambda output: output.sum(), model, params, inputs[:H, 0], write=None)
    assert square.steps == H
    assert square.layers[0].norms[0] < 1e-6 * square.layers[0].norms[-1]


@pytest.mark.slow
def test_parameters_are_found_however_deep_they_are():
    _, _, params, inputs = arguments(BROKEN[0])
    deep = jaxrnn.Cell(
        init=lambda key, size, dtype: {"cell": (ELMAN.init(key, size, dtype=dtype),)},
        initial_state=lambda batch_shape, dtype: ELMAN.initial_state(batch_shape, dtype=dtype),
        step=lambda params, state, inputs: ELMAN.step(params["cell"][0], state, inputs),
    )
    finding: Any = report(last, deep, {"cell": (params,)}, inputs, write=None).findings[0]
    assert finding.cause == "spectral radius too small"
    assert finding.after.steps > 2 * finding.before.steps


@pytest.mark.slow
def test_evidence_stands_where_its_remedy_cannot_be_tried():
    cell = jaxrnn.lstm(H, use_bias=False)
    params = drawn(LSTM, np.random.default_rng(0))._replace(bias=None)
    found = report(last, cell, params, normal(np.random.default_rng(1), 40), write=None)
    assert found.cause == "forget bias too low"
    assert found.findings[0].after is None


def test_a_loss_that_is_not_a_number():
    _, cell, params, inputs = arguments(BROKEN[0])
    for loss, value in [
        (lambda outputs: jnp.log(-(outputs**2)).sum(), "nan"),
        (lambda outputs: jnp.sqrt(0 * outputs).sum(), "0"),  # whose derivative is 0 / 0
    ]:
        found = report(loss, cell, params, inputs, write=None)
        assert found.cause == "not finite"
        assert f"the loss is {value}" in found.findings[0].evidence


def test_the_page():
    _, cell, params, inputs = arguments(BROKEN[0])
    pages = []
    found = report(last, cell, params, inputs, write=pages.append)
    assert pages == [str(found)]
    for words in ("40 steps", "0 elman", "radius is 0.3", "orthogonal", "horizon 4 steps", "@@|"):
        assert words in pages[0]
    assert max(map(len, pages[0].splitlines())) <= 100


def test_it_prints_unless_told_not_to(capsys):
    (with_nan,) = (row for row in BROKEN if row.name == "stack_with_nan")
    arguments_of_nan = arguments(with_nan)
    report(*arguments_of_nan)
    assert "params[2].bias: got NaN or infinity" in capsys.readouterr().out
    report(*arguments_of_nan, write=None)
    assert capsys.readouterr().out == ""


def test_a_count_of_steps_in_the_state_is_passed_over():
    def step(params, state, x):
        hidden, count = state
        hidden = jnp.tanh(x @ params["kernel"] + hidden @ params["recurrent_kernel"])
        return (hidden, count + 1), hidden

    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.float32(rng.normal(size=(I, H)) / 2),
        "recurrent_kernel": jnp.float32(0.2 * orthogonal(rng, H)),
    }
    state = jnp.zeros((4, H)), jnp.zeros(4, jnp.int32)
    found = report(last, step, params, normal(rng, 30), state, write=None)
    assert found.cause == "spectral radius too small"


def test_bad_input():
    _, cell, params, inputs = arguments(BROKEN[0])
    dense = {
        "cell": jaxrnn.serial(jaxrnn.dense(2)),
        "params": (jaxrnn.layers.DenseParams(jnp.ones((I, 2)), jnp.zeros(2)),),
    }
    changes: list[tuple[dict[str, Any], Any, str]] = [
        ({"loss": "mean"}, TypeError, "loss: got str"),
        ({"loss": lambda outputs: outputs}, TypeError, "loss: returned float32"),
        ({"cell": "lstm"}, TypeError, "cell: got str 'lstm', expected a jaxrnn.Cell"),
        (dense, ValueError, "a layer that unrolls a cell"),
        ({"cell": jaxrnn.rnn(cell, reverse=True)}, ValueError, "layer that runs backwards"),
        ({"inputs": inputs[:0]}, ValueError, "expected at least one step"),
        ({"fraction": 2.0}, ValueError, "fraction: got 2.0"),
    ]
    good = {"loss": last, "cell": cell, "params": params, "inputs": inputs, "write": None}
    for change, error, message in changes:
        with pytest.raises(error, match=message):
            report(**{**good, **change})
    with pytest.raises(TypeError, match=r"params: got traced arrays, .* outside of jit"):
        jax.jit(lambda params: report(**{**good, "params": params}).layers[0].norms)(params)
    nothing = report(lambda outputs: 0 * outputs.sum(), cell, params, inputs, write=None)
    assert nothing.cause == "no gradient"


# Inputs that failed once -------------------------------------------------------------------------


def final_square(outputs):
    return jnp.square(outputs[-1] - 1).sum()


def noise(steps, features=4):
    return jax.random.normal(jax.random.key(7), (steps, 4, features))


def test_a_projection_with_closed_forget_gates():
    cell = jaxrnn.wrappers.projection(jaxrnn.lstm(16), 8)
    params = cell.init(jax.random.key(0), 4)
    found = report(final_square, cell, params, noise(150), write=None)
    assert [layer.verdict for layer in found.layers] == ["vanishes"]
    assert found.findings


def test_a_gate_that_keeps_everything():
    cell = jaxrnn.gru(16)
    params = cell.init(jax.random.key(0), 4)
    bias = np.zeros(48, np.float32)
    bias[16:32] = 20.0
    closed = params._replace(bias=bias)
    found = report(final_square, cell, closed, noise(20), write=None)
    assert found.cause == "closed gates"
    assert "change the state by" in found.findings[0].evidence
    assert report(final_square, cell, params, noise(5), write=None).cause != "closed gates"


def test_where_to_write_is_checked_first():
    cell, untyped = jaxrnn.elman(4), cast(Any, report)
    with pytest.raises(TypeError, match=r"write: got str 'report.txt', expected a function"):
        untyped(final_square, cell, cell.init(jax.random.key(0), 2), None, write="report.txt")


def test_a_cell_without_recurrence():
    cell = jaxrnn.Cell(
        lambda key, size, dtype: jnp.ones((size, 3), dtype),
        lambda batch, dtype: jnp.zeros((*batch, 3), dtype),
        lambda params, hidden, x: 2 * (x @ params,),
    )
    found = report(final_square, cell, jnp.ones((2, 3)), jnp.ones((10, 2)), write=None)
    assert "does not depend on the one before" in found.findings[0].evidence


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_vanishes_as_float32_does(dtype):
    model = jaxrnn.serial(jaxrnn.rnn(jaxrnn.lstm(4)), jaxrnn.dense(1))
    params = model.init(jax.random.key(0), 2, dtype=dtype)
    inputs = jax.random.normal(jax.random.key(0), (40, 3, 2), dtype)

    def loss(outputs):
        return jnp.square(outputs[-1]).sum()

    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
    verdicts = [
        report(loss, model, *arguments, write=None).layers[0].verdict
        for arguments in ((params, inputs), wide)
    ]
    assert verdicts == ["vanishes", "vanishes"]
