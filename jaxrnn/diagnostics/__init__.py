"""The gradient-flow laboratory: pure functions that measure how gradients pass through time."""

from jaxrnn.diagnostics._gradients import gradient_norms, state_gradients

__all__ = ["gradient_norms", "state_gradients"]
