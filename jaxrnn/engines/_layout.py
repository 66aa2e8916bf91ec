"""How matrices lie in memory, where XLA's CPU backend multiplies them slowly as they lie.

The product of a matrix's transpose is as fast as that of the matrix itself only in theory. XLA asks
Eigen for it, which first gathers the entries of each column: rows apart in memory, and where a row
is a power of two long, all in the same few lines of the cache. Then such a product takes up to
twice as long, and it pays to transpose the matrix before. Accelerators don't mind.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

# Rows of a multiple of so many bytes start in the same lines of the cache, time and again.
_COLLIDING_ROWS = 512


def turned_rows(tree: PyTree) -> PyTree:
    """Return the same arrays, each matrix of many rows laid out in memory as its transpose.

    For operands of products that sum over the rows.
    """
    copies, view = _turned(tree, _has_colliding_rows)
    return view(copies)


def turned_kernels(tree: PyTree, *, rows: int) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Transpose the kernels of a loop whose products sum over their columns.

    Args:
        tree: a pytree with the kernels.
        rows: how many rows they are multiplied with at once. The product with a single one is a
            kernel's with a vector, which is faster as it lies.

    Returns:
        The transposed kernels, to be made before the loop, and a function of them that gives the
        same tree again, to be called within the loop, where it costs nothing.
    """
    return _turned(tree, lambda kernel: rows > 1)


def _turned(
    tree: PyTree, choose: Callable[[Float[Array, "..."]], bool]
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    on_cpu = jax.default_backend() == "cpu"
    chosen = jax.tree.map(lambda leaf: on_cpu and leaf.ndim == 2 and choose(leaf), tree)

    # The barrier keeps XLA from undoing one transposition with the other.
    def turn(leaf: Array, chosen: bool) -> Array:
        return lax.optimization_barrier(jnp.transpose(leaf)) if chosen else leaf

    def view(copies: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, yes: jnp.transpose(leaf) if yes else leaf, copies, chosen)

    return jax.tree.map(turn, tree, chosen), view


def _has_colliding_rows(matrix: Float[Array, "N F"]) -> bool:
    return matrix.shape[1] * matrix.dtype.itemsize % _COLLIDING_ROWS == 0
