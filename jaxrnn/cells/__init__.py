"""The cells, one a file."""

from jaxrnn._cell import NoisyInputs
from jaxrnn.cells._elman import ElmanParams, ElmanState, elman
from jaxrnn.cells._gru import GRUParams, GRUState, gru
from jaxrnn.cells._lstm import LSTMParams, LSTMState, lstm
from jaxrnn.cells._peephole_lstm import PeepholeLSTMParams, peephole_lstm

__all__ = [
    "ElmanParams",
    "ElmanState",
    "GRUParams",
    "GRUState",
    "LSTMParams",
    "LSTMState",
    "NoisyInputs",
    "PeepholeLSTMParams",
    "elman",
    "gru",
    "lstm",
    "peephole_lstm",
]
