"""The gradient on real text: how far back in time does the next character's error reach?

A model reads text and predicts the next character. The error of its last prediction alone is
differentiated with respect to the hidden state at every step before. The norm of that gradient,
against the number of steps back, says how much the end can still teach the network about the past.

Two predictions stand beside it. For Elman networks (gamma * ||W||) ** steps is its bound (Pascanu,
Mikolov and Bengio, 2013): gamma is the steepest slope of the activation, ||W|| the recurrent
kernel's largest singular value. For every cell exp(exponent * steps) is its typical size, of the
largest Lyapunov exponent on the same windows. An LSTM has its memory in a second variable, the cell
state: a change of its hidden state alone first has to pass the gates, whence the drop at the first
step back. Trained, it keeps some cell states so large that their tanh is flat: the exponent is then
that of a memory which nothing reads, and the gradient vanishes sooner.

Every model is trained from several seeds, which draw its parameters and its text: lines, dots and
numbers are the medians over them, bands and bars reach from the lowest to the highest. All cells
start as the library makes them; one more LSTM starts with its forget gate wide open, since that is
what decides how far an LSTM's gradient reaches. Of a stack of LSTMs the gradient is measured at
every layer, and drawn as a map of layers and steps.
"""

import statistics
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from matplotlib.colors import LogNorm

import jaxrnn
from experiments import _common, _gradient
from experiments._gradient import LEVEL, Curve, horizon

EMBEDDING_SIZE = 32
LEARNING_RATE = 3e-3
CLIP_NORM = 1.0
# The forget gate's bias of the LSTM that starts with it open: sigmoid(5) = 0.993.
OPEN_GATE = 5.0
# How many steps back the table looks.
STEPS_BACK = 100
# How many steps a window's exponent leaves out, in which tangents still turn to the leading one.
BURN_IN = 20


class Settings(NamedTuple):
    """How much to train and measure."""

    hidden_size: int
    steps: int
    batch_size: int
    train_length: int
    lengths: tuple[int, ...]
    windows: int
    cells: tuple[str, ...]
    layers: int
    seeds: int


CELLS = ("logistic", "tanh", "identity", "gru", "lstm", "lstm_open")
FULL = Settings(64, 500, 32, 100, (50, 200, 500), 32, CELLS, layers=3, seeds=3)
# Compiling takes the same time for a small cell as for a large one: hence fewer.
QUICK = Settings(32, 200, 16, 50, (500,), 16, ("logistic", "lstm"), layers=2, seeds=2)


class Model(NamedTuple):
    """A next-character model; `gamma` is the steepest slope of an Elman cell's activation."""

    name: str
    label: str
    gamma: float | None
    embedding: jaxrnn.Layer
    cell: jaxrnn.Cell
    dense: jaxrnn.Layer
    layers: int = 1

    @property
    def network(self) -> jaxrnn.Layer:
        """The model as one layer, from characters to logits."""
        # Seeds are mapped over, where the default engine gains nothing.
        rnns = [jaxrnn.rnn(self.cell, engine=jaxrnn.engines.scan())] * self.layers
        return jaxrnn.serial(self.embedding, *rnns, self.dense)

    @property
    def color(self) -> str:
        """The cell's colour in figures."""
        return _common.COLORS[self.name.split("_")[0]]

    @property
    def linestyle(self) -> str:
        """Dots for a variant of another model, which has its colour."""
        return ":" if self.name.endswith("_open") else "-"


class Profile(NamedTuple):
    """The gradient's norm in one layer, 0, 1, 2, ... steps back, and what theory says of it.

    `norms` `(seeds, T)` and `bound` `(T,)` are relative to the norm at the last step of the last
    layer. `bound`, the median over the seeds, is None for a cell that has none, and `exponents`
    `(seeds,)`, in nats per step, where they aren't measured.
    """

    model: Model
    layer: int
    trained: bool
    norms: np.ndarray
    bound: np.ndarray | None
    exponents: np.ndarray | None

    @property
    def length(self) -> int:
        """How many steps were measured."""
        return self.norms.shape[1]

    @property
    def exponent(self) -> float | None:
        """The median exponent."""
        return None if self.exponents is None else float(np.median(self.exponents))

    @property
    def horizons(self) -> tuple[float, float, float]:
        """The lowest, the median and the highest horizon of the seeds."""
        steps = [horizon(norms) for norms in self.norms]
        return min(steps), statistics.median(steps), max(steps)

    @property
    def curve(self) -> Curve:
        """The norms as they are drawn."""
        return Curve(self.norms, self.label, self.model.color, self.model.linestyle)

    @property
    def name(self) -> str:
        """What files call the cell."""
        return f"{self.model.name}_{self.layer}" if self.model.layers > 1 else self.model.name

    @property
    def label(self) -> str:
        """What tables and figures call the cell."""
        stacked = f"{self.model.label}, layer {self.layer}"
        return stacked if self.model.layers > 1 else self.model.label


def make_models(hidden_size: int, num_symbols: int) -> list[Model]:
    """Return the models to compare: three Elman networks, a GRU and two LSTMs."""
    elman, sigmoid = jaxrnn.elman, jax.nn.sigmoid
    cells = [
        ("logistic", "logistic", 0.25, elman(hidden_size, activation=sigmoid)),
        ("tanh", "tanh", 1.0, elman(hidden_size)),
        ("identity", "identity", 1.0, elman(hidden_size, activation=jax.nn.identity)),
        ("gru", "GRU", None, jaxrnn.gru(hidden_size)),
        ("lstm", "LSTM", None, jaxrnn.lstm(hidden_size)),
        ("lstm_open", "open LSTM", None, jaxrnn.lstm(hidden_size, forget_bias=OPEN_GATE)),
    ]
    embedding = jaxrnn.embedding(num_symbols, EMBEDDING_SIZE)
    dense = jaxrnn.dense(num_symbols)
    return [Model(name, label, gamma, embedding, cell, dense) for name, label, gamma, cell in cells]


def make_stack(hidden_size: int, num_symbols: int, layers: int) -> Model:
    """Return the model with several layers, of LSTMs."""
    lstm = next(model for model in make_models(hidden_size, num_symbols) if model.name == "lstm")
    return lstm._replace(name="lstm_stack", label=f"{layers} LSTMs", layers=layers)


def windows_before(text: jax.Array, ends: jax.Array, length: int) -> jax.Array:
    """Return windows `(*N, length + 1, B)` of text, their last characters at `ends` `(*N, B)`."""
    return text[ends[..., None, :] + jnp.arange(-length, 1)[:, None]]


def train(
    model: Model, params: Any, text: jax.Array, settings: Settings, keys: jax.Array
) -> tuple[Any, np.ndarray]:
    """Train a model from each of several parameters to predict every character of windows of text.

    Returns:
        The parameters, and the mean losses in bits over the last tenth of the steps made: fewer
        than all if a loss ceased to be finite.
    """

    def batches(key: jax.Array) -> jax.Array:
        ends = jax.random.randint(key, (settings.batch_size,), settings.train_length, text.size)
        return windows_before(text, ends, settings.train_length)

    def loss(params: Any, windows: jax.Array, key: jax.Array) -> jax.Array:
        del key
        _, logits = model.network.apply(params, None, windows[:-1])
        return jaxrnn.losses.softmax_cross_entropy(logits, windows[1:])

    def setup(params: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        del key
        return loss, params, optax.adam(LEARNING_RATE)

    result = jaxrnn.sweep(
        setup,
        params,
        batches,
        steps=settings.steps,
        key=keys,
        clip_norm=CLIP_NORM,
        progress=False,
    )
    bits = []
    for number, losses in enumerate(np.asarray(result.losses)):
        finite = losses[np.isfinite(losses)]
        if len(finite) < len(losses):
            print(f"{model.label}, seed {number}: stopped at step {len(finite)}, no longer finite")
        bits.append(finite[-max(1, settings.steps // 10) :].mean() / np.log(2))
    return result.params, np.array(bits)


def make_norms_back(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """Make the function that measures the gradient's norm at 0, 1, 2, ... steps back from the end.

    It takes the parameters and windows `(T + 1, B)`, and returns `(T, L, B)` for the model's L
    layers.
    """

    @jax.jit
    def norms_back(params: Any, windows: jax.Array) -> jax.Array:
        def last_loss(logits: jax.Array) -> jax.Array:
            return jaxrnn.losses.softmax_cross_entropy(logits[-1], windows[-1])

        gradients = jaxrnn.diagnostics.state_gradients(
            last_loss, model.network, params, windows[:-1]
        )
        return jnp.stack([jnp.linalg.norm(array, axis=-1)[::-1] for array in gradients], axis=1)

    return norms_back


def make_exponent(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """Make the function that measures a cell's largest Lyapunov exponent on windows of text.

    It takes the parameters and windows `(T + 1, B)`, and returns the mean of the B exponents.
    """

    @jax.jit
    def exponent(params: Any, windows: jax.Array) -> jax.Array:
        embedding, cell, _ = params
        _, inputs = model.embedding.apply(embedding, None, windows[:-1])
        spectrum = jaxrnn.diagnostics.lyapunov_exponents(
            model.cell, cell, inputs, num_exponents=1, burn_in=BURN_IN
        )
        return spectrum.exponents.mean()

    return exponent


def bound_back(model: Model, params: Any, steps: int) -> np.ndarray | None:
    """Return (gamma * ||W||) ** k for k = 0, 1, 2, ...: what no gradient exceeds k steps back."""
    if model.gamma is None:
        return None
    _, cell, _ = params
    factor = model.gamma * np.linalg.norm(np.asarray(cell.recurrent_kernel, np.float64), 2)
    with np.errstate(over="ignore"):
        return factor ** np.arange(steps)


def measure(
    model: Model,
    trained: bool,
    params: list[Any],
    norms: np.ndarray,
    exponents: np.ndarray | None,
) -> list[Profile]:
    """Average each seed's norms `(seeds, T, L, B)` of all windows, and relate them to the end.

    The arithmetic mean, as a training step adds the windows' gradients up, large and small. There
    is a profile for each of the L layers.
    """
    mean = norms.mean(axis=-1, dtype=np.float64)
    relative = mean / mean[:, :1, -1:]
    each = [bound_back(model, of_seed, norms.shape[1]) for of_seed in params]
    bounds = [bound for bound in each if bound is not None]
    bound = np.median(bounds, axis=0) if bounds else None
    return [
        Profile(model, number + 1, trained, relative[..., number], bound, exponents)
        for number in range(mean.shape[-1])
    ]


def horizon_text(steps: float, length: int) -> str:
    """Return a horizon as text, with a sign where it is only known to lie beyond the start."""
    return f">= {steps:g}" if steps == length - 1 else f"{steps:g}"


def horizons_text(profile: Profile) -> str:
    """Return the median horizon as text, and how far the seeds are apart."""
    low, middle, high = (horizon_text(steps, profile.length) for steps in profile.horizons)
    return middle if low == high else f"{middle} ({low} to {high})"


def predicted_horizon(exponent: float, length: int) -> int:
    """Return the horizon of a gradient exp(exponent * steps) in a window of `length` steps."""
    if exponent >= 0:
        return length - 1
    return min(length - 1, int(np.log(LEVEL) / exponent))


def table_row(profile: Profile, bits: np.ndarray | None) -> dict[str, Any]:
    """Return one row of the table: medians over the seeds, and what their spread is."""
    norms, bound, exponents = profile.norms, profile.bound, profile.exponents
    reaches = profile.length > STEPS_BACK
    return {
        "cell": profile.label,
        "length": profile.length,
        "when": _when(profile.trained),
        "horizon": horizons_text(profile),
        "exponent": "" if profile.exponent is None else profile.exponent,
        "+-": "" if exponents is None else _half_range(exponents),
        "by it": ""
        if profile.exponent is None
        else predicted_horizon(profile.exponent, profile.length),
        f"gradient {STEPS_BACK} back": float(np.median(norms[:, STEPS_BACK])) if reaches else "",
        f"bound {STEPS_BACK} back": float(bound[STEPS_BACK])
        if reaches and bound is not None
        else "",
        "bits": "" if bits is None else float(np.median(bits)),
        "bits +-": "" if bits is None else _half_range(bits),
    }


def _half_range(values: np.ndarray) -> float:
    return float(np.ptp(values) / 2)


def curve_rows(profile: Profile) -> list[dict[str, Any]]:
    """Return one row for each seed and step back."""
    bound = [""] * profile.length if profile.bound is None else profile.bound
    return [
        {
            "cell": profile.name,
            "length": profile.length,
            "when": _when(profile.trained),
            "seed": seed,
            "steps_back": steps,
            "gradient": float(norm),
            "bound": limit,
        }
        for seed, norms in enumerate(profile.norms)
        for steps, (norm, limit) in enumerate(zip(norms, bound, strict=True))
    ]


def _when(trained: bool) -> str:
    return "trained" if trained else "initial"


def print_summary(before: list[Profile], after: list[Profile]) -> None:
    """Say in words what training did to each horizon."""
    length = before[0].length
    print(f"\nSteps back with {LEVEL:.0%} of the gradient or more, in windows of {length}:")
    for old, new in zip(before, after, strict=True):
        verdict = "as far, within the seeds' spread"
        if new.horizons[-1] < old.horizons[0]:
            verdict = "shorter"
        elif new.horizons[0] > old.horizons[-1]:
            verdict = "longer"
        print(
            f"  {old.label:<16} {horizons_text(old):>16} at initialisation, "
            f"{horizons_text(new):>16} after training: {verdict}"
        )


def picture(before: list[Profile], after: list[Profile]) -> Any:
    """Draw the gradient against steps back, before and after training, and the horizons."""
    reach = max(profile.horizons[1] for profile in after)
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(14, 5), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.7])
        for axes, profiles, title in [
            (left, before, "At initialisation"),
            (middle, after, "Trained to predict the next character"),
        ]:
            _gradient.prepare(axes)
            axes.set(xscale="log", xlim=(1, profiles[0].length - 1))
            axes.xaxis.set_major_formatter("{x:g}")
            _gradient.draw(axes, [profile.curve for profile in profiles])
            axes.set_title(title)
        left.set_ylabel("gradient, relative to the last step's")
        middle.tick_params(labelleft=False)
        _draw_horizons(right, before, after)
        right.set_title(f"Steps back with {LEVEL:.0%} left")
        figure.suptitle(
            "Next characters need little memory: after training, no gradient reaches back more "
            f"than {reach:g} steps",
            **_TITLE,
        )
        _caption(figure, before)
    return figure


def predictions(before: list[Profile], after: list[Profile]) -> Any:
    """Draw each cell's gradient with its bound and what its Lyapunov exponent predicts."""
    with plt.rc_context(_STYLE):
        figure, rows = plt.subplots(
            2,
            len(before),
            figsize=(2.5 * len(before), 5.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for row, profiles in zip(rows, (before, after), strict=True):
            for axes, profile in zip(row, profiles, strict=True):
                _draw_predictions(axes, profile)
                axes.set_xlabel("")
                when = "after training" if profile.trained else "at initialisation"
                axes.set_title(f"{profile.label}, {when}", fontsize=10)
            row[0].set_ylabel("gradient")
        figure.suptitle(
            "The bound says little; the Lyapunov exponent tells how fast most gradients decay",
            **_TITLE,
        )
        _caption(
            figure,
            before,
            "Colour: measured. Dashed: the exponent's prediction. Grey: Elman networks' bound.",
        )
        figure.supxlabel("steps back from the end", fontsize=10)
    return figure


def stack_picture(before: list[Profile], after: list[Profile]) -> Any:
    """Draw maps of a stack's layers and steps, and its layers' horizons."""
    label = before[0].model.label
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(14, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.7])
        image = _draw_map(left, before, "At initialisation")
        _draw_map(middle, after, "Trained to predict the next character")
        middle.tick_params(labelleft=False)
        bar = figure.colorbar(image, ax=[left, middle], extend="both", pad=0.01)
        bar.set_label("gradient")
        _draw_horizons(right, before[::-1], after[::-1])
        right.set_title(f"Steps back with {LEVEL:.0%} left")
        figure.suptitle(
            f"{label} in a stack: the lower the layer, the longer its gradient", **_TITLE
        )
    return figure


_STYLE = {**_common.STYLE, "axes.titlelocation": "left", "axes.titlesize": 11}
_TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 15, "weight": "bold"}


def _caption(figure: Any, profiles: list[Profile], text: str = "") -> None:
    seeds = len(profiles[0].norms)
    text += f" Medians of {seeds} seeds; bands and bars reach from the lowest to the highest."
    figure.text(0.01, -0.01, text.strip(), va="top", fontsize=9)


def _draw_predictions(axes: Any, profile: Profile) -> None:
    _gradient.prepare(axes)
    # As far as there is a gradient to see, and half as far again.
    seen = int((np.median(profile.norms, axis=0) > _gradient.FLOOR).sum())
    axes.set_xlim(0, min(profile.length - 1, seen * 3 // 2))
    if profile.bound is not None:
        axes.plot(profile.bound, color="0.6", linewidth=3)
    _gradient.draw(axes, [profile.curve._replace(label="")])
    if profile.exponent is not None:
        predicted = np.exp(profile.exponent * np.arange(profile.length))
        axes.plot(predicted, color="black", linestyle="--", linewidth=1.2)


def _draw_map(axes: Any, layers: list[Profile], title: str) -> Any:
    norms = np.stack([np.median(profile.norms, axis=0) for profile in layers])
    image = axes.imshow(
        _gradient.above_zero(norms),
        norm=LogNorm(_gradient.FLOOR, 1),
        cmap="viridis",
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    axes.grid(False)
    axes.set_yticks(range(len(layers)), [f"layer {profile.layer}" for profile in layers])
    axes.set_xlabel("steps back from the end")
    axes.set_title(title)
    return image


def _draw_horizons(axes: Any, before: list[Profile], after: list[Profile]) -> None:
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        color = old.model.color
        spans = [np.maximum(profile.horizons, 1) for profile in (old, new)]
        axes.plot([span[1] for span in spans], [place, place], color=color, alpha=0.3)
        for profile, span, filled in [(old, spans[0], False), (new, spans[1], True)]:
            low, step, high = span
            axes.errorbar(
                step,
                place,
                xerr=[[step - low], [high - step]],
                capsize=4,
                fmt="o",
                color=color,
                markerfacecolor=color if filled else "white",
                markersize=8,
                clip_on=False,
            )
            axes.annotate(
                horizon_text(profile.horizons[1], profile.length).replace(">=", "≥"),
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
    axes.set_xlim(1, before[0].length)
    axes.set_ylim(len(before) - 0.4, -0.6)
    axes.set_yticks(range(len(before)), [profile.label for profile in before])
    axes.set_xlabel("○ at initialisation    ● after training")
    axes.grid(False, axis="y")


def main(arguments: list[str] | None = None) -> None:
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--text",
        type=Path,
        metavar="PATH",
        help="a UTF-8 text; without one, the sources of Python's standard library",
    )
    parser.add_argument("--seeds", type=_common.positive(int), help="how many, at once")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL
    if options.seeds is not None:
        settings = settings._replace(seeds=options.seeds)

    *parts, vocabulary = _common.read_codes(options.text, longest=max(settings.lengths))
    text, held_out = map(jnp.asarray, parts)
    characters = text.size + held_out.size
    print(f"{characters:,} characters, {len(vocabulary)} different; the last tenth is held out.")

    ends_key, init_key, train_key = jax.random.split(jax.random.key(options.seed), 3)
    # Every model has the same seeds, and so is trained on the same text.
    init_keys, train_keys = (jax.random.split(key, settings.seeds) for key in (init_key, train_key))
    # All lengths share their ends, so that only how far they look back differs.
    ends = jax.random.randint(ends_key, (settings.windows,), max(settings.lengths), held_out.size)
    windows = [windows_before(held_out, ends, length) for length in settings.lengths]

    models = make_models(settings.hidden_size, len(vocabulary))
    models = [model for model in models if model.name in settings.cells]
    stack = make_stack(settings.hidden_size, len(vocabulary), settings.layers)

    def examine(model: Model) -> tuple[list[Profile], list[Profile], np.ndarray]:
        initial = jax.jit(lambda keys: lax.map(model.network.init, keys))(init_keys)
        trained, bits = train(model, initial, text, settings, train_keys)
        norms_back, exponent = make_norms_back(model), make_exponent(model)

        def profiles(trained: bool, stacked: Any) -> list[Profile]:
            seeds = [jax.tree.map(itemgetter(n), stacked) for n in range(settings.seeds)]
            # The longest windows tell the exponent best.
            rates = None
            if model.layers == 1:
                rates = np.array([exponent(params, windows[-1]) for params in seeds])
            return [
                profile
                for w in windows
                for profile in measure(
                    model,
                    trained,
                    seeds,
                    np.stack([norms_back(params, w) for params in seeds]),
                    rates,
                )
            ]

        before, after = profiles(False, initial), profiles(True, trained)
        print(f"{model.label}: {np.median(bits):.2f} bits per character", flush=True)
        return before, after, bits

    # Most of the time goes into compiling, which runs on one core: two models at once use two. The
    # stack takes longest, and so begins.
    stacked, *results = _common.two_at_once(examine, [stack, *models])

    rows = [
        table_row(profile, bits if profile.trained else None)
        for old, new, bits in [*results, stacked]
        for pair in zip(old, new, strict=True)
        for profile in pair
    ]

    def longest(profiles: list[Profile]) -> list[Profile]:
        return [profile for profile in profiles if profile.length == max(settings.lengths)]

    before = [profile for old, _, _ in results for profile in longest(old)]
    after = [profile for _, new, _ in results for profile in longest(new)]
    stack_before, stack_after = longest(stacked[0]), longest(stacked[1])
    _common.save_csv(options.out / "gradient_on_text.csv", rows)
    _common.save_csv(
        options.out / "gradient_on_text_curves.csv",
        [
            row
            for old, new, _ in [*results, stacked]
            for profile in [*old, *new]
            for row in curve_rows(profile)
        ],
    )
    for name, figure in [
        ("gradient_on_text", picture(before, after)),
        ("gradient_on_text_predictions", predictions(before, after)),
        ("gradient_on_text_stack", stack_picture(stack_before, stack_after)),
    ]:
        _common.save_figure(options.out / f"{name}.png", figure)
    print()
    printed = ("cell", "when", "horizon", "exponent", "by it", "bits")
    _common.print_table(
        [
            {name: row[name] for name in printed}
            for row in rows
            if row["length"] == max(settings.lengths)
        ]
    )
    print(
        f"Medians of {settings.seeds} seeds, with the lowest and highest. Norms are means over\n"
        "windows of held-out text: the few windows whose gradient reaches farthest rule\n"
        "them. Exponents, in nats per step, are what is typical."
    )
    print_summary([*before, *stack_before], [*after, *stack_after])


if __name__ == "__main__":
    main()
