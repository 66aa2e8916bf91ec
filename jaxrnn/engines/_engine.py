"""What an engine is: a value that runs a cell over a sequence in its own way."""

import abc
from typing import Any

import jax
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell

# How many steps the body of a compiled loop is best given, on backends where that is more than 1. A
# GPU takes as long as it takes to start kernels: one then stores the results of so many steps. With
# 16 a gradient gains another twentieth, and compiles for 1.6 times as long.
_UNROLL = {"gpu": 8}


class Engine(abc.ABC):
    """A way to run a cell over a sequence, made by a constructor that holds its options.

    Engines are frozen and compare by value, so that equal ones compile once.
    """

    @abc.abstractmethod
    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Return the final state, every step's output, and every step's state or None.

        Arguments have been checked. Inputs are an array `(T, *batch, I)`, or a pytree of such.
        """


def leading_shape(inputs: PyTree) -> tuple[int, ...]:
    """Return the shape `(T, *batch)` of inputs."""
    return jax.tree.leaves(inputs)[0].shape[:-1]


def size_in_bytes(tree: PyTree) -> int:
    """Return how much memory arrays take, or those that have such shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def checked_engine(engine: Any) -> Engine | None:
    """Return `engine`, an engine, or None for whichever is chosen."""
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(
            f"engine: got {_check.describe(engine)}, expected one such as jaxrnn.engines.scan()"
        )
    return engine


def checked_chunk(chunk: int | None, steps: int) -> int | None:
    """Return `chunk`, None or no longer than the sequence; one of no steps has chunks of any."""
    if chunk is not None and chunk > steps > 0:
        raise ValueError(
            f"chunk: got {chunk} for inputs of {steps} steps, expected at most {steps}; "
            "None chooses, as does an engine without chunks, scan()"
        )
    return chunk


def default_unroll() -> int:
    """Return how many steps the body of a compiled loop is best given on this backend."""
    return _UNROLL.get(jax.default_backend(), 1)
