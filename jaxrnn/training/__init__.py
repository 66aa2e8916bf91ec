"""Training with optax: one step as a pure function, and a loop of many steps in one program."""

from jaxrnn.training._checkpoints import Checkpoints
from jaxrnn.training._fit import fit
from jaxrnn.training._metrics import metrics_writer
from jaxrnn.training._result import FitResult, NonFiniteError
from jaxrnn.training._step import Metrics, TrainState, init_train_state, train_step

__all__ = [
    "Checkpoints",
    "FitResult",
    "Metrics",
    "NonFiniteError",
    "TrainState",
    "fit",
    "init_train_state",
    "metrics_writer",
    "train_step",
]
