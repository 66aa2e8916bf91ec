"""Lyapunov exponents: how fast disturbances of the state grow or die, in each direction."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

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

# Fewer factorisations than this say nothing about their own spread.
_LEAST = 16
# Few, as a weighted average gains from every doubling of its length.
_WEIGHTED_BLOCKS = 8


class LyapunovSpectrum(NamedTuple):
    """Lyapunov exponents in descending order, and how well they are known.

    Attributes:
        exponents: nats per step, `(*batch, K)`.
        standard_error: of each exponent, from the spread of its averages over consecutive blocks
            of time; infinite where there are too few steps to say.
        running_average: the plain mean after each of the M factorisations, `(M, *batch, K)`.
        converged: whether the standard error, and the estimate's change over the second half of the
            sequence, are both within `tolerance`. It is False, too, where an exponent isn't finite
            or the factorisations are fewer than 16.
    """

    exponents: Float[Array, "*batch K"]
    standard_error: Float[Array, "*batch K"]
    running_average: Float[Array, "M *batch K"]
    converged: Bool[Array, "*batch K"]


def lyapunov_exponents(
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
    *,
    num_exponents: int | None = None,
    burn_in: int = 0,
    qr_every: int = 1,
    tolerance: float = 0.01,
    weighted: bool = False,
) -> LyapunovSpectrum:
    """Lyapunov exponents of a driven cell, by repeated QR factorisation of pushed tangents.

    With `J[t] = d state[t + 1] / d state[t]`, and `tangents` K orthonormal columns,

        tangents, r = qr(J[t] @ tangents)
        exponents = mean over t of log abs diag(r)

    The largest is the mean rate at which a small disturbance grows: below 0 the network forgets it,
    and gradients vanish at that rate; above 0 the network is chaotic, and gradients explode. The
    sum of all of them is the mean of `log abs det J[t]`. A singular Jacobian has exponents of minus
    infinity, which rounding turns into large negative ones.

    The first tangents are always the same orthonormal columns, so the result is, too.

    Where an exponent belongs to a plane that turns, as with complex eigenvalues, or the state goes
    round quasi-periodically, the logarithms oscillate, and their mean over T steps is off by about
    1 / T. With `weighted` it becomes the weighted average

        weights = exp(-1 / (s * (1 - s))),  s = time from 0 to 1
        exponents = sum(weights * log abs diag(r)) / sum(weights)

    whose error falls faster than any power of T there. In a chaotic or randomly driven network it
    is no better: it uses fewer steps, and its error is 1.4 times the plain mean's. Nor does the sum
    of all exponents then equal the plain mean of `log abs det J[t]`.

    Args:
        cell: the cell, or a bare function `(params, state, inputs) -> (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)` that drives it; zeros for an autonomous network.
        state: the state before the first step, a pytree of floating or complex arrays
            `(*batch, ...)`; `cell.initial_state` if None. Sequences of a batch may start in
            different ones.
        num_exponents: K, how many of the leading exponents to find; all N if None, where N is the
            number of floats that one sequence's state holds, 2 * H for an LSTM. A complex number is
            two, its real and imaginary part.
        burn_in: how many steps to run first, state and tangents, without measuring.
        qr_every: how many steps to go between factorisations. More than 1 saves time; too many lose
            the smaller exponents, as the tangents all turn to the leading direction.
        tolerance: nats per step, below which an error counts as converged.
        weighted: whether to average with weights, for dynamics that aren't chaotic. The standard
            error is then that of 8 blocks, each weighted in itself: where the weights help it is
            far too large, as a block is shorter than the whole.

    Returns:
        A `LyapunovSpectrum`. Memory is O(K * (N + T / qr_every)) a sequence. On a CPU that other
        programs keep busy, set `OPENBLAS_NUM_THREADS=1` in the environment: the threads of JAX's
        LAPACK wait for one another actively there, and a second becomes minutes.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell, or a part of the state is of
            integers or 16 bits.
        ValueError: if shapes don't fit one another, there are no steps or no sequences, a number is
            out of range, such as more exponents than the state has floats, or (outside of a trace)
            inputs, params or state aren't finite.

    Example:
        A linear cell's exponents are the logarithms of its eigenvalues' moduli:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(2, activation=jax.nn.identity, use_bias=False)
        >>> kernel = jnp.diag(jnp.array([0.5, 2.0]))
        >>> params = jaxrnn.cells.ElmanParams(jnp.ones((1, 2)), kernel, None)
        >>> spectrum = jaxrnn.diagnostics.lyapunov_exponents(
        ...     cell, params, jnp.zeros((100, 1)), burn_in=50
        ... )
        >>> bool(jnp.allclose(spectrum.exponents, jnp.log(jnp.array([2.0, 0.5]))))
        True
        >>> spectrum.converged
        Array([ True,  True], dtype=bool)

    References:
        Benettin, Galgani, Giorgilli and Strelcyn, "Lyapunov characteristic exponents for smooth
        dynamical systems", Meccanica 15, 1980.
        Engelken, Wolf and Abbott, "Lyapunov spectra of chaotic recurrent neural networks", Physical
        Review Research 5, 2023, equations 4 to 8.
        Das, Saiki, Sander and Yorke, "Quantitative quasiperiodicity", Nonlinearity 30, 2017,
        equations 4 and 5 (the weights).
    """
    state = checked_state(cell, params, inputs, state, factorised=True)
    length, batch_ndim = inputs.shape[0], inputs.ndim - 2
    available = size_of(state, batch_ndim)
    expected = available
    if num_exponents is not None:
        expected = _check.size("num_exponents", num_exponents)
    if expected > available:
        raise ValueError(
            f"num_exponents: got {expected}, expected at most {available}, the number of floats in "
            "one sequence's state"
        )
    if length == 0:
        raise ValueError(f"inputs: got {_check.describe(inputs)}, expected at least one step")
    burn_in = _check.size("burn_in", burn_in, least=0)
    if burn_in >= length:
        raise ValueError(f"burn_in: got {burn_in} for inputs of {length} steps, expected fewer")
    with forward_mode(cell):
        return _run(
            params,
            state,
            inputs,
            cell=cell,
            count=expected,
            burn_in=burn_in,
            qr_every=_check.size("qr_every", qr_every),
            tolerance=_check.number("tolerance", tolerance, low=0.0),
            weighted=_check.flag("weighted", weighted),
        )


def kaplan_yorke_dimension(exponents: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Kaplan and Yorke's dimension of the attractor that a spectrum belongs to.

        dimension = j + sum(exponents[:j]) / abs(exponents[j])

    where j is the largest number of leading exponents whose sum isn't negative: a volume of so many
    dimensions doesn't shrink. It is 0 if all exponents are negative.

    Args:
        exponents: nats per step, along the last axis, in any order.

    Returns:
        The dimension. Where no sum of the leading exponents is negative it is their number, and for
        a spectrum cut short only a lower bound.

    Raises:
        TypeError: if the exponents are no floating array.
        ValueError: if there are none.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.diagnostics.kaplan_yorke_dimension(jnp.array([0.5, 0.0, -1.0]))
        Array(2.5, dtype=float32)

    References:
        Kaplan and Yorke, "Chaotic behavior of multidimensional difference equations", 1979.
    """
    descending = -jnp.sort(-_checked_exponents(exponents), axis=-1)
    sums = jnp.cumsum(descending, axis=-1)
    whole = jnp.sum(sums >= 0, axis=-1)
    # The sum of the first j, and the exponent after them; where there is none, nothing is added.
    nothing = jnp.zeros_like(sums[..., :1])
    total = jnp.take_along_axis(jnp.concatenate([nothing, sums], -1), whole[..., None], -1)
    following = jnp.take_along_axis(
        jnp.concatenate([descending, nothing - jnp.inf], -1), whole[..., None], -1
    )
    dimension = whole + (total / jnp.abs(following))[..., 0]
    # Sorted last, one that isn't a number would count for nothing.
    return jnp.where(jnp.isnan(descending).any(-1), jnp.nan, dimension)


def entropy_rate(exponents: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Sum of the positive exponents: how much a chaotic network's state tells per step.

        rate = sum(maximum(exponents, 0))

    By Pesin's formula it is the entropy rate of the dynamics, in nats per step, and by Ruelle's
    inequality always an upper bound of it.

    Args:
        exponents: nats per step, along the last axis, in any order.

    Returns:
        The rate. From a spectrum cut short among its positive exponents, only part of it.

    Raises:
        TypeError: if the exponents are no floating array.
        ValueError: if there are none.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.diagnostics.entropy_rate(jnp.array([0.5, 0.25, -1.0]))
        Array(0.75, dtype=float32)

    References:
        Eckmann and Ruelle, "Ergodic theory of chaos and strange attractors", Reviews of Modern
        Physics 57, 1985, section IV.
    """
    return jnp.sum(jnp.maximum(_checked_exponents(exponents), 0), axis=-1)


def _checked_exponents(exponents: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
    _check.array("exponents", exponents, min_ndim=1, axes="(*batch, K)")
    if exponents.shape[-1] == 0:
        raise ValueError(f"exponents: got {_check.describe(exponents)}, expected at least one")
    return jnp.asarray(exponents)


@functools.partial(
    jax.jit,
    static_argnames=("cell", "count", "burn_in", "qr_every", "tolerance", "weighted"),
    inline=True,
)
def _run(params, state, inputs, *, cell, count, burn_in, qr_every, tolerance, weighted):
    batch_shape = inputs.shape[1:-1]
    flat = flatten(state, len(batch_shape))
    advance = flat_step(cell, params, state)
    basis = jnp.asarray(fixed_basis(count, flat.shape[-1]), flat.dtype)
    tangents = jnp.broadcast_to(
        jnp.expand_dims(basis, range(1, flat.ndim)), (count, *batch_shape, flat.shape[-1])
    )
    # Counted from the end of the burn-in, so that measuring begins with orthonormal tangents.
    steps = np.arange(1, len(inputs) + 1) - burn_in
    factorised = (steps % qr_every == 0) | (steps == steps[-1])

    def keep(tangents):
        return tangents, jnp.zeros((*batch_shape, count), flat.dtype)

    def body(carry, inputs_and_mark):
        (flat, tangents), (inputs, mark) = carry, inputs_and_mark
        flat, tangents = push(advance, flat, tangents, inputs)
        if factorised.all():
            tangents, stretch = _orthonormalise(tangents)
        else:
            tangents, stretch = lax.cond(mark, _orthonormalise, keep, tangents)
        return (flat, tangents), stretch

    _, stretches = lax.scan(body, (flat, tangents), (inputs, jnp.asarray(factorised)))
    measured = factorised & (steps > 0)
    return _spectrum(stretches[measured], steps[measured], tolerance, weighted=weighted)


@jax.custom_jvp
def _orthonormalise(
    tangents: Float[Array, "K *batch N"],
) -> tuple[Float[Array, "K *batch N"], Float[Array, "*batch K"]]:
    """Return the tangents' orthonormal basis and `log abs diag(r)` of their QR factorisation.

    Cholesky's factorisation of their Gram matrix, done twice, is as exact as Householder's and
    several times faster, as it consists of matrix products; but only if the tangents are far
    from parallel. That they were shows in the second Gram matrix, which is then near the identity.
    """
    rows = jnp.moveaxis(tangents, 0, -2)
    first, first_logs = _cholesky(rows, _gram(rows))
    gram = _gram(first)
    # Not a number isn't less than anything, so a failed factorisation isn't regular. `all` and not
    # `max`, which over 64 or more numbers that are not loses them on XLA's CPU.
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    identity = jnp.expand_dims(identity, tuple(range(gram.ndim - 2)))
    regular = jnp.all(jnp.abs(gram - identity) < 0.1)

    def second(first):
        rows, logs = _cholesky(first, gram)
        return rows, first_logs + logs

    def householder(_):
        columns, r = jnp.linalg.qr(jnp.swapaxes(rows, -1, -2))
        return jnp.swapaxes(columns, -1, -2), jnp.log(jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1)))

    rows, logs = lax.cond(regular, second, householder, first)
    return jnp.moveaxis(rows, -2, 0), logs


@_orthonormalise.defjvp
def _orthonormalise_jvp(primals, tangents):
    """Differentiate the factorisation, whichever way it was done.

    JAX's own derivative would pass through Cholesky's, too, where that has failed, and be no
    number. With `rows = lower @ basis`, and `basis @ basis.T` the identity,

        inverse(lower) @ d_rows @ basis.T = inverse(lower) @ d_lower + d_basis @ basis.T

    whose first part is lower triangular and whose second is antisymmetric, which tells them apart.
    """
    vectors, logs = _orthonormalise(*primals)
    rows, d_rows, basis = (jnp.moveaxis(each, 0, -2) for each in (*primals, *tangents, vectors))
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    lower = product(rows, jnp.swapaxes(basis, -1, -2))
    solved = lax.linalg.triangular_solve(lower, d_rows, left_side=True, lower=True)
    both = product(solved, jnp.swapaxes(basis, -1, -2))
    above = jnp.triu(both, 1)
    triangular = jnp.tril(both) + jnp.swapaxes(above, -1, -2)
    d_logs = jnp.diagonal(both, axis1=-2, axis2=-1)
    d_vectors = jnp.moveaxis(solved - product(triangular, basis), -2, 0)
    return (vectors, logs), (d_vectors, d_logs)


def _gram(rows: Float[Array, "*batch K N"]) -> Float[Array, "*batch K K"]:
    return jnp.einsum("...kn,...ln->...kl", rows, rows, precision=lax.Precision.HIGHEST)


def _cholesky(
    rows: Float[Array, "*batch K N"], gram: Float[Array, "*batch K K"]
) -> tuple[Float[Array, "*batch K N"], Float[Array, "*batch K"]]:
    lower = lax.linalg.cholesky(gram, symmetrize_input=False)
    rows = lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)
    return rows, jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1))


def _spectrum(
    stretches: Float[Array, "M *batch K"], ends: np.ndarray, tolerance: float, *, weighted: bool
) -> LyapunovSpectrum:
    """Average the logarithms of stretches that ended `ends` steps after the burn-in."""
    average = functools.partial(_average, weighted=weighted)
    lengths = np.diff(ends, prepend=0)
    exponents = average(stretches[None], lengths[None])[0]
    order = jnp.argsort(-exponents, axis=-1)
    exponents = jnp.take_along_axis(exponents, order, axis=-1)
    stretches = jnp.take_along_axis(stretches, order[None], axis=-1)
    column = (-1,) + (1,) * (stretches.ndim - 1)
    running = jnp.cumsum(stretches, axis=0) / jnp.asarray(ends.reshape(column), stretches.dtype)

    count = len(ends)
    if count < _LEAST:
        unknown = jnp.full_like(exponents, jnp.inf)
        return LyapunovSpectrum(exponents, unknown, running, jnp.zeros(exponents.shape, bool))
    blocks = _WEIGHTED_BLOCKS if weighted else math.isqrt(count)
    size = count // blocks
    means = average(
        stretches[-blocks * size :].reshape(blocks, size, *exponents.shape),
        lengths[-blocks * size :].reshape(blocks, size),
    )
    error = jnp.std(means, axis=0, ddof=1) / math.sqrt(blocks)
    half = count // 2
    drift = jnp.abs(exponents - average(stretches[None, :half], lengths[None, :half])[0])
    converged = jnp.isfinite(exponents) & (error <= tolerance) & (drift <= tolerance)
    return LyapunovSpectrum(exponents, error, running, converged)


def _average(
    stretches: Float[Array, "n M *batch K"], lengths: np.ndarray, *, weighted: bool
) -> Float[Array, "n *batch K"]:
    """Average logarithms of n times M stretches over their lengths `(n, M)`."""
    weights = np.ones(lengths.shape)
    if weighted:
        times = (np.cumsum(lengths, axis=1) - lengths / 2) / np.sum(lengths, axis=1, keepdims=True)
        weights = np.exp(-1 / (times * (1 - times)))
    weights = weights / np.sum(weights * lengths, axis=1, keepdims=True)
    return jnp.einsum("nm,nm...->n...", jnp.asarray(weights, stretches.dtype), stretches)
