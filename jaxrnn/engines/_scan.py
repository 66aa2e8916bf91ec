"""The reference engine: one `lax.scan`."""

import dataclasses
from typing import Any

from jax import lax

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._engine import Engine


@dataclasses.dataclass(frozen=True)
class scan(Engine):
    """The reference engine: plain `lax.scan`, which every other engine must agree with.

    Use it for forward mode, and to compare with. It runs any cell, in every mode and order of
    differentiation, under `vmap` over anything.

    Args:
        unroll: how many steps the compiled loop's body holds. More compile longer, most of all if T
            is no multiple, as the remainder is compiled separately. On a GPU 8 run in half the
            time; on a CPU it rarely gains.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(4)
        >>> params, engine = cell.init(jax.random.key(0), 3), jaxrnn.engines.scan(unroll=4)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((9, 3)), engine=engine)
        >>> outputs.shape
        (9, 4)
    """

    unroll: int = 1

    def __post_init__(self) -> None:
        _check.size("unroll", self.unroll)

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
