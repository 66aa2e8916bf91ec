"""A learned initial state: what a sequence starts from is a parameter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, checked_cell
from jaxrnn._memoize import memoized
from jaxrnn.wrappers._wrap import inner_step


class LearnedInitialStateParams(NamedTuple):
    """A cell's params, and the state that each sequence starts from, without batch dimensions.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.wrappers.learned_initial_state(jaxrnn.gru(64))
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> params.initial_state.hidden.shape
        (64,)
    """

    cell: Any
    initial_state: Any


def learned_initial_state(cell: Cell) -> Cell:
    """Learned initial state: params hold the state that a sequence starts from.

        params.initial_state = cell.initial_state(), at first
        state[-1] = params.initial_state, the same for each sequence

    Wherever no state is given, and at resets, sequences start from it, and its gradient is the sum
    of theirs. `initial_state` needs the params then: `cell.initial_state((16,), params=params)`.

    Args:
        cell: any cell.

    Returns:
        A cell with the same state, whose params are a `LearnedInitialStateParams`.

    Raises:
        TypeError: in `initial_state`, without params or with those of another cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.learned_initial_state(jaxrnn.gru(4))
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 16, 3))
        >>> def loss(params):
        ...     return jaxrnn.unroll(cell, params, xs)[1].sum()
        >>> jax.grad(loss)(params).initial_state.hidden.shape
        (4,)

    References:
        Hinton's lectures, "Neural networks for machine learning", 2012, lecture 7b (learning the
        initial states).
    """
    return _learned_initial_state(checked_cell("cell", cell))


@memoized()
def _learned_initial_state(cell: Cell) -> Cell:
    name = f"learned_initial_state({cell.name})"

    def init(key: jax.Array, input_size: int, dtype: Any) -> LearnedInitialStateParams:
        params = cell.init(key, input_size, dtype=dtype)
        return LearnedInitialStateParams(params, cell.initial_state(dtype=dtype, params=params))

    def learned_state(params: Any, batch_shape: tuple[int, ...], dtype: Any) -> PyTree:
        if not isinstance(params, LearnedInitialStateParams):
            raise TypeError(
                f"params: got {_check.describe(params)}, expected a LearnedInitialStateParams for "
                f"{name}"
            )
        state = params.initial_state
        _check.same_spec("params.initial_state", state, cell.state_spec((), dtype), f"for {name}")
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape)), state)

    return cell.replace(init=init, step=inner_step(cell), learned_state=learned_state, name=name)
