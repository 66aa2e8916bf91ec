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


def split_step(cell):
    return isinstance(cell.split_step, jaxrnn.SplitStep)


def on_two_devices(cell):
    return len(jax.devices()) >= 2


ENGINES = [
    EngineRow("scan(3)", jaxrnn.engines.scan(3), any_cell),
    EngineRow("hoisted", jaxrnn.engines.hoisted(), split_step),
    EngineRow("hoisted(2)", jaxrnn.engines.hoisted(2, keep="states"), split_step),
    EngineRow("hoisted(products)", jaxrnn.engines.hoisted(2, keep="products"), split_step),
    # Steps are left over, of the sequence for its chunks and of a chunk for its turns.
    EngineRow("hoisted(unrolled)", jaxrnn.engines.hoisted(3, unroll=2), split_step),
    EngineRow("checkpointed(2)", jaxrnn.engines.checkpointed(2), any_cell),
    EngineRow(
        "checkpointed(3, scan)", jaxrnn.engines.checkpointed(3, jaxrnn.engines.scan()), any_cell
    ),
    EngineRow("sharded", jaxrnn.engines.sharded(2), on_two_devices),
]
