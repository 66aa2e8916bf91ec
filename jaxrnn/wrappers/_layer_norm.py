"""Layer normalisation inside of a cell."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, PyTree

from jaxrnn._affine import align
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._dtypes import at_least_float32
from jaxrnn._gates import check_one_gate_each
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.wrappers._wrap import (
    checked_split_step,
    inner_learned_state,
    inner_step,
    map_own_projection,
    own_projection,
)

# Keeps the division finite where all features are equal, as at the zero state.
_EPSILON = 1e-5


class LayerNormParams(NamedTuple):
    """A cell's params, and gains and a shift, packed as the cell packs its gates.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.wrappers.layer_norm(jaxrnn.gru(64))
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> params.input_gain.shape
        (192,)
    """

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
        A cell with the same state, its step split, whose params are a `LayerNormParams`: gains of 1
        and a shift of 0 at first.

    Raises:
        ValueError: if the cell's step is not split, projects something without features, or packs
            several gates into one array.

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
    checked_split_step(checked_cell("cell", cell), "layer_norm")
    if cell.takes_context:
        raise ValueError(
            f"cell: got {cell.name}, which reads a context, expected one that reads none; wrap "
            "the normalised cell by what adds the context"
        )
    _check_gates(cell)
    return _layer_norm(cell)


def _check_gates(cell: Cell) -> None:
    """Raise unless each of the arrays to normalise is one gate."""
    inner = checked_split_step(cell, "layer_norm")
    state, inputs = cell.state_spec(), jax.ShapeDtypeStruct((1,), jnp.float32)
    projected = jax.eval_shape(inner.project, cell.params_spec(1), inputs)
    recurrent = jax.eval_shape(inner.product, cell.params_spec(1), state, projected)
    check_one_gate_each(cell, "project", own_projection(projected), state, batch_axes=0)
    check_one_gate_each(cell, "recur", recurrent, state, batch_axes=0)


@memoized()
def _layer_norm(cell: Cell) -> Cell:
    inner = checked_split_step(cell, "layer_norm")

    def init(key: jax.Array, input_size: int, dtype: Any) -> LayerNormParams:
        params = cell.init(key, input_size, dtype=dtype)
        inputs = jax.ShapeDtypeStruct((input_size,), dtype)
        projected = jax.eval_shape(inner.project, params, inputs)
        recurrent = jax.eval_shape(inner.product, params, cell.state_spec((), dtype), projected)
        recurrent_gain = jnp.ones(sum(_sizes(recurrent)), dtype)
        gain = jnp.ones(sum(_sizes(own_projection(projected))), dtype)
        return LayerNormParams(params, gain, recurrent_gain, jnp.zeros_like(recurrent_gain))

    def project(params: LayerNormParams, inputs: Any) -> Any:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[-1:], leaf.dtype), inputs)
        bias = own_projection(inner.project(params.cell, nothing))

        def normalised(projected: PyTree) -> PyTree:
            weighted = jax.tree.map(lambda a, b: a - align(b, a), projected, bias)
            return _normalised(weighted, params.input_gain, jax.tree.leaves(bias))

        return map_own_projection(normalised, inner.project(params.cell, inputs))

    # The recurrent product is normalised in `activate`, not in `recur`, whose transpose would have
    # to compute the product again. So the products can't be combined before.
    def combine(projected: Any, recurrent: Any) -> tuple[Any, Any]:
        return projected, recurrent

    def activate(params: LayerNormParams, state: Any, gates: Any) -> tuple[Any, Any]:
        projected, recurrent = gates
        shifts = _split(params.recurrent_shift, recurrent)
        recurrent = _normalised(recurrent, params.recurrent_gain, shifts)
        combined = inner.combine(projected, recurrent)
        return inner.activate(params.cell, state, combined)

    step = dataclasses.replace(
        inner_step(cell), project=project, combine=combine, activate=activate
    )
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
    return treedef.unflatten(
        [align(scale, leaf) * _norm(leaf) + align(shift, leaf) for leaf, scale, shift in parts]
    )


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
