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
from jaxtyping import Float, PyTree

from jaxrnn._types import Array

# Rows of a multiple of so many bytes start in the same lines of the cache, time and again.
_COLLIDING_ROWS = 512


def transposed_rows(rows: Float[Array, "N F"]) -> Float[Array, "N F"]:
    """Return the same matrix, laid out as its transpose if a product sums over its rows faster."""
    collide = rows.shape[1] * rows.dtype.itemsize % _COLLIDING_ROWS == 0
    return jnp.transpose(_transposed(rows)) if _on_cpu() and collide else rows


def transposed_kernels(
    params: PyTree, *, batched: bool
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Transpose the kernels of a loop whose products sum over their columns.

    Args:
        params: a pytree with the kernels.
        batched: whether they are multiplied with several rows at once. The product with a single
            one is a kernel's with a vector, which is faster as it lies.

    Returns:
        The transposed kernels, to be made before the loop, and a function of them that gives the
        params again, to be called within the loop, where it costs nothing.
    """
    chosen = jax.tree.map(lambda leaf: _on_cpu() and batched and leaf.ndim == 2, params)

    def restored(kernels: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, yes: jnp.transpose(leaf) if yes else leaf, kernels, chosen)

    kernels = jax.tree.map(lambda leaf, yes: _transposed(leaf) if yes else leaf, params, chosen)
    return kernels, restored


# The barrier keeps XLA from undoing one transposition with the other.
def _transposed(matrix: Float[Array, "N F"]) -> Float[Array, "F N"]:
    return lax.optimization_barrier(jnp.transpose(matrix))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
