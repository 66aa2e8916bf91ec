"""Gradients with respect to the state at every step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn._dtypes import pvary_like
from jaxrnn.diagnostics._model import Model, check_model, run_model, scan
from jaxrnn.diagnostics._norm import norm
from jaxrnn.diagnostics._perturb import perturb_state
from jaxrnn.diagnostics._tangents import Step, step_of
from jaxrnn.layers import Layer


def state_gradients(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Model,
    params: PyTree,
    inputs: Shaped[Array, "T *batch"],
    state: PyTree | None = None,
    *,
    part: str | None = "hidden",
) -> PyTree[Float[Array, "T *batch H"]]:
    """Total derivative of a loss with respect to the state at every step.

        gradients[t] = d loss(outputs) / d hidden[t]

    where `hidden[t]` is the hidden state after step t, and every path from it counts: through this
    step's output and through all later steps. Backpropagation through time computes it backwards,

        gradients[t] = d loss / d outputs[t] @ d outputs[t] / d hidden[t]
                       + gradients[t + 1] @ d hidden[t + 1] / d hidden[t]

    and how it shrinks towards t = 0 is the vanishing gradient. An LSTM's cell state is another
    variable: `hidden[t]` is disturbed while `cell[t]` is held, and may reach later cell states. A
    disturbance of `cell[t]` reaches `hidden[t]` too, which is computed from it.

    Args:
        loss: `outputs -> scalar`, of the outputs `(T, *batch, H)`.
        cell: the cell, a bare function `(params, state, inputs) -> (state, output)`, or a layer
            such as `jaxrnn.serial(...)`, of which every cell's state is disturbed.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`, or what the layer takes.
        state: the state before the first step; the initial one if None.
        part: which field of a cell's state to disturb, such as "cell" of an LSTM's; "hidden" is
            also the whole of a state that is a single array. None for every part, each by itself.

    Returns:
        The gradients `(T, *batch, H)`; with a `part` of None a pytree like the state, with a time
        axis, and None in the place of integers. Of a layer, a tuple with an entry for each cell
        that it runs, first to last. Memory is O(T), as for any gradient of the sequence.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell, the loss is no scalar, or the
            part isn't floating.
        ValueError: if shapes don't fit one another, the state has no such part, a layer has no
            cell, (outside of a trace) inputs, params or state aren't finite, or a cell's step makes
            its state and its output together inside of a `lax.cond` or the like, where the paths
            between them can't be seen.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(8)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> gradients = jaxrnn.diagnostics.state_gradients(
        ...     lambda outputs: outputs[-1].sum(), cell, params, jnp.ones((50, 2, 3))
        ... )
        >>> gradients.shape, bool(jnp.all(gradients[-1] == 1))
        ((50, 2, 8), True)

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013, equations 3 to 5.
    """
    _check.function("loss", loss)
    _check_part(part)
    check_model(cell, params, inputs, state)
    shapes = []

    def record(cell, params, inputs, state, *, reverse):
        parts = _floating(state) if part is None else _select(cell, state, part)
        shapes.append(_shapes(parts, len(inputs)))
        return scan(cell, params, inputs, state, reverse=reverse)

    jax.eval_shape(lambda: run_model(cell, params, inputs, state, record))
    if not shapes:
        raise ValueError(f"cell: got {cell}, expected a layer that unrolls a cell")

    def perturbed_loss(perturbations):
        remaining = iter(perturbations)

        def disturb(cell, params, inputs, state, *, reverse):
            leaves, treedef = jax.tree.flatten(state)
            numbers = (n if _is_floating(leaf) else None for n, leaf in enumerate(leaves))
            numbered = jax.tree.unflatten(treedef, numbers)
            parts = jax.tree.leaves(_select(cell, numbered, part))
            step = perturb_state(step_of(cell), parts)

            def body(state, inputs_and_perturbations):
                return step(params, state, *inputs_and_perturbations)

            disturbances = jax.tree.leaves(next(remaining))
            return lax.scan(body, state, (inputs, disturbances), reverse=reverse)

        return _check.scalar("loss", loss(run_model(cell, params, inputs, state, disturb)))

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tuple(shapes))
    gradients = jax.grad(perturbed_loss)(pvary_like(zeros, inputs))
    return gradients if isinstance(cell, Layer) else gradients[0]


def gradient_norms(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Model,
    params: PyTree,
    inputs: Shaped[Array, "T *batch"],
    state: PyTree | None = None,
    *,
    part: str | None = "hidden",
    by_unit: bool = False,
) -> PyTree[Float[Array, "T ..."]]:
    """Norm of the loss's gradient with respect to the state, for each step.

        norms[t] = || d loss(outputs) / d hidden[t] ||

    the Euclidean norm over the whole batch and all units, of gradients as small and as large as the
    dtype holds. For a norm of each sequence take that of `state_gradients` over its last axis.

    Args:
        loss: as in `state_gradients`.
        cell: as in `state_gradients`.
        params: as in `state_gradients`.
        inputs: as in `state_gradients`.
        state: as in `state_gradients`.
        part: as in `state_gradients`; None for the norm over all parts together.
        by_unit: whether to return a norm for each unit, over the batch alone.

    Returns:
        The norms `(T,)`, and of a layer `(T, L)` with a column for each cell that it runs, as
        `gradient_horizon` takes them. By unit, what `state_gradients` returns without the batch
        dimensions, `(T, H)` each. Memory is O(T).

    Raises:
        TypeError: as `state_gradients`.
        ValueError: as `state_gradients`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(8, activation=jax.nn.sigmoid)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> norms = jaxrnn.diagnostics.gradient_norms(
        ...     lambda outputs: outputs[-1].sum(), cell, params, jnp.ones((50, 2, 3))
        ... )
        >>> bool(norms[-11] <= 0.25**10 * norms[-1])            # the logistic function's bound
        True

        By layer, of a stack that reads integers:

        >>> model = jaxrnn.serial(jaxrnn.embedding(5, 3), jaxrnn.rnn(cell))
        >>> norms = jaxrnn.diagnostics.gradient_norms(
        ...     jnp.sum, model, (jnp.ones((5, 3)), params), jnp.zeros((50, 2), int)
        ... )
        >>> norms.shape
        (50, 1)
    """
    by_unit = _check.flag("by_unit", by_unit)
    gradients = state_gradients(loss, cell, params, inputs, state, part=part)
    if by_unit:
        return jax.tree.map(lambda leaf: norm(leaf, range(1, leaf.ndim - 1)), gradients)

    def together(tree):
        parts = [norm(leaf, range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)]
        return norm(jnp.stack(parts), [0])

    if isinstance(cell, Layer):
        return jnp.stack([together(of_cell) for of_cell in gradients], axis=-1)
    return together(gradients)


def _shapes(parts: PyTree, steps: int) -> PyTree:
    """Return the shapes of a state's parts at all steps."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        if not _is_floating(leaf):
            raise TypeError(
                f"state{jax.tree_util.keystr(path)}: got {_check.describe(leaf)}, expected a "
                "floating part"
            )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), parts)


def _is_floating(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _floating(state: PyTree) -> PyTree:
    """Return the state without its integers, such as a count of steps, which have no gradient."""
    return jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, state)


def _check_part(part: Any) -> None:
    if part is not None and not isinstance(part, str):
        raise TypeError(f"part: got {_check.describe(part)}, expected a field's name or None")


def _select(cell: Cell | Step, state: PyTree, part: str | None) -> Any:
    """Return a part of the state, or what a pytree like the state has in its place."""
    if part is None:
        return state
    # A tuple has methods, too.
    if hasattr(state, part) and not callable(getattr(state, part)):
        return getattr(state, part)
    if isinstance(state, Mapping) and part in state:
        return state[part]
    leaves = jax.tree.leaves(state)
    if part == "hidden" and len(leaves) == 1:
        return leaves[0]
    raise ValueError(
        f"cell: got {getattr(cell, 'name', 'a step')}, whose state is {_check.describe(state)}, "
        f"expected a state {'of one array or ' * (part == 'hidden')}with a field named {part}"
    )
