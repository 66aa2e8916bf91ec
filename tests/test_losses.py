"""Losses against NumPy in float64 and against optax, their masks, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import losses
from tests.tolerances import FLOAT32, FLOAT64, SIXTEEN_BITS, x64

T, B, C = 5, 3, 4

rng = np.random.default_rng(0)
LOGITS = 3 * rng.normal(size=(T, B, C))
LABELS: Any = rng.integers(0, C, (T, B)).astype(np.int32)
PREDICTIONS = rng.normal(size=(T, B, 2))
TARGETS = rng.normal(size=(T, B, 2))
MASK: Any = rng.random((T, B)) < 0.6


def numpy_cross_entropies(logits, labels):
    entries = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        weights = np.exp(logits[index])
        entries[index] = -np.log(weights[labels[index]] / weights.sum())
    return entries


# Jitted once for all tests: eager, each of their operations would be compiled by itself.
cross_entropy = jax.jit(losses.softmax_cross_entropy)
squared_error = jax.jit(losses.squared_error)
cross_entropy_and_gradient = jax.jit(jax.value_and_grad(losses.softmax_cross_entropy))
squared_error_and_gradient = jax.jit(jax.value_and_grad(losses.squared_error))


def float32(array) -> Any:
    return np.asarray(array, np.float32)


def test_cross_entropy_is_numpys_in_float64():
    entries = numpy_cross_entropies(LOGITS, LABELS)
    with x64():
        whole = cross_entropy(LOGITS, LABELS)
        masked = cross_entropy(LOGITS, LABELS, MASK)
        np.testing.assert_allclose(whole, entries.mean(), **FLOAT64)
        np.testing.assert_allclose(masked, entries[MASK].mean(), **FLOAT64)


def test_cross_entropys_gradient_is_softmax_minus_one_hot():
    with x64():
        _, gradient = cross_entropy_and_gradient(LOGITS, LABELS, MASK)
        weights = np.exp(LOGITS)
        expected = weights / weights.sum(-1, keepdims=True) - np.eye(C)[LABELS]
        expected = expected * MASK[..., None] / MASK.sum()
        np.testing.assert_allclose(gradient, expected, **FLOAT64)


def test_squared_error_and_its_gradient_are_numpys_in_float64():
    with x64():
        value, gradient = squared_error_and_gradient(PREDICTIONS, TARGETS)
        differences = PREDICTIONS - TARGETS
        np.testing.assert_allclose(value, (differences**2).mean(), **FLOAT64)
        np.testing.assert_allclose(gradient, 2 * differences / differences.size, **FLOAT64)


@pytest.mark.parametrize("mask_shape", [(T,), (T, B), (T, B, 2)])
def test_squared_errors_mask_has_the_shape_of_the_leading_axes(mask_shape):
    mask = np.random.default_rng(1).random(mask_shape) < 0.6
    whole = np.broadcast_to(mask.reshape(*mask_shape, *[1] * (3 - mask.ndim)), (T, B, 2))
    with x64():
        got = squared_error(PREDICTIONS, TARGETS, mask)
        np.testing.assert_allclose(got, ((PREDICTIONS - TARGETS)[whole] ** 2).mean(), **FLOAT64)


BOTH = pytest.mark.parametrize(
    ("loss_and_gradient", "values", "expected"),
    [
        (cross_entropy_and_gradient, float32(LOGITS), LABELS),
        (squared_error_and_gradient, float32(PREDICTIONS), float32(TARGETS)),
    ],
)


@BOTH
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_masked_counts_for_nothing_even_if_not_finite(
    loss_and_gradient, values, expected, poison
):
    clean = loss_and_gradient(values, expected, MASK)
    poisoned = float32(np.where(MASK[..., None], values, poison))
    got = jax.tree.map(np.asarray, loss_and_gradient(poisoned, expected, MASK))
    jax.tree.map(np.testing.assert_array_equal, got, clean)
    assert np.isfinite(got[1]).all()
    assert (got[1][~MASK] == 0).all()
    # Unmasked, the poison is not hidden.
    assert not np.isfinite(loss_and_gradient(poisoned, expected, np.ones_like(MASK))[0])


@BOTH
@pytest.mark.parametrize("length", [0, T])
def test_the_loss_is_zero_where_nothing_counts(loss_and_gradient, values, expected, length):
    nothing = np.zeros((length, B), bool)
    poisoned = np.full_like(values[:length], np.nan)
    value, gradient = loss_and_gradient(poisoned, expected[:length], nothing)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(poisoned))


def test_masked_labels_need_not_be_classes():
    labels: Any = np.where(MASK, LABELS, -100)
    # Eager, where labels are looked at.
    got = losses.softmax_cross_entropy(float32(LOGITS), labels, MASK)
    np.testing.assert_allclose(got, cross_entropy(float32(LOGITS), LABELS, MASK), **FLOAT32)


@pytest.mark.parametrize("label", [-C - 1, -C, -1, C, 100])
def test_a_label_that_is_no_class_is_not_a_number_within_jit(label):
    labels: Any = np.where(MASK, LABELS, label)
    assert np.isnan(cross_entropy(float32(LOGITS), labels))
    # Masked, it counts for nothing there either.
    got = cross_entropy(float32(LOGITS), labels, MASK)
    np.testing.assert_array_equal(got, cross_entropy(float32(LOGITS), LABELS, MASK))


def test_no_unsigned_label_counts_from_the_last_class():
    labels: Any = np.array([2**32 - 1], np.uint32)
    logits = float32(LOGITS).reshape(-1, C)[:1]
    assert np.isnan(cross_entropy(logits, labels))


def test_small_label_dtypes_with_many_classes():
    logits = float32(rng.normal(size=(2, 300)))
    expected = numpy_cross_entropies(np.asarray(logits, np.float64), np.array([7, 200])).mean()
    labels: Any = np.array([7, 200], np.uint8)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, labels), expected, **FLOAT32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_mean_of_many_entries_in_sixteen_bits(dtype):
    many = 200_000  # more than float16 can count
    logits, labels = jnp.zeros((many, C), dtype), jnp.zeros(many, jnp.int32)
    entropy = cross_entropy(logits, labels)
    error = squared_error(jnp.full(many, 2, dtype), jnp.zeros(many, dtype))
    assert entropy.dtype == error.dtype == dtype
    np.testing.assert_allclose(float(entropy), np.log(C), rtol=SIXTEEN_BITS[dtype])
    assert error == 4


def test_scalars_and_single_entries():
    assert squared_error(np.float32(3), np.float32(1)) == 4
    got = cross_entropy(np.zeros(C, np.float32), np.int32(2))
    np.testing.assert_allclose(got, np.log(C), **FLOAT32)


def test_losses_under_vmap():
    values, targets, logits = float32(PREDICTIONS), float32(TARGETS), float32(LOGITS)
    for loss, arguments in (
        (squared_error, (values, targets, MASK)),
        (cross_entropy, (logits, LABELS, MASK)),
    ):
        each = jax.vmap(loss)(*arguments)
        expected = [loss(*one) for one in zip(*arguments, strict=True)]
        np.testing.assert_allclose(each, expected, **FLOAT32)


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": LABELS}, TypeError, r"logits: got int32\[5, 3\], expected a floating"),
        ({"logits": [[0.0]]}, TypeError, "logits: got list"),
        ({"logits": jnp.array(1.0)}, ValueError, r"logits: got float32\[\]"),
        ({"logits": LOGITS}, ValueError, "logits: got float64"),
        ({"logits": float32(LOGITS)[..., :0]}, ValueError, "logits: got .* at least one class"),
        (
            {"labels": TARGETS[..., 0]},
            TypeError,
            r"labels: got float64\[5, 3\], expected .*integers",
        ),
        ({"labels": MASK}, TypeError, r"labels: got bool\[5, 3\]"),
        ({"labels": LABELS[0]}, ValueError, r"labels: got int32\[3\], expected shape \(5, 3\)"),
        ({"labels": LABELS.T}, ValueError, r"labels: got int32\[3, 5\]"),
        ({"labels": LABELS + 1}, ValueError, "labels: got integers from 1 to 4, expected 0 to 3"),
        ({"labels": LABELS - 1}, ValueError, "labels: got integers from -1 to 2"),
        ({"mask": LABELS}, TypeError, r"mask: got int32\[5, 3\], expected booleans"),
        ({"mask": [True]}, TypeError, "mask: got list"),
        ({"mask": True}, TypeError, "mask: got bool True"),
        ({"mask": MASK[0]}, ValueError, r"mask: got bool\[3\], expected shape \(5, 3\)"),
        ({"mask": MASK[..., None]}, ValueError, r"mask: got bool\[5, 3, 1\]"),
    ],
)
def test_bad_input_of_cross_entropy(change, error, message):
    arguments = {"logits": float32(LOGITS), "labels": LABELS, "mask": None, **change}
    with pytest.raises(error, match=message):
        losses.softmax_cross_entropy(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"predictions": LABELS},
            TypeError,
            r"predictions: got int32\[5, 3\], expected a floating",
        ),
        ({"predictions": 1.0}, TypeError, "predictions: got float 1.0"),
        ({"targets": LABELS}, TypeError, r"targets: got int32\[5, 3\]"),
        ({"targets": TARGETS}, ValueError, "targets: got float64"),
        (
            {"targets": float32(TARGETS)[..., :1]},
            ValueError,
            r"targets: got float32\[5, 3, 1\], expected shape \(5, 3, 2\)",
        ),
        (
            {"targets": jnp.asarray(TARGETS, jnp.float16)},
            TypeError,
            "targets: got float16, expected float32",
        ),
        ({"mask": LABELS}, TypeError, r"mask: got int32\[5, 3\], expected booleans"),
        ({"mask": MASK[:2]}, ValueError, r"mask: got bool\[2, 3\], expected shape \(5, 3\)"),
        ({"mask": MASK[0]}, ValueError, r"mask: got bool\[3\], expected shape \(5,\)"),
        ({"mask": MASK[..., None, None]}, ValueError, r"mask: got bool\[5, 3, 1, 1\]"),
    ],
)
def test_bad_input_of_squared_error(change, error, message):
    arguments = {"predictions": float32(PREDICTIONS), "targets": float32(TARGETS), **change}
    with pytest.raises(error, match=message):
        losses.squared_error(**arguments)
