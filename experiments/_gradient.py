"""How far back a gradient reaches: the horizon, and the panel that shows it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from experiments import _common

# The horizon is how many steps back this part of the gradient is left.
LEVEL = 0.01
# Panels show no less than this: smaller gradients are as good as none, and far smaller ones are 0
# in float32.
FLOOR, CEILING = 1e-5, 5.0


class Curve(NamedTuple):
    """How much of a gradient is left 0, 1, 2, ... steps back, of each of S seeds, and its look."""

    norms: Float[np.ndarray, "S T"]
    label: str
    color: str
    linestyle: str = "-"

    @property
    def horizons(self) -> Float[np.ndarray, "S"]:
        """The seeds' horizons."""
        return np.array([horizon(of_seed) for of_seed in self.norms])


def horizon(norms: Float[np.ndarray, "T"]) -> int:
    """Return how many steps back the norms stay at `LEVEL` of the first or above, without a break.

    A gradient too large for its dtype has not vanished, so what is not a number doesn't end it.
    """
    below = norms < LEVEL * norms[0]
    return int(below.argmax()) - 1 if below.any() else len(norms) - 1


def prepare(axes: Any) -> None:
    """Give axes the scale of a gradient, and the line at `LEVEL`."""
    axes.set(yscale="log", ylim=(FLOOR, CEILING), xlabel="steps back from the end")
    axes.axhline(LEVEL, color="black", linewidth=0.8, linestyle="--")
    place = {"xycoords": ("axes fraction", "data"), "weight": "normal", "fontsize": 9}
    _common.write(axes, f"{LEVEL:.0%}", (0, LEVEL), (3, 3), **place)


def draw(axes: Any, curves: Sequence[Curve]) -> None:
    """Draw medians and bands over seeds, each labelled where it ends, in axes with their limits."""
    for curve in curves:
        shown = above_zero(curve.norms)
        axes.plot(np.median(shown, axis=0), color=curve.color, linestyle=curve.linestyle)
        axes.fill_between(
            range(shown.shape[1]),
            shown.min(axis=0),
            shown.max(axis=0),
            color=curve.color,
            alpha=0.15,
            linewidth=0,
        )
    label(axes, curves)


def label(axes: Any, curves: Sequence[Curve]) -> None:
    """Label each curve where its median leaves the axes, to the right or through the floor."""
    beyond, through = [], []
    for curve in curves:
        middle = np.median(above_zero(curve.norms), axis=0)
        if middle[-1] > FLOOR:
            beyond.append((middle[-1], curve.label, curve.color))
        else:
            through.append((int((middle <= FLOOR).argmax()), curve))
    _common.label_ends(axes, beyond)
    # In rows above one another, each label in the lowest that has room for it.
    rows: list[float] = []
    for end, curve in sorted(through, key=lambda pair: pair[0]):
        start = axes.transData.transform((end, FLOOR))[0]
        row = next((row for row, taken in enumerate(rows) if taken < start), len(rows))
        points = 3 + 0.75 * plt.rcParams["font.size"] * len(curve.label)
        rows[row : row + 1] = [start + points * axes.figure.dpi / 72]
        _common.write(axes, curve.label, (end, FLOOR), (3, 4 + 14 * row), color=curve.color)


def above_zero(norms: np.ndarray) -> np.ndarray:
    """Return norms that have logarithms: one of 0 goes below the panel."""
    return np.maximum(norms, FLOOR / 100)
