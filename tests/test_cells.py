"""One suite over the table of cells."""

import dataclasses
import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import cells
from tests.cells import DEEP, complex_step_gradient, innermost, numpy_unroll
from tests.problems import problem
from tests.tolerances import FLOAT64, SIXTEEN_BITS, x64

H, I, B, T = 4, 3, 2, 6
untyped: Any = jaxrnn


def weighted_sum(outputs, state):
    """A loss that weighs every number of outputs and state differently, so that none can swap."""
    leaves = [outputs, *state]
    return sum((leaf * np.cos(np.arange(leaf.size)).reshape(leaf.shape)).sum() for leaf in leaves)


def loss(cell, params, inputs, state, **options):
    state, outputs = jaxrnn.unroll(cell, params, inputs, state, **options)
    return weighted_sum(outputs, state)


@functools.partial(jax.jit, static_argnums=0)
def gradient(cell, *arguments):
    return jax.grad(functools.partial(loss, cell), argnums=(0, 1, 2))(*arguments)


def as_numpy(*trees):
    return jax.tree.map(np.asarray, trees)


def test_equations_and_gradients_are_those_of_a_numpy_loop(row):
    with x64():
        cell = row.make(H)
        arguments = problem(cell, dtype=jnp.float64)
        params, inputs, state = as_numpy(*arguments)
        got_state, got = jaxrnn.unroll(cell, *arguments)
        wanted_state, expected = numpy_unroll(row, params, inputs, state)
        np.testing.assert_allclose(got, expected, **FLOAT64)
        for ours, theirs in zip(got_state, wanted_state, strict=True):
            np.testing.assert_allclose(ours, theirs, **FLOAT64)

        def numpy_loss(arguments):
            params, inputs, state = arguments
            state, outputs = numpy_unroll(row, params, inputs, state)
            return weighted_sum(outputs, state)

        gradients = gradient(cell, *arguments)
        exact = complex_step_gradient(numpy_loss, (params, inputs, state))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT64), gradients, exact)


def test_gradient_agrees_with_finite_differences(row):
    with x64():
        cell = row.make(H)
        arguments = problem(cell, dtype=jnp.float64)
        flat, unflatten = jax.flatten_util.ravel_pytree(arguments)
        slopes, _ = jax.flatten_util.ravel_pytree(gradient(cell, *arguments))
        direction = np.cos(np.arange(flat.size))
        step = 1e-6  # the central difference's error is step**2 and rounding / step
        ends = [loss(cell, *unflatten(flat + end * direction)) for end in (step, -step)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slopes @ direction, rtol=1e-7)


@pytest.mark.parametrize("row", DEEP)
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "bfloat16",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("float16", "float64")),
    ],
)
def test_shapes_and_dtypes(row, dtype):
    with x64():
        cell = row.make(H)
        params, inputs, state = problem(cell, batch=(5, B), dtype=jnp.dtype(dtype))
        new_state, outputs, states = jaxrnn.unroll(cell, params, inputs, state, return_states=True)
        assert outputs.shape == (T, 5, B, H)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert {leaf.shape for leaf in new_state} == {(5, B, H)}
        assert {leaf.shape for leaf in states} == {(T, 5, B, H)}
        leaves = jax.tree.leaves((params, new_state, outputs, states))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
        if dtype in SIXTEEN_BITS:
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs, state))
            _, expected = jaxrnn.unroll(cell, *wide)
            tolerance = SIXTEEN_BITS[dtype] * np.abs(expected).max()
            np.testing.assert_allclose(
                outputs.astype(jnp.float32), expected, rtol=0, atol=tolerance
            )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
def test_jit_equals_eager_steps(row):
    cell = row.make(H)
    params, inputs, state = problem(cell)
    _, compiled = jax.jit(lambda *a: jaxrnn.unroll(cell, *a))(params, inputs, state)
    for x, expected in zip(inputs, compiled, strict=True):
        state, output = cell.step(params, state, x)
        np.testing.assert_allclose(output, expected, **FLOAT64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("row", DEEP)
@pytest.mark.slow
def test_batched_equals_single(row):
    cell = row.make(H)
    params, inputs, state = problem(cell, batch=(2, 3))
    batched_state, batched = jaxrnn.unroll(cell, params, inputs, state)
    for index in np.ndindex(2, 3):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], state)
        one_state, single = jaxrnn.unroll(cell, params, inputs[:, *index], one)
        np.testing.assert_allclose(single, batched[:, *index], **FLOAT64)
        for ours, theirs in zip(one_state, batched_state, strict=True):
            np.testing.assert_allclose(ours, theirs[index], **FLOAT64)


def test_no_compilation_on_a_second_call(row, compilations):
    cell = row.make(H)
    params, inputs, state = problem(cell, length=7)
    jax.block_until_ready(jaxrnn.unroll(cell, params, inputs, state))
    jax.block_until_ready(gradient(cell, params, inputs, state))
    others = jax.block_until_ready(2 * inputs)
    before = compilations()
    again = row.make(H)
    assert again is cell
    jax.block_until_ready(jaxrnn.unroll(again, params, others, state))
    jax.block_until_ready(gradient(again, params, others, state))
    assert compilations() == before


def test_another_setting_is_another_cell(row):
    assert row.make(H) is not row.make(H + 1)
    assert row.make(np.int64(H)) is row.make(H)


def test_gradients_are_finite_and_reach_every_parameter(row):
    cell = row.make(H)
    params, inputs, _ = problem(cell)
    gradients = gradient(cell, params, inputs, None)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
        assert (np.abs(leaf) > 0).any()


def test_initial_parameters(row):
    cell = row.make(8)
    params, same, other = (innermost(cell.init(jax.random.key(seed), 5)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(params.kernel, same.kernel)
    assert (np.asarray(params.kernel) != np.asarray(other.kernel)).any()
    for block in np.split(
        np.asarray(params.recurrent_kernel), params.recurrent_kernel.shape[1] // 8, 1
    ):
        np.testing.assert_allclose(block @ block.T, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (5 + 8))  # Glorot's, for each gate
    assert limit * 0.9 < np.abs(params.kernel).max() <= limit


def test_lstm_forget_bias_is_where_it_belongs():
    params = jaxrnn.lstm(3, forget_bias=2.5).init(jax.random.key(0), 2)
    np.testing.assert_array_equal(params.bias, [0] * 3 + [2.5] * 3 + [0] * 6)


def test_the_lesson_counts_its_weights():
    table = jaxrnn.embedding(5, 100).init(jax.random.key(0))
    params = jaxrnn.elman(64, use_bias=False).init(jax.random.key(0), 100)
    assert sum(leaf.size for leaf in jax.tree.leaves((table, params))) == 10_996


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_has_the_biases_it_needs(use_bias, reset_after):
    params = jaxrnn.gru(3, use_bias=use_bias, reset_after=reset_after).init(jax.random.key(0), 2)
    assert (params.bias is not None) == use_bias
    assert (params.recurrent_bias is not None) == (use_bias and reset_after)


CONSTRUCTORS = [getattr(cells, name) for name in cells.__all__ if name.islower()]


@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_any_initializer(make):
    def ones(key, shape, dtype):
        return jnp.ones(shape, dtype)

    params = make(3, kernel_init=ones, recurrent_init=ones).init(jax.random.key(0), 2)
    assert (params.kernel == 1).all()
    assert (params.recurrent_kernel == 1).all()


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", CONSTRUCTORS)
@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size: got 0"),
        ({"hidden_size": -3}, ValueError, "hidden_size: got -3"),
        ({"hidden_size": 4.0}, TypeError, "hidden_size: got float 4.0"),
        ({"hidden_size": True}, TypeError, "hidden_size: got bool True"),
        ({"hidden_size": np.ones(2)}, TypeError, r"hidden_size: got float64\[2\]"),
        ({"hidden_size": "64"}, TypeError, "hidden_size: got str '64'"),
        ({"use_bias": 1}, TypeError, "use_bias: got int 1"),
        ({"use_bias": np.ones(3)}, TypeError, r"use_bias: got float64\[3\]"),
        ({"kernel_init": "glorot"}, TypeError, "kernel_init: got str 'glorot'"),
        ({"kernel_init": np.ones((3, 4))}, TypeError, r"kernel_init: got float64\[3, 4\]"),
        ({"recurrent_init": None}, TypeError, "recurrent_init: got NoneType None"),
    ],
)
def test_bad_settings(make, setting, error, message):
    with pytest.raises(error, match=message):
        make(**{"hidden_size": 4, **setting})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: untyped.elman(4, activation="tanh"), TypeError, "activation: got str 'tanh'"),
        (lambda: untyped.lstm(4, forget_bias="one"), TypeError, "forget_bias: got str 'one'"),
        (
            lambda: untyped.lstm(4, forget_bias=np.ones(4)),
            TypeError,
            r"forget_bias: got float64\[4\]",
        ),
        (lambda: untyped.lstm(4, forget_bias=np.nan), ValueError, "forget_bias: got nan"),
        (
            lambda: untyped.lstm(4, forget_bias=1e5).init(jax.random.key(0), 2, dtype="float16"),
            ValueError,
            "forget_bias: got 100000.0, expected at most",
        ),
        (
            lambda: untyped.lstm(4, forget_bias=2.0, use_bias=False),
            ValueError,
            "forget_bias: got 2",
        ),
        (lambda: untyped.gru(4, reset_after="yes"), TypeError, "reset_after: got str 'yes'"),
    ],
)
def test_bad_settings_of_one_cell(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_init(row):
    cell, key = row.make(H), jax.random.key(0)
    bad = [
        ((0, 3), {}, TypeError, "key: got int 0"),
        ((jax.random.split(key), 3), {}, ValueError, "key: got .* expected one key"),
        ((jnp.zeros(2), 3), {}, TypeError, r"key: got float32\[2\]"),
        ((key, 0), {}, ValueError, "input_size: got 0"),
        ((key, 3.0), {}, TypeError, "input_size: got float 3.0"),
        ((key, 3), {"dtype": jnp.int32}, TypeError, "dtype: got int32"),
        ((key, 3), {"dtype": "real"}, TypeError, "dtype: got 'real'"),
        ((key, 3), {"dtype": None}, TypeError, "dtype: got None"),
        ((key, 3), {"dtype": jnp.float64}, ValueError, "dtype: got float64.*jax_enable_x64"),
    ]
    for arguments, options, error, message in bad:
        with pytest.raises(error, match=message):
            cell.init(*arguments, **options)
    cell.init(jax.random.PRNGKey(0), 3)  # the old kind of key is one too


def test_bad_initial_state(row):
    cell = row.make(H)
    params = cell.init(jax.random.key(0), 2)
    for leaf in jax.tree.leaves(cell.initial_state(3, params=params)):
        assert leaf.shape[:1] == (3,)
    with pytest.raises(ValueError, match=r"batch_shape\[1\]: got -1"):
        cell.initial_state((2, -1))
    with pytest.raises(TypeError, match=r"batch_shape\[0\]: got float 2.0"):
        cell.initial_state((2.0,))
    with pytest.raises(ValueError, match="dtype: got float64"):
        cell.initial_state((2,), dtype=jnp.float64)


def test_a_cell_is_frozen_and_needs_functions():
    cell = jaxrnn.elman(4)
    with pytest.raises(dataclasses.FrozenInstanceError, match="step"):
        cell.step = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="initial_state: got"):
        jaxrnn.Cell(init=lambda *a: (), initial_state=(), step=lambda *a: a)  # pyright: ignore[reportArgumentType]
    assert jax.tree.leaves(cell) == [cell]  # no pytree


def test_a_state_of_another_cell(row):
    cell = row.make(H)
    params, inputs, state = problem(cell)
    for other in (jaxrnn.elman(H), jaxrnn.lstm(H), jaxrnn.gru(H)):
        wrong = other.initial_state((2,))
        if type(wrong) is type(cell.state_spec()):
            continue
        with pytest.raises(TypeError, match=f"state: got {type(wrong).__name__}"):
            cell.step(params, wrong, inputs[0])
        with pytest.raises(TypeError, match="params: got tuple"):
            cell.step(tuple(params), state, inputs[0])


def zeros(batch_shape, dtype):
    return jnp.zeros(batch_shape, dtype)


def cell_with(step, initial_state=zeros):
    return jaxrnn.Cell(lambda *a: (), initial_state, step, name="mine")


@pytest.mark.parametrize(
    ("step", "initial_state", "error", "message"),
    [
        (
            lambda p, s, x: (s.astype(jnp.bfloat16), s),
            zeros,
            TypeError,
            r"cell: mine's step: state: got bfloat16\[2\], expected float32\[2\] as its initial",
        ),
        (
            lambda p, s, x: (s[0], s),
            zeros,
            ValueError,
            r"cell: mine's step: state: got float32\[\], expected float32\[2\] as its init",
        ),
        (lambda p, s, x: ((s,), s), zeros, TypeError, "cell: mine's step: state: got tuple"),
        (
            lambda p, s, x: s,
            zeros,
            TypeError,
            r"mine's step: got float32\[2\], expected \(state, out",
        ),
        (
            lambda p, s, x: (s, s),
            lambda batch_shape, dtype: {"sum": jnp.zeros(3, dtype)},
            ValueError,
            r"mine's initial_state\['sum'\]: got float32\[3\], expected an array .* with \(2,\)",
        ),
    ],
)
def test_a_faulty_cell(step, initial_state, error, message):
    cell, inputs = cell_with(step, initial_state), jnp.ones((T, 2, I))
    for compute_dtype in (None, None, jnp.bfloat16):  # what is wrong stays so
        with pytest.raises(error, match=message):
            jaxrnn.unroll(cell, (), inputs, compute_dtype=compute_dtype)
    with pytest.raises(error, match=message):
        cell.step((), None, inputs[0])


def test_a_step_that_raises_says_whose_it_is():
    cell = cell_with(lambda p, s, x: 2 * (np.tanh(s),))
    with pytest.raises(TypeError, match="traced array") as caught:
        jaxrnn.unroll(cell, (), jnp.ones((T, 2, I)))
    assert caught.value.__notes__[-1] == "in the step of mine, on inputs of float32[2, 3]"


@jax.numpy_dtype_promotion("standard")
def test_a_state_of_weak_type_is_as_good_as_one_of_none():
    cell = cell_with(lambda p, s, x: 2 * (s + x.sum(-1).astype(jnp.bfloat16),), lambda b, _: 0.0)
    assert jaxrnn.unroll(cell, (), jnp.ones((T, I)), jnp.zeros(()))[0] == T * I


def test_a_step_may_need_an_axis_around_it():
    cell = cell_with(lambda p, s, x: 2 * (jax.lax.psum(s + x.sum(), "here"),))
    inputs = jnp.ones((2, 1, I))
    with pytest.raises(NameError, match="here"):
        jaxrnn.unroll(cell, (), inputs[0])
    run = jax.vmap(lambda xs: jaxrnn.unroll(cell, (), xs)[0], axis_name="here")
    np.testing.assert_array_equal(run(inputs), [2 * I, 2 * I])


def test_a_counters_dtype_is_that_of_its_time():
    cell = cell_with(lambda p, s, x: (s + 1, x), lambda batch_shape, _: jnp.zeros(batch_shape, int))
    inputs: Any = np.ones((T, 2, I), np.float32)
    assert jaxrnn.unroll(cell, (), inputs)[0].dtype == np.int32
    with x64():
        assert jaxrnn.unroll(cell, (), inputs)[0].dtype == np.int64


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_nothing_is_promoted_by_jaxs_rules(dtype):
    cell = jaxrnn.wrappers.layer_norm(jaxrnn.lstm(4))
    with jax.numpy_dtype_promotion("strict"):
        params = cell.init(jax.random.key(0), 3, dtype=dtype)
        _, outputs = jaxrnn.unroll(cell, params, jnp.ones((2, 3), dtype))
        loss = jaxrnn.losses.squared_error(outputs, jnp.zeros_like(outputs))
    assert loss.dtype == dtype
