"""Remedies: which of them lets a network learn over long delays, and could one have known before?

Two tasks ask for memory over T steps: adding two marked numbers, and repeating a few symbols after
a delay. A plain tanh network learns them, and others with one remedy each: clipped gradients, an
orthogonal kernel, the identity with relu, Lyapunov exponents flossed to 0 before training,
Pascanu's penalty, gates, and gates with chrono biases; all but the plain one are clipped too.
Several seeds learn at once. How far back the gradient of the loss at the end reaches is measured
before any training, and its rank correlation with learning says whether it foretells that. The
correlation's interval is from bootstrap samples of the remedies, each with all its runs, as runs of
one remedy are not independent.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

import jaxrnn
from experiments import _chrono, _common, _statistics
from jaxrnn import diagnostics, initializers

# How many steps one call of the compiled program makes, and one point of a curve averages.
CHUNK = 50
# A seed has learnt when its error falls below this share of chance.
LEARNT = 0.1
SYMBOLS, TO_COPY = 4, 2
# Gradients that stay at this share of the last one's count as reaching back.
FRACTION = 0.01
# Flossing, before training: how many steps, with how large ones, over how many of the inputs.
FLOSSING_STEPS, FLOSSING_RATE, FLOSSING_LENGTH = 150, 3e-3, 50


class Task(NamedTuple):
    """A task whose last `asked` outputs are compared with targets.

    `make_batch` is `(key, batch_size, length) -> (inputs, targets)`, and `chance` the loss of the
    best guess that remembers nothing.
    """

    label: str
    make_batch: Callable[[PRNGKeyArray, int, int], tuple[Array, Array]]
    loss: Callable[[Array, Array], Float[Array, ""]]
    chance: float
    features: int
    answers: int
    asked: int


class Remedy(NamedTuple):
    """A way to make and to train a network.

    `cell` makes it of its hidden size. `bias` is `(params, key, length) -> params`, and `penalty`
    the weight of Pascanu's.
    """

    label: str
    color: str
    cell: Callable[[int], jaxrnn.Cell]
    linestyle: Literal["-", ":"] = "-"
    clip_norm: float | None = 1.0
    bias: Callable[[Any, PRNGKeyArray, int], Any] | None = None
    flossed: bool = False
    penalty: float = 0.0


class Run(NamedTuple):
    """How S seeds of a network learnt; losses and errors are relative to chance.

    `horizon` is how many steps the initial gradient reaches back, at most `length`, and `decay` how
    many nats it loses over the sequence.
    """

    task: str
    remedy: str
    length: int
    losses: Float[np.ndarray, "S chunks"]
    horizon: Float[np.ndarray, "S"]
    decay: Float[np.ndarray, "S"]
    seconds: float

    @property
    def learning(self) -> Float[np.ndarray, "S"]:
        """The share of the error that was gone, averaged over training: 0 never, 1 at once."""
        return 1 - np.clip(np.nan_to_num(self.losses, nan=1.0), 0, 1).mean(axis=1)

    @property
    def steps(self) -> Float[np.ndarray, "S"]:
        """How many steps each seed took to learn, infinite where it didn't."""
        below = self.losses < LEARNT
        return np.where(below.any(axis=1), CHUNK * (1.0 + below.argmax(axis=1)), np.inf)


def _copy_batch(key: PRNGKeyArray, batch_size: int, length: int) -> tuple[Array, Array]:
    inputs, targets = jaxrnn.tasks.copy_memory(
        key, batch_size, length, num_symbols=SYMBOLS, num_to_copy=TO_COPY
    )
    return jax.nn.one_hot(inputs, SYMBOLS + 2), targets[-TO_COPY:]


def _adding_batch(key: PRNGKeyArray, batch_size: int, length: int) -> tuple[Array, Array]:
    inputs, targets = jaxrnn.tasks.adding(key, batch_size, length)
    return inputs, targets[None]


TASKS = {
    "adding": Task(
        "adding",
        _adding_batch,
        jaxrnn.losses.squared_error,
        jaxrnn.tasks.ADDING_CHANCE,
        features=2,
        answers=1,
        asked=1,
    ),
    "copy": Task(
        "copy memory",
        _copy_batch,
        jaxrnn.losses.softmax_cross_entropy,
        float(np.log(SYMBOLS)),
        features=SYMBOLS + 2,
        answers=SYMBOLS + 2,
        asked=TO_COPY,
    ),
}


_plain = functools.partial(jaxrnn.elman, recurrent_init=initializers.glorot_uniform)
_irnn = functools.partial(
    jaxrnn.elman, activation=jax.nn.relu, recurrent_init=initializers.identity()
)
COLORS = _common.COLORS
REMEDIES = {
    "plain": Remedy("plain tanh", COLORS["logistic"], _plain, ":", clip_norm=None),
    "clipping": Remedy("clipping", COLORS["logistic"], _plain),
    "pascanu": Remedy("Pascanu's penalty", "#F0E442", _plain, penalty=1.0),
    "flossing": Remedy("flossing", COLORS["relu"], _plain, flossed=True),
    "orthogonal": Remedy("orthogonal", COLORS["tanh"], jaxrnn.elman),
    "identity": Remedy("identity, relu", COLORS["identity"], _irnn),
    "gru": Remedy("GRU", COLORS["gru"], jaxrnn.gru),
    "gru_chrono": Remedy("GRU, chrono", COLORS["gru"], jaxrnn.gru, ":", bias=_chrono.gru),
    "lstm": Remedy("LSTM", COLORS["lstm"], jaxrnn.lstm),
    "lstm_chrono": Remedy("LSTM, chrono", COLORS["lstm"], jaxrnn.lstm, ":", bias=_chrono.lstm),
}


class Program(NamedTuple):
    """Functions of one network on one task, each for all seeds at once."""

    init: Callable[..., Any]
    reach: Callable[..., Any]
    train: Callable[..., Any]


def make_program(
    task: Task,
    remedy: Remedy,
    length: int,
    *,
    hidden_size: int,
    batch_size: int,
    learning_rate: float,
) -> Program:
    """Make what draws a network, measures its gradient's reach, and trains it for a chunk."""
    cell, head = remedy.cell(hidden_size), jaxrnn.dense(task.answers)
    optimizer = optax.adam(learning_rate)

    def make_batch(key):
        return task.make_batch(key, batch_size, length)

    def end_loss(head_params, targets):
        def loss(outputs):
            _, answers = head.apply(head_params, None, outputs[-task.asked :])
            return task.loss(answers, targets)

        return loss

    def loss(params, batch, key):
        del key
        (cell_params, head_params), (inputs, targets) = params, batch
        _, outputs = jaxrnn.unroll(cell, cell_params, inputs)
        return end_loss(head_params, targets)(outputs)

    def penalised(params, batch, key):
        (cell_params, head_params), (inputs, targets) = params, batch
        penalty = jaxrnn.regularizers.pascanu(
            end_loss(lax.stop_gradient(head_params), targets), cell, cell_params, inputs
        )
        # The penalty is a sum over steps; its mean keeps the weight's meaning at any length.
        return loss(params, batch, key) + remedy.penalty * penalty / length

    def measured_step(step):
        """Report the task's own loss, without the penalty."""

        def measured(state, batch, key):
            before = state.params
            state, metrics = step(state, batch, key)
            return state, loss(before, batch, key) if remedy.penalty else metrics.loss

        return measured

    step = measured_step(
        jaxrnn.train_step(
            penalised if remedy.penalty else loss, optimizer, clip_norm=remedy.clip_norm
        )
    )

    def floss(params, key):
        def penalty(params, inputs, key):
            del key
            return jaxrnn.regularizers.flossing(
                cell, params, inputs, num_exponents=hidden_size // 2
            )

        floss_step = jaxrnn.train_step(penalty, optax.adam(FLOSSING_RATE), clip_norm=1.0)

        def body(state, key):
            inputs, _ = task.make_batch(key, 1, length)
            state, _ = floss_step(state, inputs[:FLOSSING_LENGTH, 0], key)
            return state, None

        state = jaxrnn.training.init_train_state(params, optax.adam(FLOSSING_RATE))
        state, _ = lax.scan(body, state, jax.random.split(key, FLOSSING_STEPS))
        return state.params

    def init(key):
        cell_key, head_key, remedy_key = jax.random.split(key, 3)
        params = cell.init(cell_key, task.features)
        if remedy.bias is not None:
            params = remedy.bias(params, remedy_key, length)
        if remedy.flossed:
            params = floss(params, remedy_key)
        return jaxrnn.training.init_train_state(
            (params, head.init(head_key, hidden_size)), optimizer
        )

    def reach(params, key):
        """Return the initial gradient's horizon, and its loss in nats over the sequence."""
        (cell_params, head_params), (inputs, targets) = params, make_batch(key)
        # Every part of the state, as an LSTM remembers in its cell state.
        norms = diagnostics.gradient_norms(
            end_loss(head_params, targets), cell, cell_params, inputs, part=None
        )
        # From the last step before the answers, which get gradients of their own.
        horizon = diagnostics.gradient_horizon(norms[: len(inputs) - task.asked + 1], FRACTION)
        return jnp.minimum(horizon.steps, length), horizon.decay_rate * length

    def train(state, key):
        def body(state, key):
            batch_key, step_key = jax.random.split(key)
            return step(state, make_batch(batch_key), step_key)

        state, losses = lax.scan(body, state, jax.random.split(key, CHUNK))
        return state, losses.mean()

    return Program(*(jax.jit(jax.vmap(function)) for function in (init, reach, train)))


def learn(
    task_name: str,
    remedy_name: str,
    length: int,
    keys: PRNGKeyArray,
    *,
    steps: int,
    **settings: Any,
) -> Run:
    """Measure and train one network for each key, all in one compiled program."""
    start = time.perf_counter()
    task, remedy = TASKS[task_name], REMEDIES[remedy_name]
    program = make_program(task, remedy, length, **settings)
    init_keys, data_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    state = program.init(init_keys)
    horizon, decay = program.reach(state.params, data_keys)
    losses = []
    for number in range(steps // CHUNK):
        chunk_keys = jax.vmap(jax.random.fold_in, (0, None))(data_keys, number)
        state, loss = program.train(state, chunk_keys)
        losses.append(np.asarray(loss) / task.chance)
    return Run(
        task_name,
        remedy_name,
        length,
        np.stack(losses, axis=1),
        np.asarray(horizon),
        np.asarray(decay),
        time.perf_counter() - start,
    )


def summary(run: Run) -> dict[str, Any]:
    """One row of the table; medians over seeds."""
    learnt = np.isfinite(run.steps)
    return {
        "task": TASKS[run.task].label,
        "T": run.length,
        "remedy": REMEDIES[run.remedy].label,
        "horizon": f"{np.median(run.horizon):.0f}",
        "decay, nats": f"{np.median(run.decay):.1f}",
        "learnt": f"{learnt.sum()} of {len(learnt)}",
        "steps to learn": f"{np.median(run.steps):.0f}",
        "error / chance": float(np.median(np.nan_to_num(run.losses[:, -1], nan=np.inf))),
        "learning": float(np.median(run.learning)),
    }


# What is known before training: how far the gradient reaches, and how near it is to keeping its
# norm, as one that explodes is of no more use.
PREDICTORS: dict[str, Callable[[Run], Float[np.ndarray, "S"]]] = {
    "horizon / T": lambda run: run.horizon / run.length,
    "decay over T": lambda run: -np.abs(run.decay),
}


def correlations(runs: Sequence[Run], seed: int) -> list[dict[str, Any]]:
    """Return how each predictor's rank agrees with learning, over all runs and some of them."""
    selections = {"all runs": list(runs)}
    for task in dict.fromkeys(run.task for run in runs):
        selections[TASKS[task].label] = [run for run in runs if run.task == task]
    for length in dict.fromkeys(run.length for run in runs):
        selections[f"T = {length}"] = [run for run in runs if run.length == length]
    rows = []
    for predictor, value in PREDICTORS.items():
        for selection, chosen in selections.items():
            if selection != "all runs" and len(chosen) == len(runs):
                continue  # the same once more
            groups = [
                [
                    np.concatenate([part(run) for run in chosen if run.remedy == remedy])
                    for part in (value, lambda run: run.learning)
                ]
                for remedy in dict.fromkeys(run.remedy for run in chosen)
            ]
            middle, low, high = _statistics.bootstrap(groups, seed)
            rows.append(
                {
                    "predictor": predictor,
                    "runs": selection,
                    "Spearman": middle,
                    "95% from": low,
                    "to": high,
                    "networks": sum(len(x) for x, _ in groups),
                }
            )
    return rows


def interval_text(correlated: Mapping[str, Any]) -> str:
    """Return the interval of a row of `correlations` as text, or why there is none."""
    if np.isnan(correlated["Spearman"]):
        return "no ranks: all equal"
    if np.isnan(correlated["95% from"]):
        return f"fewer than {_statistics.LEAST_GROUPS} remedies"
    return f"{correlated['95% from']:.2f} to {correlated['to']:.2f}"


MARKERS = {"adding": "o", "copy": "s"}


def draw(runs: Sequence[Run], correlated: Sequence[dict[str, Any]]) -> Any:
    """Draw learning curves by task and length, and learning against each predictor."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    lengths = list(dict.fromkeys(run.length for run in runs))
    remedies = list(dict.fromkeys(run.remedy for run in runs))
    with plt.rc_context(_common.STYLE):
        figure = plt.figure(figsize=(5.5 + 3 * len(lengths), 7.5), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=[3 * len(lengths), 4.5])
        left, right = halves
        axes = left.subplots(len(tasks), len(lengths), sharex=True, sharey=True, squeeze=False)
        for row, task in zip(axes, tasks, strict=True):
            for axis, length in zip(row, lengths, strict=True):
                _draw_curves(axis, [r for r in runs if (r.task, r.length) == (task, length)])
                axis.set_title(f"{TASKS[task].label}, T = {length}", loc="left")
            row[0].set_ylabel("error / chance")
        for axis in axes[-1]:
            axis.set_xlabel("training steps")
        axes[0, 0].set_ylim(1e-3, 3)
        for axis, predictor in zip(right.subplots(2, 1), PREDICTORS, strict=True):
            _draw_scatter(
                axis,
                runs,
                predictor,
                next(row for row in correlated if row["predictor"] == predictor),
            )
        lines = [
            Line2D([], [], color=remedy.color, linestyle=remedy.linestyle, label=remedy.label)
            for remedy in map(REMEDIES.__getitem__, remedies)
        ]
        points = [
            Line2D(
                [], [], color="0.3", linestyle="none", marker=MARKERS[task], label=TASKS[task].label
            )
            for task in tasks
        ]
        reached = correlated[0]
        figure.suptitle(
            "How far the gradient reaches before training, and how much is learnt: "
            f"rank correlation {reached['Spearman']:.2f}",
            weight="bold",
        )
        figure.legend(
            handles=lines + points, loc="outside lower center", ncols=(len(lines) + 3) // 2
        )
    return figure


def _draw_curves(axis: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        remedy = REMEDIES[run.remedy]
        steps = CHUNK * (1 + np.arange(run.losses.shape[1]))
        axis.plot(
            steps, np.median(run.losses, axis=0), color=remedy.color, linestyle=remedy.linestyle
        )
        axis.fill_between(
            steps,
            run.losses.min(axis=0),
            run.losses.max(axis=0),
            color=remedy.color,
            alpha=0.12,
            linewidth=0,
        )
    axis.axhline(LEARNT, color="0.3", linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "weight": "normal", "fontsize": 9}
    _common.write(axis, "learnt", (0, LEARNT), (3, 3), **place)
    axis.set_yscale("log")


def _draw_scatter(
    axis: Any, runs: Sequence[Run], predictor: str, correlated: dict[str, Any]
) -> None:
    for run in runs:
        remedy = REMEDIES[run.remedy]
        axis.plot(
            np.abs(PREDICTORS[predictor](run)),
            run.learning,
            linestyle="none",
            marker=MARKERS[run.task],
            markersize=5,
            markeredgecolor=remedy.color,
            # Hollow where the curve is dotted.
            markerfacecolor="white" if remedy.linestyle == ":" else remedy.color,
            alpha=0.8,
        )
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if high < 30 * low:
        # Ticks stand between powers of ten then, and labels such as 4 times 10 to the 0 collide.
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("share of the error gone")
    axis.set_xlabel(
        {
            "horizon / T": "horizon / T before training",
            "decay over T": "nats gained or lost over T before training",
        }[predictor]
    )
    correlation = f" {correlated['Spearman']:.2f}" if np.isfinite(correlated["Spearman"]) else ""
    axis.set_title(f"rank correlation{correlation} ({interval_text(correlated)})", loc="left")
    if predictor == "decay over T":
        axis.invert_xaxis()


def main(argv: Sequence[str] | None = None) -> None:
    """Train with every remedy on every task and length, and correlate."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="which")
    parser.add_argument(
        "--remedy",
        nargs="+",
        choices=REMEDIES,
        default=[name for name in REMEDIES if name != "pascanu"],
        help="which; Pascanu's penalty takes three times as long as the others",
    )
    parser.add_argument("--length", nargs="+", type=positive(int), default=[20, 100, 500], help="T")
    parser.add_argument("--seeds", type=positive(int), default=3, help="how many, at once")
    parser.add_argument("--hidden", type=positive(int), default=32, help="units of each network")
    parser.add_argument("--batch", type=positive(int), default=16, help="sequences of a batch")
    parser.add_argument(
        "--steps", type=positive(int), default=600, help=f"training steps, in full {CHUNK}s"
    )
    parser.add_argument("--learning-rate", type=positive(float), default=5e-3, help="Adam's")
    arguments = _common.parse(
        parser,
        argv,
        task=["copy"],
        remedy=["clipping", "orthogonal"],
        length=[30],
        hidden=16,
        steps=200,
    )
    if arguments.steps < CHUNK:
        parser.error(f"--steps: got {arguments.steps}, expected {CHUNK} at least")
    if min(arguments.length) < 3:
        parser.error(f"--length: got {min(arguments.length)}, expected 3 at least")

    keys = jax.random.split(jax.random.key(arguments.seed), arguments.seeds)

    def run(setting: tuple[str, int, str]) -> Run:
        task, length, remedy = setting
        result = learn(
            task,
            remedy,
            length,
            keys,
            steps=arguments.steps,
            hidden_size=arguments.hidden,
            batch_size=arguments.batch,
            learning_rate=arguments.learning_rate,
        )
        row = summary(result)
        print(
            f"{row['task']}, T = {length}, {row['remedy']}: {row['learnt']} seeds learnt, "
            f"{result.seconds:.0f} s",
            flush=True,
        )
        return result

    settings = [
        (task, length, remedy)
        for task in arguments.task
        for length in arguments.length
        for remedy in arguments.remedy
    ]
    # Such small products run on one core, and so does compiling: two networks at once use two.
    runs = _common.two_at_once(run, settings)
    correlated = correlations(runs, arguments.seed)
    _common.save_csv(
        arguments.out / "remedies.csv",
        [
            {
                "task": run.task,
                "T": run.length,
                "remedy": run.remedy,
                "seed": seed,
                "horizon": float(run.horizon[seed]),
                "decay": float(run.decay[seed]),
                "steps_to_learn": float(run.steps[seed]),
                "learning": float(run.learning[seed]),
            }
            for run in runs
            for seed in range(arguments.seeds)
        ],
    )
    _common.save_csv(
        arguments.out / "remedies_curves.csv",
        [
            {
                "task": run.task,
                "T": run.length,
                "remedy": run.remedy,
                "seed": seed,
                "step": CHUNK * number,
                "error": float(error),
            }
            for run in runs
            for seed, losses in enumerate(run.losses)
            for number, error in enumerate(losses, start=1)
        ],
    )
    _common.save_csv(arguments.out / "remedies_correlations.csv", correlated)
    _common.save_figure(arguments.out / "remedies.png", draw(runs, correlated))
    print(
        f"\nA seed has learnt with an error below {LEARNT:g} of chance. The horizon is how many "
        f"steps back the untrained network's gradient keeps {FRACTION:.0%}, the decay what it "
        "loses over T steps, learning the share of the error that was gone, averaged over "
        "training. Medians over seeds.\n"
    )
    _common.print_table([summary(run) for run in runs])
    print("\nDid it foretell learning? Rank correlations, of one network each:\n")
    _common.print_table(
        [
            {name: row[name] for name in ("predictor", "runs", "networks", "Spearman")}
            | {"95% interval": interval_text(row)}
            for row in correlated
        ]
    )


if __name__ == "__main__":
    main()
