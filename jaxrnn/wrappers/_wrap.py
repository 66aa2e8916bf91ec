"""What wrappers from cell to cell share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, NoisyInputs, SplitStep


class Extended(NamedTuple):
    """What a wrapper's `project` returns: the inner cell's projection, and what it adds to it.

    The wrapper's `combine` returns the same of the inner cell's gates.
    """

    inner: Any
    extra: Any


def wrap_step(
    cell: Cell,
    split: Callable[[Any], tuple[Any, Any]],
    finish: Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]],
    begin: Callable[[Any, Any], Any] | None = None,
) -> Callable[..., tuple[Any, Any]]:
    """Return a step that does something before and after the cell's own, split if that is.

    Args:
        cell: the inner cell.
        split: `inputs -> (inner_inputs, extra)`: what the inner cell takes and what it doesn't.
        finish: `(params, state, extra, new_state, output) -> (state, output)`, pointwise, where
            `state` is that before the step.
        begin: `(state, extra) -> state`, pointwise: the state that the inner cell's step gets. None
            for the state as it is.

    Returns:
        The wrapper's step.
    """
    inner = cell.split_step
    masked = begin is not None or (inner is not None and inner.mask_state is not None)
    begin = begin or (lambda state, extra: state)

    if inner is None:

        def step(params: Any, state: Any, inputs: Any, *context: Any) -> tuple[Any, Any]:
            inner_inputs, extra = split(inputs)
            new = cell.advance(params, begin(state, extra), inner_inputs, *context)
            return finish(params, state, extra, *new)

        return step

    # What the inner cell doesn't take goes with its projection, past all that needs the state.
    def project(params: Any, inputs: Any, *context: Any) -> Extended:
        inner_inputs, extra = split(inputs)
        return Extended(inner.project(params, inner_inputs, *context), extra)

    def combine(projected: Extended, recurrent: Any) -> Extended:
        return projected._replace(inner=inner.combine(projected.inner, recurrent))

    def activate(params: Any, state: Any, gates: Extended, *context: Any) -> tuple[Any, Any]:
        new = inner.activate(params, begin(state, gates.extra), gates.inner, *context)
        return finish(params, state, gates.extra, *new)

    def mask_state(state: Any, projected: Extended) -> Any:
        return inner.masked_state(begin(state, projected.extra), projected.inner)

    return SplitStep(project, inner.recur, activate, combine, mask_state if masked else None)


def checked_readout(cell: Cell, wrapper: str) -> Callable[[Any], Any]:
    """Return the output of a cell as a function of its state, for a wrapper that changes states."""
    if cell.readout is not None:
        return cell.readout
    if cell.output_is_state():
        return lambda state: state
    raise ValueError(
        f"cell: got {cell.name} for {wrapper}, which changes the state: expected one that says "
        "what its output is of the state, Cell(..., readout=lambda state: ...)"
    )


def own_projection(projected: Any) -> PyTree:
    """Return what the innermost cell projects, without what wrappers add."""
    return own_projection(projected.inner) if isinstance(projected, Extended) else projected


def map_own_projection(function: Callable[[PyTree], PyTree], projected: Any) -> Any:
    """Apply a function to what the innermost cell projects, and to nothing that wrappers add."""
    if isinstance(projected, Extended):
        return projected._replace(inner=map_own_projection(function, projected.inner))
    return function(projected)


def inner_learned_state(cell: Cell) -> Callable[..., PyTree] | None:
    """Return the `learned_state` of a wrapper whose params have the cell's as a field `cell`."""
    learned_state = cell.learned_state
    if learned_state is None:
        return None
    return lambda params, batch_shape, dtype: learned_state(params.cell, batch_shape, dtype)


def inner_step(cell: Cell) -> Any:
    """Return the cell's own step for params that have the cell's as a field `cell`."""
    inner = cell.split_step
    if inner is None:
        return lambda params, *arguments: cell.advance(params.cell, *arguments)
    return dataclasses.replace(
        inner,
        project=lambda params, *arguments: inner.project(params.cell, *arguments),
        recur=lambda params, state: inner.recur(params.cell, state),
        activate=lambda params, *arguments: inner.activate(params.cell, *arguments),
    )


def combined_noise(
    cell: Cell, own: Callable[[jax.Array, tuple[int, ...], Any], PyTree]
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Return the `draw` of a wrapper: its own noise, and that of the cell in it, or None."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple[PyTree, PyTree]:
        if cell.draw_noise is None:
            return own(key, shape, dtype), None
        own_key, cell_key = jax.random.split(key)
        return own(own_key, shape, dtype), cell.draw_noise(cell_key, shape, dtype)

    return draw


def split_noise(inputs: Any) -> tuple[Any, PyTree]:
    """Undo `combined_noise`: return what the inner cell takes, and the wrapper's noise or None."""
    if not isinstance(inputs, NoisyInputs):
        return inputs, None
    own, inner = inputs.noise
    return inputs.inputs if inner is None else NoisyInputs(inputs.inputs, inner), own


def per_state_leaf(
    name: str, value: Any, cell: Cell, check: Callable[[str, Any], float]
) -> tuple[float, ...]:
    """Return one checked number for each array of a cell's state, 0 for one of integers.

    Args:
        name: what the argument is called.
        value: a number for all that are floating, or a pytree like the state.
        cell: the cell.
        check: `(name, value) -> number`.
    """
    spec = cell.state_spec()
    parts = jax.tree.leaves(spec)
    integral = [not jnp.issubdtype(part.dtype, jnp.inexact) for part in parts]
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
        number = check(name, value)
        return tuple(0.0 if whole else number for whole in integral)
    if jax.tree.structure(value) != jax.tree.structure(spec):
        raise TypeError(
            f"{name}: got {_check.describe(value)}, expected a number, or one for each part of "
            f"{cell.name}'s state {_check.describe(spec)}"
        )
    numbers = []
    for (path, leaf), part, whole in zip(
        jax.tree_util.tree_leaves_with_path(value), parts, integral, strict=True
    ):
        where = f"{name}{jax.tree_util.keystr(path)}"
        numbers.append(check(where, leaf))
        if whole and leaf:
            raise ValueError(f"{where}: got {leaf}, expected 0 for a part of dtype {part.dtype}")
    return tuple(numbers)


def checked_split_step(cell: Cell, wrapper: str) -> SplitStep:
    """Return the parts of a cell's step, which `wrapper` needs."""
    if cell.split_step is None:
        raise ValueError(
            f"cell: got {cell.name}, whose step is not split, expected one made of a "
            f"jaxrnn.SplitStep for {wrapper}"
        )
    return cell.split_step
