"""What an engine is: a value that runs a cell over a sequence in its own way."""

import abc
from typing import Any

from jaxrnn._cell import Cell


class Engine(abc.ABC):
    """A way to run a cell over a sequence, made by a constructor that holds its options.

    Engines are frozen and compare by value, so that equal ones compile once.
    """

    @abc.abstractmethod
    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Return the final state, every step's output, and every step's state or None.

        Arguments have been checked, and time is the first axis of inputs.
        """
