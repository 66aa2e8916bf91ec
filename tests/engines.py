"""The table of engines: each is tested on every cell against the reference, `scan()`."""

from collections.abc import Callable
from typing import NamedTuple

import jaxrnn


class EngineRow(NamedTuple):
    """An engine, and whether it can run a cell."""

    name: str
    engine: object
    runs: Callable[[jaxrnn.Cell], bool]


def any_cell(cell):
    return True


def gated(cell):
    return isinstance(cell.structure, jaxrnn.Gated)


ENGINES = [
    EngineRow("scan(3)", jaxrnn.scan(3), any_cell),
    EngineRow("hoisted", jaxrnn.hoisted(), gated),
]
