"""The cells, one per file.

A recurrent network repeats one step, for an Elman network

    hidden = tanh(inputs @ kernel + bias + hidden @ recurrent_kernel)

Only the second product needs the hidden state of the step before. A `SplitStep` says so, part by
part:

    project(params, inputs)            inputs @ kernel + bias       for all steps at once
    recur(params, state)               hidden @ recurrent_kernel    in the loop, step by step
    activate(params, state, gates)     tanh(gates)                  in the loop, pointwise

where `gates` is the sum of both products, or whatever `combine` makes of them. An engine that knows
the parts does as much as it can outside the loop; run one after another they are the step. A cell
that can't be split gives a function `step(params, state, inputs)` instead, and runs as well.
"""

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
