"""What training returns, and what it raises where there is nothing good to return."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree


class FitResult(NamedTuple):
    """What `fit` returns: the trained parameters, and each step's loss and global gradient norm."""

    params: PyTree
    optimizer_state: PyTree
    carry: PyTree
    losses: Float[np.ndarray, "*members steps"]
    gradient_norms: Float[np.ndarray, "*members steps"]

    @property
    def skipped(self) -> Int[np.ndarray, "*members"]:
        """How many steps changed nothing, since loss or gradient was not finite.

        Of a sweep that is a number for each member, with the steps after it has stopped.
        """
        finite = np.isfinite(self.losses) & np.isfinite(self.gradient_norms)
        return np.sum(~finite, axis=-1)


class NonFiniteError(FloatingPointError):
    """Raised by `fit` when a loss, gradient or update is not finite.

    Attributes:
        result: a `FitResult` with the last good parameters, and the history with the bad step last.
        step: the number of the bad step, from 0.
        leaf: what went bad first: "the loss", "the gradient of params['kernel']", "the gradient's
            norm" or "the update of params['kernel']".
    """

    def __init__(self, message: str, result: FitResult, step: int, leaf: str):
        super().__init__(message)
        self.result = result
        self.step = step
        self.leaf = leaf

    def __reduce__(self) -> Any:
        return type(self), (*self.args, self.result, self.step, self.leaf)
