"""Which arrays of a split step are gates: one array each, as wide as a part of the state."""

from typing import Any

import jax
from jaxtyping import PyTree

from jaxrnn import _check


def check_one_gate_each(
    cell: Any, part: str, products: PyTree, state: PyTree, *, batch_axes: int
) -> None:
    """Raise if an array may hold several gates, or units that the state hasn't got.

    What looks at gates, or normalises them, can't tell them apart in one packed array. So each
    must be as wide as one of the state's arrays.

    Args:
        cell: the cell, for its name.
        part: which part of its step returns the arrays.
        products: what it returns: arrays, or their shapes and dtypes.
        state: the state.
        batch_axes: how many batch axes all of them have.
    """
    widths = {leaf.shape[-1] for leaf in jax.tree.leaves(state) if leaf.ndim > batch_axes}
    for path, leaf in jax.tree_util.tree_leaves_with_path(products):
        if leaf.ndim > batch_axes and leaf.shape[-1] in widths:
            continue
        raise ValueError(
            f"cell: got {getattr(cell, 'name', 'a step')}, whose `{part}` returns "
            f"{_check.describe(leaf)} at {part}{jax.tree_util.keystr(path)}, expected one array "
            f"per gate, as wide as a part of the state {sorted(widths)}: split a packed one by "
            "jnp.split(..., n, axis=-1)"
        )
