"""The vanishing gradient on real text: how far back in time does each cell's gradient reach?

A model reads text and predicts the next character. The error of its last prediction alone is
differentiated with respect to the hidden state at every step before. The norm of that gradient,
against the number of steps back, says how much the end can still teach the network about the past.
For Elman networks the bound (gamma * ||W||) ** steps of Pascanu, Mikolov and Bengio (2013) stands
beside it: gamma is the steepest slope of the activation, ||W|| the recurrent kernel's largest
singular value. An LSTM has its memory in a second variable, the cell state: a change of its hidden
state alone first has to pass the gates, whence the drop at the first step back. All cells start as
the library makes them; one more LSTM starts with its forget gate wide open, since that is what
decides how far an LSTM's gradient reaches.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxrnn
from experiments import _common

EMBEDDING_SIZE = 32
LEARNING_RATE = 3e-3
CLIP_NORM = 1.0
# The forget gate's bias of the LSTM that starts with it open: sigmoid(5) = 0.993.
OPEN_GATE = 5.0
# The horizon is where the gradient falls below this part of its size at the end.
LEVEL = 0.01
# How many steps back the table looks.
STEPS_BACK = 100


class Settings(NamedTuple):
    """How much to train and measure."""

    hidden_size: int
    steps: int
    batch_size: int
    train_length: int
    lengths: tuple[int, ...]
    windows: int
    cells: tuple[str, ...]


CELLS = ("logistic", "tanh", "relu", "identity", "gru", "lstm", "lstm_open")
FULL = Settings(64, 500, 32, 100, (50, 200, 500), 32, CELLS)
# Compiling takes the same time for a small cell as for a large one: hence fewer.
QUICK = Settings(32, 200, 16, 50, (500,), 16, ("logistic", "lstm"))


class Model(NamedTuple):
    """A next-character model; `gamma` is the steepest slope of an Elman cell's activation."""

    name: str
    label: str
    gamma: float | None
    embedding: jaxrnn.Layer
    cell: jaxrnn.Cell
    dense: jaxrnn.Layer

    @property
    def color(self) -> str:
        """The cell's colour in figures."""
        return _common.COLORS[self.name.removesuffix("_open")]

    @property
    def linestyle(self) -> str:
        """Dots for a variant of another model, which has its colour."""
        return ":" if self.name.endswith("_open") else "-"


class Profile(NamedTuple):
    """The gradient's norm at 0, 1, 2, ... steps back from the end, and the bound beside it.

    Both are relative to the norm at the end; `bound` is None for a cell that has none.
    """

    model: Model
    trained: bool
    norms: np.ndarray
    bound: np.ndarray | None


def make_models(hidden_size: int, num_symbols: int) -> list[Model]:
    """Return the models to compare: four Elman networks, two LSTMs and a GRU."""
    elman, sigmoid, relu = jaxrnn.elman, jax.nn.sigmoid, jax.nn.relu
    cells = [
        ("logistic", "Elman, logistic", 0.25, elman(hidden_size, activation=sigmoid)),
        ("tanh", "Elman, tanh", 1.0, elman(hidden_size)),
        ("relu", "Elman, relu", 1.0, elman(hidden_size, activation=relu)),
        ("identity", "Elman, identity", 1.0, elman(hidden_size, activation=_identity)),
        ("gru", "GRU", None, jaxrnn.gru(hidden_size)),
        ("lstm", "LSTM", None, jaxrnn.lstm(hidden_size)),
        ("lstm_open", "LSTM, open", None, jaxrnn.lstm(hidden_size, forget_bias=OPEN_GATE)),
    ]
    embedding = jaxrnn.embedding(num_symbols, EMBEDDING_SIZE)
    dense = jaxrnn.dense(num_symbols)
    return [Model(name, label, gamma, embedding, cell, dense) for name, label, gamma, cell in cells]


def _identity(inputs: jax.Array) -> jax.Array:
    return inputs


def init(model: Model, key: jax.Array) -> tuple[Any, Any, Any]:
    """Return initial parameters of the embedding, the cell and the dense layer."""
    layers = jaxrnn.serial(model.embedding, jaxrnn.rnn(model.cell), model.dense)
    return layers.init(key)


def windows_before(text: jax.Array, ends: jax.Array, length: int) -> jax.Array:
    """Return windows `(*N, length + 1, B)` of text, their last characters at `ends` `(*N, B)`."""
    return text[ends[..., None, :] + jnp.arange(-length, 1)[:, None]]


def train(model: Model, params: Any, batches: jax.Array, key: jax.Array) -> tuple[Any, float, int]:
    """Train a model to predict every character of windows, a batch `(T + 1, B)` each step.

    Returns:
        The parameters, the mean loss in bits over the last tenth of the steps, and how many steps
        were made: fewer than there are batches if the loss ceased to be finite.
    """
    layers = jaxrnn.serial(model.embedding, jaxrnn.rnn(model.cell), model.dense)
    steps = len(batches)

    def loss(params: Any, windows: jax.Array, key: jax.Array) -> jax.Array:
        del key
        _, logits = layers.apply(params, None, windows[:-1])
        return jaxrnn.losses.softmax_cross_entropy(logits, windows[1:])

    try:
        result = jaxrnn.fit(
            loss,
            params,
            optax.adam(LEARNING_RATE),
            batches,
            steps=steps,
            key=key,
            clip_norm=CLIP_NORM,
            progress=False,
        )
    except jaxrnn.NonFiniteError as error:
        print(f"{model.label}: {error}")
        result = error.result
    losses = result.losses[np.isfinite(result.losses)]
    bits = losses[-max(1, steps // 10) :].mean() / np.log(2)
    return result.params, float(bits), len(losses)


def make_norms_back(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """Make the function that measures the gradient's norm at 0, 1, 2, ... steps back from the end.

    It takes the parameters and windows `(T + 1, B)`, and returns `(T, B)`, one column a window.
    """

    @jax.jit
    def norms_back(params: Any, windows: jax.Array) -> jax.Array:
        embedding, cell, dense = params
        _, inputs = model.embedding.apply(embedding, None, windows[:-1])

        def last_loss(outputs: jax.Array) -> jax.Array:
            _, logits = model.dense.apply(dense, None, outputs[-1])
            return jaxrnn.losses.softmax_cross_entropy(logits, windows[-1])

        gradients = jaxrnn.diagnostics.state_gradients(last_loss, model.cell, cell, inputs)
        return jnp.linalg.norm(gradients, axis=-1)[::-1]

    return norms_back


def bound_back(model: Model, params: Any, steps: int) -> np.ndarray | None:
    """Return (gamma * ||W||) ** k for k = 0, 1, 2, ...: what no gradient exceeds k steps back."""
    if model.gamma is None:
        return None
    _, cell, _ = params
    factor = model.gamma * np.linalg.norm(np.asarray(cell.recurrent_kernel, np.float64), 2)
    with np.errstate(over="ignore"):
        return factor ** np.arange(steps)


def measure(model: Model, trained: bool, params: Any, norms: np.ndarray) -> Profile:
    """Average the norms `(T, B)` of all windows, and relate them to the end.

    The arithmetic mean, as a training step adds the windows' gradients up, large and small.
    """
    mean = norms.mean(axis=1, dtype=np.float64)
    return Profile(model, trained, mean / mean[0], bound_back(model, params, len(mean)))


def horizon(norms: np.ndarray) -> int:
    """Return how many steps back the norms stay at `LEVEL` of the first or above, without a break.

    A gradient too large for its dtype has not vanished, so what is not a number doesn't end it.
    """
    below = norms < LEVEL * norms[0]
    return int(below.argmax()) - 1 if below.any() else len(norms) - 1


def horizon_text(norms: np.ndarray) -> str:
    """Return the horizon as text, with a sign where it is only known to lie beyond the start."""
    steps = horizon(norms)
    return f">= {steps}" if steps == len(norms) - 1 else str(steps)


def table_row(profile: Profile, bits: float | None) -> dict[str, Any]:
    """Return one row of the table."""
    norms, bound = profile.norms, profile.bound
    reaches = len(norms) > STEPS_BACK
    return {
        "cell": profile.model.label,
        "length": len(norms),
        "when": _when(profile.trained),
        "horizon": horizon_text(norms),
        f"gradient {STEPS_BACK} back": float(norms[STEPS_BACK]) if reaches else "",
        f"bound {STEPS_BACK} back": float(bound[STEPS_BACK])
        if reaches and bound is not None
        else "",
        "bits per character": "" if bits is None else bits,
    }


def curve_rows(profile: Profile) -> list[dict[str, Any]]:
    """Return one row for each step back."""
    bound = [""] * len(profile.norms) if profile.bound is None else profile.bound
    return [
        {
            "cell": profile.model.name,
            "length": len(profile.norms),
            "when": _when(profile.trained),
            "steps_back": steps,
            "gradient": float(norm),
            "bound": limit,
        }
        for steps, (norm, limit) in enumerate(zip(profile.norms, bound, strict=True))
    ]


def _when(trained: bool) -> str:
    return "trained" if trained else "initial"


def print_summary(before: list[Profile], after: list[Profile]) -> None:
    """Say in words what training did to each horizon."""
    length = len(before[0].norms)
    print(f"\nSteps back with {LEVEL:.0%} of the gradient or more, in windows of {length}:")
    for old, new in zip(before, after, strict=True):
        change = np.sign(horizon(new.norms) - horizon(old.norms))
        verdict = {-1: "shorter", 0: "the same", 1: "longer"}[int(change)]
        print(
            f"  {old.model.label:<16} {horizon_text(old.norms):>6} at initialisation, "
            f"{horizon_text(new.norms):>6} after training: {verdict}"
        )
    print()


# The figure shows no less than this: smaller gradients are as good as none, and far smaller ones
# are 0 in float32.
FLOOR = 1e-8
CEILING = 1e3


def picture(before: list[Profile], after: list[Profile]) -> Any:
    """Draw the gradient against steps back, before and after training, and the horizons."""
    with plt.rc_context(_common.STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(14, 5), width_ratios=[1, 1, 0.75], layout="constrained"
        )
        _draw_norms(left, before, "At initialisation")
        _draw_norms(middle, after, "After training on text")
        left.set_ylabel("gradient, relative to the last step's")
        middle.sharey(left)
        middle.tick_params(labelleft=False)
        _draw_horizons(right, before, after)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=10)
    return figure


def _draw_norms(axes: Any, profiles: list[Profile], title: str) -> None:
    for number, profile in enumerate(profiles):
        color = profile.model.color
        # Cut where it leaves the panel: a gradient of 0 has no logarithm.
        shown = np.where(profile.norms > 0, profile.norms, np.nan)
        axes.plot(shown, color=color, linestyle=profile.model.linestyle, label=profile.model.label)
        if profile.bound is not None:
            # Bounds that coincide share the line: each draws its dashes in the others' gaps.
            dashes = (5 * number, (5, 15))
            axes.plot(profile.bound, color=color, linestyle=dashes, linewidth=1.2, zorder=3)
    axes.plot(
        [], [], color="black", linestyle="--", linewidth=1.2, label=r"bound $(\gamma\|W\|)^k$"
    )
    axes.axhline(LEVEL, color="black", linewidth=0.8, linestyle=":")
    length = len(profiles[0].norms)
    axes.text(length, LEVEL * 1.2, f"{LEVEL:.0%}", ha="right", fontsize=9)
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, CEILING)
    axes.set_xlim(0, length)
    axes.set_xlabel("steps back from the end")
    axes.set_title(title, loc="left")


def _draw_horizons(axes: Any, before: list[Profile], after: list[Profile]) -> None:
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        color = old.model.color
        steps = [max(1, horizon(profile.norms)) for profile in (old, new)]
        axes.plot(steps, [place, place], color=color, linewidth=1.5, alpha=0.5)
        for profile, step, filled in [(old, steps[0], False), (new, steps[1], True)]:
            axes.plot(
                step,
                place,
                "o",
                color=color,
                markerfacecolor=color if filled else "white",
                markersize=8,
                clip_on=False,
            )
            axes.annotate(
                horizon_text(profile.norms).replace(">=", "≥"),
                (step, place),
                (0, -9 if filled else 9),
                textcoords="offset points",
                ha="center",
                va="top" if filled else "bottom",
                fontsize=9,
                weight="bold" if filled else "normal",
            )
    axes.set_xscale("log")
    ticks = [1, 10, 100]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(1, len(before[0].norms))
    axes.set_ylim(len(before) - 0.4, -0.6)
    axes.set_yticks(range(len(before)), [profile.model.label for profile in before])
    axes.grid(False, axis="y")
    axes.set_xlabel("○ at initialisation    ● after training")
    axes.set_title(f"Horizon: steps back with {LEVEL:.0%} left", loc="left")


def main(arguments: list[str] | None = None) -> None:
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--text",
        type=Path,
        metavar="PATH",
        help="a UTF-8 text; without one, the sources of Python's standard library",
    )
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL

    codes, vocabulary = _common.encode(_common.read_text(options.text))
    text, held_out = split(codes, max(settings.lengths))
    print(f"{len(codes):,} characters, {len(vocabulary)} different; the last tenth is held out.")

    ends_key, batch_key, init_key, train_key = jax.random.split(jax.random.key(options.seed), 4)
    # All lengths share their ends, so that only how far they look back differs.
    ends = jax.random.randint(ends_key, (settings.windows,), max(settings.lengths), held_out.size)
    windows = [windows_before(held_out, ends, length) for length in settings.lengths]
    # Every model is trained on the same batches.
    ends = jax.random.randint(
        batch_key, (settings.steps, settings.batch_size), settings.train_length, text.size
    )
    batches = windows_before(text, ends, settings.train_length)

    models = make_models(settings.hidden_size, len(vocabulary))
    models = [model for model in models if model.name in settings.cells]

    def examine(model: Model) -> tuple[list[Profile], list[Profile], float]:
        initial = init(model, init_key)
        params, loss, steps = train(model, initial, batches, train_key)
        norms_back = make_norms_back(model)
        before, after = (
            [measure(model, trained, values, np.asarray(norms_back(values, w))) for w in windows]
            for trained, values in [(False, initial), (True, params)]
        )
        print(f"{model.label}: {steps} steps, {loss:.2f} bits per character", flush=True)
        return before, after, loss

    # Most of the time goes into compiling, which runs on one core: two models at once use two.
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(examine, models)
        before, after, bits = (list(column) for column in zip(*results, strict=True))

    rows = [
        table_row(profile, loss if profile.trained else None)
        for old, new, loss in zip(before, after, bits, strict=True)
        for pair in zip(old, new, strict=True)
        for profile in pair
    ]
    print()
    _common.print_table(rows)
    print(
        "A gradient of 0 is too small for float32. Norms are means over windows of held-out text."
    )
    longest = [[profiles[-1] for profiles in group] for group in (before, after)]
    print_summary(*longest)
    _common.save_csv(options.out / "vanishing_gradient.csv", rows)
    _common.save_csv(
        options.out / "vanishing_gradient_curves.csv",
        [
            row
            for profiles in [*before, *after]
            for profile in profiles
            for row in curve_rows(profile)
        ],
    )
    _common.save_figure(options.out / "vanishing_gradient.png", picture(*longest))


def split(codes: np.ndarray, length: int) -> tuple[jax.Array, jax.Array]:
    """Return the first nine tenths of a text to train on, and the last tenth to measure on."""
    cut = len(codes) * 9 // 10
    if len(codes) - cut <= length:
        raise SystemExit(
            f"--text: got {len(codes):,} characters, wanted more than {10 * length:,}: "
            f"windows of {length} are measured in its last tenth"
        )
    return jnp.asarray(codes[:cut]), jnp.asarray(codes[cut:])


if __name__ == "__main__":
    main()
