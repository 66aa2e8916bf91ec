"""The gradient-flow laboratory: pure functions that measure how gradients pass through time."""

from jaxrnn.diagnostics._causes import (
    GateStatistics,
    gate_statistics,
    pascanu_bound,
    saturation,
    spectral_radius,
)
from jaxrnn.diagnostics._format import Finding, GradientReport, LayerReport
from jaxrnn.diagnostics._gradients import gradient_norms, state_gradients
from jaxrnn.diagnostics._horizon import GradientHorizon, gradient_horizon
from jaxrnn.diagnostics._jacobian import jacobian_spectrum
from jaxrnn.diagnostics._lyapunov import (
    LyapunovSpectrum,
    entropy_rate,
    kaplan_yorke_dimension,
    lyapunov_exponents,
)
from jaxrnn.diagnostics._report import report

__all__ = [
    "Finding",
    "GateStatistics",
    "GradientHorizon",
    "GradientReport",
    "LayerReport",
    "LyapunovSpectrum",
    "entropy_rate",
    "gate_statistics",
    "gradient_horizon",
    "gradient_norms",
    "jacobian_spectrum",
    "kaplan_yorke_dimension",
    "lyapunov_exponents",
    "pascanu_bound",
    "report",
    "saturation",
    "spectral_radius",
    "state_gradients",
]
