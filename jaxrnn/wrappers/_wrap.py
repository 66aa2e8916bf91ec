"""What wrappers from cell to cell share.

A wrapper that changes a cell's new state must change its output too where that is a part of the
state. The rule: an output array that is the same object as an array of the new state is that part
of the state, and the changed part takes its place (`with_state`). So a cell should return the very
array, as in `return State(hidden), hidden`, and not make it twice. `jax.jit` and `jax.checkpoint`
return copies, so within a step none may go around both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, NoisyInputs, SplitStep


class Extended(NamedTuple):
    """What a wrapper's `project` returns: the inner cell's, and what passes it by."""

    inner: Any
    beside: Any


def wrap_step(
    cell: Cell,
    split: Callable[[Any], tuple[Any, Any]],
    finish: Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]],
) -> Callable[..., tuple[Any, Any]]:
    """Return a step that goes on from where the cell's own ends, gated if that is.

    Args:
        cell: the inner cell.
        split: `inputs -> (inner_inputs, beside)`: what the inner cell takes and what passes it.
        finish: `(params, state, beside, new_state, output) -> (state, output)`, pointwise, where
            `state` is that before the step.

    Returns:
        The wrapper's step.
    """
    split_step = cell.split_step
    if split_step is None:

        def step(params: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
            inner, beside = split(inputs)
            return finish(params, state, beside, *cell.advance(params, state, inner))

        return step

    # What the inner cell doesn't take goes with its projections, past all that needs the state.
    def project(params: Any, inputs: Any) -> Extended:
        inner, beside = split(inputs)
        return Extended(split_step.project(params, inner), beside)

    def activate(params: Any, state: Any, projected: Extended, recurrent: Any) -> tuple[Any, Any]:
        new = split_step.activate(params, state, projected.inner, recurrent)
        return finish(params, state, projected.beside, *new)

    def expose(state: Any, projected: Extended) -> Any:
        return split_step.exposed(state, projected.inner)

    return SplitStep(
        project, split_step.recur, activate, None if split_step.expose is None else expose
    )


def with_state(changed: PyTree, new_state: PyTree, output: PyTree) -> tuple[PyTree, PyTree]:
    """Return `changed` in the place of `new_state`, and in the output too where it is a part."""
    pairs = zip(jax.tree.leaves(new_state), jax.tree.leaves(changed), strict=True)
    places = {id(old): new for old, new in pairs}
    return changed, jax.tree.map(lambda leaf: places.get(id(leaf), leaf), output)


def innermost(projected: Any) -> PyTree:
    """Return what the innermost cell projects, without anything beside it."""
    return innermost(projected.inner) if isinstance(projected, Extended) else projected


def map_own_projection(function: Callable[[PyTree], PyTree], projected: Any) -> Any:
    """Apply a function to what the innermost cell projects, and to nothing beside it."""
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
    split_step = cell.split_step
    if split_step is None:
        return lambda params, state, inputs: cell.advance(params.cell, state, inputs)
    return SplitStep(
        project=lambda params, inputs: split_step.project(params.cell, inputs),
        recur=lambda params, state: split_step.recur(params.cell, state),
        activate=lambda params, *others: split_step.activate(params.cell, *others),
        expose=split_step.expose,
    )


def combined_noise(
    cell: Cell, own: Callable[[jax.Array, tuple[int, ...], Any], PyTree]
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Return the `draw` of a wrapper: its own noise, and that of the cell in it, or None."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple[PyTree, PyTree]:
        if cell.draw_noise is None:
            return own(key, shape, dtype), None
        of_wrapper, of_cell = jax.random.split(key)
        return own(of_wrapper, shape, dtype), cell.draw_noise(of_cell, shape, dtype)

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


def checked_split_step(name: str, value: Any, wrapper: str) -> SplitStep:
    """Return the structure of `value`, a split-step cell, which `wrapper` needs."""
    if value.split_step is None:
        raise ValueError(
            f"{name}: got {value.name}, whose step shows no structure, expected a jaxrnn.SplitStep one "
            f"for {wrapper}"
        )
    return value.split_step
