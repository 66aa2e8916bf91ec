"""Describe: a model layer by layer, with its parameters counted."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn._layer import Layer


def describe(model: Layer | Cell, input_size: int | None = None) -> str:
    """Return a table of a model's layers and how many parameters each has.

    Args:
        model: a layer, or a cell.
        input_size: as `model.init` takes it, None where inputs are integers.

    Returns:
        A line for the model, which counts all, and one for each layer in it.

    Example:
        >>> import jaxrnn
        >>> model = jaxrnn.serial(
        ...     jaxrnn.embedding(50, 16), jaxrnn.rnn(jaxrnn.lstm(32)), jaxrnn.dense(50)
        ... )
        >>> print(jaxrnn.layers.describe(model))
                                                parameters
        serial(3 layers)                             8,722
          embedding(50, 16)                            800
          rnn(lstm): state hidden[32], cell[32]      6,272
          dense(50)                                  1,650
    """
    if not isinstance(model, Layer | Cell):
        raise TypeError(f"model: got {_check.describe(model)}, expected a jaxrnn.Layer")
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), input_size))  # pyright: ignore[reportArgumentType]
    rows = [("", "parameters"), *_rows(model, params)]
    label, count = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{label}} {number:>{count}}" for name, number in rows)


def _rows(model: Layer | Cell, params: Any, indent: str = "") -> Iterator[tuple[str, str]]:
    name, *_ = str(model).splitlines()
    yield indent + name, f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}"
    layers = [part for part in getattr(model, "parts", ()) if isinstance(part, Layer)]
    for layer, of_layer in zip(layers, params if layers else (), strict=True):
        yield from _rows(layer, of_layer, indent + "  ")
