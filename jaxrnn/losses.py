"""Losses over sequences, on optax, each with a mask for steps that don't count."""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxrnn import _check
from jaxrnn._dtypes import at_least_float32_dtype
from jaxrnn._types import Array

__all__ = ["softmax_cross_entropy", "squared_error"]


def softmax_cross_entropy(
    logits: Float[Array, "*batch C"],
    labels: Integer[Array, "*batch"],
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of integer labels, in nats.

        mean over the real entries of -log softmax(logits)[label]

    Args:
        logits: unnormalised log probabilities of C classes, such as `(T, *batch, C)`.
        labels: the right classes, 0 to C - 1.
        mask: True where an entry counts; None for everywhere. What is masked adds nothing to the
            loss or its gradient, be it NaN, and where nothing counts the loss is 0.

    Returns:
        A scalar; divide it by `log(2)` for bits.

    Raises:
        TypeError: if logits are not floating, labels not integers or the mask not boolean.
        ValueError: if shapes don't fit, there is no class, or a label that counts is none of them.
            Within `jit` no value can be looked at: there such a label makes the loss NaN.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> loss = jaxrnn.losses.softmax_cross_entropy(jnp.zeros((7, 4)), jnp.ones(7, jnp.int32))
        >>> print(f"{loss:.4f}")                                # log 4
        1.3863
    """
    # optax takes as long to import as the rest of jaxrnn ten times over: only training needs it.
    import optax

    _check.array("logits", logits, min_ndim=1, axes="(*batch, classes)")
    if logits.shape[-1] == 0:
        raise ValueError(f"logits: got {_check.describe(logits)}, expected at least one class")
    mask = _mask(mask, logits.shape[:-1])
    _same_shape("labels", labels, logits.shape[:-1])
    _check.integers("labels", labels, low=0, high=logits.shape[-1] - 1, where=mask)
    # Masked before the loss and not after, else the gradient of a masked NaN would be NaN.
    entries = optax.softmax_cross_entropy_with_integer_labels(
        jnp.where(mask[..., None], logits, 0), jnp.where(mask, labels, 0)
    )
    # optax may count labels that are no class from the last one. Compared in the labels' own dtype,
    # which need not hold as many as there are classes.
    last = min(logits.shape[-1] - 1, int(jnp.iinfo(labels.dtype).max))
    none = (labels < 0) | (labels > last)
    return _mean(jnp.where(none, jnp.nan, entries), mask)


def squared_error(
    predictions: Float[Array, "..."],
    targets: Float[Array, "..."],
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """Mean squared error.

        mean over the real entries of (predictions - targets) ** 2

    Args:
        predictions: an array of any shape, such as `(T, *batch, O)`.
        targets: an array of the same shape and dtype.
        mask: True where an entry counts, of the shape of the predictions or of their leading axes,
            such as `(T, *batch)`; None for everywhere. What is masked adds nothing to the loss or
            its gradient, be it NaN, and where nothing counts the loss is 0.

    Returns:
        A scalar, without the factor 1/2 that some put before it.

    Raises:
        TypeError: if an array is not floating, the mask not boolean, or dtypes differ.
        ValueError: if shapes don't fit.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> print(jaxrnn.losses.squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
        2.0
    """
    import optax

    _check.array("predictions", predictions, min_ndim=0, axes="of any shape")
    _check.array("targets", targets, min_ndim=0, axes="of any shape")
    _same_shape("targets", targets, predictions.shape)
    if predictions.dtype != targets.dtype:
        raise TypeError(f"targets: got {targets.dtype}, expected {predictions.dtype}")
    mask_shape = predictions.shape if mask is None else predictions.shape[: jnp.ndim(mask)]
    mask = _mask(mask, mask_shape)
    mask = mask.reshape(*mask.shape, *[1] * (predictions.ndim - mask.ndim))
    mask = jnp.broadcast_to(mask, predictions.shape)
    return _mean(
        optax.squared_error(jnp.where(mask, predictions, 0), jnp.where(mask, targets, 0)), mask
    )


def _same_shape(name: str, value: Array, shape: tuple[int, ...]) -> None:
    if getattr(value, "shape", None) != shape:
        raise ValueError(f"{name}: got {_check.describe(value)}, expected shape {shape}")


def _mask(mask: Array | None, shape: tuple[int, ...]) -> Array:
    if mask is None:
        return jnp.ones(shape, bool)
    if getattr(mask, "dtype", None) != jnp.bool_:
        raise TypeError(f"mask: got {_check.describe(mask)}, expected booleans")
    _same_shape("mask", mask, shape)
    return jnp.asarray(mask)


def _mean(entries: Array, mask: Array) -> Array:
    # Neither the sum nor the count of many entries fits into float16, as their mean does.
    wide = at_least_float32_dtype(entries.dtype)
    total = jnp.where(mask, entries, 0).sum(dtype=wide)
    return (total / jnp.maximum(mask.sum(), 1).astype(wide)).astype(entries.dtype)
