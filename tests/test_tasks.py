"""Tasks: the structure of what they draw, and their chance levels measured on samples."""

import functools
import inspect
import math

import jax
import numpy as np
import pytest

from jaxrnn import tasks
from tests.tolerances import STANDARD_ERRORS

KEY = jax.random.key(0)


TASKS = [
    functools.partial(tasks.adding, batch_size=4, length=12),
    functools.partial(tasks.copy_memory, batch_size=4, delay=5),
    functools.partial(tasks.delayed_xor, batch_size=4, length=12),
    functools.partial(tasks.temporal_order, batch_size=4, length=12),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.func.__name__)


# Compiling takes nearly all of these tests' time, so what is compiled is kept.
jitted = functools.cache(jax.jit)


@functools.cache
def draw(task, *sizes, **settings):
    """Return a batch of a task as NumPy arrays."""
    drawn = jax.jit(lambda key: task(key, *sizes, **settings))(KEY)
    return [np.asarray(array) for array in drawn]


def assert_mean(samples, expected):
    samples = np.asarray(samples, np.float64).ravel()
    error = samples.std() / np.sqrt(samples.size)
    assert abs(samples.mean() - expected) < STANDARD_ERRORS * error


def assert_even(values, count):
    """Each of `count` values comes equally often."""
    values = np.asarray(values).ravel()
    assert set(values.tolist()) == set(range(count))
    for value in range(count):
        assert_mean(values == value, 1 / count)


# Adding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 11])
def test_adding_marks_one_step_in_each_half(length):
    inputs, targets = draw(tasks.adding, 20_000, length)
    assert inputs.shape == (length, 20_000, 2)
    assert inputs.dtype == targets.dtype == np.float32
    values, marks = inputs[..., 0], inputs[..., 1]
    assert set(np.unique(marks)) <= {0, 1}
    half = length // 2
    np.testing.assert_array_equal(marks[:half].sum(0), 1)
    np.testing.assert_array_equal(marks[half:].sum(0), 1)
    # Every step of its half can be marked.
    assert (marks.sum(1) > 0).all()
    for column, mark, target in zip(values.T, marks.T, targets, strict=True):
        assert column[mark == 1].sum() == target[0]


def test_adding_is_uniform_and_has_its_chance_level():
    inputs, targets = draw(tasks.adding, 20_000, 11)
    values = inputs[..., 0]
    assert values.min() >= 0
    assert values.max() < 1
    assert_mean(values, 1 / 2)
    assert_mean((values - 1 / 2) ** 2, 1 / 12)
    assert targets.shape == (20_000, 1)
    assert_mean((targets - 1) ** 2, tasks.ADDING_CHANCE)
    assert_mean(targets, 1)


# Copy memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "num_symbols", "num_to_copy"), [(1, 8, 10), (7, 3, 2), (3, 1, 1)]
)
def test_copy_memorys_positions(delay, num_symbols, num_to_copy):
    inputs, targets = draw(
        tasks.copy_memory, 50, delay, num_symbols=num_symbols, num_to_copy=num_to_copy
    )
    assert np.issubdtype(inputs.dtype, np.integer)
    assert inputs.dtype == targets.dtype
    for given, expected in zip(inputs.T, targets.T, strict=True):
        symbols = given[:num_to_copy]
        assert ((symbols >= 1) & (symbols <= num_symbols)).all()
        blank, sign = [0], [num_symbols + 1]
        np.testing.assert_array_equal(
            given, [*symbols, *blank * (delay - 1), *sign, *blank * num_to_copy]
        )
        np.testing.assert_array_equal(expected, [*blank * (delay + num_to_copy), *symbols])


def test_copy_memory_asks_for_a_symbol_delay_steps_after_the_last_came():
    inputs, targets = draw(tasks.copy_memory, 1, 4, num_to_copy=1)
    came = np.flatnonzero((inputs[:, 0] >= 1) & (inputs[:, 0] <= 8))
    asked = np.flatnonzero(targets[:, 0])
    sign = np.flatnonzero(inputs[:, 0] == 9)
    # The sign itself stands `delay` steps after the last symbol; its answer begins one step later.
    assert (sign - came).tolist() == [4]
    assert (asked - sign).tolist() == [1]


def test_copy_memorys_symbols_are_even():
    inputs, _ = draw(tasks.copy_memory, 2000, 1, num_symbols=5, num_to_copy=4)
    assert_even(inputs[:4] - 1, 5)


@pytest.mark.parametrize(("delay", "num_symbols", "num_to_copy"), [(10, 8, 10), (3, 2, 5)])
def test_copy_memorys_chance_is_the_best_guess_that_knows_only_the_step(
    delay, num_symbols, num_to_copy
):
    settings = {"num_symbols": num_symbols, "num_to_copy": num_to_copy}
    _, targets = draw(tasks.copy_memory, 4000, delay, **settings)
    # The best guess at a step is how often each class comes there: its entropy is the loss.
    loss = 0.0
    for column in targets:
        frequencies = np.unique(column, return_counts=True)[1] / column.size
        loss -= (frequencies * np.log(frequencies)).sum() / len(targets)
    chance = tasks.copy_memory_chance(delay, **settings)
    # Frequencies of k classes among n have an entropy lower by about (k - 1) / (2 n).
    bias = num_to_copy / len(targets) * (num_symbols - 1) / (2 * 4000)
    assert chance - STANDARD_ERRORS * bias < loss <= chance


def test_copy_memorys_default_chance_is_the_papers():
    # Arjovsky, Shah and Bengio, section 4.1: 10 log 8 / (T + 20).
    assert tasks.copy_memory_chance(100) == pytest.approx(10 * math.log(8) / 120, rel=1e-15)
    names = ("num_symbols", "num_to_copy")
    defaults = [
        [inspect.signature(function).parameters[name].default for name in names]
        for function in (tasks.copy_memory, tasks.copy_memory_chance)
    ]
    assert defaults[0] == defaults[1] == [8, 10]


# Delayed XOR ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 5])
def test_delayed_xor(length):
    inputs, targets = draw(tasks.delayed_xor, 10_000, length)
    assert inputs.shape == (length, 10_000, 2)
    assert inputs.dtype == np.float32
    bits, marks = inputs[..., 0], inputs[..., 1]
    assert set(np.unique(bits)) == {-1, 1}
    np.testing.assert_array_equal(
        marks, np.isin(np.arange(length), [0, length - 1])[:, None] * np.ones(10_000)
    )
    np.testing.assert_array_equal(targets, bits[0] * bits[-1] < 0)


def test_delayed_xor_is_even_and_neither_bit_alone_tells():
    inputs, targets = draw(tasks.delayed_xor, 10_000, 5)
    assert_even(targets, 2)
    assert_mean(inputs[..., 0], 0)
    for step in range(5):
        assert_even(targets[inputs[step, :, 0] == 1], 2)
    assert pytest.approx(math.log(2), rel=1e-15) == tasks.DELAYED_XOR_CHANCE


# Temporal order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 59])
def test_temporal_orders_positions_and_classes(length):
    inputs, targets = draw(tasks.temporal_order, 10_000, length)
    assert inputs.shape == (length, 10_000)
    assert (inputs[0] == 6).all()
    assert (inputs[-1] == 7).all()
    where = []
    for column, target in zip(inputs.T, targets, strict=True):
        places = np.flatnonzero(column < 2)
        assert places.size == 2
        where.append(places)
        assert target == 2 * column[places[0]] + column[places[1]]
        others = column[np.setdiff1d(np.arange(1, length - 1), places)]
        assert ((others >= 2) & (others <= 5)).all()
    early, late = np.transpose(where)
    assert set(early) == set(range(length // 10, 2 * length // 10))
    assert set(late) == set(range(5 * length // 10, 6 * length // 10))


def test_temporal_order_is_even_and_neither_symbol_alone_tells():
    inputs, targets = draw(tasks.temporal_order, 10_000, 10)
    assert_even(targets, 4)
    assert_even(inputs[1], 2)
    assert_even(inputs[5], 2)
    assert_even(inputs[2] - 2, 4)
    assert_even(targets[inputs[1] == 0], 2)
    assert pytest.approx(math.log(4), rel=1e-15) == tasks.TEMPORAL_ORDER_CHANCE


# All --------------------------------------------------------------------------------------------


@each_task
def test_a_key_decides_the_batch(task):
    inputs, other = (np.asarray(jitted(task)(jax.random.key(seed))[0]) for seed in (0, 1))
    assert (inputs != other).any()
    # Nor is one sequence of the batch like another.
    assert all((inputs[:, :1] != inputs[:, 1:]).any(axis=0).reshape(3, -1).any(axis=1))


@each_task
def test_jit_and_vmap_over_keys(task):
    keys = jax.random.split(KEY, 3)
    together = jax.tree.map(np.asarray, jax.jit(jax.vmap(task))(keys))
    for number, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, number=number: leaf[number], together)
        jax.tree.map(np.testing.assert_array_equal, one, jitted(task)(key))


def test_eager_equals_jit_and_a_legacy_key_will_do():
    task = TASKS[0]
    for key in (KEY, jax.random.PRNGKey(0)):
        jax.tree.map(np.testing.assert_array_equal, task(key), jitted(task)(KEY))


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "least"),
    [
        (tasks.adding, {"batch_size": 1, "length": 2}),
        (tasks.copy_memory, {"batch_size": 1, "delay": 1, "num_symbols": 1, "num_to_copy": 1}),
        (tasks.copy_memory_chance, {"delay": 1, "num_symbols": 1, "num_to_copy": 1}),
        (tasks.delayed_xor, {"batch_size": 1, "length": 2}),
        (tasks.temporal_order, {"batch_size": 1, "length": 10}),
    ],
)
def test_bad_sizes(task, least):
    if task is not tasks.copy_memory_chance:
        task = functools.partial(task, KEY)
    jax.eval_shape(functools.partial(task, **least))
    for name, size in least.items():
        with pytest.raises(ValueError, match=f"{name}: got {size - 1}, expected .* least {size}"):
            task(**{**least, name: size - 1})
        for wrong in (12.0, True, "12", None, (12, 1), np.array([12])):
            with pytest.raises(TypeError, match=f"{name}: got .*, expected an integer"):
                task(**{**least, name: wrong})


@pytest.mark.parametrize("num_symbols", [2**31 - 1, 10**400])
def test_more_symbols_than_integers(num_symbols):
    tasks.copy_memory(KEY, 1, 1, num_symbols=2**31 - 2)
    with pytest.raises(ValueError, match=r"num_symbols: got .*, expected at most 2147483646"):
        tasks.copy_memory(KEY, 1, 1, num_symbols=num_symbols)


@each_task
@pytest.mark.parametrize(
    ("key", "error"), [(0, TypeError), (None, TypeError), (jax.random.split(KEY), ValueError)]
)
def test_bad_keys(task, key, error):
    with pytest.raises(error, match="key: got"):
        task(key)
