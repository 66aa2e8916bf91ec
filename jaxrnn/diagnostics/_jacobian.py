"""Singular values of the Jacobian between states some steps apart."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.diagnostics._tangents import (
    Step,
    checked_state,
    fixed_basis,
    flat_step,
    flatten,
    forward_mode,
    push,
    size_of,
)

# The iteration for a few values stops when none of them changes by more than this many roundings
# of the largest, or fails after so many passes.
_ROUNDINGS = 10
_PASSES = 1000


def jacobian_spectrum(
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
    *,
    lags: Sequence[int],
    num_values: int | None = None,
) -> Float[Array, "L *batch K"]:
    """Singular values of the state's derivative with respect to the state some steps before.

        values[l] = singular values of d state[lags[l]] / d state[0]

    where `state[0]` is the given one, before the first step, and `state[k]` the one after k steps,
    so the derivative is the product of the first k steps' Jacobians, `J[k - 1] @ ... @ J[0]`. For
    other starting times pass the state and the inputs from there on. The largest value is the most
    that a gradient can grow in going back k steps, and a value of 0 a direction that is forgotten.

    Args:
        cell: the cell, or a bare function `(params, state, inputs) -> (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step, a pytree of floating or complex arrays
            `(*batch, ...)`; `cell.initial_state` if None.
        lags: L numbers of steps, from 0 to T, in any order.
        num_values: K, how many of the largest values to find; all N if None, where N is the number
            of floats that one sequence's state holds, two for a complex number. With
            None the product is made by pushing N tangents forward, exactly. With a number that is
            small beside N, it is multiplied forward and backward with a few vectors until their
            largest values stand still, as suits large states.

    Returns:
        The values `(L, *batch, K)`, in descending order; those below the largest times the dtype's
        rounding are rounding themselves. A few values that haven't stood still after 1000 passes
        are NaN, as where very many are very close together. Memory is O(L * N**2) a sequence for
        all values, and O(T * N) for a few.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell, or a part of the state is of
            integers or 16 bits.
        ValueError: if shapes don't fit one another, there are no sequences, a lag is beyond T,
            there are more values than the state has floats, or (outside of a trace) inputs, params
            or state aren't finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
        >>> kernel = jnp.diag(jnp.array([0.5, 2.0]))
        >>> params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), kernel, None)
        >>> jaxrnn.diagnostics.jacobian_spectrum(cell, params, jnp.zeros((10, 1)), lags=[1, 3])
        Array([[2.   , 0.5  ],
               [8.   , 0.125]], dtype=float32)

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013, equation 5.
        Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53, 2011,
        algorithm 4.4 (the iteration, here from fixed vectors).
        Knyazev, "Toward the optimal preconditioned eigensolver", SIAM Journal on Scientific
        Computing 23, 2001, section 3 (what makes it faster).
    """
    state = checked_state(cell, params, inputs, state, factorised=True)
    available = size_of(state, inputs.ndim - 2)
    checked = _check.step_counts("lags", lags)
    if not checked:
        raise ValueError("lags: got none, expected at least one")
    if max(checked) > len(inputs):
        raise ValueError(
            f"lags: got {max(checked)} for inputs of {len(inputs)} steps, expected no more"
        )
    expected = available if num_values is None else _check.size("num_values", num_values)
    if expected > available:
        raise ValueError(
            f"num_values: got {expected}, expected at most {available}, the number of floats in "
            "one sequence's state"
        )
    # Where the iteration's vectors are nearly all that there are, it is no gain.
    few = 3 * _block(expected) < available
    run = functools.partial(_few_values, expected=expected) if few else _all_values
    different = sorted(set(checked))
    with forward_mode(cell):
        values = run(params, state, inputs[: different[-1]], cell=cell, lags=tuple(different))
    return values[np.searchsorted(different, checked)][..., :expected]


@functools.partial(jax.jit, static_argnames=("cell", "lags"), inline=True)
def _all_values(params, state, inputs, *, cell, lags):
    flat = flatten(state, inputs.ndim - 2)
    advance = flat_step(cell, params, state)
    size = flat.shape[-1]
    identity = jnp.expand_dims(jnp.eye(size, dtype=flat.dtype), range(1, flat.ndim))
    tangents = jnp.broadcast_to(identity, (size, *flat.shape))
    kept = jnp.broadcast_to(tangents, (len(lags) + 1, *tangents.shape))
    # Each step's product is written to its lag's place, or to the last one if none asks for it.
    places = np.full(len(inputs) + 1, len(lags))
    places[list(lags)] = np.arange(len(lags))

    def body(carry, inputs_and_place):
        flat, tangents, kept = carry
        inputs, place = inputs_and_place
        flat, tangents = push(advance, flat, tangents, inputs)
        return (flat, tangents, kept.at[place].set(tangents)), None

    (_, _, kept), _ = lax.scan(body, (flat, tangents, kept), (inputs, jnp.asarray(places[1:])))
    products = jnp.moveaxis(kept[: len(lags)], 1, -2)
    return jnp.linalg.svd(products, compute_uv=False)


def _block(expected: int) -> int:
    """Return with how many vectors to iterate: those beyond the expected ones make it converge."""
    return 2 * expected + 10


@functools.partial(jax.jit, static_argnames=("cell", "lags", "expected"), inline=True)
def _few_values(params, state, inputs, *, cell, lags, expected):
    block = _block(expected)
    flat = flatten(state, inputs.ndim - 2)
    advance = flat_step(cell, params, state)
    basis = jnp.asarray(fixed_basis(block, flat.shape[-1]), flat.dtype)
    start = jnp.broadcast_to(jnp.expand_dims(basis, range(1, flat.ndim)), (block, *flat.shape))
    enough = _ROUNDINGS * jnp.finfo(flat.dtype).eps

    def at_lag(lag):
        def body(flat, inputs_and_time):
            inputs, time = inputs_and_time
            return jnp.where(time < lag, advance(flat, inputs), flat), None

        times = jnp.arange(len(inputs))
        _, forward = jax.linearize(lambda flat: lax.scan(body, flat, (inputs, times))[0], flat)
        backward = jax.linear_transpose(forward, flat)

        def moving(values, change):
            return change > enough * values[..., :1]

        def unfinished(carry):
            _, _, values, change, passes = carry
            return (passes < _PASSES) & jnp.any(moving(values, change))

        def improve(carry):
            tangents, last, values, _, passes = carry
            images, _, _ = _decomposed(jax.vmap(forward)(tangents))
            (returned,) = jax.vmap(backward)(images)
            # The best of what is multiplied, what was there before, and where that came from: as in
            # conjugate gradients, values that are close together take far fewer passes so.
            together = jnp.concatenate([returned, tangents, last])
            basis, _, _ = _decomposed(together)
            _, new, turn = _decomposed(jax.vmap(forward)(basis))
            best = jnp.einsum("...kj,j...n->k...n", turn[..., :block, :], basis)
            inside = jnp.einsum("k...n,j...n->...kj", best, tangents)
            last = best - jnp.einsum("...kj,j...n->k...n", inside, tangents)
            new = new[..., :block]
            change = jnp.max(jnp.abs(new - values)[..., :expected], axis=-1, keepdims=True)
            return best, last, new, change, passes + 1

        nothing = jnp.zeros((*flat.shape[:-1], block), flat.dtype)
        unknown = jnp.full((*flat.shape[:-1], 1), jnp.inf, flat.dtype)
        carry = (start, jnp.zeros_like(start), nothing, unknown, 0)
        _, _, values, change, _ = lax.while_loop(unfinished, improve, carry)
        return jnp.where(moving(values, change), jnp.nan, values)

    return lax.map(at_lag, jnp.asarray(lags))


def _decomposed(
    tangents: Float[Array, "K *batch N"],
) -> tuple[Float[Array, "K *batch N"], Float[Array, "*batch K"], Float[Array, "*batch K K"]]:
    """Return the tangents' left singular vectors, singular values and right singular vectors."""
    columns, values, turn = jnp.linalg.svd(jnp.moveaxis(tangents, 0, -1), full_matrices=False)
    return jnp.moveaxis(columns, -1, 0), values, turn
