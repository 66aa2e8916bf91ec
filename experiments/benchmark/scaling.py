"""How do time and memory of jaxrnn's gradient grow with the length of the sequence?

An LSTM, B = 1, I = 8, H = 64, and a loss on its last output.
"""

import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import pandas as pd

import jaxrnn
from experiments import _common, _timing
from experiments._timing import Program, compile_jax
from experiments.benchmark import _options
from experiments.benchmark._contenders import CONTENDERS, ENGINES, STYLES, choose

LENGTHS = [100, 1000, 10_000, 100_000, 1_000_000]


def prepare(name: str, length: int, dtype: str, seed: int) -> Program:
    """Compile the gradient, with respect to parameters, of a loss on an LSTM's last output.

    The last output is taken from the state, where it stands too: `outputs[-1]` would make XLA keep
    all outputs, and as many zeros for their cotangents.
    """
    cell = jaxrnn.lstm(64)
    params = cell.init(jax.random.key(seed), 8, dtype=dtype)
    inputs = jax.random.normal(jax.random.key(seed), (length, 1, 8), dtype)
    engine = ENGINES[name.removeprefix("jaxrnn-")]

    def loss(params, inputs):
        state, _ = jaxrnn.unroll(cell, params, inputs, engine=engine)
        return (state.hidden**2).sum()

    return compile_jax(jax.grad(loss), params, inputs)


def drop_large(programs: Mapping[str, Program], limit: float) -> dict[str, Program]:
    """Leave out, with a line for each, the programs that need more than `limit` GiB."""
    kept = dict(programs)
    for name, program in programs.items():
        need = (program.temporary or 0) / 2**30
        if need > limit:
            print(f"left out: {name} needs {need:.1f} GiB")
            del kept[name]
    return kept


def draw(rows: pd.DataFrame, where: str) -> Any:
    """Draw time and temporary memory against the length."""
    panels = {"median_ms": "milliseconds", "temporary_MiB": "temporary memory, MiB"}
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for (column, label), axis in zip(panels.items(), axes, strict=True):
            for name, line in rows.dropna(subset=column).groupby("contender", sort=False):
                marker, color = STYLES[str(name)]
                axis.plot(line["length"], line[column], marker=marker, color=color, label=name)
            axis.set(xscale="log", yscale="log", xlabel="T, steps", ylabel=label)
        axes[0].legend()
        figure.suptitle(
            f"Gradient of a loss on the last output, LSTM, B = 1, I = 8, H = 64\n{where}"
        )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure jaxrnn's contenders on ever longer sequences."""
    positive = _common.positive
    parser = _options.parser("scaling", __doc__)
    _options.add_contenders(parser)
    _options.add_dtype(parser)
    parser.add_argument("--lengths", nargs="+", type=positive(int), default=LENGTHS, help="T")
    parser.add_argument(
        "--memory", type=positive(float), default=4.0, help="GiB that a program may take"
    )
    arguments = _common.parse(parser, argv, repeats=3, minutes=0.2, lengths=[100, 1000, 10_000])
    head = _options.begin(arguments)
    names = [name for name in arguments.contenders if CONTENDERS[name].group == "jaxrnn"]
    names = choose(names, arguments.dtype)

    deadline = time.perf_counter() + 60 * arguments.minutes
    shuffle = random.Random(arguments.seed)
    tables = []
    for number, length in enumerate(sorted(arguments.lengths)):
        print(f"\nT = {length:,}", flush=True)
        programs = {name: prepare(name, length, arguments.dtype, arguments.seed) for name in names}
        programs = drop_large(programs, arguments.memory)
        if not programs:
            continue
        budget = (deadline - time.perf_counter()) / (len(arguments.lengths) - number)
        table = _timing.measure(programs, rounds=arguments.repeats, budget=budget, shuffle=shuffle)
        _common.print_table(table)
        tables.append(table.assign(length=length, dtype=arguments.dtype))
    if not tables:
        sys.exit("nothing was measured: choose a greater --memory")
    rows = pd.concat(tables, ignore_index=True).assign(**head)
    _common.save_csv(arguments.out / "scaling.csv", rows)
    _common.save_figure(arguments.out / "scaling.png", draw(rows, head["device"]))


if __name__ == "__main__":
    main()
