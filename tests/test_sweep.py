"""Sweeps: each member against the same trained alone by fit; which diverge, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn.training import _sweep
from tests.engines import ON_A_CPU
from tests.problems import drawn
from tests.tolerances import FLOAT32, x64

KEY = jax.random.key(0)
untyped: Any = jaxrnn
close = functools.partial(np.testing.assert_allclose, **FLOAT32)


# A regression with noise, so that every key that a member is given shows in its result.
def loss(params, batch, key):
    inputs, targets = batch
    errors = inputs @ params["kernel"] + params["bias"] - targets
    return jnp.mean(jnp.square(errors + 0.1 * jax.random.uniform(key, errors.shape)))


def batches(key):
    inputs = 4 * jax.random.uniform(key, (8, 3)) - 2
    return inputs, inputs.sum(-1)


ARRAYS = jax.tree.map(np.asarray, jax.jit(jax.vmap(batches))(jax.random.split(KEY, 3)))


def setup(setting, key):
    """Sweep over what an optimizer has, and over what the parameters are drawn with."""
    params = {"kernel": setting["gain"] * jax.random.normal(key, (3,)), "bias": jnp.zeros(())}
    clip = optax.clip_by_global_norm(setting["clip"])
    return loss, params, optax.chain(clip, optax.sgd(setting["rate"], momentum=0.9))


def settings(members):
    return {
        "gain": np.linspace(0.5, 2, members, dtype=np.float32),
        "rate": np.geomspace(0.01, 0.1, members, dtype=np.float32),
        "clip": np.linspace(1, 5, members, dtype=np.float32),
    }


def member(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def alone(setup, setting, batches, key, **arguments: Any):
    """The loop in sweep's docstring, for one member."""
    init_key, fit_key = jax.random.split(key)
    loss, params, optimizer = setup(setting, init_key)
    return jaxrnn.fit(loss, params, optimizer, batches, key=fit_key, **arguments)


# Members ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "data", "own_keys"),
    [
        pytest.param(4, batches, True, id="on_two_devices", marks=pytest.mark.slow),
        pytest.param(3, batches, False, id="one_key"),
        pytest.param(3, ARRAYS, True, id="arrays"),
        pytest.param(1, ARRAYS, False, id="one_member", marks=pytest.mark.slow),
        pytest.param(40, ARRAYS, True, id="many"),
    ],
)
def test_each_member_is_as_if_trained_alone(members, data, own_keys):
    arguments = {"steps": 7, "clip_norm": 4.0, "report_every": 3}
    key = jax.random.split(KEY, members) if own_keys else KEY
    result = jaxrnn.sweep(setup, settings(members), data, key=key, **arguments)
    assert result.losses.shape == result.gradient_norms.shape == (members, 7)
    assert len(result.params["bias"].devices()) == (2 if members % 2 == 0 else 1)
    last = members - 1
    own_key = key[last] if own_keys else key
    expected = alone(setup, member(settings(members), last), data, own_key, **arguments)
    jax.tree.map(close, member(result, last), expected)
    assert len({float(value) for value in result.losses[:, 0]}) == members


@pytest.mark.slow
def test_reports_change_nothing():
    reports = []
    keys = jax.random.split(KEY, 2)
    run = functools.partial(jaxrnn.sweep, setup, settings(2), batches, steps=7, key=keys)
    whole = run(report_every=100)
    run(report_every=3, on_report=lambda *report: reports.append(report))
    assert [number for number, _ in reports] == [3, 6, 7]
    for number, result in reports:
        np.testing.assert_array_equal(result.losses, whole.losses[:, :number])
    jax.tree.map(np.testing.assert_array_equal, reports[-1][1], whole)


def test_seeds_need_no_settings():
    result = jaxrnn.sweep(
        lambda setting, key: (loss, setup(member(settings(1), 0), key)[1], optax.sgd(0.1)),
        None,
        batches,
        steps=2,
        key=jax.random.split(KEY, 2),
    )
    assert result.losses.shape == (2, 2)
    assert (result.losses[0] != result.losses[1]).all()


@pytest.mark.slow
def test_old_keys_are_keys():
    key = jax.random.PRNGKey(0)
    for keys, members in ((key, 2), (jax.random.split(key, 2), 2)):
        result = jaxrnn.sweep(setup, settings(members), batches, steps=1, key=keys)
        own = keys if keys.ndim == 1 else keys[1]
        expected = alone(setup, member(settings(members), 1), batches, own, steps=1)
        close(result.losses[1], expected.losses)


def test_every_member_has_a_carry_of_its_own():
    def count(params, carry, batch, key):
        return params * batch.sum(), carry + params

    result = jaxrnn.sweep(
        lambda start, key: (count, start, optax.sgd(0.0)),
        jnp.array([1.0, 2.0]),
        jnp.ones((1, 3)),
        steps=4,
        key=KEY,
        carry=jnp.array(0.5),
    )
    np.testing.assert_array_equal(result.carry, [4.5, 8.5])


@pytest.mark.slow
def test_a_gru_learns_the_same_in_a_sweep():
    model = jaxrnn.serial(jaxrnn.rnn(jaxrnn.gru(4), return_sequences=False), jaxrnn.dense(1))
    params = drawn(jax.eval_shape(lambda: model.init(KEY, 2)), 0)

    def error(params, batch, key):
        return jaxrnn.losses.squared_error(model.apply(params, None, batch[0])[1], batch[1])

    def setup(rate, key):
        return error, params, optax.adam(rate)

    data = functools.partial(jaxrnn.tasks.adding, batch_size=4, length=6)
    rates = np.array([1e-2, 3e-2], np.float32)
    result = jaxrnn.sweep(setup, rates, data, steps=20, key=KEY)
    expected = alone(setup, rates[1], data, KEY, steps=20)
    np.testing.assert_allclose(result.losses[1], expected.losses, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_other_than_the_default(dtype):
    def setup(start, key):
        return lambda params, batch, key: jnp.square(params - batch), start, optax.sgd(0.1)

    with x64():
        starts, data = jnp.array([0.5, 2.0], dtype), jnp.array([1.0, 3.0], dtype)
        result = jaxrnn.sweep(setup, starts, data, steps=3, key=KEY)
        expected = alone(setup, starts[1], data, KEY, steps=3)
    assert result.params.dtype == result.losses.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, member(result, 1), expected)


def test_a_setting_is_an_array_and_no_number():
    def saving_output(rate, key):
        return loss, {"kernel": jnp.zeros(int(rate)), "bias": jnp.zeros(())}, optax.sgd(0.1)

    with pytest.raises(jax.errors.ConcretizationTypeError):
        jaxrnn.sweep(saving_output, jnp.array([3.0, 4.0]), ARRAYS, steps=2, key=KEY)


# A few members are looked at once, made one by one, and trained by one program; many are made by
# one program and trained by one. On a CPU what that one writes is counted first.
@pytest.mark.parametrize(("members", "expected"), [(2, 4), (40, 2)])
def test_setup_is_called_as_often_for_many_steps_as_for_few(members, expected):
    counts = []
    for steps in (3, 50):
        traces = []

        def setup(rate, key, traces=traces):
            traces.append(None)
            return lambda params, batch, key: jnp.square(params - batch), rate, optax.sgd(rate)

        jaxrnn.sweep(setup, jnp.ones(members), jnp.ones(3), steps=steps, report_every=3, key=KEY)
        counts.append(len(traces))
    expected += jax.default_backend() == "cpu"
    assert counts == [expected, expected]


@ON_A_CPU
@pytest.mark.parametrize(("hidden", "together"), [(2, True), (64, False)])
def test_large_members_run_one_after_another(hidden, together, monkeypatch):
    """Which of the two has no influence on the results."""
    cell = jaxrnn.lstm(hidden)
    inputs = jnp.ones((40, 8, 3))
    choices, better = [], _sweep._better_together
    monkeypatch.setattr(
        _sweep, "_better_together", lambda *a: choices.append(better(*a)) or choices[-1]
    )

    def setup(rate, key):
        def loss(params, batch, key):
            return jnp.square(jaxrnn.unroll(cell, params, batch)[1] - 1).mean()

        return loss, cell.init(key, 3), optax.sgd(rate)

    def losses():
        rates = jnp.array([0.1, 0.2])
        return jaxrnn.sweep(setup, rates, lambda key: inputs, steps=3, key=KEY).losses

    chosen = losses()
    assert choices == [together]
    monkeypatch.setattr(_sweep, "_better_together", lambda *a: not together)
    np.testing.assert_allclose(losses(), chosen, **FLOAT32)


# Losses that are not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("report_every", [2, 100])
def test_a_member_that_diverges_stops_and_harms_no_other(report_every):
    """Each has its own gain; the middle one's is so large that the square overflows at step 3."""

    def square(params, batch, key):
        return jnp.square(params * batch)

    def setup(start, key):
        return square, start, optax.sgd(1e-3)

    data = jnp.array([1.0, 2.0, 3.0, 1e5, 1.0, 2.0])
    starts = jnp.array([1.0, 1e15, 2.0])
    arguments = {"steps": 6, "clip_norm": 1.0, "report_every": report_every}
    result = jaxrnn.sweep(setup, starts, data, key=KEY, **arguments)
    for number in (0, 2):
        expected = alone(setup, starts[number], data, KEY, **arguments)
        jax.tree.map(close, member(result, number), expected)
    with pytest.raises(jaxrnn.training.NonFiniteError) as caught:
        alone(setup, starts[1], data, KEY, **arguments)
    expected = caught.value.result
    assert expected.losses.shape == (4,)
    close(result.params[1], expected.params)
    close(result.losses[1], [*expected.losses, np.nan, np.nan])
    close(result.gradient_norms[1], [*expected.gradient_norms, np.nan, np.nan])
    assert result.skipped[1] == expected.skipped + 2
    assert (np.delete(result.skipped, 1) == 0).all()


def test_a_stopped_member_stays_stopped_where_its_optimizer_skips_steps():
    def setup(rate, key):
        optimizer = optax.apply_if_finite(optax.sgd(rate), max_consecutive_errors=5)
        return lambda params, batch, key: params * batch, jnp.array(0.5), optimizer

    # At the first step the update is infinite, but not the gradient's square; the second would be
    # skipped.
    data = jnp.array([1e18, jnp.nan, 1.0, 1.0])
    result = jaxrnn.sweep(setup, jnp.array([1e21]), data, steps=4, key=KEY)
    assert result.params.tolist() == [0.5]
    assert np.isfinite(result.losses).tolist() == [[True, False, False, False]]


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"setup": "adam"}, TypeError, "setup: got str 'adam'"),
        ({"setup": lambda setting, key: loss}, TypeError, "setup: returned function"),
        ({"setup": lambda s, key: (loss, 0.0)}, TypeError, r"setup: returned tuple.*\(loss, para"),
        ({"settings": None}, TypeError, "settings: got None and a single key"),
        ({"settings": 0.1}, TypeError, "settings: got float 0.1, expected arrays"),
        ({"settings": [0.1, 0.2]}, TypeError, "settings: got list"),
        ({"settings": np.array([2**40])}, ValueError, r"settings\[0\]: got int64\[1\], whose"),
        ({"settings": np.ones(0)}, ValueError, r"settings: got \[0\] members"),
        ({"settings": (np.ones(2), np.ones(3))}, ValueError, r"settings: got \[2, 3\] members"),
        ({"key": jax.random.split(KEY, 3)}, ValueError, r"key: got key<fry>\[3\], expected 2 keys"),
        ({"key": jax.random.split(KEY, (2, 2))}, ValueError, r"key: got key<fry>\[2, 2\]"),
        ({"key": 0}, TypeError, "key: got int 0"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"report_every": 0}, ValueError, "report_every: got 0"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm: got -1.0"),
        ({"on_report": 1}, TypeError, "on_report: got int 1"),
        ({"batches": ()}, TypeError, "batches: got tuple"),
        ({"batches": np.ones((1, 1))}, ValueError, r"batches: got float64\[1, 1\], whose values"),
        ({"carry": np.ones(1)}, ValueError, r"carry: got float64\[1\], whose values change"),
        (
            {"setup": lambda s, key: (loss, 1, optax.sgd(s))},
            TypeError,
            "params: got int 1, expected",
        ),
        ({"setup": lambda s, key: (loss, 1.0, None)}, TypeError, "optimizer: got NoneType"),
        ({"progress": 1}, TypeError, "progress: got int 1"),
    ],
)
def test_bad_input(change, error, message):
    def setup(rate, key):
        return lambda params, batch, key: jnp.square(params), jnp.zeros(()), optax.sgd(rate)

    arguments = {
        "setup": setup,
        "settings": np.array([0.1, 0.2], np.float32),
        "batches": np.zeros((1, 1), np.float32),
        "steps": 1,
        "key": KEY,
        **change,
    }
    with pytest.raises(error, match=message):
        untyped.sweep(**arguments)


def test_a_sweep_is_no_function_to_compile():
    def run(rates):
        def setup(rate, key):
            return lambda params, batch, key: jnp.square(params), jnp.zeros(()), optax.sgd(rate)

        return jaxrnn.sweep(setup, rates, jnp.zeros(1), steps=1, key=KEY)

    with pytest.raises(
        TypeError, match=r"settings: got traced arrays, .* call sweep outside of jit"
    ):
        jax.jit(run)(jnp.ones(2))
