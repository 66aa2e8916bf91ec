"""Training with optax: one step as a pure function, and a loop of many steps in one program."""

from jaxrnn.training._checkpoints import Checkpoints
from jaxrnn.training._fit import fit
from jaxrnn.training._metrics import metrics_writer
from jaxrnn.training._result import FitResult, NonFiniteError
from jaxrnn.training._step import Metrics, TrainState, init_train_state, train_step
from jaxrnn.training._sweep import sweep
from jaxrnn.training._truncated import (
    TruncatedCarry,
    TruncatedLoss,
    truncated_gradient,
    truncated_loss,
)

__all__ = [
    "Checkpoints",
    "FitResult",
    "Metrics",
    "NonFiniteError",
    "TrainState",
    "TruncatedCarry",
    "TruncatedLoss",
    "fit",
    "init_train_state",
    "metrics_writer",
    "sweep",
    "train_step",
    "truncated_gradient",
    "truncated_loss",
]
