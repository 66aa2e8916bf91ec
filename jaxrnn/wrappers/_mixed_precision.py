"""Mixed precision: products in few bits, everything else in the parameters' own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._cell import Cell, NoisyInputs


def mixed_precision(cell: Cell, dtype: Any) -> Cell:
    """Wrap a cell so that it multiplies by weights in a dtype of its own.

    Params, state and output keep their dtypes, and so do noise and what `activate` does. A cell
    whose step is not split computes the whole of it in `dtype`.

    Args:
        cell: the cell.
        dtype: the dtype of its products, such as bfloat16.

    Returns:
        A cell with the given one's params and state.
    """
    return cell.derived(_mixed_precision, dtype)


def _mixed_precision(cell: Cell, dtype: Any) -> Cell:
    inner = cell.split_step

    def operands(inputs: Any) -> Any:
        if isinstance(inputs, NoisyInputs):
            return inputs._replace(inputs=inputs.inputs.astype(dtype))
        return inputs.astype(dtype)

    if inner is None:

        def step(params: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
            specs = jax.eval_shape(cell.advance, params, state, inputs)
            results = cell.advance(_cast(params, dtype), _cast(state, dtype), operands(inputs))
            return jax.tree.map(lambda spec, leaf: leaf.astype(spec.dtype), specs, results)

        return cell.replace(step=step)

    def project(params: Any, inputs: Any) -> Any:
        return _cast(inner.project(_cast(params, dtype), operands(inputs)), _dtype(inputs))

    def recur(params: Any, state: Any) -> Any:
        recurrent = inner.recur(_cast(params, dtype), _cast(state, dtype))
        return _cast(recurrent, _dtype(params, state))

    return cell.replace(step=dataclasses.replace(inner, project=project, recur=recur))


def _dtype(*trees: PyTree) -> Any:
    """Return the dtype of the floating arrays, which is the same for all."""
    return next(
        leaf.dtype for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return a pytree with its floating arrays in another dtype."""

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
