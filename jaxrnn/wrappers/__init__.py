"""The wrappers, one a file: cells to cells."""

from jaxrnn.wrappers._layer_norm import LayerNormParams, layer_norm
from jaxrnn.wrappers._learned_initial_state import LearnedInitialStateParams, learned_initial_state
from jaxrnn.wrappers._projection import ProjectionParams, projection
from jaxrnn.wrappers._recurrent_dropout import recurrent_dropout
from jaxrnn.wrappers._residual import residual
from jaxrnn.wrappers._state_noise import state_noise
from jaxrnn.wrappers._zoneout import zoneout

__all__ = [
    "LayerNormParams",
    "LearnedInitialStateParams",
    "ProjectionParams",
    "layer_norm",
    "learned_initial_state",
    "projection",
    "recurrent_dropout",
    "residual",
    "state_noise",
    "zoneout",
]
