"""The gradient-flow laboratory: pure functions that measure how gradients pass through time."""

from jaxrnn.diagnostics._gradients import gradient_norms, state_gradients
from jaxrnn.diagnostics._lyapunov import (
    LyapunovSpectrum,
    entropy_rate,
    kaplan_yorke_dimension,
    lyapunov_exponents,
)

__all__ = [
    "LyapunovSpectrum",
    "entropy_rate",
    "gradient_norms",
    "kaplan_yorke_dimension",
    "lyapunov_exponents",
    "state_gradients",
]
