"""Bounds on gradients, and what makes them vanish: the kernel, saturated units, closed gates."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._dtypes import at_least_float32
from jaxrnn._gates import check_one_gate_each
from jaxrnn._jaxpr import primitives
from jaxrnn.diagnostics._norm import scale_of
from jaxrnn.diagnostics._products import with_products
from jaxrnn.diagnostics._tangents import (
    Step,
    checked_state,
    finite,
    flatten,
    forward_mode,
    step_of,
    structure_of,
)

# What a number of one unit gets into those of others by.
_MIXING = ("dot_general", "conv_general", "reduce_", "cum", "sort")


class GateStatistics(NamedTuple):
    """How much of the state the gates keep, and for how long.

    Attributes:
        forget: mean over the units of each step's forget gate, `(T, *batch)`.
        time_constant: steps in which gates of that mean let the state fall to 1/e,
            `-1 / log(forget)`, `(T, *batch)`; infinite where nothing is forgotten, 0 where all is.
    """

    forget: Float[Array, "T *batch"]
    time_constant: Float[Array, "T *batch"]


def spectral_radius(kernel: Float[Array, "*batch N N"]) -> Float[Array, "*batch"]:
    """Largest modulus of a matrix's eigenvalues.

        radius = max(abs(eigenvalues(kernel)))

    In a linear network gradients vanish in the end where it is below 1, and explode where it is
    above. With an activation it is a guide only: what bounds them is the largest singular value, as
    in `pascanu_bound`. A split-step cell has a kernel for each gate: split them along the last axis
    first.

    Args:
        kernel: square matrices `(*batch, N, N)`.

    Returns:
        The radius. Older releases of JAX find eigenvalues on CPU only.

    Raises:
        TypeError: if the kernel is no floating array.
        ValueError: if it isn't square or (outside of a trace) isn't finite.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> radius = jaxrnn.diagnostics.spectral_radius(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
        >>> bool(jnp.isclose(radius, 3))
        True

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013, section 2.1.
    """
    kernel = _checked_square("kernel", kernel)
    # In 16 bits nothing can be factorised, and eigenvalues of entries far from 1 may be wrong.
    scale = scale_of(at_least_float32(kernel), [-2, -1])
    moduli = jnp.abs(jnp.linalg.eigvals(at_least_float32(kernel) / scale))
    return (scale[..., 0, 0] * jnp.max(moduli, axis=-1)).astype(kernel.dtype)


def pascanu_bound(
    recurrent_kernel: Float[Array, "H H"], lags: Sequence[int], *, gamma: float = 1.0
) -> Float[Array, "L"]:
    """Upper bound of a gradient's factor over some steps of an Elman network.

        norm(d hidden[t + k] / d hidden[t]) <= (gamma * norm(recurrent_kernel)) ** k

    where `norm` is the largest singular value and gamma the largest derivative of the activation:
    1 for tanh, relu and the identity, 1/4 for the logistic function.

    Args:
        recurrent_kernel: the matrix `(H, H)`.
        lags: L numbers k of steps, at least 0.
        gamma: the largest derivative of the activation, at least 0.

    Returns:
        The bounds `(L,)`.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if the kernel isn't square or (outside of a trace) isn't finite, or a lag or
            gamma is negative.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.diagnostics.pascanu_bound(jnp.eye(3), [0, 1, 2], gamma=0.25)
        Array([1.    , 0.25  , 0.0625], dtype=float32)

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013, equations 6 and 7.
    """
    kernel = _checked_square("recurrent_kernel", recurrent_kernel)
    if kernel.ndim != 2:
        raise ValueError(f"recurrent_kernel: got {_check.describe(kernel)}, expected one matrix")
    gamma = _check.number("gamma", gamma, low=0.0)
    largest = gamma * jnp.linalg.norm(at_least_float32(kernel), 2)
    powers = jnp.asarray(_check.step_counts("lags", lags), largest.dtype)
    return (largest**powers).astype(kernel.dtype)


def saturation(
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
    *,
    threshold: float = 0.05,
) -> Float[Array, "T *batch G"]:
    """Share of units, by step and gate, that what flows into them hardly moves.

    A unit counts at step t if no part of its new state moves by as much as `threshold` of what is
    added to its pre-activation there:

        share[t, gate] = mean over units of
            (max over parts of abs(d state[t].part / d recurrent[t].gate)) < threshold

    For an Elman network that is the activation's derivative, `1 - hidden**2` with tanh. For a gate
    it is the derivative of what the gate does: a gate that is saturated, or that has nothing to
    pass on, lets no gradient through to its weights.

    A step that shows no structure is searched for its matrix products of the state, and their
    results take the place of `recurrent`. As other products may follow, each unit of one may move
    all of the new state, and counts if it moves none of it by `threshold`.

    Args:
        cell: the cell, or a bare function `(params, state, inputs) -> (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step; `cell.initial_state` if None.
        threshold: the derivative below which a unit counts as saturated.

    Returns:
        Shares from 0 to 1, `(T, *batch, G)`, for the G arrays that the cell's `recur` returns: one
        for an Elman network, i f g o for an LSTM, r z n for a GRU. A product that is a multiple of
        the state's units wide is taken for as many gates, in the order in which they are packed.
        Memory is O(T * G), and without a structure O(N) times a step's products besides, for a
        state of N floats.

    Raises:
        TypeError: if an argument is of another kind, dtype or cell.
        ValueError: if the step shows no structure and no matrix product of its state can be seen,
            or shows one whose `activate` isn't pointwise or whose state has parts of different
            shapes, shapes don't fit one another, or (outside of a trace) inputs, params or state
            aren't finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(2, use_bias=False)
        >>> params = jaxrnn.cells.ElmanParams(jnp.array([[0.1, 10.0]]), jnp.zeros((2, 2)), None)
        >>> jaxrnn.diagnostics.saturation(cell, params, jnp.ones((1, 1)))
        Array([[0.5]], dtype=float32)

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
        networks", 2010, section 3.
    """
    state = checked_state(cell, params, inputs, state)
    threshold = _check.number("threshold", threshold, low=0.0)
    return _saturation(params, state, inputs, cell=cell, threshold=threshold)


def gate_statistics(
    cell: Cell | Step,
    params: PyTree,
    inputs: Float[Array, "T *batch I"],
    state: PyTree | None = None,
) -> GateStatistics:
    """Mean forget gate of each step, and the time constant that it implies.

    A unit's forget gate is taken to be the factor on its own old state where no weights come
    between, the derivative of the new state with all matrix products held fixed:

        gate[t] = max over parts of d state[t].part / d state[t - 1].part
        forget[t] = mean over units of gate[t]
        time_constant[t] = -1 / log(forget[t])

    For an LSTM that is `f`, the factor on the cell state; for a GRU `z`. An Elman network has none,
    which gives 0. Of a step that shows no structure the products are searched for; what mixes its
    units otherwise than by matrix products has no such factor, and gives no sensible one.

    Args:
        cell: the cell, with gates of at least 0, or a bare function `(params, state, inputs) ->
            (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step; `cell.initial_state` if None.

    Returns:
        A `GateStatistics`. Memory is O(T).

    Raises:
        TypeError: if an argument is of another kind, dtype or cell.
        ValueError: if the step shows no structure and has a product of its state out of sight, as
            in a `lax.scan`, or mixes units otherwise, the state has parts of different shapes,
            shapes don't fit one another, or (outside of a trace) inputs, params or state aren't
            finite.

    Example:
        With no input an LSTM's forget gate is at first the logistic function of its bias:

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(4, forget_bias=2.0)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> gates = jaxrnn.diagnostics.gate_statistics(cell, params, jnp.zeros((5, 3)))
        >>> bool(jnp.allclose(gates.forget, jax.nn.sigmoid(2.0)))
        True
        >>> gates.time_constant[0].round(1)
        Array(7.9, dtype=float32)

    References:
        Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, section 2.
    """
    state = checked_state(cell, params, inputs, state)
    forget = _forget(params, state, inputs, cell=cell)
    # The logarithm of 1 is 0, whose inverse is of the wrong sign.
    return GateStatistics(forget, jnp.where(forget >= 1, jnp.inf, -1 / jnp.log(forget)))


def _checked_square(name: str, value: Any) -> Array:
    _check.array(name, value, min_ndim=2, axes="(*batch, N, N)")
    if value.shape[-1] != value.shape[-2] or value.shape[-1] == 0:
        raise ValueError(f"{name}: got {_check.describe(value)}, expected a square matrix")
    finite(name, value)
    return jnp.asarray(value)


def _one_at_a_time(tree: PyTree) -> list[PyTree]:
    """Return tangents for a pytree, each of ones in one leaf and zeros in the others.

    What is pointwise has a diagonal Jacobian, and its product with ones is that diagonal.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return [
        jax.tree.unflatten(
            treedef, [jnp.full_like(leaf, place == other) for other, leaf in enumerate(leaves)]
        )
        for place in range(len(leaves))
    ]


@functools.partial(jax.jit, static_argnames=("cell", "threshold"), inline=True)
def _saturation(params, state, inputs, *, cell, threshold):
    split_step = structure_of(cell)

    def body(state, inputs):
        if split_step is None:
            state, effects = _effects_of_products(cell, params, state, inputs)
        else:
            state, effects = _effects_of_recurrent(cell, split_step, params, state, inputs)
        shares = [jnp.mean(effect < threshold, axis=-1, dtype=effect.dtype) for effect in effects]
        return state, jnp.stack(shares, axis=-1)

    return lax.scan(body, state, inputs)[1]


def _effects_of_recurrent(
    cell: Cell | Step, split_step: SplitStep, params: PyTree, state: PyTree, inputs: Array
) -> tuple[PyTree, list[Float[Array, "*batch H"]]]:
    """Return the new state, and how far each unit of each gate moves it."""
    projected = split_step.project(params, inputs)
    recurrent = split_step.product(params, state, projected)
    if not jax.tree.leaves(recurrent):
        raise ValueError(
            f"cell: got {getattr(cell, 'name', 'a step')}, which has no recurrent product, "
            "expected a cell whose gates see the state"
        )
    check_one_gate_each(cell, "recur", recurrent, state, batch_axes=inputs.ndim - 1)
    new, derivative = _pointwise(
        cell,
        lambda recurrent: split_step.activate(
            params, state, split_step.combine(projected, recurrent)
        )[0],
        recurrent,
    )
    derivatives = [derivative(tangent) for tangent in _one_at_a_time(recurrent)]
    return new, [_largest(jax.tree.map(jnp.abs, each)) for each in derivatives]


def _pointwise(
    cell: Cell | Step, function: Callable[[PyTree], PyTree], at: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Return a pointwise function's value and derivative, or raise if it mixes units."""
    with forward_mode(cell):
        value, derivative = jax.linearize(function, at)
    mixing = [name for name in primitives(derivative, at) if name.startswith(_MIXING)]
    if mixing:
        raise ValueError(
            f"cell: got {getattr(cell, 'name', 'a step')}, in whose activate one unit reaches "
            f"others, by {', '.join(sorted(mixing))}; expected a pointwise one"
        )
    return value, derivative


def _effects_of_products(
    cell: Cell | Step, params: PyTree, state: PyTree, inputs: Array
) -> tuple[PyTree, list[Float[Array, "*batch H"]]]:
    """Do as `_effects_of_recurrent`, for a step whose products have to be found."""

    def advance(state: PyTree) -> PyTree:
        return step_of(cell)(params, state, inputs)[0]

    products = []

    def record(product: Array) -> Array:
        products.append(jax.ShapeDtypeStruct(product.shape, product.dtype))
        return product

    jax.eval_shape(with_products(advance, record), state)
    if not products:
        raise ValueError("cell: got a step without a matrix product of its state, expected one")

    def moved(disturbances: list[Array]) -> tuple[Float[Array, "*batch N"], PyTree]:
        remaining = iter(disturbances)
        new = with_products(advance, lambda product: product + next(remaining))(state)
        return flatten(new, inputs.ndim - 1), new

    zeros = [jnp.zeros(product.shape, product.dtype) for product in products]
    flat, backward, new = jax.vjp(moved, zeros, has_aux=True)
    # Sequences don't mix, so that one cotangent serves all of a batch.
    cotangents = jnp.broadcast_to(
        jnp.expand_dims(jnp.eye(flat.shape[-1], dtype=flat.dtype), range(1, flat.ndim)),
        (flat.shape[-1], *flat.shape),
    )
    (effects,) = jax.vmap(backward)(cotangents)
    units = jax.tree.leaves(state)[0].shape[-1]
    gates = []
    for effect in effects:
        largest = jnp.max(jnp.abs(effect), axis=0)
        width = largest.shape[-1]
        gates += jnp.split(largest, width // units if width % units == 0 else 1, axis=-1)
    return new, gates


def _largest(parts: PyTree) -> Array:
    """Return the largest of each unit's numbers, one in each part of a state."""
    leaves = jax.tree.leaves(parts)
    if len({leaf.shape for leaf in leaves}) > 1:
        raise ValueError(
            f"cell: got a state of {_check.describe(parts)}, expected parts of the same shape"
        )
    return functools.reduce(jnp.maximum, leaves)


@functools.partial(jax.jit, static_argnames=("cell",), inline=True)
def _forget(params, state, inputs, *, cell):
    def body(state, inputs):
        new, derivative = _pointwise(cell, _held(cell, params, state, inputs), state)
        factors = [
            jax.tree.leaves(derivative(tangent))[place]
            for place, tangent in enumerate(_one_at_a_time(state))
        ]
        return new, jnp.mean(_largest(factors), axis=-1)

    return lax.scan(body, state, inputs)[1]


def _held(
    cell: Cell | Step, params: PyTree, state: PyTree, inputs: Array
) -> Callable[[PyTree], PyTree]:
    """Return a step's function of the state, with the products of the state held as they are."""
    split_step = structure_of(cell)
    if split_step is None:
        return with_products(
            lambda state: step_of(cell)(params, state, inputs)[0], lax.stop_gradient
        )
    projected = split_step.project(params, inputs)
    gates = split_step.gates(params, state, projected)
    return lambda state: split_step.activate(params, state, gates)[0]
