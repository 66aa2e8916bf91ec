"""What does it cost to train many networks at once by `sweep`, against one by `fit`?

They learn the adding problem, with the default engine and with `scan`. Of each run a step is timed
and the whole, compilation included.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd

import jaxrnn
from experiments import _common
from experiments.benchmark import _options


class Sizes(NamedTuple):
    """How many members learn the adding problem at once, its T and B, and H of their cells."""

    members: int = 8
    length: int = 100
    batch: int = 32
    hidden: int = 32


SIZES = [Sizes(batch=1), Sizes(batch=8), Sizes(batch=32)]
# How many steps go by between two looks at the clock, as between two reports by default.
STEPS = 100
# How many looks.
REPORTS = 4


def prepare(cell: str, sizes: Sizes, seed: int) -> dict[str, Callable[[Callable[..., None]], Any]]:
    """Make what trains one network by `fit`, and many by `sweep`, and calls back now and then."""
    key = jax.random.key(seed)
    optimizer = optax.adam(1e-2)
    task = functools.partial(jaxrnn.tasks.adding, batch_size=sizes.batch, length=sizes.length)
    options: dict[str, Any] = {
        "steps": REPORTS * STEPS,
        "report_every": STEPS,
        "clip_norm": 1.0,
        "progress": False,
    }
    runs = {}
    for name, engine in {"default": None, "scan": jaxrnn.engines.scan()}.items():
        of_cell = getattr(jaxrnn, cell)(sizes.hidden)
        model = jaxrnn.serial(
            jaxrnn.rnn(of_cell, return_sequences=False, engine=engine), jaxrnn.dense(1)
        )

        def loss(params, batch, key, model=model):
            inputs, targets = batch
            return jaxrnn.losses.squared_error(model.apply(params, None, inputs)[1], targets)

        def setup(setting, key, model=model, loss=loss):
            return loss, model.init(key, 2), optimizer

        def fit(report, setup=setup):
            loss, params, optimizer = setup(None, key)
            return jaxrnn.fit(loss, params, optimizer, task, key=key, on_report=report, **options)

        def sweep(report, setup=setup):
            keys = jax.random.split(key, sizes.members)
            return jaxrnn.sweep(setup, None, task, key=keys, on_report=report, **options)

        runs |= {f"fit-{name}": fit, f"sweep-{name}": sweep}
    return runs


def measure(cell: str, sizes: Sizes, rounds: int, seed: int) -> pd.DataFrame:
    """Train one network and many in turns; return a row for each way."""
    runs = prepare(cell, sizes, seed)
    steps: dict[str, list[float]] = {name: [] for name in runs}
    wholes: dict[str, list[float]] = {name: [] for name in runs}
    # All in turn, so that whatever else the machine does hits all alike.
    for _ in range(rounds):
        for name, run in runs.items():
            times = [time.perf_counter()]
            run(lambda *_, times=times: times.append(time.perf_counter()))
            wholes[name].append(times[-1] - times[0])
            steps[name] += list(np.diff(times[1:]) / STEPS)
    step, whole = pd.DataFrame(steps).median(), pd.DataFrame(wholes).median()
    one = step.index.str.startswith("fit")
    # To train all members, `fit` has to be called for one after the other.
    every = step * np.where(one, sizes.members, 1)
    table = pd.DataFrame(
        {
            "ms a step": 1e3 * step,
            "times one": step / step[one].min(),
            "times apart": every / (sizes.members * step[one].min()),
            "whole s": whole,
            "times one whole": whole / whole[one].min(),
        }
    )
    return table.rename_axis("run").reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    """Compare training many networks at once with training one: a step of it, and the whole."""
    parser = _options.parser("sweep", __doc__)
    _options.add_cells(parser)
    parser.set_defaults(sizes=SIZES)
    arguments = _common.parse(
        parser,
        argv,
        repeats=3,
        cells=["lstm"],
        sizes=[Sizes(members=4, length=50, batch=8, hidden=16)],
    )
    head = _options.begin(arguments)
    # Each round compiles anew, and times every call many times over: hence few.
    rounds = math.ceil(arguments.repeats / 5)
    tables = []
    for cell, sizes in itertools.product(arguments.cells, arguments.sizes):
        print(f"\n{cell}, members, T, B, H = {', '.join(map(str, sizes))}", flush=True)
        table = measure(cell, sizes, rounds, arguments.seed)
        _common.print_table(table)
        tables.append(table.assign(cell=cell, **sizes._asdict()))
    _common.save_csv(arguments.out / "sweep.csv", pd.concat(tables).assign(**head))
    print(
        "\ntimes one: as long as a step of one network; times apart: to train all members, as long "
        "as one after the other by the faster fit; whole: "
        f"{REPORTS * STEPS} steps, compiled first"
    )


if __name__ == "__main__":
    main()
