"""The hoisted engine, a module per idea: the plan, both passes, and the rule that joins them."""

from jaxrnn.engines._hoisted._engine import hoisted

__all__ = ["hoisted"]
