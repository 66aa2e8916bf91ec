"""Mixed precision: products in few bits, everything else in the parameters' own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._cell import Cell, NoisyInputs, SplitStep
from jaxrnn.wrappers._wrap import with_state


@functools.lru_cache(maxsize=1024)
def mixed_precision(cell: Cell, dtype: Any) -> Cell:
    """Wrap a cell so that it multiplies by weights in a dtype of its own.

    Params, state and output keep their dtypes, and so do noise and what `activate` does. Of a cell
    that shows no structure the whole step is computed in `dtype`.

    Args:
        cell: the cell.
        dtype: the dtype of its products, such as bfloat16.

    Returns:
        A cell with the given one's params and state, gated if that is.
    """

    def operands(inputs: Any) -> Any:
        if isinstance(inputs, NoisyInputs):
            return inputs._replace(inputs=inputs.inputs.astype(dtype))
        return inputs.astype(dtype)

    split_step = cell.split_step
    if split_step is None:

        def step(params: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
            of_state, of_output = jax.eval_shape(cell.advance, params, state, inputs)
            new_state, output = cell.advance(
                _cast(params, dtype), _cast(state, dtype), operands(inputs)
            )
            new_state, output = with_state(_cast_like(of_state, new_state), new_state, output)
            return new_state, _cast_like(of_output, output)

        return cell.replace(step=step)

    def project(params: Any, inputs: Any) -> Any:
        return _cast(split_step.project(_cast(params, dtype), operands(inputs)), _dtype(inputs))

    def recur(params: Any, state: Any) -> Any:
        recurrent = split_step.recur(_cast(params, dtype), _cast(state, dtype))
        return _cast(recurrent, _dtype(params, state))

    return cell.replace(step=SplitStep(project, recur, split_step.activate, split_step.expose))


def _dtype(*trees: PyTree) -> Any:
    """Return the dtype of the floating arrays, which is the same for all."""
    return next(
        leaf.dtype for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _cast_like(spec: PyTree, tree: PyTree) -> PyTree:
    """Return a pytree with each array in the dtype of the one in its place."""
    return jax.tree.map(lambda like, leaf: leaf.astype(like.dtype), spec, tree)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return a pytree with its floating arrays in another dtype."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(of_leaf, tree)
