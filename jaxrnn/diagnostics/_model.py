"""A cell, a bare step or a stack of layers, all run by one function, cell by cell."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn._dtypes import without_weak_types
from jaxrnn.diagnostics._tangents import Step, check_batch, check_step, finite, step_of
from jaxrnn.layers import Layer
from jaxrnn.layers._layer import no_state
from jaxrnn.wrappers._mixed_precision import mixed_precision

Model = Cell | Step | Layer
# `(cell, params, inputs, state, *, reverse) -> (state, outputs)`.
Unroll = Callable[..., tuple[Any, Any]]


def check_model(model: Model, params: PyTree, inputs: Array, state: PyTree | None) -> None:
    """Check what is to be run as far as that can be done before running it."""
    if isinstance(model, Layer):
        if not model.recurrent:
            raise ValueError(f"cell: got {model.name}, expected a layer that unrolls a cell")
    elif not isinstance(model, Cell):
        if not callable(model):
            raise TypeError(
                f"cell: got {_check.describe(model)}, expected a jaxrnn.Cell, a jaxrnn.Layer or a "
                "function (params, state, inputs) -> (state, output)"
            )
        if state is None:
            raise TypeError("state: got None, expected a state, as a bare step makes none")
        _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = f"state{jax.tree_util.keystr(path)}"
            if not hasattr(leaf, "dtype"):
                raise TypeError(f"{name}: got {_check.describe(leaf)}, expected an array")
            # A counter of steps need not have a batch.
            if _check.has_kind(leaf, jnp.inexact):
                check_batch(name, leaf, inputs.shape[1:-1])
        check_step(model, params, inputs, state)
    for name, tree in (("params", params), ("inputs", inputs), ("state", state)):
        finite(name, tree)


def run_model(
    model: Model, params: PyTree, inputs: Array, state: PyTree | None, unroll: Unroll
) -> Any:
    """Return a model's outputs, with each of its cells run by `unroll`, in the order of layers."""

    def checked_unroll(
        cell,
        params,
        inputs,
        state=None,
        *,
        reverse=False,
        compute_dtype=None,
        engine=None,
        **others,
    ):
        del engine
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ValueError(
                f"cell: got a layer that gives {given} to unroll, expected one without"
            )
        _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
        if isinstance(cell, Cell):
            state = cell.checked_state(params, state, inputs, batch_shape=inputs.shape[1:-1])
            if compute_dtype is not None:
                cell = mixed_precision(cell, compute_dtype)
        return unroll(cell, params, inputs, without_weak_types(state), reverse=reverse)

    return as_layer(model).apply(params, state, inputs, unroll=checked_unroll)[1]


def scan(cell, params, inputs, state, *, reverse=False) -> tuple[Any, Any]:
    """Run a cell or a bare step, as the plainest `unroll`."""
    return lax.scan(
        lambda state, x: step_of(cell)(params, state, x), state, inputs, reverse=reverse
    )


def as_layer(model: Model) -> Layer:
    """Return a layer, or a cell or bare step as a layer, to be applied with an `unroll`."""
    if isinstance(model, Layer):
        return model

    def apply(params: Any, state: Any, inputs: Any, *, unroll: Unroll) -> tuple[Any, Any]:
        return unroll(model, params, inputs, state)

    return Layer(no_state, no_state, apply, getattr(model, "name", "step"), recurrent=True)
