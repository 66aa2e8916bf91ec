"""The table of engines: each is tested on every cell against the reference, `scan()`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest

import jaxrnn

ON_A_CPU = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="is about a CPU's caches, and XLA's programs for it"
)


class EngineRow(NamedTuple):
    """An engine, and whether it can run a cell."""

    name: str
    engine: object
    runs: Callable[[jaxrnn.Cell], bool]


def any_cell(cell):
    return True


def gated(cell):
    return isinstance(cell.structure, jaxrnn.Gated)


def on_two_devices(cell):
    return len(jax.devices()) >= 2


ENGINES = [
    EngineRow("scan(3)", jaxrnn.scan(3), any_cell),
    EngineRow("hoisted", jaxrnn.hoisted(), gated),
    EngineRow("hoisted(2)", jaxrnn.hoisted(2, keep="states"), gated),
    EngineRow("hoisted(products)", jaxrnn.hoisted(2, keep="products"), gated),
    # Steps are left over, of the sequence for its chunks and of a chunk for its turns.
    EngineRow("hoisted(unrolled)", jaxrnn.hoisted(3, unroll=2), gated),
    EngineRow("checkpointed(2)", jaxrnn.checkpointed(2), any_cell),
    EngineRow("checkpointed(3, scan)", jaxrnn.checkpointed(3, jaxrnn.scan()), any_cell),
    EngineRow("sharded", jaxrnn.sharded(2), on_two_devices),
]
