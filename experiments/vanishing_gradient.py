"""What the gradient doesn't reach isn't learnt: how far back can a network remember a cue?

A passage of real text begins with a cue, one of four symbols that occur nowhere else. T characters
later comes a question mark of its own, and the network must name the cue. Before any training, the
gradient of that answer's loss is followed back through the text: the horizon is how many steps back
1% of it is left. Then the network is trained, at each T afresh, and asked about text that it hasn't
seen. Logistic and tanh networks, a GRU and an LSTM start as the library makes them: recurrent
kernels orthogonal, an LSTM's forget bias 1. The remedy is the same GRU with chrono biases (Tallec
and Ollivier, 2018), which let some units keep their state for up to T steps from the start.

All networks have the same number of training steps, and stop before it only when all seeds of one
have learnt. Where the gradient vanishes, training is a random walk, which may come upon a network
that remembers: tanh networks now and then learn a T far beyond their horizon, and more often the
larger the learning rate and the smaller the batch. Once a network has latched the cue for good, its
gradient may vanish again (Bengio, Simard and Frasconi, 1994).
"""

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from matplotlib.ticker import PercentFormatter

import jaxrnn
from experiments import _chrono, _common, _gradient, _statistics
from experiments._gradient import LEVEL, Curve, horizon

TITLE = "What the gradient doesn't reach isn't learnt"
CUES = 4
CHANCE = 1 / CUES
EMBEDDING_SIZE = 32
CLIP_NORM = 1.0
# A network has learnt a T with this accuracy, and fails with less than the other.
LEARNT, FAILED = 0.9, 0.5
# Training ends early when the mean loss of CHUNK steps, in nats, is below this for all seeds.
SOLVED = 0.05
CHUNK = 50
# How many passages the accuracy, and the gradient, are measured on.
ASKED, MEASURED = 512, 32


class Recipe(NamedTuple):
    """How to make a network: a cell of a hidden size, and the biases that it starts from.

    `bias` is `(params, key, length) -> params`; None for the library's own.
    """

    label: str
    color: str
    cell: Callable[[int], jaxrnn.Cell]
    bias: Callable[[Any, PRNGKeyArray, int], Any] | None = None


_logistic = functools.partial(jaxrnn.elman, activation=jax.nn.sigmoid)
RECIPES = {
    "logistic": Recipe("logistic", "#666666", _logistic),
    "tanh": Recipe("tanh", _common.COLORS["tanh"], jaxrnn.elman),
    "gru": Recipe("GRU", _common.COLORS["gru"], jaxrnn.gru),
    "lstm": Recipe("LSTM", _common.COLORS["lstm"], jaxrnn.lstm),
    "gru_chrono": Recipe("chrono GRU", _common.COLORS["identity"], jaxrnn.gru, _chrono.gru),
}


class Network(NamedTuple):
    """A model that reads a passage and names its cue, and its S seeds' parameters before training.

    `initial` is stacked, and has the library's own biases.
    """

    recipe: Recipe
    model: jaxrnn.Layer
    initial: PyTree
    bias_keys: PRNGKeyArray

    def params(self, length: int) -> PyTree:
        """Return the parameters that training at a T begins with."""
        if self.recipe.bias is None:
            return self.initial
        embedding, cell, dense = self.initial
        # Chrono biases are of memories longer than two steps.
        bias = jax.vmap(self.recipe.bias, in_axes=(0, 0, None))
        return embedding, bias(cell, self.bias_keys, max(length, 3)), dense


class Outcome(NamedTuple):
    """What S seeds of a network have learnt at one T."""

    name: str
    length: int
    params: PyTree
    accuracy: Float[np.ndarray, "S"]
    steps: int


class Passages(NamedTuple):
    """A text that passages are taken from, and how many symbols it has; the cues come next."""

    text: Int[Array, "N"]
    symbols: int

    def draw(
        self, key: PRNGKeyArray, count: int, length: int
    ) -> tuple[Int[Array, "T+1 B"], Int[Array, "B"]]:
        """Draw passages with a cue at their start and, `length` steps later, the question."""
        start_key, cue_key = jax.random.split(key)
        starts = jax.random.randint(start_key, (count,), 0, self.text.size - length)
        cues = jax.random.randint(cue_key, (count,), 0, CUES)
        passages = self.text[starts + jnp.arange(length + 1)[:, None]]
        question = self.symbols + CUES
        return passages.at[0].set(self.symbols + cues).at[-1].set(question), cues


def make_network(
    recipe: Recipe, symbols: int, key: PRNGKeyArray, *, hidden_size: int, seeds: int
) -> Network:
    """Make a network and draw its seeds' parameters."""
    model = jaxrnn.serial(
        jaxrnn.embedding(symbols + CUES + 1, EMBEDDING_SIZE),
        # Seeds are mapped over, where the default engine gains nothing.
        jaxrnn.rnn(recipe.cell(hidden_size), return_sequences=False, engine=jaxrnn.engines.scan()),
        jaxrnn.dense(CUES),
    )
    init_keys, bias_keys = (jax.random.split(k, seeds) for k in jax.random.split(key))
    initial = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(model.init, init_keys))
    return Network(recipe, model, initial, bias_keys)


class _Solved(Exception):
    """Ends a sweep in which every seed has learnt."""

    def __init__(self, result: jaxrnn.training.FitResult):
        self.result = result


def train(
    network: Network,
    passages: Passages,
    length: int,
    keys: PRNGKeyArray,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    on_steps: Callable[[int], None],
) -> tuple[PyTree, int]:
    """Train a network's seeds at one T.

    Returns:
        The parameters, and how many steps were made.
    """

    def loss(params: PyTree, batch: tuple[Array, Array], key: PRNGKeyArray) -> Array:
        inputs, cues = batch
        return jaxrnn.losses.softmax_cross_entropy(
            network.model.apply(params, None, inputs)[1], cues
        )

    def report(done: int, result: jaxrnn.training.FitResult) -> None:
        on_steps(done)
        if (result.losses[:, -CHUNK:].mean(axis=1) < SOLVED).all():
            raise _Solved(result)

    try:
        result = jaxrnn.sweep(
            lambda params, key: (loss, params, optax.adam(learning_rate)),
            network.params(length),
            functools.partial(passages.draw, count=batch_size, length=length),
            steps=steps,
            key=keys,
            clip_norm=CLIP_NORM,
            report_every=CHUNK,
            on_report=report,
            progress=False,
        )
    except _Solved as solved:
        result = solved.result
    return result.params, result.losses.shape[1]


def measure_accuracy(
    network: Network, params: PyTree, passages: Passages, length: int, key: PRNGKeyArray
) -> Float[np.ndarray, "S"]:
    """Return the share of right answers on fresh passages, of each seed."""
    inputs, cues = passages.draw(key, ASKED, length)

    @jax.jit
    def accuracy(params: PyTree) -> Array:
        def of_seed(params: PyTree) -> Array:
            _, logits = network.model.apply(params, None, inputs)
            return (logits.argmax(axis=-1) == cues).mean()

        return lax.map(of_seed, params)

    return np.asarray(accuracy(params))


def gradient_back(
    network: Network, params: PyTree, inputs: Int[Array, "T+1 B"], cues: Int[Array, "B"]
) -> Float[np.ndarray, "S T+1"]:
    """Return how much of the loss's gradient is left 0, 1, 2, ... steps back, of each seed.

    The norm is over all of the state, as an LSTM remembers in its cell state, and the mean over
    passages: a training step adds their gradients up, large and small.
    """

    @jax.jit
    def norms_back(params: PyTree) -> Array:
        def of_seed(params: PyTree) -> Array:
            (state,) = jaxrnn.diagnostics.state_gradients(
                lambda logits: jaxrnn.losses.softmax_cross_entropy(logits, cues),
                network.model,
                params,
                inputs,
                part=None,
            )
            units = jnp.concatenate(jax.tree.leaves(state), axis=-1)
            return jnp.linalg.norm(units, axis=-1).mean(axis=-1)[::-1]

        return lax.map(of_seed, params)

    norms = np.asarray(norms_back(params), np.float64)
    return norms / norms[:, :1]


def longest_learnt(outcomes: Sequence[Outcome]) -> Float[np.ndarray, "S"]:
    """Return the longest T that each seed of a network has learnt, 0 for none."""
    lengths = np.array([outcome.length for outcome in outcomes])
    learnt = np.stack([outcome.accuracy >= LEARNT for outcome in outcomes], axis=1)
    return np.where(learnt, lengths, 0).max(axis=1)


# Of each network: how much of the gradient is left 0, 1, 2, ... steps back, for each seed.
Curves = dict[str, Float[np.ndarray, "S T+1"]]


def exceptions(label: str, reach: float, outcomes: Sequence[Outcome]) -> list[str]:
    """Say where a network's horizon doesn't foretell what it learns, within a factor.

    It should learn with all seeds what is within half its horizon, or all if that is as long as the
    longest passage, and fail in the median at four times the horizon.
    """
    longest = max(outcome.length for outcome in outcomes)
    within = longest if reach >= longest else reach / 2
    told = []
    for outcome in outcomes:
        learnt, seeds = int((outcome.accuracy >= LEARNT).sum()), len(outcome.accuracy)
        if outcome.length <= within and learnt < seeds:
            told.append(f"{label} learns T = {outcome.length} with {learnt} of {seeds} seeds only")
        if outcome.length >= 4 * reach and np.median(outcome.accuracy) >= FAILED:
            told.append(
                f"{label} has {np.median(outcome.accuracy):.0%} right at T = {outcome.length}"
            )
    return told


def unreached(after: Curves, outcomes: Sequence[Outcome]) -> list[str]:
    """Say in how many seeds the trained gradient misses a cue they know, or reaches another."""
    told = []
    for outcome in outcomes:
        label, length = RECIPES[outcome.name].label, outcome.length
        reaches, knows = after[outcome.name][:, -1] >= LEVEL, outcome.accuracy >= LEARNT
        for count, what in [
            ((knows & ~reaches).sum(), "knows the cue with no gradient back to it"),
            ((reaches & ~knows).sum(), "misses the cue with a gradient back to it"),
        ]:
            if count:
                told.append(f"at T = {length} {label} {what} in {count} of {len(knows)} seeds")
    return told


def dividing_length(outcomes: Sequence[Outcome]) -> int:
    """Return the T at which networks that learnt and those that didn't are most nearly as many.

    Of several the shortest.
    """
    lengths = sorted({outcome.length for outcome in outcomes})

    def imbalance(length: int) -> int:
        medians = [np.median(o.accuracy) for o in outcomes if o.length == length]
        return abs(sum(1 if median >= LEARNT else -1 for median in medians))

    return min(lengths, key=imbalance)


def picture(before: Curves, outcomes: Sequence[Outcome], after: Curves, caption: str) -> Any:
    """Draw the gradient before training, below it what is learnt, and the gradient after."""
    longest = max(outcome.length for outcome in outcomes)
    shared = dividing_length(outcomes)
    style = {**_common.STYLE, "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left"}
    with plt.rc_context(style):
        figure = plt.figure(figsize=(13, 8), layout="constrained")
        panels: Any = figure.subplot_mosaic([["before", "after"], ["learnt", "after"]])
        panels["learnt"].sharex(panels["before"])
        for name in ("before", "after"):
            _gradient.prepare(panels[name])
            panels[name].set(
                xlabel="steps back from the answer", ylabel="gradient, relative to the answer's"
            )
        panels["before"].set(
            title="1  Before training, the gradient vanishes on its way back",
            xscale="log",
            xlim=(1, longest),
        )
        panels["learnt"].set(
            title="2  After training, cues from beyond that reach are missed",
            xlabel="T, steps from the cue to the answer",
            ylabel="right answers on new text",
            ylim=(0, 1.05),
        )
        panels["after"].set(
            title=f"3  After training at T = {shared}, the gradient reaches\n"
            "    the cue where the network has learnt it",
            xlabel=f"steps back from the answer (the cue stands {shared} back)",
            xlim=(0, shared),
        )
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= longest]
        panels["before"].set_xticks(ticks, [str(tick) for tick in ticks])
        panels["before"].minorticks_off()
        _gradient.draw(panels["before"], _curves(before))
        _draw_accuracy(panels["learnt"], outcomes)
        _draw_horizons(panels["before"], panels["learnt"], before)
        _draw_after(panels["after"], after, outcomes)
        figure.suptitle(TITLE, fontsize=20, weight="bold", x=0.01, ha="left")
        figure.supxlabel(textwrap.fill(caption, 190), fontsize=9, x=0.01, ha="left")
    return figure


def _curves(norms: Curves) -> list[Curve]:
    return [Curve(n, RECIPES[name].label, RECIPES[name].color) for name, n in norms.items()]


def _draw_after(axes: Any, after: Curves, outcomes: Sequence[Outcome]) -> None:
    """Draw a line for each seed, as some may have learnt what others of their network have not."""
    shared = dividing_length(outcomes)
    accuracy = {outcome.name: outcome.accuracy for outcome in outcomes if outcome.length == shared}
    for name, norms in after.items():
        for of_seed, share in zip(_gradient.above_zero(norms), accuracy[name], strict=True):
            linestyle = "-" if share >= LEARNT else ":"
            axes.plot(of_seed, color=RECIPES[name].color, linestyle=linestyle, linewidth=1.4)
    _gradient.label(axes, _curves(after))
    _common.write(
        axes,
        "a line for each seed: solid if it has learnt, dotted if not",
        (0.02, 0.985),
        (0, 0),
        xycoords="axes fraction",
        va="top",
        weight="normal",
        fontsize=9,
    )


def _draw_accuracy(axes: Any, outcomes: Sequence[Outcome]) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle="--")
    place = {"xycoords": ("axes fraction", "data"), "weight": "normal", "fontsize": 9}
    _common.write(axes, "chance", (0, CHANCE), (3, -4), va="top", **place)
    ends = []
    for number, (name, of_name) in enumerate(by_name(outcomes).items()):
        label, color = RECIPES[name].label, RECIPES[name].color
        lengths = [outcome.length for outcome in of_name]
        accuracy = np.stack([outcome.accuracy for outcome in of_name])
        middle = np.median(accuracy, axis=1)
        axes.plot(lengths, accuracy, "o", color=color, markersize=4, alpha=0.5)
        axes.plot(lengths, middle, color=color)
        # Each at a height of its own, where the line last falls through that.
        height = 0.85 - 0.12 * number
        if middle[-1] >= height:
            ends.append((middle[-1], label, color))
        else:
            above = np.flatnonzero(middle >= height)
            if len(above):
                fall = slice(above[-1] + 1, above[-1] - 1 if above[-1] else None, -1)
                place = np.exp(np.interp(height, middle[fall], np.log(lengths)[fall]))
                _common.write(axes, label, (place, height), (5, 0), color=color, va="center")
            else:
                _common.write(axes, label, (lengths[0], middle[0]), (0, 6), color=color)
    _common.label_ends(axes, ends)


def _draw_horizons(before: Any, learnt: Any, norms: Curves) -> None:
    """Mark the same horizons in both panels, so that the eye goes down from one to the other."""
    for curve in _curves(norms):
        reach = np.median(curve.horizons)
        if reach < curve.norms.shape[1] - 1:
            line = {"color": curve.color, "linestyle": ":", "linewidth": 1.2}
            before.plot([reach, reach], [_gradient.FLOOR, LEVEL], **line)
            before.plot(reach, LEVEL, "o", color=curve.color, markersize=6)
            _common.write(before, f"{reach:.0f}", (reach, LEVEL), (4, 5), color=curve.color)
            learnt.axvline(reach, **line)


def by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return each network's outcomes, from the shortest T to the longest."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.length)
    return {
        name: [outcome for outcome in ordered if outcome.name == name]
        for name in RECIPES
        if any(outcome.name == name for outcome in outcomes)
    }


def median_horizon(norms: Float[np.ndarray, "S T+1"]) -> float:
    """Return the median of the seeds' horizons."""
    return float(np.median([horizon(of_seed) for of_seed in norms]))


def table_row(
    name: str, norms: Float[np.ndarray, "S T+1"], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Return one row of the table: a network's horizon, and its median accuracy at each T."""
    reach, longest = median_horizon(norms), norms.shape[1] - 1
    return {
        "network": RECIPES[name].label,
        "horizon": f">= {reach:g}" if reach == longest else f"{reach:g}",
        **{f"T={o.length}": f"{np.median(o.accuracy):.2f}" for o in outcomes},
    }


def correlation(
    before: Curves, outcomes: Sequence[Outcome], seed: int
) -> tuple[float, float, float]:
    """Return the rank correlation of horizon and longest T learnt, and its interval.

    Each seed of each network is a point; the interval resamples networks.
    """
    groups = [
        (np.array([horizon(of_seed) for of_seed in before[name]]), longest_learnt(of_name))
        for name, of_name in by_name(outcomes).items()
    ]
    return _statistics.bootstrap(groups, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each network's gradient, train it at each T, and draw the two below each other."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--text",
        type=Path,
        metavar="PATH",
        help="a UTF-8 text; without one, the sources of Python's standard library",
    )
    lengths = [2, 5, 10, 20, 50, 100, 200, 500]
    parser.add_argument("--length", nargs="+", type=positive(int), default=lengths, help="T")
    parser.add_argument("--seeds", type=positive(int), default=3, help="how many, at once")
    parser.add_argument("--hidden", type=positive(int), default=64, help="units of each network")
    parser.add_argument("--batch", type=positive(int), default=32, help="passages of a batch")
    parser.add_argument("--steps", type=positive(int), default=600, help="of training, at most")
    parser.add_argument("--learning-rate", type=positive(float), default=2e-3, help="Adam's")
    options = _common.parse(parser, arguments, length=[5, 50, 100], seeds=2, hidden=32, steps=300)
    lengths = sorted(set(options.length))
    if lengths[0] < 2:
        parser.error(f"--length: got {lengths[0]}, expected 2 at least, from the cue to the answer")
    longest = lengths[-1]
    codes, held_codes, vocabulary = _common.read_codes(options.text, longest=longest)
    text, held_out = (Passages(jnp.asarray(c), len(vocabulary)) for c in (codes, held_codes))

    keys = jax.random.split(jax.random.key(options.seed), 4)
    init_key, train_key, accuracy_key, gradient_key = keys
    # Every network has the same seeds, and so is trained on the same passages.
    train_keys = jax.random.split(train_key, options.seeds)

    def make(recipe: Recipe) -> tuple[Network, Float[np.ndarray, "S T+1"]]:
        network = make_network(
            recipe, len(vocabulary), init_key, hidden_size=options.hidden, seeds=options.seeds
        )
        passages = held_out.draw(gradient_key, MEASURED, longest)
        return network, gradient_back(network, network.params(longest), *passages)

    # Compiling runs on one core, and so do such small products: two networks at once use two.
    made = dict(zip(RECIPES, _common.two_at_once(make, RECIPES.values()), strict=True))
    networks = {name: network for name, (network, _) in made.items()}
    before = {name: norms for name, (_, norms) in made.items()}

    def learn(task: tuple[int, str]) -> Outcome:
        length, name = task
        network, shown = networks[name], 0

        def advance(steps: int) -> None:
            nonlocal shown
            bar.update(length * (steps - shown))
            shown = steps

        params, steps = train(
            network,
            text,
            length,
            train_keys,
            steps=options.steps,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            on_steps=advance,
        )
        advance(options.steps)
        accuracy = measure_accuracy(network, params, held_out, length, accuracy_key)
        right = ", ".join(f"{share:.0%}" for share in accuracy)
        _common.print_progress(
            f"{network.recipe.label}, T = {length}: {right} right after {steps} steps"
        )
        return Outcome(name, length, params, accuracy, steps)

    # The longest first, so that both cores have work to the end.
    tasks = [(length, name) for length in reversed(lengths) for name in networks]
    with _common.progress_bar(options.steps * sum(length for length, _ in tasks)) as bar:
        outcomes = _common.two_at_once(learn, tasks)

    shared = dividing_length(outcomes)
    passages = held_out.draw(gradient_key, MEASURED, shared)
    at_shared = [outcome for outcome in outcomes if outcome.length == shared]
    after_norms = _common.two_at_once(
        lambda o: gradient_back(networks[o.name], o.params, *passages), at_shared
    )
    after = {o.name: norms for o, norms in zip(at_shared, after_norms, strict=True)}

    told = [
        line
        for name, of_name in by_name(outcomes).items()
        for line in exceptions(RECIPES[name].label, median_horizon(before[name]), of_name)
    ] + unreached(after, at_shared)
    middle, low, high = correlation(before, outcomes, options.seed)
    agreement = (
        f"Rank correlation of horizon and longest T learnt: {middle:.2f} (95% interval {low:.2f} "
        f"to {high:.2f}, of {len(networks)} networks with {options.seeds} seeds each)."
    )
    exceptional = f"Exceptions: {'; '.join(told)}." if told else "No exceptions."
    caption = (
        f"{options.hidden} units; at most {options.steps} steps of Adam, {options.batch} passages "
        f"each, at each T; lines are medians of {options.seeds} seeds, bands and dots all. "
        f"Dotted: the horizon, the last step back with {LEVEL:.0%} of the gradient. A chrono "
        f"GRU's biases are drawn for T. {agreement} {exceptional}"
    )
    _common.save_csv(
        options.out / "vanishing_gradient.csv",
        [
            {
                "network": outcome.name,
                "T": outcome.length,
                "seed": seed,
                "horizon": horizon(before[outcome.name][seed]),
                "accuracy": float(share),
                "steps": outcome.steps,
            }
            for outcome in sorted(outcomes, key=lambda outcome: outcome.length)
            for seed, share in enumerate(outcome.accuracy)
        ],
    )
    _common.save_csv(
        options.out / "vanishing_gradient_curves.csv",
        [
            {
                "network": name,
                "when": when,
                "T": norms.shape[1] - 1,
                "seed": seed,
                "steps_back": steps,
                "gradient": float(norm),
            }
            for when, curves in [("initial", before), ("trained", after)]
            for name, norms in curves.items()
            for seed, of_seed in enumerate(norms)
            for steps, norm in enumerate(of_seed)
        ],
    )
    _common.save_figure(
        options.out / "vanishing_gradient.png", picture(before, outcomes, after, caption)
    )
    print(f"\n{TITLE}.\n")
    _common.print_table(
        [table_row(name, before[name], of_name) for name, of_name in by_name(outcomes).items()]
    )
    print(
        f"\nThe horizon is how many steps back {LEVEL:.0%} of the gradient is left before training;"
        f"\nthen come right answers after training, medians of {options.seeds} seeds. Chance is "
        f"{CHANCE}.\n"
    )
    for line in (agreement, exceptional):
        print(textwrap.fill(line, 80))


if __name__ == "__main__":
    main()
