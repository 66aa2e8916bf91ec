"""A character language model: how many bits does it need to say which character comes next?

An embedding, stacked cells, dropout and a dense layer read a text in windows, each window starting
from the state in which the one before it ended: truncated backpropagation through time, whose
gradients go back to the window's start or, with --backpropagate, further. The first nine tenths of
the text train it; the last tenth measures it, beside a unigram and a bigram model fitted on the
same nine tenths. With --resume a run that was killed goes on where its checkpoints end.
"""

import functools
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

import jaxrnn
from experiments import _common

CELLS = {"elman": jaxrnn.elman, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
LABELS = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}


class Windows(NamedTuple):
    """A text in N windows, T characters long and B side by side; targets are one further on."""

    inputs: Int[np.ndarray, "N T B"]
    targets: Int[np.ndarray, "N T B"]


class Point(NamedTuple):
    """A point of a learning curve."""

    characters: int
    seconds: float
    bits: float


def windows(codes: Int[np.ndarray, "L"], length: int, batch_size: int) -> Windows:
    """Cut a text so that each lane of a window goes on where that lane of the last window ended.

    Lane b reads the b-th of `batch_size` equal parts of the text. What doesn't fill a window in
    every lane is left out at the end.

    Raises:
        ValueError: if the text doesn't fill one window.
    """
    count = (len(codes) - 1) // (length * batch_size)
    if count == 0:
        raise ValueError(
            f"got {len(codes)} characters, expected {length * batch_size + 1} at least for a "
            f"window of {length} in {batch_size} lanes"
        )

    def cut(codes: np.ndarray) -> np.ndarray:
        lanes = codes[: count * length * batch_size].reshape(batch_size, count, length)
        return lanes.transpose(1, 2, 0)

    return Windows(cut(codes), cut(codes[1:]))


def unigram_bits(train: Int[np.ndarray, "L"], text: Windows, num_symbols: int) -> float:
    """Bits per character of `text` under the frequencies of characters in `train`, add-one."""
    counts = np.bincount(train, minlength=num_symbols) + 1
    return float(-np.log2(counts / counts.sum())[text.targets].mean())


def bigram_bits(train: Int[np.ndarray, "L"], text: Windows, num_symbols: int) -> float:
    """Bits per character of `text` under the frequencies of pairs in `train`, add-one."""
    pairs = np.bincount(num_symbols * train[:-1] + train[1:], minlength=num_symbols**2)
    pairs = pairs.reshape(num_symbols, num_symbols) + 1
    probabilities = pairs / pairs.sum(axis=1, keepdims=True)
    return float(-np.log2(probabilities)[text.inputs, text.targets].mean())


def make_model(
    cell: str,
    num_symbols: int,
    *,
    features: int,
    hidden_size: int,
    layers: int,
    rate: float,
    engine: Any = None,
) -> jaxrnn.Layer:
    """Stack embedding, recurrent layers with dropout after each, and dense."""
    # Features of standard deviation 1: from rows of norm 1, the default, an LSTM learns slowly.
    embedding_init = jax.nn.initializers.normal(1.0)
    stack = [jaxrnn.rnn(CELLS[cell](hidden_size), engine=engine), jaxrnn.dropout(rate)] * layers
    embedding = jaxrnn.embedding(num_symbols, features, embedding_init=embedding_init)
    return jaxrnn.serial(embedding, *stack, jaxrnn.dense(num_symbols))


@functools.partial(jax.jit, static_argnames="model")
def bits_per_character(model: jaxrnn.Layer, params: PyTree, text: Windows) -> Float[Array, ""]:
    """Bits per character of `text`, without dropout, each lane read from end to end in one go."""

    def read(state, window):
        state, logits = model.apply(params, state, window.inputs)
        return state, jaxrnn.losses.softmax_cross_entropy(logits, window.targets)

    batch_size = text.inputs.shape[-1]
    _, losses = lax.scan(read, model.initial_state((batch_size,)), text)
    return losses.mean() / math.log(2)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def sample(
    model: jaxrnn.Layer,
    params: PyTree,
    prompt: Int[Array, "L"],
    key: PRNGKeyArray,
    *,
    length: int,
    temperature: float,
) -> Int[Array, "length"]:
    """Draw characters that go on from a prompt, one by one from softmax(logits / temperature)."""

    def draw(carry, key):
        state, logits = carry
        code = jax.random.categorical(key, logits[-1] / temperature)
        return model.apply(params, state, code[None]), code

    state, logits = model.apply(params, None, prompt)
    _, codes = lax.scan(draw, (state, logits[-1:]), jax.random.split(key, length))
    return codes


def train(
    name: str,
    model: jaxrnn.Layer,
    text: Windows,
    held_out: Windows,
    *,
    steps: int,
    reports: int,
    learning_rate: float,
    key: PRNGKeyArray,
    backpropagate: int | None = None,
    resume: Path | None = None,
    devices: int = 1,
) -> tuple[PyTree, list[Point]]:
    """Train a model; return its parameters, and its bits on the held-out text along the way."""

    def report(step: int, result: jaxrnn.training.FitResult) -> None:
        bits = float(bits_per_character(model, result.params, held_out))
        seconds = earlier + time.perf_counter() - start
        curve[step] = Point(step * length * batch_size, seconds, bits)
        if resume is not None:
            save_curve(resume / "curve.json", curve)
        _common.print_progress(
            f"{LABELS[name]:>5} {curve[step].characters:>9,} characters {seconds:>5.0f} s "
            f"{bits:.3f} bits"
        )

    done = 0 if resume is None else newest_checkpoint(resume)
    if 0 < done < steps:
        print(f"{LABELS[name]} goes on from step {done}", flush=True)
    # What was reported before a run was killed comes from a file, as `fit` doesn't report it again.
    curve = {} if resume is None else load_curve(resume / "curve.json")
    earlier = max((point.seconds for point in curve.values()), default=0.0)
    _, length, batch_size = text.inputs.shape
    report_every = math.ceil(steps / reports)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps=steps // 20, decay_steps=steps
    )
    loss = jaxrnn.training.truncated_loss(
        model, jaxrnn.losses.softmax_cross_entropy, k1=length, k2=backpropagate
    )
    init_key, fit_key = jax.random.split(key)
    start = time.perf_counter()
    # After the last window comes the first again: there alone a lane's state is another place's.
    result = jaxrnn.fit(
        loss,
        model.init(init_key),
        optax.adam(schedule),
        tuple(text),
        steps=steps,
        key=fit_key,
        carry=loss.initial_carry(text.inputs[0]),
        clip_norm=1.0,
        report_every=report_every,
        on_report=report,
        checkpoints=resume
        and jaxrnn.training.Checkpoints(resume / "checkpoints", every=report_every),
        sharding=over_devices(devices),
    )
    if done == steps:
        print(f"{LABELS[name]} has nothing left to train after step {done}", flush=True)
    return result.params, [curve[step] for step in sorted(curve)]


def newest_checkpoint(resume: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 without any."""
    whole = resume.glob("checkpoints/step_*/SHA256SUMS")
    steps = (path.parent.name.removeprefix("step_") for path in whole)
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def over_devices(count: int) -> NamedSharding | None:
    """Return how a window `(T, B)` is divided over so many devices, None for one."""
    if count == 1:
        return None
    return NamedSharding(Mesh(jax.devices()[:count], ("batch",)), PartitionSpec(None, "batch"))


def save_curve(path: Path, curve: dict[int, Point]) -> None:
    """Write a learning curve, in one stroke: a run may be killed at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(curve), encoding="utf-8")
    unfinished.replace(path)


def load_curve(path: Path) -> dict[int, Point]:
    """Read what `save_curve` wrote; nothing if it hasn't yet."""
    if not path.exists():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {int(step): Point(*point) for step, point in saved.items()}


def draw_curves(curves: dict[str, list[Point]], levels: dict[str, float]) -> Any:
    """Draw held-out bits against characters read and against time, with the n-gram levels."""
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
        for name, curve in curves.items():
            characters, seconds, bits = zip(*curve, strict=True)
            style = {"color": _common.COLORS[name], "marker": "o", "markersize": 3}
            axes[0].plot(np.array(characters) / 1e6, bits, **style)
            axes[1].plot(seconds, bits, **style)
        for axis in axes:
            for bits in levels.values():
                axis.axhline(bits, color="0.4", linestyle="--", linewidth=1)
            axis.set_xlim(0, axis.dataLim.x1)
        axes[0].set(xlabel="characters read, millions", ylabel="held-out bits per character")
        axes[1].set(xlabel="seconds, compilation included")
        lines = [(curve[-1][-1], LABELS[n], _common.COLORS[n]) for n, curve in curves.items()]
        lines += [(bits, name, "0.3") for name, bits in levels.items()]
        ends = [(bits, f"{name}, {bits:.2f} bits", color) for bits, name, color in lines]
        _common.label_ends(axes[0], ends)
        below = sum(curve[-1][-1] < min(levels.values()) for curve in curves.values())
        figure.suptitle(
            f"{below} of {len(curves)} recurrent networks predict a text they haven't seen better "
            "than counts of pairs",
            weight="bold",
            x=0.01,
            ha="left",
        )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Train a model for each cell, compare them, and sample from the best."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--text", type=Path, help="a text file; if None, the sources of Python's standard library"
    )
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=list(CELLS), help="which cells")
    parser.add_argument("--layers", type=positive(int), default=1, help="how many cells, stacked")
    parser.add_argument("--hidden", type=positive(int), default=256, help="units of each cell")
    parser.add_argument("--embedding", type=positive(int), default=64, help="embedding's features")
    rate = _common.checked(float, lambda rate: 0 <= rate < 1, "a rate from 0 up to but not 1")
    parser.add_argument("--dropout", type=rate, default=0.1, help="rate, after each cell")
    parser.add_argument("--steps", type=positive(int), default=2300, help="training steps")
    parser.add_argument("--length", type=positive(int), default=64, help="characters of a window")
    parser.add_argument("--batch", type=positive(int), default=32, help="windows side by side")
    parser.add_argument("--reports", type=positive(int), default=12, help="points of a curve")
    parser.add_argument(
        "--learning-rate", type=positive(float), default=5e-3, help="Adam's, at its highest"
    )
    parser.add_argument(
        "--backpropagate",
        type=positive(int),
        help="characters that a gradient goes back through; if None, those of a window",
    )
    parser.add_argument(
        "--resume",
        type=_common.folder,
        metavar="DIR",
        help="write checkpoints there, and go on from those that there are",
    )
    parser.add_argument(
        "--devices", type=positive(int), default=1, help="devices to make of a CPU, and to train on"
    )
    parser.add_argument(
        "--temperature", type=positive(float), default=0.8, help="of the sample: 1 as learnt"
    )
    arguments = _common.parse(
        parser, argv, cell=["gru"], hidden=64, dropout=0.0, steps=200, reports=5
    )

    if arguments.batch % arguments.devices:
        parser.error(
            f"--batch: got {arguments.batch}, expected one that {arguments.devices} divide"
        )
    if (arguments.backpropagate or arguments.length) < arguments.length:
        parser.error(
            f"--backpropagate: got {arguments.backpropagate}, expected a window's "
            f"{arguments.length} characters at least"
        )
    if arguments.devices > 1:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
        if len(jax.devices()) < arguments.devices:
            parser.error(f"--devices: got {arguments.devices}, and there are {len(jax.devices())}")

    codes, vocabulary = _common.encode(_common.read_text(arguments.text))
    end = len(codes) * 9 // 10
    try:
        text, held_out = (
            windows(part, arguments.length, arguments.batch) for part in (codes[:end], codes[end:])
        )
    except ValueError as error:
        parser.error(
            f"the text is too short to train on its first nine tenths, and test on the "
            f"last: {error}"
        )
    levels = {
        "unigram": unigram_bits(codes[:end], held_out, len(vocabulary)),
        "bigram": bigram_bits(codes[:end], held_out, len(vocabulary)),
    }
    print(
        f"{len(codes):,} characters, {len(vocabulary)} different; bits per character on the last "
        f"{held_out.targets.size:,}, unigram and bigram with add-one smoothing"
    )

    text, held_out = jax.tree.map(jnp.asarray, (text, held_out))
    rows = [
        {"model": name, "parameters": "", "bits": bits, "seconds": ""}
        for name, bits in levels.items()
    ]
    sizes = {
        "features": arguments.embedding,
        "hidden_size": arguments.hidden,
        "layers": arguments.layers,
        "rate": arguments.dropout,
    }
    engine = jaxrnn.engines.sharded(arguments.devices) if arguments.devices > 1 else None
    curves, trained = {}, {}
    for name in arguments.cell:
        try:
            trained[name], curves[name] = train(
                name,
                make_model(name, len(vocabulary), **sizes, engine=engine),
                text,
                held_out,
                steps=arguments.steps,
                reports=arguments.reports,
                learning_rate=arguments.learning_rate,
                key=jax.random.key(arguments.seed),
                backpropagate=arguments.backpropagate,
                resume=arguments.resume and arguments.resume / name,
                devices=arguments.devices,
            )
        except ValueError as error:
            if arguments.resume is None:
                raise
            parser.error(f"--resume: {re.sub('^key:', 'the key, of --seed:', str(error))}")
        rows.append(
            {
                "model": LABELS[name],
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained[name])),
                "bits": curves[name][-1].bits,
                "seconds": curves[name][-1].seconds,
            }
        )
    _common.save_csv(
        arguments.out / "character_model.csv",
        [
            {"model": name, **point._asdict()}
            for name, curve in {
                **{name: [Point(end, 0.0, bits)] for name, bits in levels.items()},
                **curves,
            }.items()
            for point in curve
        ],
    )
    _common.save_figure(arguments.out / "character_model.png", draw_curves(curves, levels))
    print()
    _common.print_table(rows)

    best = min(trained, key=lambda name: curves[name][-1].bits)
    drawn = sample(
        # Without the engine that divides a batch, as a prompt has none.
        make_model(best, len(vocabulary), **sizes),
        trained[best],
        codes[:end][-200:],
        jax.random.key(arguments.seed),
        length=400,
        temperature=arguments.temperature,
    )
    print(
        f"\n{LABELS[best]}, temperature {arguments.temperature}, going on from the training text:\n"
    )
    print("".join(vocabulary[code] for code in np.asarray(drawn)))


if __name__ == "__main__":
    main()
