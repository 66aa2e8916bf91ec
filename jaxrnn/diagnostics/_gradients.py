"""Gradients with respect to the hidden state at every step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, hidden_part
from jaxrnn.diagnostics._perturb import perturb_state


def state_gradients(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Cell,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
) -> Float[Array, "T *batch H"]:
    """Total derivative of a loss with respect to the hidden state at every step.

        gradients[t] = d loss(outputs) / d hidden[t]

    where `hidden[t]` is the hidden state after step t, and every path from it counts: through this
    step's output and through all later steps. Backpropagation through time computes it backwards,

        gradients[t] = d loss / d outputs[t] @ d outputs[t] / d hidden[t]
                       + gradients[t + 1] @ d hidden[t + 1] / d hidden[t]

    and how it shrinks towards t = 0 is the vanishing gradient. An LSTM's cell state is another
    variable: `hidden[t]` is disturbed while `cell[t]` is held, and may reach later cell states.

    Args:
        loss: `outputs -> scalar`, of the outputs `(T, *batch, H)`.
        cell: the cell. Its hidden state is the field `hidden` of its state, or the state itself if
            that is a single array.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step; `cell.initial_state` if None.

    Returns:
        The gradients `(T, *batch, H)`. Memory is O(T), as for any gradient of the sequence.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell, or the loss is no scalar.
        ValueError: if shapes don't fit one another, the state has no part named hidden, or the
            cell's step makes it and its output together inside of a `lax.cond` or the like, where
            the paths between them can't be seen.

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
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: got {_check.describe(cell)}, wanted a jaxrnn.Cell")
    _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
    state = cell.checked_state(params, state, inputs, batch_shape=inputs.shape[1:-1])
    leaves, treedef = jax.tree.flatten(state)
    part = hidden_part(cell, jax.tree.unflatten(treedef, range(len(leaves))))
    step = perturb_state(cell.step, part)

    def perturbed_loss(perturbations):
        def body(state, inputs_and_perturbation):
            return step(params, state, *inputs_and_perturbation)

        _, outputs = lax.scan(body, state, (inputs, perturbations))
        return _check.scalar("loss", loss(outputs))

    hidden = hidden_part(cell, state)
    return jax.grad(perturbed_loss)(jnp.zeros((inputs.shape[0], *hidden.shape), hidden.dtype))


def gradient_norms(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Cell,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
) -> Float[Array, "T"]:
    """Norm of the loss's gradient with respect to the hidden state, for each step.

        norms[t] = || d loss(outputs) / d hidden[t] ||

    the Euclidean norm over the whole batch and all units. For a norm of each sequence take that of
    `state_gradients` over its last axis.

    Args:
        loss: as in `state_gradients`.
        cell: as in `state_gradients`.
        params: as in `state_gradients`.
        inputs: as in `state_gradients`.
        state: as in `state_gradients`.

    Returns:
        The norms `(T,)`.

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
    """
    gradients = state_gradients(loss, cell, params, inputs, state)
    return jnp.sqrt(jnp.sum(jnp.square(gradients), axis=tuple(range(1, gradients.ndim))))
