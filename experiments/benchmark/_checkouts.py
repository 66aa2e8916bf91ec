"""Two checkouts of jaxrnn in one run: `base`, the other one, and `new`, this one.

A process works for each, and only one of them at a time. In every round both are timed one right
after the other, in a random order, and a ratio is the median of such neighbours': so whatever else
the machine does hits both alike.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import gmean

import experiments
from experiments import _common, _timing

HERE = Path(experiments.__path__[0]).parent
COMPILES = 3
# How many times faster the new one is, and how much more it needs.
SPEEDS = ["speed", "speed at best"]
COSTS = ["memory", "compile"]


def checkout(text: str) -> Path:
    """Read a folder with a jaxrnn, an argument's type."""
    path = Path(text).resolve()
    if not (path / "jaxrnn" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"got {text}, expected a checkout of jaxrnn")
    return path


class Worker:
    """A process that times one checkout; a method's name and arguments are its request."""

    def __init__(self, path: Path):
        self.path = path
        self.process = subprocess.Popen(
            # The script's own folder, whose modules have common names, is not on the path.
            [sys.executable, "-P", Path(__file__).with_name("_worker.py"), path],
            env=os.environ | {"PYTHONPATH": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, request: str, *arguments: Any) -> Any:
        """Return the answer to a request.

        Raises:
            SystemExit: if the process has ended; its own message says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([request, arguments]), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            sys.exit(f"the process that timed {self.path} ended")
        return json.loads(answer)


@contextlib.contextmanager
def working(paths: dict[str, Path]) -> Iterator[dict[str, Worker]]:
    """Start a worker for each checkout, and end them all."""
    workers = {name: Worker(path) for name, path in paths.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.communicate()


def measure(
    workers: dict[str, Worker],
    cell: str,
    sizes: tuple[int, ...],
    arguments: argparse.Namespace,
    shuffle: random.Random,
) -> list[dict[str, Any]]:
    """Compare the workers on one cell and shape; return a row for each pass."""

    def in_turn() -> list[tuple[str, Worker]]:
        return shuffle.sample(list(workers.items()), len(workers))

    request = ("build", cell, sizes, arguments.passes, COMPILES, arguments.seed, _timing.SHORTEST)
    costs = {name: worker(*request) for name, worker in in_turn()}
    rows = []
    for pass_ in arguments.passes:
        calls = max(costs[name][pass_]["calls"] for name in workers)
        rounds = pd.DataFrame(
            {name: worker("sample", pass_, calls) for name, worker in in_turn()}
            for _ in range(arguments.repeats)
        )
        memory = {name: costs[name][pass_]["temporary"] for name in workers}
        compile_s = {name: statistics.median(costs[name][pass_]["compile_s"]) for name in workers}
        milliseconds = 1e3 * rounds.median()
        best = rounds.min()
        rows.append(
            {
                "cell": cell,
                "pass": pass_,
                "T, B, I, H": ", ".join(map(str, sizes)),
                "base ms": milliseconds["base"],
                "new ms": milliseconds["new"],
                "speed": (rounds["base"] / rounds["new"]).median(),
                "speed at best": best["base"] / best["new"],
                "base MiB": memory["base"] / 2**20,
                "new MiB": memory["new"] / 2**20,
                # A byte more each, as some programs need none.
                "memory": (memory["new"] + 1) / (memory["base"] + 1),
                "base compile s": compile_s["base"],
                "new compile s": compile_s["new"],
                "compile": compile_s["new"] / compile_s["base"],
            }
        )
    return rows


def geometric_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Average ratios over shapes for each pass and cell, and over all cells; and find the worst."""
    ratios = [*SPEEDS, *COSTS]
    mean = dict.fromkeys(ratios, gmean)
    worst = dict.fromkeys(SPEEDS, "min") | dict.fromkeys(COSTS, "max")
    passes = rows.groupby("pass", sort=False)
    tables = [
        rows.groupby(["pass", "cell"], sort=False).agg(mean).reset_index(),
        passes.agg(mean).reset_index().assign(cell="all"),
        passes.agg(worst).reset_index().assign(cell="the worst"),
    ]
    return pd.concat(tables).sort_values("pass", kind="stable", ignore_index=True)


def run(arguments: argparse.Namespace, head: dict[str, str]) -> None:
    """Compare this checkout with another one on every cell, shape and pass."""
    shuffle = random.Random(arguments.seed)
    rows = []
    with working({"base": arguments.against, "new": HERE}) as workers:
        for sizes, cell in itertools.product(arguments.shapes, arguments.cells):
            measured = measure(workers, cell, sizes, arguments, shuffle)
            print(flush=True)
            _common.print_table(measured)
            rows += measured
    table = pd.DataFrame(rows)
    _common.save_csv(arguments.out / "against.csv", table.assign(**head))
    print(
        "\ngeometric means over shapes; speed: how many times faster the new checkout is; memory "
        "and compile: how many times as much it needs"
    )
    _common.print_table(geometric_means(table))
