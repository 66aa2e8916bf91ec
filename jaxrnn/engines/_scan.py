"""The reference engine: one `lax.scan`."""

import dataclasses
from typing import Any

from jax import lax

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._engine import Engine


@dataclasses.dataclass(frozen=True)
class Scan(Engine):
    """The engine that `scan` makes."""

    unroll: int

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell in one scan."""

        def body(state, inputs):
            state, output = cell.advance(params, state, inputs)
            return state, (output, state if keep_states else None)

        state, (outputs, states) = lax.scan(
            body, state, inputs, reverse=reverse, unroll=self.unroll
        )
        return state, outputs, states


def scan(unroll: int = 1) -> Scan:
    """Make the reference engine: plain `lax.scan`, which every other engine must agree with.

    Any cell, any order of derivative, forward and reverse mode, `vmap` over anything.

    Args:
        unroll: how many steps the compiled loop's body holds. More compile longer, most of all if T
            is no multiple, as the steps left over are compiled for themselves. On a GPU 8 run in
            half the time; on a CPU it rarely gains.

    Returns:
        An engine for `unroll(..., engine=...)`.

    Raises:
        TypeError: if `unroll` is not an integer.
        ValueError: if it is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((9, 3)), engine=jaxrnn.engines.scan(4))
        >>> outputs.shape
        (9, 4)
    """
    return Scan(_check.size("unroll", unroll))
