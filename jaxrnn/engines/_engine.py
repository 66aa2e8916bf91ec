"""What an engine is: a value that runs a cell over a sequence in its own way."""

import abc
from typing import Any

import jax
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell

# How many steps a compiled loop's body should hold, on backends where that is more than 1. On a
# GPU, launching kernels dominates; with this many steps per iteration one launch stores all their
# results. With 16 a gradient gains another twentieth, and compiles for 1.6 times as long.
_UNROLL = {"gpu": 8}


class Engine(abc.ABC):
    """A way to run a cell over a sequence, with its options.

    Engines are frozen dataclasses and compare by value, so that equal ones compile once. Each is
    named in lower case, since it is called like a function: `unroll(..., engine=scan(4))`.

    Example:
        An engine that runs another, and counts its calls:

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> calls = []
        >>> @dataclasses.dataclass(frozen=True)
        ... class counting(jaxrnn.engines.Engine):
        ...     engine: jaxrnn.engines.Engine = jaxrnn.engines.scan()
        ...     def __call__(self, cell, params, state, inputs, **options):
        ...         calls.append(cell.name)
        ...         return self.engine(cell, params, state, inputs, **options)
        >>> cell = jaxrnn.elman(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> state, _ = jaxrnn.unroll(cell, params, jnp.ones((9, 3)), engine=counting())
        >>> calls
        ['elman']
    """

    @abc.abstractmethod
    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Return the final state, every step's output, and every step's state or None.

        Arguments have been checked. Inputs are an array `(T, *batch, I)`, or a pytree of such.
        """

    def explain(self, cell: Cell, params: Any, state: Any, inputs: Any) -> str:
        """Say in how large chunks it runs, and what it keeps of them for a gradient."""
        del cell, params, state, inputs
        return "what a step's derivatives need is kept of each"


def leading_shape(inputs: PyTree) -> tuple[int, ...]:
    """Return the shape `(T, *batch)` of inputs."""
    return jax.tree.leaves(inputs)[0].shape[:-1]


def size_in_bytes(tree: PyTree) -> int:
    """Return how much memory arrays take, or those that have such shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def checked_engine(name: str, value: Any) -> Engine | None:
    """Return `value`, an engine, or None for whichever is chosen."""
    if value is not None and not isinstance(value, Engine):
        raise TypeError(
            f"{name}: got {_check.describe(value)}, expected one such as jaxrnn.engines.scan()"
        )
    return value


def checked_chunk(chunk: int | None, steps: int) -> int | None:
    """Return `chunk`, None or at most the sequence length; empty sequences accept any."""
    if chunk is None or (is_static(steps) and steps == 0):
        return chunk
    if not is_static(steps):
        raise ValueError(f"chunk: got {chunk} for inputs of {steps} steps, expected None")
    if chunk > steps:
        raise ValueError(
            f"chunk: got {chunk} for inputs of {steps} steps, expected at most {steps}; "
            "None chooses, as does an engine without chunks, scan()"
        )
    return chunk


def is_static(*sizes: Any) -> bool:
    """Return whether sizes are numbers; `jax.export` may leave some open."""
    return all(isinstance(size, int) for size in sizes)


def default_unroll() -> int:
    """Return how many steps the body of a compiled loop should hold on this backend."""
    return _UNROLL.get(jax.default_backend(), 1)
