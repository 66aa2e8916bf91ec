"""State noise: a little is added to the state at each step."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.wrappers._wrap import (
    checked_readout,
    combined_noise,
    per_state_leaf,
    split_noise,
    wrap_step,
)


def state_noise(cell: Cell, scale: float | PyTree) -> Cell:
    """State noise: in training, Gaussian noise is added to the new state at each step.

        state[t] = step(state[t - 1]) + scale * noise[t],  noise ~ Normal(0, 1)

    Small noise penalises directions in which the dynamics would make it grow. Without a key, in
    evaluation, the cell is as it was.

    Args:
        cell: any cell.
        scale: the noise's standard deviation, at least 0: a number for all floating parts of the
            state, or a pytree like the state for each part. Integers, such as a counter, get none;
            their scale is 0.

    Returns:
        A cell with the same params and state; its output is read from the new state.

    Raises:
        ValueError: if the cell doesn't say what its output is of its state, `Cell(readout=...)`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.state_noise(jaxrnn.elman(64), 0.1)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.zeros((1, 100, 3))
        >>> _, outputs = jaxrnn.unroll(cell, params, xs, key=jax.random.key(1))
        >>> bool(abs(outputs.std() - 0.1) < 0.01)
        True

    References:
        Jim, Giles and Horne, "An analysis of noise in recurrent neural networks: convergence and
        generalization", IEEE Transactions on Neural Networks 7, 1996 (additive noise at each step).
        Lim, Erichson, Hodgkinson and Mahoney, "Noisy recurrent neural networks", 2021, equation 5.
    """
    checked_readout(checked_cell("cell", cell), "state_noise")
    return _state_noise(cell, per_state_leaf("scale", scale, cell, _scale))


def _add(leaf: Array, noise: Array) -> Array:
    """Return the sum in the leaf's dtype, added up in that of the noise if it is wider."""
    wide = max(leaf.dtype, noise.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
    return (leaf.astype(wide) + noise.astype(wide)).astype(leaf.dtype)


def _scale(name: str, value: Any) -> float:
    return _check.number(name, value, low=0.0)


@memoized()
def _state_noise(cell: Cell, scales: tuple[float, ...]) -> Cell:
    readout = checked_readout(cell, "state_noise")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> list[Array | None]:
        spec = jax.tree.leaves(cell.state_spec())
        keys = jax.random.split(key, len(scales))
        return [
            scale * jax.random.normal(k, (*shape, *leaf.shape), dtype) if scale else None
            for k, scale, leaf in zip(keys, scales, spec, strict=True)
        ]

    def finish(params: Any, state: Any, noise: Any, new_state: Any, output: Any) -> tuple[Any, Any]:
        if noise is None:
            return new_state, output
        leaves, treedef = jax.tree.flatten(new_state)
        parts = [
            leaf if added is None else _add(leaf, added)
            for leaf, added in zip(leaves, noise, strict=True)
        ]
        noisy = treedef.unflatten(parts)
        return noisy, readout(noisy)

    return cell.replace(
        step=wrap_step(cell, split_noise, finish),
        readout=readout,
        draw_noise=combined_noise(cell, draw),
        name=f"state_noise({cell.name})",
    )
