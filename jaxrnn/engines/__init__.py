"""The engines, one a file: each computes the same function of a cell in its own way."""

from jaxrnn.engines._checkpointed import Checkpointed, checkpointed
from jaxrnn.engines._choice import EngineChoice, choose_engine
from jaxrnn.engines._engine import Engine, checked_engine
from jaxrnn.engines._hoisted import Hoisted, hoisted
from jaxrnn.engines._scan import Scan, scan
from jaxrnn.engines._sharded import Sharded, sharded

__all__ = [
    "Checkpointed",
    "Engine",
    "EngineChoice",
    "Hoisted",
    "Scan",
    "Sharded",
    "checked_engine",
    "checkpointed",
    "choose_engine",
    "hoisted",
    "scan",
    "sharded",
]
