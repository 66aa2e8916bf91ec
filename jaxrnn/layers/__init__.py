"""The layers, one a file: sequences to sequences, composed above `unroll`."""

from jaxrnn._layer import Layer
from jaxrnn.layers._bidirectional import bidirectional
from jaxrnn.layers._dense import DenseParams, dense
from jaxrnn.layers._describe import describe
from jaxrnn.layers._dropout import dropout
from jaxrnn.layers._embedding import embedding
from jaxrnn.layers._residual import residual
from jaxrnn.layers._rnn import rnn
from jaxrnn.layers._serial import serial

__all__ = [
    "DenseParams",
    "Layer",
    "bidirectional",
    "dense",
    "describe",
    "dropout",
    "embedding",
    "residual",
    "rnn",
    "serial",
]
