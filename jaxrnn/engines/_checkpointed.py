"""The checkpointed engine: memory for the square root of the steps."""

import dataclasses
from typing import Any

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._chunks import scan_checkpointed, sqrt_chunk
from jaxrnn.engines._engine import Engine, checked_chunk, checked_engine, leading_shape
from jaxrnn.engines._hoisted._engine import hoisted_where_it_can


@dataclasses.dataclass(frozen=True)
class checkpointed(Engine):
    """The engine for sequences whose states don't fit into memory.

    Going forward it keeps only the state that each chunk starts from, and going back it runs each
    chunk once more. With chunks of sqrt(T) steps the gradient needs O(sqrt(T)) memory besides
    inputs and outputs, and at most another forward pass.

    Outputs are O(T) memory too if the loss uses them. One that needs only the end takes it from
    the state, which for the cells here holds the last output: XLA then keeps no outputs at all,
    where for `outputs[-1]` it keeps them all.

    Args:
        chunk: how many steps a chunk has. None takes a divisor of T near its square root. A
            remainder is compiled separately.
        engine: what runs a chunk. None takes `hoisted()` for split cells, and `scan()` for others,
            unrolled on a GPU.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(4)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((10_000, 3))
        >>> def loss(params, engine):
        ...     state, _ = jaxrnn.unroll(cell, params, xs, engine=engine)
        ...     return jnp.square(state.hidden).sum()
        >>> def memory(engine):
        ...     compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(params, engine).compile()
        ...     return compiled.memory_analysis().temp_size_in_bytes
        >>> memory(jaxrnn.engines.checkpointed()) < memory(jaxrnn.engines.hoisted()) / 5
        True

    References:
        Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016,
        section 4.
    """

    chunk: int | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        _check.optional_size("chunk", self.chunk)
        checked_engine("engine", self.engine)

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell chunk by chunk, each under `jax.checkpoint`."""
        steps = leading_shape(inputs)[0]
        chunk = self._chunk_length(steps)
        engine = self.engine or hoisted_where_it_can(cell)

        def run_chunk(state, inputs):
            final, *rest = engine(
                cell, params, state, inputs, reverse=reverse, keep_states=keep_states
            )
            return final, rest

        final, (outputs, states) = scan_checkpointed(
            run_chunk, state, inputs, steps=steps, chunk=chunk, reverse=reverse
        )
        return final, outputs, states

    def explain(self, cell: Cell, params: Any, state: Any, inputs: Any) -> str:
        """Say how long its chunks are."""
        chunk = self._chunk_length(leading_shape(inputs)[0])
        return f"chunks have {chunk} steps, and the state is kept of each chunk"

    def _chunk_length(self, steps: int) -> int:
        return checked_chunk(self.chunk, steps) or sqrt_chunk(steps)
