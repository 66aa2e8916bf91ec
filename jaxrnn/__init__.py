"""Recurrent networks as pure functions in JAX, and the laboratory for their gradients."""

from jaxrnn import diagnostics, initializers, losses, plots, regularizers, tasks
from jaxrnn._cell import Cell, Gated
from jaxrnn._training import (
    FitResult,
    Metrics,
    NonFiniteError,
    TrainState,
    fit,
    init_train_state,
    train_step,
)
from jaxrnn._unroll import unroll
from jaxrnn._unroll_loss import unroll_loss
from jaxrnn.cells import (
    ElmanParams,
    ElmanState,
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    PeepholeLSTMParams,
    elman,
    gru,
    lstm,
    peephole_lstm,
)
from jaxrnn.engines import EngineChoice, checkpointed, choose_engine, hoisted, scan, sharded
from jaxrnn.layers import (
    DenseParams,
    Layer,
    bidirectional,
    dense,
    dropout,
    embedding,
    residual,
    rnn,
    serial,
)

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "DenseParams",
    "ElmanParams",
    "ElmanState",
    "EngineChoice",
    "FitResult",
    "GRUParams",
    "GRUState",
    "Gated",
    "LSTMParams",
    "LSTMState",
    "Layer",
    "Metrics",
    "NonFiniteError",
    "PeepholeLSTMParams",
    "TrainState",
    "bidirectional",
    "checkpointed",
    "choose_engine",
    "dense",
    "diagnostics",
    "dropout",
    "elman",
    "embedding",
    "fit",
    "gru",
    "hoisted",
    "init_train_state",
    "initializers",
    "losses",
    "lstm",
    "peephole_lstm",
    "plots",
    "regularizers",
    "residual",
    "rnn",
    "scan",
    "serial",
    "sharded",
    "tasks",
    "train_step",
    "unroll",
    "unroll_loss",
]
