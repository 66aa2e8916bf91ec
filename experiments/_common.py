"""What the experiments share: arguments, text, tables, files and the look of figures."""

import argparse
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from tqdm import tqdm

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

Item = TypeVar("Item")
Result = TypeVar("Result")
# A table, or what makes one: a dict of names and values for each row.
Rows = pd.DataFrame | Sequence[dict[str, Any]]

# One colour for each cell in every figure, from Okabe and Ito's palette, which survives colour
# blindness and grey printing.
COLORS = {
    "logistic": "#999999",
    "tanh": "#0072B2",
    "elman": "#0072B2",
    "relu": "#56B4E9",
    "identity": "#CC79A7",
    "lstm": "#D55E00",
    "gru": "#009E73",
}

STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every experiment takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small version, within a minute")
    seed = checked(int, lambda number: 0 <= number < 2**32, "a number from 0 to 2**32 - 1")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all randomness")
    # A text, as argparse gives default texts to `type` too.
    parser.add_argument(
        "--out", type=folder, default="results", metavar="DIR", help="where files go"
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any
) -> argparse.Namespace:
    """Parse arguments, with the defaults `quick` where --quick is given."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**quick)
    return parser.parse_args(argv)


def checked(
    kind: type[int] | type[float], fits: Callable[[Any], bool], expected: str
) -> Callable[[str], int | float]:
    """Return an argument's type: those numbers of a kind that fit."""

    def convert(text: str) -> int | float:
        number = kind(text)
        if not fits(number):
            raise argparse.ArgumentTypeError(f"got {text}, expected {expected}")
        return number

    # What argparse calls the type when the text is no number at all.
    convert.__name__ = kind.__name__
    return convert


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return an argument's type: numbers of a kind, above 0 and finite."""
    return checked(kind, lambda number: 0 < number < float("inf"), "a finite number above 0")


def folder(text: str) -> Path:
    """Make a folder, an argument's type, and try it: a long run's results need a place to go."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"got {text}, expected a folder to write to: {error}"
        ) from None
    return path


def two_at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to every item: what runs on one core, such as compiling, so uses two."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            return list(pool.map(function, items))
        except KeyboardInterrupt:
            # Threads can't be stopped, and both the pool and Python would wait for them.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
            raise


def read_text(path: Path | None, *, limit: int = 1_000_000) -> str:
    """Return a text: a file's, or of no path the sources of Python's standard library.

    Raises:
        SystemExit: if the file can't be read, is not UTF-8 text, or is empty.
    """
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")  # some begin with a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"--text {path}: {error}")
        if not text:
            sys.exit(f"--text {path}: the file is empty")
        return text
    text = ""
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += source.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= limit:
            break
    return text[:limit]


def encode(text: str, *, max_symbols: int = 128) -> tuple[np.ndarray, list[str]]:
    """Return a text as integers and the characters they stand for, the most frequent first.

    Characters beyond `max_symbols` become the last symbol, "\N{REPLACEMENT CHARACTER}", so that a
    text full of rare ones doesn't make the vocabulary large.
    """
    characters, counts = np.unique(np.array(list(text)), return_counts=True)
    vocabulary = [str(c) for c in characters[np.argsort(-counts, kind="stable")]]
    if len(vocabulary) > max_symbols:
        vocabulary = [*vocabulary[: max_symbols - 1], "\N{REPLACEMENT CHARACTER}"]
    index = {character: number for number, character in enumerate(vocabulary)}
    rare = len(vocabulary) - 1
    return np.array([index.get(c, rare) for c in text], np.int32), vocabulary


def read_codes(path: Path | None, *, longest: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return a text as integers, nine tenths and the last one, and its symbols.

    Raises:
        SystemExit: as `read_text`, or if the text has one symbol only, or its last tenth is no
            longer than `longest` characters.
    """
    codes, vocabulary = encode(read_text(path))
    if len(vocabulary) < 2:
        sys.exit(f"--text: got one symbol only, {vocabulary[0]!r}, expected two or more")
    cut = len(codes) * 9 // 10
    if len(codes) - cut <= longest:
        sys.exit(
            f"--text: got {len(codes):,} characters, expected more than {10 * longest:,}, as "
            f"passages of {longest:,} are taken from its last tenth"
        )
    return codes[:cut], codes[cut:], vocabulary


def print_progress(line: str) -> None:
    """Print a line where `jaxrnn.fit` shows no progress bar: anywhere but on a terminal."""
    if not sys.stderr.isatty():
        print(line, flush=True)


def progress_bar(total: float) -> Any:
    """Return a bar with the time that is left, on a terminal; `update` it by parts of the total."""
    bar = "{percentage:3.0f}%|{bar:30}| {elapsed} gone, {remaining} left"
    return tqdm(total=total, bar_format=bar, disable=None)


def print_table(rows: Rows) -> None:
    """Print rows as a table with aligned columns; what nobody knows is a dash."""
    print(_known(rows).to_string(index=False, float_format="{:.4g}".format))


def markdown_table(rows: pd.DataFrame) -> str:
    """Return rows as a table in Markdown; what nobody knows is a dash."""
    align = ["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in rows.dtypes]
    texts = _known(rows).map(_brief)
    return texts.to_markdown(index=False, disable_numparse=True, colalign=align)


def label_ends(axes: Any, ends: Iterable[tuple[float, str, str]], *, gap: float = 0.05) -> None:
    """Write texts to the right of axes, at lines' last values, and apart from one another.

    Args:
        axes: with their limits and scale set.
        ends: a value on the y axis, a text and a colour for each.
        gap: the least distance between two texts, as a share of the axes' height.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    placed = sorted((to_share.transform((1.0, y))[1], text, color) for y, text, color in ends)
    height = -np.inf
    heights = []
    for share, _, _ in placed:
        height = max(share, height + gap)
        heights.append(height)
    # Back down where the topmost were pushed out of the axes.
    ceiling = 1.0
    for place in reversed(range(len(heights))):
        heights[place] = ceiling = min(heights[place], ceiling)
        ceiling -= gap
    for height, (_, text, color) in zip(heights, placed, strict=True):
        write(axes, text, (1.0, height), (5, 0), color=color, xycoords="axes fraction", va="center")


def write(
    axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write a bold text at some points' distance from a place, on a white edge that sets it off."""
    look = {"weight": "bold", "annotation_clip": False, **look}
    edge = withStroke(linewidth=3, foreground="white")
    axes.annotate(text, place, offset, textcoords="offset points", path_effects=[edge], **look)


def _known(rows: Rows) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    return table.astype(object).where(table.notna(), "-")


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def save_csv(path: Path, rows: Rows) -> None:
    """Write rows as CSV, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, na_rep="nan")
    print(f"wrote {path}")


def save_figure(path: Path, figure: Any) -> None:
    """Write a figure as PNG, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {path}")
