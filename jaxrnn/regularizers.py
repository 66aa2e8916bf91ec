"""Regularisers that keep gradients from vanishing: functions to add to a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, hidden_part, with_hidden
from jaxrnn._dtypes import at_least_float32
from jaxrnn._types import Array
from jaxrnn.diagnostics import lyapunov_exponents, state_gradients
from jaxrnn.diagnostics._norm import norm, scale_of
from jaxrnn.diagnostics._tangents import Step, checked_state, step_of

__all__ = ["flossing", "pascanu"]


def pascanu(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
) -> Float[Array, ""]:
    """Penalty on every step that changes the norm of the gradient that passes through it.

        g[t] = d loss / d hidden[t]
        passed[t] = g[t + 1] @ d hidden[t + 1] / d hidden[t]
        penalty = sum over t of (norm(passed[t]) / norm(g[t + 1]) - 1)**2

    the mean of it over the batch. As in the paper its own gradient takes the states and `g` as
    given and goes through the Jacobian of the single step only, so that it costs about as much as
    the loss's gradient. Steps that no gradient reaches don't count; a gradient that is NaN makes
    the penalty NaN.

    Args:
        loss: `outputs -> scalar`, of the outputs `(T, *batch, H)`.
        cell: the cell, or a bare function `(params, state, inputs) -> (state, output)`. Its hidden
            state is the field `hidden` of its state, or the state itself if
            that is a single array; another part, such as an LSTM's cell state, is held.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step; `cell.initial_state` if None.

    Returns:
        The penalty, a scalar. Memory is O(T).

    Raises:
        TypeError: as `jaxrnn.diagnostics.state_gradients`.
        ValueError: as `jaxrnn.diagnostics.state_gradients`, or if there are no steps or no
            sequences, or (outside of a trace) inputs, params or state aren't finite.

    Example:
        A network whose kernel halves what it carries, with two steps to go through:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
        >>> params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), 0.5 * jnp.eye(2), None)
        >>> def loss(outputs):
        ...     return outputs[-1].sum()
        >>> jaxrnn.regularizers.pascanu(loss, cell, params, jnp.ones((3, 1)))
        Array(0.5, dtype=float32)

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013, equations 9 and 10.
    """
    state = checked_state(cell, params, inputs, state)
    if 0 in inputs.shape[:-1]:
        raise ValueError(
            f"inputs: got {_check.describe(inputs)}, expected at least one step and one sequence"
        )
    gradients = lax.stop_gradient(state_gradients(loss, cell, params, inputs, state))
    # A Jacobian is linear: only the gradient's direction counts, however small or large it is.
    wide = at_least_float32(gradients)
    directions = (wide / scale_of(wide, [-1])).astype(gradients.dtype)
    given, step = lax.stop_gradient(params), step_of(cell)

    def body(state, inputs_and_direction):
        inputs, direction = inputs_and_direction

        def hidden_after(hidden):
            after, _ = step(params, with_hidden(state, hidden), inputs)
            return hidden_part(cell, after)

        _, backward = jax.vjp(hidden_after, hidden_part(cell, state))
        passed, arrived = norm(backward(direction)[0], [-1]), norm(direction, [-1])
        change = (passed - arrived) / jnp.where(arrived == 0, 1, arrived)
        return step(given, state, inputs)[0], jnp.square(change)

    # The pairs begin with the state after the first step.
    state = lax.stop_gradient(step(given, state, inputs[0])[0])
    _, changes = lax.scan(body, state, (inputs[1:], directions[1:]))
    return jnp.mean(jnp.sum(changes, axis=0))


def flossing(
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
    *,
    num_exponents: int = 1,
    burn_in: int = 0,
    qr_every: int = 1,
) -> Float[Array, ""]:
    """Gradient flossing: the mean square of the leading finite-time Lyapunov exponents.

        penalty = mean over the batch and the exponents of exponents**2

    Driven to 0, exponents let gradients pass through as many dimensions without vanishing or
    exploding. It is used before training, or now and then in the midst of it. The paper's loss is
    the sum over the exponents rather than their mean.

    Args:
        cell: the cell, or a bare function `(params, state, inputs) -> (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`, which need not be as long as those trained on.
        state: the state before the first step; `cell.initial_state` if None.
        num_exponents: how many of the leading exponents to push towards 0.
        burn_in: as in `jaxrnn.diagnostics.lyapunov_exponents`.
        qr_every: as there.

    Returns:
        The penalty, a scalar, in squared nats per step. Its gradient goes through the factorisation
        and needs tangents that are independent: ask for fewer exponents than a singular Jacobian
        has singular values above 0. Memory for the gradient is O(T * K * N) for K exponents of a
        state of N floats.

    Raises:
        TypeError: as `jaxrnn.diagnostics.lyapunov_exponents`.
        ValueError: as `jaxrnn.diagnostics.lyapunov_exponents`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
        >>> params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), 0.5 * jnp.eye(2), None)
        >>> penalty = jaxrnn.regularizers.flossing(cell, params, jnp.ones((20, 1)))
        >>> bool(jnp.isclose(penalty, jnp.log(0.5) ** 2))
        True

    References:
        Engelken, "Gradient flossing: improving gradient descent through dynamic control of
        Jacobians", 2023, equation 5.
    """
    spectrum = lyapunov_exponents(
        cell,
        params,
        inputs,
        state,
        num_exponents=_check.size("num_exponents", num_exponents),
        burn_in=burn_in,
        qr_every=qr_every,
    )
    return jnp.mean(jnp.square(spectrum.exponents))
