"""Sequential digits: can a network read a handwritten digit one pixel at a time?

Every step shows one pixel, row by row from the top left, and only after the last one is the network
asked which digit it was: what it saw first has to last. The digits are scikit-learn's, 8 by 8
pixels, or with --mnist the 28 by 28 of MNIST. With --permuted the pixels come in one fixed random
order, which leaves no stroke in one piece. Several seeds learn at once, in a sweep; accuracy is
that on images not trained on, at the end of training.
"""

import functools
import gzip
import math
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8

import jaxrnn
from experiments import _common

CLASSES = 10

# Each makes a cell from its hidden size.
CELLS: dict[str, Callable[[int], jaxrnn.Cell]] = {
    "lstm": jaxrnn.lstm,
    "gru": jaxrnn.gru,
    "identity": functools.partial(
        jaxrnn.elman,
        activation=jax.nn.relu,
        recurrent_init=jaxrnn.initializers.identity(),
    ),
}
LABELS = {"lstm": "LSTM", "gru": "GRU", "identity": "Elman, relu, identity"}


class Digits(NamedTuple):
    """Images, with ink from 0 to `most_ink` in each pixel, and the digits that they show."""

    images: UInt8[np.ndarray, "N rows columns"]
    labels: UInt8[np.ndarray, "N"]
    most_ink: int

    @property
    def length(self) -> int:
        """T, how many pixels an image has."""
        return math.prod(self.images.shape[1:])


class Run(NamedTuple):
    """How a cell learnt, from S seeds: accuracies on the test images at R reports."""

    cell: str
    parameters: int
    steps: Int[np.ndarray, "R"]
    accuracies: Float[np.ndarray, "S R"]
    diverged: int
    seconds: float


def standard_error(values: Float[np.ndarray, "S *rest"]) -> Float[np.ndarray, "*rest"]:
    """Standard error of the mean over seeds; not a number for a single one."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))


# Digits -----------------------------------------------------------------------------------------


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read an IDX file of unsigned bytes, as MNIST's are, gzipped or not.

    It holds two zeros, a type, the number of axes, their lengths in 4 bytes each, and the data.

    Raises:
        ValueError: if the file is none, has another type, or is longer or shorter than it says.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{path}: not an IDX file, which begins with two zeros")
    if data[2] != 8:
        raise ValueError(f"{path}: got IDX type {data[2]:#04x}, expected unsigned bytes, 0x08")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path}: got {len(data)} bytes, expected {start + math.prod(shape)} for shape {shape}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_mnist(folder: Path, part: str) -> Digits:
    """Read a part of MNIST, "train" or "t10k", from a folder with its files.

    Raises:
        ValueError: if a file is missing, can't be read or doesn't fit the other.
    """

    def read(name: str) -> np.ndarray:
        # Some copies have a dot in the place of the last dash but one.
        paths = sorted(folder.glob(f"{part}-{name.replace('-', '?', 1)}-ubyte*"))
        if not paths:
            raise ValueError(f"{folder}: no file {part}-{name}-ubyte or {part}-{name}-ubyte.gz")
        return read_idx(paths[0])

    images, labels = read("images-idx3"), read("labels-idx1")
    if images.ndim != 3 or 0 in images.shape[1:] or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: got {part} images of shape {images.shape} and labels of {labels.shape}, "
            "expected (N, rows, columns), with pixels, and (N,)"
        )
    if labels.size == 0 or labels.max() >= CLASSES:
        raise ValueError(f"{folder}: expected {part} labels from 0 to 9, and one at least")
    return Digits(images, labels, most_ink=255)


def read_small_digits(seed: int) -> tuple[Digits, Digits]:
    """Return scikit-learn's digits, four fifths to train on and one fifth to test."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images, labels = data.images.astype(np.uint8)[order], data.target.astype(np.uint8)[order]
    cut = len(order) * 4 // 5
    return Digits(images[:cut], labels[:cut], 16), Digits(images[cut:], labels[cut:], 16)


def permuted(digits: Digits, seed: int) -> Digits:
    """Bring the pixels of every image into one random order."""
    order = np.random.default_rng(seed).permutation(digits.length)
    images = digits.images.reshape(-1, digits.length)[:, order]
    return digits._replace(images=images.reshape(digits.images.shape))


# Learning ---------------------------------------------------------------------------------------


def learn(
    name: str,
    train: Digits,
    test: Digits,
    keys: PRNGKeyArray,
    *,
    hidden_size: int,
    batch_size: int,
    steps: int,
    learning_rate: float,
    reports: int,
) -> Run:
    """Train one network for each key, all in one compiled program."""
    # Under vmap, over seeds here, the plain scan is the fastest engine on a CPU.
    recurrent = jaxrnn.rnn(
        CELLS[name](hidden_size), return_sequences=False, engine=jaxrnn.engines.scan()
    )
    model = jaxrnn.serial(recurrent, jaxrnn.dense(CLASSES))
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels, jnp.int32)

    def sequences(images: UInt8[Array, "*batch rows columns"]) -> Float[Array, "T *batch 1"]:
        pixels = images.reshape(*images.shape[:-2], train.length)
        return jnp.moveaxis(pixels, -1, 0)[..., None] / jnp.float32(train.most_ink)

    def batches(key: PRNGKeyArray) -> tuple[Array, Array]:
        drawn = jax.random.randint(key, (batch_size,), 0, len(labels))
        return sequences(images[drawn]), labels[drawn]

    def loss(params: PyTree, batch: tuple[Array, Array], key: PRNGKeyArray) -> Array:
        inputs, labels = batch
        _, logits = model.apply(params, None, inputs, key=key)
        return jaxrnn.losses.softmax_cross_entropy(logits, labels)

    def setup(setting: None, key: PRNGKeyArray) -> tuple[Any, PyTree, Any]:
        return loss, model.init(key, 1), optax.adam(schedule)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def accuracy(params: PyTree, test: tuple[Array, Array]) -> Array:
        # In parts, as every step's output of ten thousand images would be gigabytes.
        def is_right(of_image: tuple[Array, Array]) -> Array:
            image, label = of_image
            return model.apply(params, None, sequences(image))[1].argmax() == label

        return jax.lax.map(is_right, test, batch_size=256).mean()

    def report(step: int, result: jaxrnn.training.FitResult) -> None:
        curve.append((step, np.asarray(accuracy(result.params, (test.images, test.labels)))))
        _common.print_progress(
            f"{LABELS[name]:>21} {step:>6} steps {time.perf_counter() - start:>5.0f} s "
            f"{curve[-1][1].mean():.1%}"
        )

    curve: list[tuple[int, np.ndarray]] = []
    start = time.perf_counter()
    result = jaxrnn.sweep(
        setup,
        None,
        batches,
        steps=steps,
        key=keys,
        clip_norm=1.0,
        report_every=math.ceil(steps / reports),
        on_report=report,
    )
    numbers, accuracies = zip(*curve, strict=True)
    return Run(
        name,
        sum(leaf[0].size for leaf in jax.tree.leaves(result.params)),
        np.array(numbers),
        np.stack(accuracies, axis=1),
        int(np.isnan(result.losses[:, -1]).sum()),
        time.perf_counter() - start,
    )


def summary(run: Run) -> dict[str, Any]:
    """One row of the table."""
    last = run.accuracies[:, -1]
    return {
        "cell": LABELS[run.cell],
        "parameters": run.parameters,
        "accuracy %": 100 * float(last.mean()),
        "standard error": 100 * float(standard_error(last)),
        "lowest": 100 * float(last.min()),
        "highest": 100 * float(last.max()),
        "diverged": f"{run.diverged} of {len(last)}",
        "seconds": run.seconds,
    }


# The figure -------------------------------------------------------------------------------------


def draw(runs: Sequence[Run], test: Digits, *, order: str) -> Any:
    """Draw a digit as an image and as the network reads it, and accuracy during training."""
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplot_mosaic(
            [["image", "curves"], ["sequence", "curves"]],
            figsize=(10.5, 4.6),
            layout="constrained",
            width_ratios=[1, 2.2],
            height_ratios=[1.6, 1],
        )
        axes["image"].imshow(test.images[0], cmap="gray_r")
        axes["image"].set_title(f"a {test.labels[0]}, {order}")
        axes["image"].axis("off")
        ink = test.images[0].ravel() / test.most_ink
        axes["sequence"].step(np.arange(test.length), ink, color="0.2", linewidth=1)
        axes["sequence"].set(xlabel="step", ylabel="ink", yticks=[0, 1])
        curves, ends = axes["curves"], []
        curves.set(xlabel="training steps", ylabel="test accuracy, %", ylim=(0, 100))
        for run in runs:
            mean = 100 * run.accuracies.mean(axis=0)
            error = 100 * standard_error(run.accuracies)
            color = _common.COLORS[run.cell]
            known = "" if np.isnan(error[-1]) else f" ± {error[-1]:.1f}"
            curves.plot(run.steps, mean, color=color)
            curves.fill_between(run.steps, mean - error, mean + error, color=color, alpha=0.2)
            ends.append((mean[-1], f"{LABELS[run.cell]}\n{mean[-1]:.1f}{known}%", color))
        curves.axhline(100 / CLASSES, color="0.3", linestyle="--", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "weight": "normal", "fontsize": 9}
        _common.write(curves, "chance", (0, 100 / CLASSES), (3, 3), **place)
        curves.set_xlim(0, max(run.steps[-1] for run in runs))
        _common.label_ends(curves, ends, gap=0.12)
        several = ", mean and standard error over seeds" if len(runs[0].accuracies) > 1 else ""
        curves.set_title(f"accuracy{several}", loc="left")
        right = ", ".join(f"{LABELS[r.cell]} {r.accuracies[:, -1].mean():.0%}" for r in runs)
        figure.suptitle(
            f"Digits read pixel by pixel, in {test.length} steps: {right} right",
            x=0.01,
            ha="left",
            weight="bold",
        )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Train every cell, and compare them."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=list(CELLS), help="which cells")
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR", help="a folder with MNIST's four files"
    )
    parser.add_argument("--permuted", action="store_true", help="pixels in a fixed random order")
    parser.add_argument("--seeds", type=positive(int), default=4, help="how many, at once")
    parser.add_argument("--hidden", type=positive(int), default=64, help="units of each cell")
    parser.add_argument("--batch", type=positive(int), default=64, help="images of a batch")
    parser.add_argument("--steps", type=positive(int), default=1500, help="training steps")
    parser.add_argument("--reports", type=positive(int), default=10, help="points of a curve")
    parser.add_argument(
        "--learning-rate", type=positive(float), default=1e-2, help="Adam's, at its highest"
    )
    parser.add_argument(
        "--devices",
        type=positive(int),
        help="devices to make of the CPU, one for each core, which share the seeds",
    )
    arguments = _common.parse(parser, argv, cell=["gru"], seeds=2, hidden=32, steps=200, reports=4)
    if arguments.devices is not None:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    try:
        if arguments.mnist is None:
            train, test = read_small_digits(arguments.seed)
        else:
            train, test = (read_mnist(arguments.mnist, part) for part in ("train", "t10k"))
            if train.images.shape[1:] != test.images.shape[1:]:
                raise ValueError(
                    f"{arguments.mnist}: got test images of {test.images.shape[1:]} pixels, "
                    f"expected {train.images.shape[1:]}, as those to train on have"
                )
    except ValueError as error:
        parser.error(f"--mnist {error}")
    if arguments.permuted:
        train, test = (permuted(digits, arguments.seed) for digits in (train, test))
    print(
        f"{len(train.labels):,} images to train on, {len(test.labels):,} to test, "
        f"{train.length} steps each"
    )

    keys = jax.random.split(jax.random.key(arguments.seed), arguments.seeds)
    runs = [
        learn(
            name,
            train,
            test,
            keys,
            hidden_size=arguments.hidden,
            batch_size=arguments.batch,
            steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            reports=arguments.reports,
        )
        for name in arguments.cell
    ]
    _common.save_csv(
        arguments.out / "sequential_digits.csv",
        [
            {"cell": run.cell, "seed": seed, "step": step, "accuracy": accuracy}
            for run in runs
            for seed, accuracies in enumerate(run.accuracies)
            for step, accuracy in zip(run.steps, accuracies, strict=True)
        ],
    )
    order = "its pixels in random order" if arguments.permuted else "read row by row"
    _common.save_figure(arguments.out / "sequential_digits.png", draw(runs, test, order=order))
    print()
    _common.print_table([summary(run) for run in runs])
    print("Accuracy is on the test images, mean over seeds; chance is 10%.")


if __name__ == "__main__":
    main()
