"""How fast are jaxrnn's engines, beside other frameworks and beside the machine's own limit?

Forward runs a cell over a sequence from a zero state and returns all outputs and the last state;
gradient is that of the outputs' sum of squares with respect to parameters and inputs. Every
framework gets inputs of the same shape, on the device, in the layout that it runs fastest in, and
keeps its own biases; JAX functions are jitted. With --devices 2 the batch is divided over two
devices of the CPU too. With --against PATH: the default engine of this checkout beside that of
another one.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from scipy.stats import gmean

from experiments import _common, _timing
from experiments.benchmark import _checkouts, _options
from experiments.benchmark._contenders import (
    CONTENDERS,
    LABELS,
    STYLES,
    Problem,
    choose,
    flops,
    prepare,
)

PASSES = ("forward", "gradient")
SHAPES = [
    (96, 32, 64, 64),
    (208, 32, 128, 128),
    (512, 32, 128, 256),
    (2000, 16, 32, 100),
    (1000, 1, 64, 64),
    (128, 64, 512, 512),
]
CASE = ["cell", "pass", "T, B, I, H"]
RATIOS = ["peer/jaxrnn", "PyTorch/jaxrnn", "PyTorch/sharded"]


def matrix_peak(dtype: str) -> float:
    """Measure the operations a second of a large matrix product, the best of five."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    program = _timing.compile_jax(jnp.matmul, matrix, matrix)
    program.run()
    return 2 * size**3 / min(_timing.sample(program.run, 1) for _ in range(5))


def estimate(cases: Iterable[tuple[Problem, str]], count: int, peak: float, rounds: int) -> float:
    """Guess a run's seconds: a second to compile, then calls at an eighth of the peak."""
    return sum(
        count * (1 + (rounds + 2) * max(_timing.SHORTEST, 8 * flops(problem, pass_) / peak))
        for problem, pass_ in cases
    )


# Comparing.


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Set jaxrnn's fastest engine beside its fastest rivals, for each case that it ran in.

    Ratios are how many times faster jaxrnn is.
    """
    group = rows["contender"].map({name: row.group for name, row in CONTENDERS.items()})
    rows = rows.assign(group=group, name=rows["contender"].str.removeprefix("jaxrnn-"))
    best = rows.loc[rows.groupby([*CASE, "group"])["median_ms"].idxmin()].sort_index()
    best = best.set_index([*CASE, "group"])
    groups = ["jaxrnn", "JAX", "PyTorch", "sharded"]
    name, ms, first = (
        best[column].unstack("group", sort=False).reindex(columns=groups)
        for column in ("name", "median_ms", "first_s")
    )
    table = pd.DataFrame(
        {
            "jaxrnn": name["jaxrnn"],
            "jaxrnn ms": ms["jaxrnn"],
            "compile s": first["jaxrnn"],
            "JAX peer": name["JAX"],
            "peer ms": ms["JAX"],
            "peer's compile s": first["JAX"],
            "PyTorch ms": ms["PyTorch"],
            "peer/jaxrnn": ms["JAX"] / ms["jaxrnn"],
            "PyTorch/jaxrnn": ms["PyTorch"] / ms["jaxrnn"],
            "PyTorch/sharded": ms["PyTorch"] / ms["sharded"],
        }
    )
    return table.dropna(subset="jaxrnn ms").reset_index()


def geometric_means(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Average the ratios over shapes, for each cell and pass; nothing where one is missing."""
    cases = comparisons.groupby(["cell", "pass"], sort=False)
    return cases.size().rename("shapes").to_frame().join(cases[RATIOS].agg(gmean)).reset_index()


# Showing.


def draw(rows: pd.DataFrame, where: str) -> Any:
    """Draw a panel for each pass and cell: time for each shape, with quartiles."""
    passes, cells, shapes = (list(rows[column].unique()) for column in ("pass", "cell", CASE[-1]))
    names = [name for name in CONTENDERS if name in set(rows["contender"])]
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(
            len(passes),
            len(cells),
            figsize=(2 + 4.5 * len(cells), 1 + 3.2 * len(passes)),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for case, panel in rows.groupby(["pass", "cell"]):
            pass_, cell = map(str, case)
            axis = axes[passes.index(pass_), cells.index(cell)]
            for place, name in enumerate(names):
                shift = 0.8 * ((place + 0.5) / len(names) - 0.5)
                draw_dots(axis, panel[panel["contender"] == name], shapes, name, shift)
            axis.set(yscale="log", title=f"{LABELS[cell]}, {pass_}")
            axis.set_xticks(
                range(len(shapes)), [label.replace(", ", "\n") for label in shapes], fontsize=8
            )
            axis.grid(visible=False, axis="x")
            for edge in range(1, len(shapes)):
                axis.axvline(edge - 0.5, color="0.9", linewidth=1)
        for axis in axes[:, 0]:
            axis.set_ylabel("milliseconds")
        for axis in axes[-1]:
            axis.set_xlabel(CASE[-1])
        handles = [
            Line2D([], [], marker=STYLES[name][0], color=STYLES[name][1], linestyle="none")
            for name in names
        ]
        figure.legend(handles, names, loc="outside right center")
        # Two lines, as a device's name may be as long as a narrow figure is wide.
        figure.suptitle(f"Time of a call, median and quartiles\n{where}")
    return figure


def draw_dots(axis: Any, rows: pd.DataFrame, shapes: list[str], name: str, shift: float) -> None:
    """Draw one contender's medians, with lines from quartile to quartile."""
    marker, color = STYLES[name]
    median = rows["median_ms"]
    axis.errorbar(
        [shapes.index(label) + shift for label in rows[CASE[-1]]],
        median,
        [median - rows["lower_ms"], rows["upper_ms"] - median],
        fmt=marker,
        color=color,
        markersize=5,
        elinewidth=1,
    )


def show(rows: pd.DataFrame) -> None:
    """Print the comparisons that there are."""
    comparisons = compare(rows)
    if comparisons.empty:
        return
    print("\njaxrnn's fastest engine, the fastest other JAX contender, and PyTorch")
    _common.print_table(comparisons)
    if comparisons[["peer ms", "PyTorch ms"]].notna().any(axis=None):
        print("\ngeometric means over shapes: how many times faster jaxrnn is")
        _common.print_table(geometric_means(comparisons))


# The script.


def shape(text: str) -> tuple[int, int, int, int]:
    """Read T,B,I,H."""
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected four sizes, as in 96,32,64,64")
    return sizes


def run(arguments: argparse.Namespace, names: Sequence[str]) -> pd.DataFrame:
    """Measure the contenders on every cell, pass and shape, the quickest first."""
    peak = matrix_peak(arguments.dtype)
    print(
        f"matrix product: {peak / 1e9:.1f} GFLOP/s in {arguments.dtype}; of_peak is a share of it"
    )
    cases = [
        (Problem(cell, *sizes, dtype=arguments.dtype), pass_)
        for cell in arguments.cells
        for sizes in arguments.shapes
        for pass_ in arguments.passes
    ]
    minutes = min(estimate(cases, len(names), peak, arguments.repeats) / 60, arguments.minutes)
    print(f"{len(cases)} comparisons of {len(names)} contenders, about {minutes:.1f} minutes")

    deadline = time.perf_counter() + 60 * arguments.minutes
    shuffle = random.Random(arguments.seed)
    tables = {}
    for number, (problem, pass_) in enumerate(sorted(cases, key=lambda case: flops(*case))):
        sizes = ", ".join(map(str, problem[1:5]))
        title = f"{LABELS[problem.cell]}, {pass_}, {CASE[-1]} = {sizes}"
        print(f"\n{number + 1}/{len(cases)}: {title}", flush=True)
        programs = prepare(problem, pass_, names, arguments.seed)
        if not programs:
            continue
        budget = (deadline - time.perf_counter()) / (len(cases) - number)
        table = _timing.measure(programs, rounds=arguments.repeats, budget=budget, shuffle=shuffle)
        table["of_peak"] = flops(problem, pass_) / (table["median_ms"] / 1e3) / peak
        table["layout"] = [CONTENDERS[name].layout for name in table["contender"]]
        _common.print_table(table)
        case = dict(zip(CASE, (problem.cell, pass_, sizes), strict=True))
        tables[problem, pass_] = table.assign(**case, dtype=problem.dtype)
    if not tables:
        sys.exit("none of the contenders has any of the cells")
    rows = pd.concat([tables[case] for case in cases if case in tables], ignore_index=True)
    return rows.assign(peak_gflops=f"{peak / 1e9:.1f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Time every contender that is here, or two checkouts."""
    parser = _options.parser("shapes", __doc__)
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,I,H", help="which shapes"
    )
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=list(PASSES), help="which passes"
    )
    _options.add_cells(parser)
    _options.add_contenders(parser)
    _options.add_dtype(parser)
    parser.add_argument(
        "--against",
        type=_checkouts.checkout,
        metavar="PATH",
        help="compare this checkout with that one instead, in float32",
    )
    arguments = _common.parse(
        parser, argv, shapes=[(48, 8, 32, 32)], cells=["lstm"], repeats=3, minutes=0.2
    )
    head = _options.begin(arguments)
    if arguments.against:
        _checkouts.run(arguments, head)
        return
    rows = run(arguments, choose(arguments.contenders, arguments.dtype)).assign(**head)
    _common.save_csv(arguments.out / "shapes.csv", rows)
    _common.save_figure(arguments.out / "shapes.png", draw(rows, head["device"]))
    show(rows)


if __name__ == "__main__":
    main()
