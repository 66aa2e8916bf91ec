"""State noise: a little is added to the state at each step."""

import functools
from typing import Any

import jax
from jaxtyping import Array, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn.wrappers._wrap import combined_noise, per_state_leaf, split_noise, with_state, wrap_step


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
        A cell with the same params and state, gated if `cell` is; equal settings give the same
        object. Its output is what became of the state, where the cell's is a part of that: the very
        array, not a copy by a `jax.jit` or `jax.checkpoint` within the step.

    Raises:
        TypeError: if `cell` is not a cell, or `scale` neither a number nor like the state.
        ValueError: if a scale is negative or not finite, or not 0 for a part of integers.

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
    checked_cell("cell", cell)
    return _state_noise(cell, per_state_leaf("scale", scale, cell, _scale))


def _scale(name: str, value: Any) -> float:
    return _check.number(name, value, low=0.0)


@functools.cache
def _state_noise(cell: Cell, scales: tuple[float, ...]) -> Cell:
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
            leaf if added is None else (leaf + added).astype(leaf.dtype)
            for leaf, added in zip(leaves, noise, strict=True)
        ]
        return with_state(treedef.unflatten(parts), new_state, output)

    return cell.replace(
        step=wrap_step(cell, split_noise, finish),
        draw_noise=combined_noise(cell, draw),
        name=f"state_noise({cell.name})",
    )
