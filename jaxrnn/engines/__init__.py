"""The engines, one a file: each computes the same function of a cell in its own way."""

from jaxrnn.engines._engine import Engine
from jaxrnn.engines._hoisted import Hoisted, hoisted
from jaxrnn.engines._scan import Scan, scan

__all__ = ["Engine", "Hoisted", "Scan", "hoisted", "scan"]
