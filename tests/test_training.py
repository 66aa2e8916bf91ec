"""Training: fit against plain loops; what it carries, clips, reports and refuses; learning."""

import functools
import pickle
import re
import sys
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxrnn
from tests.tolerances import FLOAT32, FLOAT64, x64

KEY = jax.random.key(0)


# A regression with noise, so that every key that fit hands out shows in its result.
def loss(params, batch, key):
    inputs, targets = batch
    errors = inputs @ params["kernel"] + params["bias"] - targets
    return jnp.mean(jnp.square(errors + 0.1 * jax.random.uniform(key, errors.shape)))


def batches(key):
    inputs = 4 * jax.random.uniform(key, (8, 3)) - 2
    return inputs, inputs.sum(-1)


OPTIMIZER = optax.sgd(0.05, momentum=0.9)
PARAMS = {"kernel": np.array([0.5, -1.0, 2.0], np.float32), "bias": np.float32(0.3)}


def square(params, batch, key):
    return jnp.square(params - batch)


def fit_square(batches, **settings):
    """Fit one number to batches by plain gradient descent: the smallest problem there is."""
    arguments = {"steps": 6, "key": KEY, "progress": False, **settings}
    return jaxrnn.fit(square, jnp.array(1.0), optax.sgd(0.1), batches, **arguments)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# The loop ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_loop():
    """The loop in fit's docstring, 7 steps: the last train state and all metrics."""
    step = jaxrnn.train_step(loss, OPTIMIZER, clip_norm=4.0)
    state = jaxrnn.training.init_train_state(PARAMS, OPTIMIZER)
    metrics, make = [], jax.jit(batches)
    for number in range(7):
        batch_key, loss_key = jax.random.split(jax.random.fold_in(KEY, number))
        state, measured = step(state, make(batch_key), loss_key)
        metrics.append(measured)
    assert state.step == 7
    return state, [np.array(column) for column in zip(*metrics, strict=True)]


def test_fit_is_the_plain_loop_whatever_report_every(plain_loop):
    state, (losses, norms) = plain_loop
    results = [
        jaxrnn.fit(
            loss, PARAMS, OPTIMIZER, batches, steps=7, key=KEY, clip_norm=4.0, report_every=every
        )
        for every in (3, 100)
    ]
    equal(*results)
    result = results[0]
    assert result.losses.shape == result.gradient_norms.shape == (7,)
    # Batch and step are one program in fit and two in the loop, so not to the last bit.
    close = functools.partial(np.testing.assert_allclose, **FLOAT32)
    jax.tree.map(close, result.params, state.params)
    jax.tree.map(close, result.optimizer_state, state.optimizer_state)
    close(result.losses, losses)
    close(result.gradient_norms, norms)
    # The test is worth something only if some norms are clipped, and some are not.
    assert norms.min() < 4.0 < norms.max()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_fit_on_arrays_is_gradient_descent_in_numpy(clip_norm):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(3, 8, 2)), rng.normal(size=(3, 8))
    kernel = np.array([1.0, -1.0])

    def error(kernel, batch, key):
        return jnp.mean(jnp.square(batch["inputs"] @ kernel - batch["targets"]))

    with x64():
        data = {"inputs": inputs, "targets": targets}
        optimizer = optax.sgd(0.2, momentum=0.5)
        result = jaxrnn.fit(
            error, kernel, optimizer, data, steps=8, key=KEY, clip_norm=clip_norm, report_every=5
        )
    losses, norms, momentum = [], [], np.zeros(2)
    for number in range(8):
        x, y = inputs[number % 3], targets[number % 3]  # in order, and around again
        errors = x @ kernel - y
        losses.append(np.mean(errors**2))
        gradient = 2 * errors @ x / len(y)
        norms.append(np.sqrt(np.sum(gradient**2)))
        if clip_norm is not None:
            gradient = gradient * min(1, clip_norm / norms[-1])
        momentum = 0.5 * momentum + gradient
        kernel = kernel - 0.2 * momentum
    np.testing.assert_allclose(result.losses, losses, **FLOAT64)
    np.testing.assert_allclose(result.gradient_norms, norms, **FLOAT64)
    np.testing.assert_allclose(result.params, kernel, **FLOAT64)
    assert min(norms) < 1.0 < max(norms)


def test_the_loss_is_traced_as_often_for_many_steps_as_for_few():
    counts = []
    for steps in (3, 50):
        traces = []

        def counting(params, batch, key, traces=traces):
            traces.append(None)
            return jnp.square(params - batch)

        start = {"steps": steps, "report_every": 3, "key": KEY}
        jaxrnn.fit(counting, jnp.array(1.0), optax.sgd(0.1), jnp.arange(4.0), **start)
        counts.append(len(traces))
    assert counts[0] == counts[1]


def test_what_fit_was_given_is_left_alone():
    params = {"numpy": np.ones(3, np.float32), "jax": jnp.ones(3)}
    data = np.arange(12, dtype=np.float32).reshape(4, 3)

    def error(params, batch, key):
        return jnp.square(params["numpy"] + params["jax"] - batch).mean()

    result = jaxrnn.fit(error, params, optax.sgd(0.1), data, steps=3, key=KEY, carry=None)
    for leaf in params.values():
        np.testing.assert_array_equal(leaf, np.ones(3))
    np.testing.assert_array_equal(data, np.arange(12).reshape(4, 3))
    assert (np.asarray(result.params["jax"]) != 1).all()


# One step ---------------------------------------------------------------------------------------


def test_train_step_over_seeds_is_each_seeds(plain_loop):
    step = jaxrnn.train_step(loss, OPTIMIZER, clip_norm=1.0)
    params = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), PARAMS)
    states = jax.vmap(lambda params: jaxrnn.training.init_train_state(params, OPTIMIZER))(params)
    data = [np.random.default_rng(1).normal(size=shape) for shape in ((3, 8, 3), (3, 8))]
    data = jax.tree.map(np.float32, data)
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(step)(states, data, keys)
    for seed in range(3):
        take = functools.partial(jax.tree.map, lambda leaf, seed=seed: leaf[seed])
        alone = step(take(states), take(data), keys[seed])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), take(together), alone
        )


@pytest.mark.parametrize("clip_norm", [0.5, 1000.0])
def test_clipping_is_optaxs(clip_norm):
    ours, plain = optax.sgd(0.1), optax.sgd(0.1)
    theirs = optax.chain(optax.clip_by_global_norm(clip_norm), plain)
    batch = np.ones((8, 3), np.float32), np.zeros(8, np.float32)
    clipped = jaxrnn.train_step(loss, ours, clip_norm=clip_norm)
    expected = jaxrnn.train_step(loss, theirs)
    new, metrics = clipped(jaxrnn.training.init_train_state(PARAMS, ours), batch, KEY)
    reference, reference_metrics = expected(
        jaxrnn.training.init_train_state(PARAMS, theirs), batch, KEY
    )
    close = functools.partial(np.testing.assert_allclose, **FLOAT32)
    jax.tree.map(close, new.params, reference.params)
    # The norm measured is the one before clipping.
    jax.tree.map(close, metrics, reference_metrics)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.sum((a - b) ** 2), new.params, PARAMS))
    length = np.sqrt(sum(moved)) / 0.1
    np.testing.assert_allclose(length, min(clip_norm, metrics.gradient_norm), rtol=1e-5)


def test_a_zero_gradient_can_be_clipped():
    step = jaxrnn.train_step(square, optax.sgd(0.1), clip_norm=1.0)
    state, metrics = step(
        jaxrnn.training.init_train_state(jnp.array(2.0), optax.sgd(0.1)), 2.0, KEY
    )
    assert state.params == 2
    assert metrics == (0, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype):
    step = jaxrnn.train_step(square, OPTIMIZER, clip_norm=1.0)
    state = jaxrnn.training.init_train_state(jnp.ones((), dtype), OPTIMIZER)
    new, metrics = jax.eval_shape(step, state, jnp.ones((), dtype), KEY)
    assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)
    assert metrics.loss.dtype == dtype


@pytest.mark.parametrize(("dtype", "slope"), [("float16", 1e-4), ("float16", 300), ("bfloat16", 3)])
def test_the_norm_of_16_bits_is_measured_in_32(dtype, slope):
    step = jaxrnn.train_step(lambda params, batch, key: (params * batch).sum(), optax.sgd(1.0))
    state = jaxrnn.training.init_train_state(jnp.zeros(100, dtype), optax.sgd(1.0))
    batch = jnp.array(slope, dtype)
    new, metrics = step(state, batch, KEY)
    np.testing.assert_allclose(metrics.gradient_norm, 10 * np.float32(batch), rtol=1e-6)
    equal(new.params, jnp.full(100, -batch))


def test_complex_parameters_go_down_in_every_direction():
    def length(params, batch, key):
        return jnp.sum(jnp.abs(params) ** 2)

    params, optimizer = jnp.array([1.0 + 1.0j]), optax.sgd(0.05)
    result = jaxrnn.fit(length, params, optimizer, jnp.ones(2), steps=400, key=KEY)
    np.testing.assert_allclose(result.params, 0, atol=1e-6)


# The carry --------------------------------------------------------------------------------------


def test_the_carry_passes_and_no_gradient_passes_through_it():
    def leaky(params, carry, batch, key):
        carry = {"sum": 0.5 * carry["sum"] + params * batch, "count": carry["count"] + 1}
        return jnp.square(carry["sum"] - 1), carry

    data = np.array([1.0, 2.0, -1.0])
    with x64():
        carry = {"sum": np.array(0.25), "count": np.array(0, np.int32)}
        result = jaxrnn.fit(
            leaky,
            np.array(0.7),
            optax.sgd(0.1),
            data,
            steps=5,
            key=KEY,
            carry=carry,
            report_every=2,
        )
    params, total, losses = 0.7, 0.25, []
    for number in range(5):
        x = data[number % 3]
        total = 0.5 * total + params * x
        losses.append((total - 1) ** 2)
        params -= 0.1 * 2 * (total - 1) * x  # through this step's product alone
    np.testing.assert_allclose(result.losses, losses, **FLOAT64)
    np.testing.assert_allclose(result.params, params, **FLOAT64)
    np.testing.assert_allclose(result.carry["sum"], total, **FLOAT64)
    assert result.carry["count"] == 5


# Losses that are not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("report_every", [1, 2, 100])
def test_a_loss_that_is_not_finite_stops_training(report_every):
    data = jnp.array([0.0, 1.0, 2.0, 3.0, np.nan, 5.0])
    with pytest.raises(
        jaxrnn.training.NonFiniteError, match=r"training stopped at step 4: .* nan"
    ) as caught:
        fit_square(data, report_every=report_every)
    good, result = fit_square(data, steps=4), caught.value.result
    equal(result.params, good.params)
    equal(result.optimizer_state, good.optimizer_state)
    equal(result.losses, [*good.losses, np.nan])
    equal(result.gradient_norms, [*good.gradient_norms, np.nan])
    message = str(caught.value)
    assert f"after a loss of {good.losses[-1]:.6g} and a gradient norm of" in message
    assert f"{good.gradient_norms[-1]:.6g} the step before" in message
    assert "clip_norm" in message
    assert isinstance(caught.value, FloatingPointError)


def test_training_that_never_began():
    with pytest.raises(
        jaxrnn.training.NonFiniteError, match="stopped at step 0: its loss is inf"
    ) as caught:
        fit_square(jnp.array([np.inf]))
    assert "the step before" not in str(caught.value)
    assert caught.value.result.params == 1
    assert caught.value.result.losses.tolist() == [np.inf]


def test_a_gradient_that_is_not_finite_stops_training_with_the_carry_from_before():
    def root(params, carry, batch, key):
        # At 0 the root is finite and its slope is not.
        return jnp.sqrt(params * batch), carry + 1

    with pytest.raises(jaxrnn.training.NonFiniteError, match="step 2: its loss is 0 ") as caught:
        jaxrnn.fit(
            root,
            jnp.array(1.0),
            optax.sgd(0.1),
            jnp.array([1.0, 1.0, 0.0]),
            steps=9,
            key=KEY,
            carry=jnp.array(0),
        )
    result = caught.value.result
    assert result.carry == 2
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.gradient_norms).tolist() == [True, True, False]


def test_a_carry_that_ceases_to_be_finite_stops_training_with_that_from_before():
    def fill(params, carry, batch, key):
        count, best = carry
        return jnp.square(params), (jnp.where(count < 2, count + 1, jnp.nan), best)

    # What was infinite from the start may be so on purpose.
    carry = jnp.array(0.0), jnp.array(-jnp.inf)
    with pytest.raises(
        jaxrnn.training.NonFiniteError, match=r"The first to go bad was the carry\[0\]\."
    ) as e:
        jaxrnn.fit(
            fill, jnp.array(1.0), optax.sgd(0.1), jnp.zeros(1), steps=9, key=KEY, carry=carry
        )
    assert e.value.step == 2
    assert e.value.result.carry[0] == 2
    np.testing.assert_allclose(e.value.result.params, 0.8**2, **FLOAT32)


class Leaves(NamedTuple):
    """Parameters as a layer has them, to see how an error names a leaf."""

    kernel: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    ("error", "learning_rate", "leaf"),
    [
        (lambda bias, kernel: bias + kernel + jnp.log(kernel - 1), 0.1, "the loss"),
        # At 1 the root is finite and its slope is not.
        (lambda bias, kernel: bias + jnp.sqrt(kernel - 1), 0.1, "the gradient of params[1].kernel"),
        (
            lambda bias, kernel: (
                3e38 * (kernel - lax.stop_gradient(kernel) + bias - lax.stop_gradient(bias))
            ),
            0.1,
            "the gradient's norm",
        ),
        (lambda bias, kernel: kernel + 1e10 * bias, 1e30, "the update of params[1].bias"),
    ],
)
def test_a_bad_step_is_reported_with_the_first_leaf_that_went_bad(error, learning_rate, leaf):
    def loss(params, batch, key):
        _, (kernel, bias) = params
        return lax.cond(batch > 0, error, lambda bias, _: 0 * bias, bias, kernel)

    with pytest.raises(jaxrnn.training.NonFiniteError) as caught:
        jaxrnn.fit(
            loss,
            (jnp.array(0.0), Leaves(jnp.array(1.0), jnp.array(1.0))),
            optax.sgd(learning_rate),
            jnp.array([0.0, 0.0, 1.0]),
            steps=9,
            key=KEY,
            report_every=2,
        )
    assert caught.value.step == 2
    assert caught.value.leaf == leaf
    assert f"stopped at step 2: its loss is {caught.value.result.losses[-1]:.6g}" in str(
        caught.value
    )
    assert f"The first to go bad was {leaf}. " in str(caught.value)


def test_the_last_report_has_the_bad_step():
    reports = []
    with pytest.raises(jaxrnn.training.NonFiniteError) as caught:
        fit_square(
            jnp.array([0.0, 1.0, np.inf]),
            report_every=2,
            on_report=lambda *report: reports.append(report),
        )
    assert [number for number, _ in reports] == [2, 3]
    equal(reports[-1][1], caught.value.result)


@pytest.mark.parametrize(("report_every", "clip_norm"), [(1, None), (4, 1.0), (100, None)])
def test_steps_that_are_not_finite_can_be_skipped_and_counted(report_every, clip_norm):
    def leaky(params, carry, batch, key):
        carry = 0.5 * carry + batch
        return jnp.square(params - carry), carry

    data = np.array([1.0, np.nan, 2.0, np.inf, np.nan, -1.0])
    with x64():
        result = jaxrnn.fit(
            leaky,
            np.array(0.7),
            optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), max_consecutive_errors=2),
            data,
            steps=12,
            key=KEY,
            carry=np.array(0.25),
            clip_norm=clip_norm,
            report_every=report_every,
        )
    params, carry, momentum, losses = 0.7, 0.25, 0.0, []
    for number in range(12):
        x = data[number % 6]
        if np.isfinite(x):
            carry = 0.5 * carry + x
            gradient = 2 * (params - carry)
            losses.append((params - carry) ** 2)
            momentum = 0.9 * momentum + gradient * min(1, (clip_norm or np.inf) / abs(gradient))
            params -= 0.1 * momentum
    good = np.isfinite(np.tile(data, 2))
    assert result.skipped == 6
    np.testing.assert_array_equal(np.isfinite(result.losses), good)
    np.testing.assert_allclose(result.losses[good], losses, **FLOAT64)
    np.testing.assert_allclose(result.params, params, **FLOAT64)
    np.testing.assert_allclose(result.carry, carry, **FLOAT64)


def test_skipping_ends_where_optax_gives_up():
    optimizer = optax.chain(optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=1))
    data = jnp.array([1.0, np.nan, 2.0, np.nan, np.nan, 3.0])
    with pytest.raises(jaxrnn.training.NonFiniteError, match="stopped at step 4") as caught:
        jaxrnn.fit(square, jnp.array(0.5), optimizer, data, steps=6, key=KEY)
    good = jaxrnn.fit(square, jnp.array(0.5), optimizer, data, steps=4, key=KEY)
    equal(caught.value.result.params, good.params)
    assert good.skipped == 2
    assert caught.value.leaf == "the loss"


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    "error",
    [
        # A loss that is not finite with a gradient that is; and one whose norm overflows.
        lambda params, batch, key: jnp.where(batch > 0, np.inf, 0.0) + params.sum(),
        lambda params, batch, key: jnp.where(batch > 0, 3e38, 1.0) * params.sum(),
    ],
)
def test_whatever_stops_training_is_skipped(error, clip_norm):
    optimizer = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=1)
    data = jnp.array([0.0, 1.0, 0.0])
    result = jaxrnn.fit(error, jnp.ones(2), optimizer, data, steps=3, key=KEY, clip_norm=clip_norm)
    assert result.skipped == result.optimizer_state.total_notfinite == 1
    length = clip_norm or np.sqrt(2)
    np.testing.assert_allclose(result.params, [1 - 0.2 * length / np.sqrt(2)] * 2, **FLOAT32)


# Reports and progress ---------------------------------------------------------------------------


def test_on_report_sees_the_result_so_far():
    reports = []
    data = jnp.array([0.0, 3.0])
    whole = fit_square(
        data, steps=7, report_every=3, on_report=lambda *report: reports.append(report)
    )
    assert [number for number, _ in reports] == [3, 6, 7]
    for number, result in reports:
        equal(result, fit_square(data, steps=number))
        equal(result.losses, whole.losses[:number])
    equal(reports[-1][1], whole)


@pytest.mark.parametrize("report_every", [6, 100])
def test_a_report_comes_at_the_end(report_every):
    reports = []
    fit_square(
        jnp.zeros(1), report_every=report_every, on_report=lambda number, _: reports.append(number)
    )
    assert reports == [6]


def test_an_error_in_on_report_comes_out():
    def stop(number, result):
        raise KeyboardInterrupt(number)

    with pytest.raises(KeyboardInterrupt, match="2"):
        fit_square(jnp.zeros(1), report_every=2, on_report=stop)


def test_progress_is_shown_on_request_alone(capsys):
    for progress, shown in ((True, True), (False, False), (None, False)):  # no terminal here
        fit_square(jnp.zeros(1), progress=progress)
        text = capsys.readouterr().err
        assert bool(text) == shown
    fit_square(jnp.ones(1), progress=True)
    # Steps done of all, time spent and left, steps per second, and the last loss.
    assert re.search(r"6/6 \[\S+<\S+ \d+\S*step/s, loss=\d", capsys.readouterr().err)


def test_progress_without_tqdm(monkeypatch):
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="progress=True needs tqdm"):
        fit_square(jnp.zeros(1), progress=True)
    assert fit_square(jnp.zeros(1), progress=None).losses.shape == (6,)


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_lstm_learns_the_adding_problem():
    # Orthogonal kernels take longer to compile than the training takes.
    cell = jaxrnn.lstm(16, recurrent_init=jaxrnn.initializers.glorot_uniform)
    model = jaxrnn.serial(jaxrnn.rnn(cell, return_sequences=False), jaxrnn.dense(1))

    def error(params, batch, key):
        inputs, targets = batch
        return jaxrnn.losses.squared_error(model.apply(params, None, inputs)[1], targets)

    result = jaxrnn.fit(
        error,
        jax.jit(lambda: model.init(KEY, 2))(),
        optax.adam(1e-2),
        functools.partial(jaxrnn.tasks.adding, batch_size=32, length=8),
        steps=300,
        key=KEY,
        clip_norm=1.0,
    )
    assert result.losses[0] > jaxrnn.tasks.ADDING_CHANCE
    assert result.losses[-50:].mean() < jaxrnn.tasks.ADDING_CHANCE / 2


def test_an_optimizer_that_watches_the_loss_is_given_it():
    optimizer = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=3, cooldown=0)
    )
    result = jaxrnn.fit(
        lambda params, batch, key: 0 * params + 1.0,
        jnp.array(1.0),
        optimizer,
        jnp.zeros(1),
        steps=9,
        key=KEY,
    )
    assert result.optimizer_state[-1].scale == 0.25


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mse"}, TypeError, "loss: got str 'mse', expected a function"),
        ({"loss": lambda params, batch, key: params * jnp.ones(2)}, TypeError, "loss: returned fl"),
        ({"loss": lambda params, batch, key: (params, 1)}, TypeError, "loss: returned tuple"),
        ({"loss": lambda params, batch, key: 1}, TypeError, "loss: returned int 1, expected a fl"),
        ({"optimizer": "adam"}, TypeError, "optimizer: got str 'adam', expected an optax.Grad"),
        ({"optimizer": optax.adam}, TypeError, "optimizer: got function"),
        ({"params": {"n": np.int32(1)}}, TypeError, r"params\['n'\]: got int32\[\], expected a fl"),
        ({"params": (1.0, True)}, TypeError, r"params\[1\]: got bool True"),
        ({"params": "gru"}, TypeError, "params: got str 'gru'"),
        ({"params": np.ones(2)}, ValueError, r"params: got float64\[2\], whose values change"),
        ({"carry": [np.ones(2)]}, ValueError, r"carry\[0\]: got float64\[2\]"),
        ({"batches": np.array([2**32 + 1])}, ValueError, r"batches: got int64\[1\]"),
        ({"batches": lambda key: np.ones(1)}, ValueError, r"batches: got float64\[1\], whose"),
        ({"params": {}}, TypeError, "params: got dict {}, expected at least one array to train"),
        ({"clip_norm": 0}, ValueError, "clip_norm: 0 underflows to 0"),
        ({"clip_norm": 1e-50}, ValueError, "clip_norm: 1e-50 underflows to 0"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm: got -1.0"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm: got nan"),
        ({"clip_norm": float("inf")}, ValueError, "clip_norm: got inf"),
        ({"clip_norm": "1"}, TypeError, "clip_norm: got str '1'"),
        ({"clip_norm": True}, TypeError, "clip_norm: got bool True"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"steps": 1e3}, TypeError, "steps: got float 1000.0"),
        ({"report_every": 0}, ValueError, "report_every: got 0"),
        ({"report_every": None}, TypeError, "report_every: got NoneType"),
        ({"key": 0}, TypeError, "key: got int 0"),
        ({"key": jax.random.split(KEY)}, ValueError, "key: got .*expected one key"),
        ({"on_report": "print"}, TypeError, "on_report: got str 'print', expected a function"),
        ({"progress": 1}, TypeError, "progress: got int 1, expected True or False"),
        ({"batches": None}, TypeError, "batches: got NoneType None, expected a function of a key"),
        ({"batches": "text"}, TypeError, "batches: got str 'text'"),
        ({"batches": 3.0}, TypeError, "batches: got float 3.0"),
        ({"batches": ()}, TypeError, "batches: got tuple"),
        ({"batches": (np.ones((2, 3)), 1.0)}, TypeError, r"batches: got tuple\(float64\[2, 3\]"),
        ({"batches": np.ones((0, 3))}, ValueError, r"batches: got arrays of \[0\] batches"),
        (
            {"batches": (np.ones((2, 3)), np.ones(3))},
            ValueError,
            r"batches: got arrays of \[2, 3\] batches, expected one number > 0",
        ),
        (
            {"carry": jnp.array(0.0), "loss": lambda params, carry, batch, key: params},
            TypeError,
            r"loss: returned float32\[\], expected \(scalar, carry\)",
        ),
        (
            {"carry": jnp.array(0.0), "loss": lambda params, carry, batch, key: (params, (carry,))},
            TypeError,
            r"carry: got tuple\(float32\[\]\), expected float32\[\]",
        ),
        (
            {
                "carry": jnp.array(0.0),
                "loss": lambda params, carry, batch, key: (params, carry * jnp.ones(2)),
            },
            ValueError,
            r"carry: got float32\[2\], expected float32\[\]",
        ),
    ],
)
def test_bad_input_of_fit(change, error, message):
    arguments = {
        "loss": square,
        "params": np.float32(1),
        "optimizer": optax.sgd(0.1),
        "batches": np.ones(2, np.float32),
        "steps": 3,
        "key": KEY,
        **change,
    }
    with pytest.raises(error, match=message):
        jaxrnn.fit(**arguments)


@pytest.mark.parametrize("name", ["params", "key", "carry"])
def test_fit_is_no_function_to_compile(name):
    def run(value):
        arguments = {"params": 1.0, "key": KEY, "carry": None, name: value}
        return jaxrnn.fit(
            square, optimizer=optax.sgd(0.1), batches=np.ones(1), steps=1, **arguments
        )

    with pytest.raises(TypeError, match=f"{name}: got traced arrays, .* call fit outside of jit"):
        jax.jit(run)(KEY if name == "key" else 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, KEY), r"train_state: got float32\[\], expected what init_train_state returns"),
        ((jaxrnn.training.init_train_state(1.0, optax.sgd(0.1)), 1.0, 0), "key: got int32"),
    ],
)
def test_bad_input_of_a_step(arguments, message):
    with pytest.raises(TypeError, match=message):
        jaxrnn.train_step(square, optax.sgd(0.1))(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, optax.sgd(0.1)), TypeError, "loss: got NoneType"),
        ((square, None), TypeError, "optimizer: got NoneType"),
    ],
)
def test_bad_input_of_train_step(arguments, error, message):
    with pytest.raises(error, match=message):
        jaxrnn.train_step(*arguments)
    with pytest.raises(ValueError, match=r"clip_norm: 0(\.0)? underflows to 0"):
        jaxrnn.train_step(square, optax.sgd(0.1), clip_norm=0.0)


@pytest.mark.parametrize("optimizer", [None, optax.sgd, PARAMS])
def test_bad_input_of_init_train_state(optimizer):
    with pytest.raises(
        TypeError, match=r"optimizer: got .*, expected an optax.GradientTransformation"
    ):
        jaxrnn.training.init_train_state(optax.sgd(0.1), optimizer)


# What other kinds of optimizers want ------------------------------------------------------------


def by_hand(optimizer, extra, batch, steps):
    """Train PARAMS with optax alone; `extra` makes the arguments that the optimizer wants."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, losses = optimizer.init(params), []

    def fixed_loss(params):
        return loss(params, batch, KEY)

    for _ in range(steps):
        value, gradient = jax.value_and_grad(fixed_loss)(params)
        updates, state = optimizer.update(
            gradient, state, params, **extra(fixed_loss, value, gradient)
        )
        params = optax.apply_updates(params, updates)
        losses.append(value)
    return params, np.asarray(losses)


def line_search(loss, value, gradient):
    return {"value": value, "grad": gradient, "value_fn": loss}


def nothing(loss, value, gradient):
    return {}


def value_alone(loss, value, gradient):
    return {"value": value}


def sam(opaque):
    return optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=opaque
    )


@pytest.mark.parametrize(
    ("optimizer", "extra"),
    [
        (optax.lbfgs(), line_search),
        (
            optax.chain(
                optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
            ),
            line_search,
        ),
        (sam(False), nothing),
        (sam(True), lambda loss, *_: {"grad_fn": lambda params, _: jax.grad(loss)(params)}),
        (optax.contrib.schedule_free_sgd(0.1), nothing),
        (optax.MultiSteps(optax.sgd(0.1), 2), nothing),
        (optax.adaptive_grad_clip(0.1), nothing),
        (optax.polyak_sgd(), value_alone),
        (optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), value_alone),
        (optax.inject_hyperparams(optax.adam)(0.1), nothing),
    ],
    ids=[
        *("lbfgs", "backtracking", "sam", "opaque sam", "schedule-free", "multi-steps"),
        *("adaptive clipping", "polyak", "plateau", "hyperparameters"),
    ],
)
def test_optimizers_that_want_more_than_the_gradient(optimizer, extra):
    batch = batches(KEY)

    def fixed_key(params, batch, key):
        return loss(params, batch, KEY)

    expected, losses = by_hand(optimizer, extra, batch, 4)
    result = jaxrnn.fit(
        fixed_key, PARAMS, optimizer, lambda key: batch, steps=4, key=KEY, progress=False
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, result.params, expected)
    close(result.losses, losses)
    swept = jaxrnn.sweep(
        lambda gain, key: (lambda *a: gain * fixed_key(*a), PARAMS, optimizer),
        jnp.ones(1),
        lambda key: batch,
        steps=4,
        key=KEY,
        progress=False,
    )
    jax.tree.map(lambda got, want: close(got[0], want), swept.params, expected)


def test_an_optimizer_that_wants_something_else_is_named():
    def update(gradient, state, params, *, curvature):
        return gradient, state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), cast(Any, update))
    with pytest.raises(TypeError, match="curvature") as caught:
        jaxrnn.fit(square, jnp.array(1.0), optimizer, jnp.ones(1), steps=1, key=KEY)
    assert any("optimizer" in note for note in caught.value.__notes__)


# Norms, keys, errors and what is no batch -------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e20, 2e38])
def test_a_gradient_of_any_size_is_clipped(size):
    def linear(params, batch, key):
        return size * (0.6 * params[0] + 0.8 * params[1])

    step = jaxrnn.train_step(linear, optax.sgd(1.0), clip_norm=size / 4)
    state = jaxrnn.training.init_train_state(jnp.zeros(2), optax.sgd(1.0))
    state, metrics = step(state, 0.0, KEY)
    np.testing.assert_allclose(metrics.gradient_norm, np.float32(size), rtol=1e-6)
    np.testing.assert_allclose(state.params, -np.float32(size / 4) * np.array([0.6, 0.8]), 1e-6)


def test_keys_are_used_once():
    with jax.debug_key_reuse(True):
        fit_square(lambda key: jax.random.normal(key))
        jaxrnn.sweep(
            lambda rate, key: (square, jax.random.normal(key), optax.sgd(rate)),
            jnp.array([0.1, 0.2]),
            lambda key: jax.random.normal(key),
            steps=3,
            report_every=2,
            key=jax.random.split(KEY),
        )


def test_the_error_can_be_pickled():
    with pytest.raises(jaxrnn.training.NonFiniteError) as caught:
        fit_square(jnp.array([1.0, np.inf]))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert (again.step, again.leaf) == (caught.value.step, caught.value.leaf)
    equal(tuple(again.result), tuple(caught.value.result))


def test_on_report_may_change_what_it_is_given():
    def sort(step, result):
        result.losses[:] = 0

    data = jnp.array([0.0, 3.0])
    equal(fit_square(data, report_every=2, on_report=sort), fit_square(data))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([jnp.ones(3), jnp.ones(3)], "batches: got list.*numpy.stack"),
        ((jnp.ones(3) for _ in range(2)), "batches: got generator.*jaxrnn.train_step"),
        (
            np.ma.masked_array(np.ones(3, np.float32), np.array([False, True, False])),
            "batches: got a NumPy masked",
        ),
        (np.array(["a", "b"]), "batches: got .*expected an array of numbers"),
        ("text", "batches: got str 'text'"),
    ],
)
def test_what_is_no_batch_is_named(batches, message):
    with pytest.raises(TypeError, match=message):
        fit_square(batches)


def test_tensors_of_torch_are_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"batches: got torch.float32\[3\], expected an array"):
        fit_square(torch.ones(3))


@pytest.mark.parametrize("carry", [None, jnp.zeros(())])
def test_a_loss_of_other_arguments_is_named(carry):
    def of_four(params, carry, batch, key):
        return params * batch, carry

    wrong = of_four if carry is None else square
    with pytest.raises(
        TypeError, match=r"loss: got one of arguments \(params, .*expected \(params"
    ):
        jaxrnn.fit(wrong, jnp.ones(()), optax.sgd(0.1), jnp.ones(1), steps=1, key=KEY, carry=carry)
