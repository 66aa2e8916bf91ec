"""The engines, one per file or wing: each computes the same function of a cell in its own way."""

from jaxrnn.engines._checkpointed import checkpointed
from jaxrnn.engines._choice import EngineChoice, choose_engine
from jaxrnn.engines._engine import Engine
from jaxrnn.engines._hoisted import hoisted
from jaxrnn.engines._scan import scan
from jaxrnn.engines._sharded import sharded

__all__ = [
    "Engine",
    "EngineChoice",
    "checkpointed",
    "choose_engine",
    "hoisted",
    "scan",
    "sharded",
]
