"""Where batches come from: a function of a key, or arrays of them; and where they go to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jaxtyping import Int, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn.training import _sharding


class Batches(NamedTuple):
    """Batches, as the training loop takes them.

    Attributes:
        take: a pure function `(step, key, data) -> batch`.
        data: what it takes from; () if nothing.
        period: how many there are before the first comes again; None if ever new ones.
        shardings: how each leaf of a batch is divided over devices; None if it isn't.
    """

    take: Callable[[Int[Any, ""], PRNGKeyArray, PyTree], PyTree]
    data: PyTree
    period: Int[np.ndarray, ""] | None
    shardings: PyTree | None


def make_batches(
    batches: Callable[[PRNGKeyArray], PyTree] | PyTree, sharding: PyTree | None, key: Any
) -> Batches:
    """Check what `fit` was given, and put data where they belong.

    The key may be its shape and dtype.
    """
    period = None if callable(batches) else _count(batches)

    def take(step, key, data):
        if period is None:
            batch = batches(key)  # pyright: ignore[reportCallIssue]
            _check.no_narrowing("batches", batch)
            return batch
        number = step % period
        return jax.tree.map(
            lambda array: lax.dynamic_index_in_dim(array, number, keepdims=False), data
        )

    data = () if period is None else batches
    batch = jax.eval_shape(take, np.int32(0), key, data)
    shardings = _sharding.checked("sharding", sharding, batch)
    return Batches(
        lambda step, key, data: _sharding.divide(take(step, key, data), shardings),
        () if period is None else _sharding.put_data(data, shardings),
        period,
        shardings,
    )


def _count(batches: PyTree) -> Int[np.ndarray, ""]:
    loader = hasattr(batches, "__next__") or hasattr(batches, "dataset")
    if loader or isinstance(batches, list):
        advice = (
            "with a data loader loop over jaxrnn.train_step"
            if loader
            else "join a list of batches by numpy.stack, leaf by leaf"
        )
        raise TypeError(
            f"batches: got {_check.describe(batches)}, expected a function of a key, or arrays "
            f"whose first axis counts batches; {advice}"
        )
    _check.arrays("batches", batches)
    leaves = jax.tree.leaves(batches)
    if not leaves or not all(getattr(leaf, "shape", ()) for leaf in leaves):
        raise TypeError(
            f"batches: got {_check.describe(batches)}, expected a function of a key, or arrays "
            "whose first axis counts batches"
        )
    lengths = {leaf.shape[0] for leaf in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"batches: got arrays of {sorted(lengths)} batches, expected one number > 0"
        )
    _check.no_narrowing("batches", batches)
    return np.asarray(lengths.pop(), np.int32)
