"""The adding problem: over how many steps can each cell learn to remember two numbers?

A network reads T random numbers, two of them marked, and answers the sum of the two. Always
answering 1 has a mean squared error of 1/6; less needs memory, and gradients that reach back over
up to T steps. Several seeds learn at once, in a sweep, each from batches that it has never seen
before: the mean loss of the last ones is its error on fresh data.
"""

import functools
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import jaxrnn
from experiments import _common

CHANCE = jaxrnn.tasks.ADDING_CHANCE
LEARNT = 0.1 * CHANCE
# How many steps one call of the compiled program makes, and one point of a curve averages.
CHUNK = 50

# Each makes a cell from its hidden size.
CELLS: dict[str, Callable[[int], jaxrnn.Cell]] = {
    "elman": jaxrnn.elman,
    "relu": functools.partial(
        jaxrnn.elman,
        activation=jax.nn.relu,
        recurrent_init=jaxrnn.initializers.identity(),
    ),
    "lstm": jaxrnn.lstm,
    "gru": jaxrnn.gru,
}
LABELS = {"elman": "Elman, tanh", "relu": "Elman, relu, identity", "lstm": "LSTM", "gru": "GRU"}


class Run(NamedTuple):
    """How one cell learnt at one length, from S seeds; losses are means over `CHUNK` steps."""

    cell: str
    length: int
    losses: Float[np.ndarray, "S chunks"]
    seconds: float

    @property
    def errors(self) -> Float[np.ndarray, "S"]:
        """Each seed's error at the end, infinite where training diverged."""
        last = self.losses[:, -1]
        return np.where(np.isnan(last), np.inf, last)


def learn(
    name: str,
    length: int,
    keys: PRNGKeyArray,
    *,
    hidden_size: int,
    batch_size: int,
    steps: int,
    learning_rate: float,
) -> Run:
    """Train one network for each key, all in one compiled program."""
    # Under vmap, over seeds here, the plain scan is the fastest engine on a CPU.
    recurrent = jaxrnn.rnn(
        CELLS[name](hidden_size), return_sequences=False, engine=jaxrnn.engines.scan()
    )
    model = jaxrnn.serial(recurrent, jaxrnn.dense(1))

    def loss(params: PyTree, batch: tuple[Array, Array], key: PRNGKeyArray) -> Array:
        inputs, targets = batch
        _, answers = model.apply(params, None, inputs, key=key)
        return jaxrnn.losses.squared_error(answers, targets)

    def setup(setting: None, key: PRNGKeyArray) -> tuple[Any, PyTree, Any]:
        return loss, model.init(key, 2), optax.adam(learning_rate)

    start = time.perf_counter()
    steps = steps // CHUNK * CHUNK
    result = jaxrnn.sweep(
        setup,
        None,
        functools.partial(jaxrnn.tasks.adding, batch_size=batch_size, length=length),
        steps=steps,
        key=keys,
        clip_norm=1.0,
        report_every=CHUNK,
    )
    losses = result.losses.reshape(len(keys), -1, CHUNK).mean(axis=-1)
    return Run(name, length, losses, time.perf_counter() - start)


def summary(run: Run) -> dict[str, Any]:
    """One row of the table."""
    return {
        "cell": LABELS[run.cell],
        "T": run.length,
        "median error": float(np.median(run.errors)),
        "lowest": float(run.errors.min()),
        "highest": float(run.errors.max()),
        "learnt": f"{(run.errors < LEARNT).sum()} of {len(run.errors)}",
        "seconds": run.seconds,
    }


def claim(runs: Sequence[Run]) -> str:
    """Say up to which T each cell learns the sum, in the median of its seeds."""
    longest = {
        name: max(
            (r.length for r in runs if r.cell == name and np.median(r.errors) < LEARNT),
            default=None,
        )
        for name in dict.fromkeys(run.cell for run in runs)
    }
    return "; ".join(
        f"{LABELS[name]} {'at no T' if length is None else f'up to T = {length}'}"
        for name, length in longest.items()
    )


def draw_curves(runs: Sequence[Run], lengths: Sequence[int]) -> Any:
    """Draw each cell's learning curve, median and range over seeds, one panel for each length."""
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(
            1,
            len(lengths),
            figsize=(2.5 + 2.7 * len(lengths), 4),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, length in zip(axes[0], lengths, strict=True):
            axis.set_title(f"T = {length}", loc="left")
            axis.set(xlabel="training steps", yscale="log")
            for run in (run for run in runs if run.length == length):
                steps = CHUNK * (1 + np.arange(run.losses.shape[1]))
                color = _common.COLORS[run.cell]
                axis.plot(steps, np.median(run.losses, axis=0), color=color)
                axis.fill_between(
                    steps, run.losses.min(axis=0), run.losses.max(axis=0), color=color, alpha=0.2
                )
            axis.set_xlim(0, axis.dataLim.x1)
            for level in (CHANCE, LEARNT):
                axis.axhline(level, color="0.3", linestyle="--", linewidth=1)
        # A relu cell starts with errors far above chance, which would make the rest small.
        axes[0, 0].set(ylabel="mean squared error", ylim=(None, 1))
        place = {"xycoords": ("axes fraction", "data"), "weight": "normal", "fontsize": 9}
        for text, level in [("chance, 1/6", CHANCE), ("learnt", LEARNT)]:
            _common.write(axes[0, 0], text, (0, level), (3, 3), **place)
        last = [run for run in runs if run.length == lengths[-1]]
        _common.label_ends(
            axes[0, -1],
            [
                (min(np.median(run.errors), 1), LABELS[run.cell], _common.COLORS[run.cell])
                for run in last
            ],
        )
        figure.suptitle(
            "\n".join(
                textwrap.wrap(
                    f"Adding two of T numbers is learnt by {claim(runs)}", 30 * len(lengths)
                )
            ),
            x=0.01,
            ha="left",
            weight="bold",
        )
        figure.supxlabel(
            "Lines are medians, bands reach from the best to the worst seed.", fontsize=9
        )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Train every cell at every length, and compare them."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--cell",
        nargs="+",
        choices=CELLS,
        default=list(CELLS),
        help="relu is an Elman cell too, with the identity as its recurrent kernel at the start",
    )
    parser.add_argument(
        "--length", nargs="+", type=positive(int), default=[50, 100, 200, 400], help="T"
    )
    parser.add_argument("--seeds", type=positive(int), default=3, help="how many, at once")
    parser.add_argument("--hidden", type=positive(int), default=32, help="units of each cell")
    parser.add_argument("--batch", type=positive(int), default=32, help="sequences of a batch")
    parser.add_argument(
        "--steps", type=positive(int), default=800, help=f"training steps, in full {CHUNK}s"
    )
    parser.add_argument("--learning-rate", type=positive(float), default=1e-2, help="Adam's")
    arguments = _common.parse(
        parser, argv, cell=["elman", "gru"], length=[20], hidden=16, steps=400
    )
    if arguments.steps < CHUNK:
        parser.error(f"--steps: got {arguments.steps}, expected {CHUNK} at least")
    if min(arguments.length) < 2:
        parser.error(f"--length: got {min(arguments.length)}, expected 2 at least for two numbers")

    keys = jax.random.split(jax.random.key(arguments.seed), arguments.seeds)
    runs = []
    for length in arguments.length:
        for name in arguments.cell:
            runs.append(
                learn(
                    name,
                    length,
                    keys,
                    hidden_size=arguments.hidden,
                    batch_size=arguments.batch,
                    steps=arguments.steps,
                    learning_rate=arguments.learning_rate,
                )
            )
            row = summary(runs[-1])
            print(
                f"{row['cell']}, T = {length}: {row['learnt']} seeds learnt, median error "
                f"{row['median error']:.4g}, {row['seconds']:.0f} s",
                flush=True,
            )
    _common.save_csv(
        arguments.out / "adding.csv",
        [
            {
                "cell": run.cell,
                "T": run.length,
                "seed": seed,
                "step": CHUNK * number,
                "error": error,
            }
            for run in runs
            for seed, losses in enumerate(run.losses)
            for number, error in enumerate(losses, start=1)
        ],
    )
    _common.save_figure(arguments.out / "adding.png", draw_curves(runs, arguments.length))
    print(f"\nChance is {CHANCE:.4f}; a seed has learnt with an error below {LEARNT:.4f}.\n")
    _common.print_table([summary(run) for run in runs])


if __name__ == "__main__":
    main()
