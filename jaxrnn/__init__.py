"""Recurrent networks as pure functions in JAX, with diagnostics for how their gradients flow."""

import sys
from types import ModuleType

from jaxrnn import (
    cells,
    diagnostics,
    engines,
    initializers,
    layers,
    losses,
    plots,
    regularizers,
    tasks,
    testing,
    training,
    wrappers,
)
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._unroll import unroll
from jaxrnn._unroll_loss import unroll_loss
from jaxrnn.cells import elman, gru, lstm
from jaxrnn.layers import Layer, bidirectional, dense, dropout, embedding, rnn, serial
from jaxrnn.training import fit, sweep, train_step

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Layer",
    "SplitStep",
    "bidirectional",
    "cells",
    "dense",
    "diagnostics",
    "dropout",
    "elman",
    "embedding",
    "engines",
    "fit",
    "gru",
    "initializers",
    "layers",
    "losses",
    "lstm",
    "plots",
    "regularizers",
    "rnn",
    "serial",
    "sweep",
    "tasks",
    "testing",
    "train_step",
    "training",
    "unroll",
    "unroll_loss",
    "wrappers",
]


def _show_public_names(module: ModuleType) -> None:
    """Make `dir` of a module, and so completion, show what its `__all__` names."""
    vars(module)["__dir__"] = lambda: sorted(module.__all__)


for _value in (sys.modules[__name__], *map(globals().get, __all__)):
    if isinstance(_value, ModuleType):
        _show_public_names(_value)
