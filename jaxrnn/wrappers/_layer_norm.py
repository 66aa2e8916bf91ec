"""Layer normalisation inside of a cell."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn._cell import Cell, checked_cell
from jaxrnn._dtypes import at_least_float32
from jaxrnn.wrappers._wrap import (
    checked_split_step,
    inner_learned_state,
    inner_step,
    innermost,
    map_own_projection,
)

# Keeps the division finite where all features are equal, as at the zero state.
_EPSILON = 1e-5


class LayerNormParams(NamedTuple):
    """A cell's params, and gains and a shift, packed as the cell packs its gates."""

    cell: Any
    input_gain: Float[Array, "G*H"]
    recurrent_gain: Float[Array, "G*H"]
    recurrent_shift: Float[Array, "G*H"]


def layer_norm(cell: Cell) -> Cell:
    """Layer normalisation inside of a cell: what flows into each gate is put to scale.

        norm(a) = (a - mean(a)) / sqrt(variance(a) + 1e-5), over the features of each gate
        projected = input_gain * norm(inputs @ kernel) + bias
        recurrent = recurrent_gain * norm(hidden @ recurrent_kernel) + recurrent_shift
        state, output = activate(state, projected, recurrent)

    for a cell with `bias` and no other weights; in general `bias` is what the cell projects for
    inputs of zero, so that an LSTM's forget bias acts as it does without normalisation. The paper
    takes mean and variance over all gates of an LSTM together, and normalises the cell state before
    `tanh` makes the hidden state of it; here each gate has its own, and the cell state none.

    Args:
        cell: a split-step cell that projects inputs by weights and a bias, as all here do. Wrap it
            by this first: zoneout, dropout and so on go around.

    Returns:
        A split-step cell with the same state, whose params are a `LayerNormParams`: gains of 1 and a
        shift of 0 at first. Equal settings give the same object.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if it shows no split step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.layer_norm(jaxrnn.lstm(64))
        >>> params = cell.init(jax.random.key(0), 32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 16, 32)))
        >>> outputs.shape, params.input_gain.shape
        ((5, 16, 64), (256,))

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016, equations 4 and 20 to 22.
    """
    checked_split_step("cell", checked_cell("cell", cell), "layer_norm")
    return _layer_norm(cell)


@functools.cache
def _layer_norm(cell: Cell) -> Cell:
    split_step = checked_split_step("cell", cell, "layer_norm")

    def init(key: jax.Array, input_size: int, dtype: Any) -> LayerNormParams:
        params = cell.init(key, input_size, dtype=dtype)
        inputs = jax.ShapeDtypeStruct((input_size,), dtype)
        projected = jax.eval_shape(split_step.project, params, inputs)
        recurrent = jax.eval_shape(
            split_step.product, params, cell.state_spec((), dtype), projected
        )
        of_recurrent = jnp.ones(sum(_sizes(recurrent)), dtype)
        gain = jnp.ones(sum(_sizes(innermost(projected))), dtype)
        return LayerNormParams(params, gain, of_recurrent, jnp.zeros_like(of_recurrent))

    def project(params: LayerNormParams, inputs: Any) -> Any:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[-1:], leaf.dtype), inputs)
        bias = innermost(split_step.project(params.cell, nothing))

        def normalised(projected: PyTree) -> PyTree:
            weighted = jax.tree.map(jnp.subtract, projected, bias)
            return _normalised(weighted, params.input_gain, jax.tree.leaves(bias))

        return map_own_projection(normalised, split_step.project(params.cell, inputs))

    # Here and not in `recur`, whose transpose would have to compute the product again.
    def activate(
        params: LayerNormParams, state: Any, projected: Any, recurrent: Any
    ) -> tuple[Any, Any]:
        shifts = _split(params.recurrent_shift, recurrent)
        recurrent = _normalised(recurrent, params.recurrent_gain, shifts)
        return split_step.activate(params.cell, state, projected, recurrent)

    step = dataclasses.replace(inner_step(cell), project=project, activate=activate)
    return cell.replace(
        init=init,
        step=step,
        learned_state=inner_learned_state(cell),
        name=f"layer_norm({cell.name})",
    )


def _normalised(
    tree: PyTree, gain: Float[Array, "F"], shifts: Sequence[Float[Array, "H"]]
) -> PyTree:
    """Normalise each array of a pytree over its last axis, then scale and shift it."""
    leaves, treedef = jax.tree.flatten(tree)
    parts = zip(leaves, _split(gain, tree), shifts, strict=True)
    return treedef.unflatten([scale * _norm(leaf) + shift for leaf, scale, shift in parts])


def _norm(values: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    # Squares of 16 bits would lose what the mean leaves.
    values_wide = at_least_float32(values)
    centred = values_wide - jnp.mean(values_wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + _EPSILON)).astype(values.dtype)


def _sizes(tree: PyTree) -> list[int]:
    return [leaf.shape[-1] for leaf in jax.tree.leaves(tree)]


def _split(packed: Float[Array, "F"], tree: PyTree) -> list[Float[Array, "H"]]:
    """Cut packed parameters into one array for each of a pytree's."""
    return jnp.split(packed, np.cumsum(_sizes(tree))[:-1])
