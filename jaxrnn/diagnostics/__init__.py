"""The gradient-flow laboratory: pure functions that measure how gradients pass through time."""

from jaxrnn.diagnostics._gradients import gradient_norms, state_gradients
from jaxrnn.diagnostics._horizon import GradientHorizon, gradient_horizon
from jaxrnn.diagnostics._jacobian import jacobian_spectrum
from jaxrnn.diagnostics._lyapunov import (
    LyapunovSpectrum,
    entropy_rate,
    kaplan_yorke_dimension,
    lyapunov_exponents,
)

__all__ = [
    "GradientHorizon",
    "LyapunovSpectrum",
    "entropy_rate",
    "gradient_horizon",
    "gradient_norms",
    "jacobian_spectrum",
    "kaplan_yorke_dimension",
    "lyapunov_exponents",
    "state_gradients",
]
