"""Write the measured tables as Markdown, from the CSV files that the benchmarks left in --out.

They replace what stands between two markers in a page; those whose CSV file isn't there are left
out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import experiments
from experiments import _common
from experiments.benchmark import _checkouts, shapes

BEGIN = "<!-- benchmark:begin -->"
END = "<!-- benchmark:end -->"
PAGE = Path(experiments.__path__[0]) / "README.md"
# Columns of `_timing.measure`, and what they are called on the page.
MEASURED = {"median_ms": "ms", "first_s": "compile s", "temporary_MiB": "MiB"}


class Section(NamedTuple):
    """Tables of one CSV file: `tables(rows)` are a sentence and a table each."""

    file: str
    command: str
    title: str
    tables: Callable[[pd.DataFrame], list[tuple[str, pd.DataFrame]]]


def shapes_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    comparisons = shapes.compare(rows)
    (dtype,) = rows["dtype"].unique()
    return [
        (
            "How many times faster jaxrnn is, its fastest engine beside the fastest of its rivals, "
            f"geometric means over shapes, {dtype}; below 1 the rival is faster:",
            shapes.geometric_means(comparisons).dropna(axis="columns", how="all"),
        ),
        (
            "Each shape:",
            comparisons.dropna(axis="columns", how="all"),
        ),
    ]


def against_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [
        (
            "Geometric means over shapes; speed is how many times faster the new checkout is, "
            "memory and compile how many times as much it needs:",
            _checkouts.geometric_means(rows),
        )
    ]


def measured(rows: pd.DataFrame, case: Sequence[str] = ()) -> pd.DataFrame:
    """Return what was measured of each contender in each case, without columns that are empty."""
    known = rows[[*case, "contender", *MEASURED]].dropna(axis="columns", how="all")
    return known.rename(columns=MEASURED)


def scaling_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    sentence = (
        "The gradient of a loss on an LSTM's last output (B 1, I 8, H 64); memory is that besides "
        "inputs and results, by XLA's own count:"
    )
    return [(sentence, measured(rows.rename(columns={"length": "T"}), ["T"]))]


def training_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    first = rows.iloc[0]
    sentence = (
        f"A step of Adam on {first['length']} characters of {first['batch']} texts, of an "
        f"embedding of {first['features']}, an LSTM of {first['hidden']} units and a dense layer:"
    )
    rates = rows["characters_per_s"]
    return [(sentence, measured(rows).assign(**{"characters a second": rates}))]


def loss_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    sentence = "The gradient of a cross-entropy over every step of an LSTM:"
    return [(sentence, measured(rows, ["T", "B", "I", "H", "symbols"]))]


def sweep_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    columns = ["cell", "members", "length", "batch", "hidden", "run"]
    columns += ["ms a step", "times one", "times apart", "whole s", "times one whole"]
    sentence = (
        "Times one: as long as a step of one network by the faster `fit`; times apart: as long as "
        "all members one after the other; whole: the run with its compilation:"
    )
    return [(sentence, rows[columns])]


def streaming_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [("A jitted step of one sequence:", measured(rows, ["cell", "H"]))]


def lyapunov_tables(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    first = rows.iloc[0]
    sentence = (
        f"{first['exponents']} exponents of {first['units']} units, {first['steps']:,} steps:"
    )
    return [(sentence, measured(rows))]


BENCHMARK = "python -m experiments.benchmark"
SECTIONS = [
    Section("shapes.csv", f"{BENCHMARK} shapes", "Cells and shapes", shapes_tables),
    Section("scaling.csv", f"{BENCHMARK} scaling", "Long sequences", scaling_tables),
    Section("training.csv", f"{BENCHMARK} training", "A training step", training_tables),
    Section("loss.csv", f"{BENCHMARK} loss", "A loss on every step", loss_tables),
    Section("sweep.csv", f"{BENCHMARK} sweep", "Many networks at once", sweep_tables),
    Section("streaming.csv", f"{BENCHMARK} streaming", "One step", streaming_tables),
    Section("against.csv", f"{BENCHMARK} shapes --against", "Two checkouts", against_tables),
    Section(
        "lyapunov_cost.csv",
        "python -m experiments.lyapunov --cost",
        "Lyapunov exponents",
        lyapunov_tables,
    ),
]


def where(rows: pd.DataFrame) -> str:
    """Say on what a file was measured, and how busy that was."""
    first = rows.iloc[0]
    return (
        f"{first['device']}, {first['cores']} cores, {first['devices']} JAX device(s), load "
        f"{first['load']} at the start; {first['versions']}; {first['date']}."
    )


def markdown(folder: Path) -> str:
    """Return the sections of those CSV files that a folder has."""
    parts = []
    for section in SECTIONS:
        path = folder / section.file
        if path.exists():
            rows = pd.read_csv(path)
            parts += [f"### {section.title}", f"`{section.command}`: {where(rows)}"]
            for sentence, table in section.tables(rows):
                parts += [sentence, _common.markdown_table(table)]
    return "\n\n".join(parts)


def replace(page: str, text: str) -> str:
    """Put a text between a page's markers.

    Raises:
        ValueError: if the page doesn't have each marker once, in their order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"expected {BEGIN} and {END} once each, in this order")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(
        prog=f"{BENCHMARK} report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="where the CSV files are"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write to")
    arguments = parser.parse_args(argv)
    text = markdown(arguments.out)
    if not text:
        files = ", ".join(section.file for section in SECTIONS)
        sys.exit(f"--out {arguments.out}: found none of {files}")
    try:
        page = replace(arguments.page.read_text(encoding="utf-8"), text)
    except (OSError, ValueError) as error:
        sys.exit(f"--page {arguments.page}: {error}")
    arguments.page.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()
