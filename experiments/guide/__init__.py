"""The guide: pages whose code runs, block after block, in one namespace.

`python -m experiments.guide` runs every page and draws its pictures anew, beside it.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

PAGES = sorted(Path(__file__).parent.glob("*.md"))


class Block(NamedTuple):
    """A fenced block of a page; its language is empty for what the code above it prints."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks in their order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(*found) for found in fenced]


def run(page: Path) -> list[tuple[Block, str]]:
    """Run a page's Python in this folder, and return each block with what it printed."""
    namespace: dict[str, Any] = {}
    printed = []
    for number, block in enumerate(blocks(page)):
        output = io.StringIO()
        if block.language == "python":
            code = compile(block.text, f"{page.name} block {number}", "exec")
            with contextlib.redirect_stdout(output):
                exec(code, namespace)
        printed.append((block, output.getvalue()))
    return printed
