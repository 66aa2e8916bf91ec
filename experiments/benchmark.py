"""How fast are jaxrnn's engines, beside other frameworks and beside the machine's own limit?

Forward runs a cell over a sequence from a zero state and returns all outputs and the last state;
gradient is that of the outputs' sum of squares with respect to parameters and inputs. Every
framework gets inputs of the same shape, on the device, in the layout that it runs fastest in, and
keeps its own biases; JAX functions are jitted. Contenders take turns within one process, in a new
order each round, so that whatever else the machine does hits all alike. With --devices 2 the batch
is divided over two devices of the CPU too. With --scaling: time and memory of jaxrnn's gradient
against the length of the sequence. With --training: characters per second of a whole training step.
With --loss: the gradient of a cross-entropy over every step, added up on the way or all at once.
With --sweep: many networks trained at once against one. With --streaming: a step of one sequence,
against the same equations written by hand.
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from matplotlib.lines import Line2D

import jaxrnn
from experiments import _common

# Keras reads it when it is imported.
os.environ["KERAS_BACKEND"] = "jax"

CELLS = {"elman": jaxrnn.elman, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
LABELS = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}
GATES = {"elman": 1, "lstm": 4, "gru": 3}
PASSES = ("forward", "gradient")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHAPES = [
    (96, 32, 64, 64),
    (208, 32, 128, 128),
    (512, 32, 128, 256),
    (2000, 16, 32, 100),
    (1000, 1, 64, 64),
    (128, 64, 512, 512),
]
LENGTHS = [100, 1000, 10_000, 100_000, 1_000_000]

ENGINES = {
    "default": None,
    "scan": jaxrnn.engines.scan(),
    "unroll4": jaxrnn.engines.scan(unroll=4),
    "unroll8": jaxrnn.engines.scan(unroll=8),
    "hoisted": jaxrnn.engines.hoisted(),
    "checkpointed": jaxrnn.engines.checkpointed(),
    "sharded": jaxrnn.engines.sharded(),
}

# A sample shorter than this says more of the clock and the dispatch than of the computation.
SHORTEST = 0.02
LEAST_ROUNDS = 3


class Problem(NamedTuple):
    """What every contender computes: a cell's name, T, B, I, H and a dtype's name."""

    cell: str
    length: int
    batch: int
    features: int
    hidden: int
    dtype: str = "float32"


class Program(NamedTuple):
    """A computation ready to be timed.

    `run` returns its results once they are there. `first` is the time to compile it, or where
    nothing is compiled that of the first call; `temporary` is its memory besides arguments and
    results, in bytes, or None where nothing tells it.
    """

    run: Callable[[], Any]
    first: float
    temporary: int | None


class Contender(NamedTuple):
    """A framework, or one of jaxrnn's engines: `prepare(problem, pass_, seed)` is its program."""

    group: str
    package: str
    layout: str
    prepare: Callable[[Problem, str, int], Program]
    cells: Iterable[str] = tuple(CELLS)
    gpu_only: bool = False


# What the contenders compute.


def compile_jax(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile a function for its arguments."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    # Where the program takes them, so that no call has to divide them over devices first.
    arguments = jax.device_put(arguments, compiled.input_shardings[0])
    return Program(
        lambda: jax.block_until_ready(compiled(*arguments)),
        seconds,
        None if memory is None else memory.temp_size_in_bytes,
    )


def prepare_jax(
    model: Callable[[Problem, int], tuple[Callable[..., Any], Any]],
    layout: str,
    problem: Problem,
    pass_: str,
    seed: int,
) -> Program:
    """Compile a model's `apply(params, inputs) -> (state, outputs)`, or its gradient."""
    apply, params = model(problem, seed)
    # Some initialisers can't draw 16 bits, so those models come in 32.
    params = cast(params, problem.dtype)
    sizes = {"T": problem.length, "B": problem.batch}
    shape = (*(sizes[axis] for axis in layout), problem.features)
    inputs = jax.random.normal(jax.random.key(seed), shape, problem.dtype)

    def loss(params, inputs):
        return (apply(params, inputs)[1] ** 2).sum()

    return compile_jax(
        apply if pass_ == "forward" else jax.grad(loss, argnums=(0, 1)), params, inputs
    )


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def jax_contender(model: Callable[..., Any], *, layout: str = "TB", **fields: Any) -> Contender:
    return Contender(layout=layout, prepare=functools.partial(prepare_jax, model, layout), **fields)


def jaxrnn_model(engine: Any, problem: Problem, seed: int):
    cell = CELLS[problem.cell](problem.hidden)
    params = cell.init(jax.random.key(seed), problem.features, dtype=problem.dtype)
    return functools.partial(jaxrnn.unroll, cell, engine=engine), params


def flax_model(problem: Problem, seed: int):
    """NNX rather than Linen: it is the recommended API, and its GRU packs the gates."""
    from flax import nnx

    cells = {"elman": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    cell = cells[problem.cell](
        problem.features, problem.hidden, dtype=problem.dtype, rngs=nnx.Rngs(seed)
    )
    layer = nnx.RNN(cell, time_major=True, return_carry=True, rngs=False)
    state = cell.initialize_carry((problem.batch, problem.features), nnx.Rngs(seed))
    state = cast(state, problem.dtype)
    graph, params = nnx.split(layer)

    def apply(params, inputs):
        return nnx.merge(graph, params)(inputs, initial_carry=state)

    return apply, params


def haiku_model(problem: Problem, seed: int):
    """Haiku's plain cell knows relu only, a cheaper function; here it has the others' tanh."""
    import haiku

    class Elman(haiku.VanillaRNN):
        def __call__(self, inputs, prev_state):
            input_to_hidden, hidden_to_hidden = (haiku.Linear(self.hidden_size) for _ in range(2))
            state = jnp.tanh(input_to_hidden(inputs) + hidden_to_hidden(prev_state))
            return state, state

    cells = {"elman": Elman, "lstm": haiku.LSTM, "gru": haiku.GRU}

    @haiku.without_apply_rng
    @haiku.transform
    def model(inputs):
        core = cells[problem.cell](problem.hidden)
        state = cast(core.initial_state(problem.batch), problem.dtype)
        outputs, state = haiku.dynamic_unroll(core, inputs, state)
        return state, outputs

    example = jnp.zeros((1, problem.batch, problem.features), problem.dtype)
    return model.apply, model.init(jax.random.key(seed), example)


def equinox_model(problem: Problem, seed: int):
    """A cell of one example in `lax.scan`, mapped over the batch, as its documentation shows."""
    import equinox

    cells = {"lstm": equinox.nn.LSTMCell, "gru": equinox.nn.GRUCell}
    dtype = jnp.dtype(problem.dtype)
    cell = cells[problem.cell](
        problem.features, problem.hidden, dtype=dtype, key=jax.random.key(seed)
    )
    params, rest = equinox.partition(cell, equinox.is_array)

    def apply(params, inputs):
        cell = equinox.combine(params, rest)

        def step(state, x):
            state = cell(x, state)
            return state, state[0] if problem.cell == "lstm" else state

        zeros = jnp.zeros(problem.hidden, dtype)
        return lax.scan(step, (zeros, zeros) if problem.cell == "lstm" else zeros, inputs)

    return jax.vmap(apply, in_axes=(None, 1), out_axes=(0, 1)), params


def keras_model(problem: Problem, seed: int):
    import keras

    layers = {
        "elman": keras.layers.SimpleRNN,
        "lstm": keras.layers.LSTM,
        "gru": keras.layers.GRU,
    }
    keras.utils.set_random_seed(seed)
    dtype = f"mixed_{problem.dtype}" if problem.dtype.endswith("16") else problem.dtype
    layer = layers[problem.cell](
        problem.hidden, return_sequences=True, return_state=True, dtype=dtype
    )
    layer.build((problem.batch, problem.length, problem.features))
    rest = [variable.value for variable in layer.non_trainable_variables]

    def apply(params, inputs):
        (outputs, *state), _ = layer.stateless_call(params, rest, inputs)
        return state, outputs

    return apply, [variable.value for variable in layer.trainable_variables]


def cudnn_model(problem: Problem, seed: int):
    from jax.experimental import rnn

    sizes = (problem.features, problem.hidden, 1)  # one layer
    lengths = jnp.full(problem.batch, problem.length, jnp.int32)
    zeros = jnp.zeros((1, problem.batch, problem.hidden), problem.dtype)

    def apply(params, inputs):
        outputs, hidden, cell = rnn.lstm(  # pyright: ignore[reportGeneralTypeIssues]
            inputs, zeros, zeros, params, lengths, *sizes, dropout=0.0, bidirectional=False
        )
        return (hidden, cell), outputs

    return apply, rnn.init_lstm_weight(jax.random.key(seed), *sizes, False)


def prepare_torch(problem: Problem, pass_: str, seed: int) -> Program:
    """Eager PyTorch: its layers call oneDNN or its own kernels on a CPU, and cuDNN on a GPU."""
    import torch

    layers = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    options: Any = {
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "dtype": getattr(torch, problem.dtype),
    }
    torch.manual_seed(seed)
    layer = layers[problem.cell](problem.features, problem.hidden, **options)
    inputs = torch.randn(
        problem.length, problem.batch, problem.features, requires_grad=True, **options
    )
    params = list(layer.parameters())

    def forward():
        with torch.inference_mode():
            outputs, state = layer(inputs)
        return state, outputs

    def gradient():
        outputs, _ = layer(inputs)
        *params_gradient, inputs_gradient = torch.autograd.grad(
            outputs.square().sum(), [*params, inputs]
        )
        return params_gradient, inputs_gradient

    def run():
        result = forward() if pass_ == "forward" else gradient()
        if options["device"] == "cuda":
            torch.cuda.synchronize()
        return result

    return Program(run, sample(run, 1), None)


CONTENDERS = {
    f"jaxrnn-{name}": jax_contender(
        functools.partial(jaxrnn_model, engine),
        # On several devices it is no rival of what runs on one.
        group="sharded" if name == "sharded" else "jaxrnn",
        package="jaxrnn",
    )
    for name, engine in ENGINES.items()
} | {
    "flax": jax_contender(flax_model, group="JAX", package="flax"),
    "haiku": jax_contender(haiku_model, group="JAX", package="haiku"),
    "equinox": jax_contender(equinox_model, group="JAX", package="equinox", cells=("lstm", "gru")),
    # Keras 3 takes batch-major sequences only.
    "keras": jax_contender(keras_model, group="JAX", package="keras", layout="BT"),
    "jax-cudnn": jax_contender(
        cudnn_model, group="JAX", package="jax", layout="BT", cells=("lstm",), gpu_only=True
    ),
    "pytorch": Contender("PyTorch", "torch", "TB", prepare_torch),
}

# The default is one of the others, and no peer unrolls its loop by default.
DEFAULT_CONTENDERS = [
    name
    for name in CONTENDERS
    if name not in ("jaxrnn-default", "jaxrnn-unroll4", "jaxrnn-unroll8")
]


def why_left_out(name: str, dtype: str) -> str | None:
    """Say why a contender can't run here, or None if it can."""
    contender = CONTENDERS[name]
    if importlib.util.find_spec(contender.package) is None:
        return f"the package {contender.package} is not installed"
    on_gpu = jax.default_backend() == "gpu"
    if contender.group == "sharded" and len(jax.devices()) < 2:
        return "there is one device only; --devices makes more of a CPU"
    if contender.gpu_only and not on_gpu:
        return "it needs a GPU"
    if contender.gpu_only and dtype != "float32":
        return "it computes in float32 only"
    if name == "pytorch" and on_gpu and not importlib.import_module("torch").cuda.is_available():
        return "PyTorch sees no GPU, while JAX does"
    return None


# Timing.


def sample(
    run: Callable[[], Any], calls: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that a call takes, from so many in a row."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    budget: float,
    shuffle: random.Random,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every run once a round, each round in a new order.

    A sample holds as many calls as make it `SHORTEST`. Rounds end early, but not before there are
    `LEAST_ROUNDS`, where one more would take longer than the budget.

    Args:
        runs: what to time, by name.
        rounds: how many rounds at most.
        budget: seconds for all rounds.
        shuffle: what draws the orders.
        clock: what tells the time in seconds.

    Returns:
        The seconds that a call took, of each run in each round.
    """
    for run in runs.values():
        run()  # the first call pays for memory that later ones find mapped
    calls = {name: math.ceil(SHORTEST / sample(run, 1, clock)) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = clock()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and (clock() - start) * (done + 1) / done > budget:
            break
        for name in shuffle.sample(list(runs), len(runs)):
            samples[name].append(sample(runs[name], calls[name], clock))
    return samples


def flops(problem: Problem, pass_: str) -> int:
    """Count the floating-point operations of the recurrence's matrix products.

    Each weight takes part in a multiplication and an addition for each step and example; the
    gradient needs two more products of the same size for every one of the forward pass.
    """
    _, length, batch, features, hidden, _ = problem
    weights = GATES[problem.cell] * hidden * (features + hidden)
    return 2 * length * batch * weights * (1 if pass_ == "forward" else 3)


def matrix_peak(dtype: str) -> float:
    """Measure the operations a second of a large matrix product, the best of five."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    program = compile_jax(jnp.matmul, matrix, matrix)
    program.run()
    return 2 * size**3 / min(sample(program.run, 1) for _ in range(5))


def prepare(problem: Problem, pass_: str, names: Iterable[str], seed: int) -> dict[str, Program]:
    """Make the programs of those contenders that have the cell; a peer's that fails is left out."""
    programs = {}
    for name in names:
        contender = CONTENDERS[name]
        divides = contender.group != "sharded" or problem.batch % len(jax.devices()) == 0
        if problem.cell not in contender.cells or not divides:
            continue
        try:
            programs[name] = contender.prepare(problem, pass_, seed)
        except Exception as error:
            if contender.package == "jaxrnn":
                raise
            print(f"left out here: {name}, which raised {type(error).__name__}: {error}"[:200])
    return programs


def measure(
    programs: Mapping[str, Program], *, rounds: int, budget: float, shuffle: random.Random
) -> list[dict[str, Any]]:
    """Time programs in turns; return a row for each."""
    runs = {name: program.run for name, program in programs.items()}
    samples = interleave(runs, rounds=rounds, budget=budget, shuffle=shuffle)
    return [
        {
            "contender": name,
            **summary(samples[name]),
            "first_s": program.first,
            "temporary_MiB": None if program.temporary is None else program.temporary / 2**20,
        }
        for name, program in programs.items()
    ]


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles of some seconds in milliseconds, and their number."""
    lower, median, upper = (1e3 * float(q) for q in np.percentile(samples, [25, 50, 75]))
    return {
        "median_ms": median,
        "lower_ms": lower,
        "upper_ms": upper,
        "rounds": len(samples),
    }


# Comparing.


def fastest(rows: Iterable[Mapping[str, Any]], group: str) -> Mapping[str, Any] | None:
    """Return the row with the least median among a group's contenders, or None without any."""
    rows = [row for row in rows if CONTENDERS[row["contender"]].group == group]
    return min(rows, key=lambda row: row["median_ms"], default=None)


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Set the fastest jaxrnn row of one problem and pass beside its fastest rivals.

    Ratios are how many times faster jaxrnn is. None if jaxrnn didn't run.
    """
    groups = ("jaxrnn", "JAX", "PyTorch", "sharded")
    ours, peer, torch, sharded = (fastest(rows, group) for group in groups)
    if ours is None:
        return None
    return {
        "cell": ours["cell"],
        "pass": ours["pass"],
        "T, B, I, H": shape_label(ours),
        "jaxrnn": ours["contender"].removeprefix("jaxrnn-"),
        "jaxrnn ms": ours["median_ms"],
        "JAX peer": peer and peer["contender"],
        "peer ms": peer and peer["median_ms"],
        "PyTorch ms": torch and torch["median_ms"],
        "peer/jaxrnn": peer and peer["median_ms"] / ours["median_ms"],
        "PyTorch/jaxrnn": torch and torch["median_ms"] / ours["median_ms"],
        "PyTorch/sharded": torch and sharded and torch["median_ms"] / sharded["median_ms"],
    }


def geometric_means(comparisons: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the ratios over shapes, for each cell and pass."""
    cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in comparisons:
        cases.setdefault((line["cell"], line["pass"]), []).append(line)
    return [
        {
            "cell": cell,
            "pass": pass_,
            "shapes": len(lines),
            **{
                ratio: geometric_mean([line[ratio] for line in lines])
                for ratio in ("peer/jaxrnn", "PyTorch/jaxrnn", "PyTorch/sharded")
            },
        }
        for (cell, pass_), lines in cases.items()
    ]


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Geometric mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(known)))) if known and len(known) == len(values) else None


def shape_label(row: Mapping[str, Any]) -> str:
    return ", ".join(str(row[field]) for field in ("length", "batch", "features", "hidden"))


# Scaling with the length of the sequence.


def prepare_scaling(name: str, length: int, dtype: str, seed: int) -> Program:
    """Compile the gradient, with respect to parameters, of a loss on an LSTM's last output.

    The last output is taken from the state, where it stands too: `outputs[-1]` would make XLA keep
    all outputs, and as many zeros for their cotangents.
    """
    cell = jaxrnn.lstm(64)
    params = cell.init(jax.random.key(seed), 8, dtype=dtype)
    inputs = jax.random.normal(jax.random.key(seed), (length, 1, 8), dtype)
    engine = ENGINES[name.removeprefix("jaxrnn-")]

    def loss(params, inputs):
        state, _ = jaxrnn.unroll(cell, params, inputs, engine=engine)
        return (state.hidden**2).sum()

    return compile_jax(jax.grad(loss), params, inputs)


def drop_large(programs: Mapping[str, Program], limit: float) -> dict[str, Program]:
    """Leave out, with a line for each, the programs that need more than `limit` GiB."""
    kept = dict(programs)
    for name, program in programs.items():
        need = (program.temporary or 0) / 2**30
        if need > limit:
            print(f"left out: {name} needs {need:.1f} GiB")
            del kept[name]
    return kept


# Training.


class Training(NamedTuple):
    """A character model's sizes: T, B, embedding, hidden units of its LSTM, symbols."""

    length: int = 128
    batch: int = 32
    features: int = 64
    hidden: int = 256
    symbols: int = 65


def prepare_training_jaxrnn(engine: Any, sizes: Training, seed: int) -> Program:
    """Compile a training step of embedding, LSTM and dense by Adam, the state carried."""
    model = jaxrnn.serial(
        jaxrnn.embedding(sizes.symbols, sizes.features),
        jaxrnn.rnn(jaxrnn.lstm(sizes.hidden), engine=engine),
        jaxrnn.dense(sizes.symbols),
    )
    optimizer = optax.adam(1e-3)

    def loss(params, carry, batch, key):
        inputs, targets = batch
        carry, logits = model.apply(params, carry, inputs)
        return jaxrnn.losses.softmax_cross_entropy(logits, targets), carry

    params = model.init(jax.random.key(seed))
    train_state = jaxrnn.training.init_train_state(
        params, optimizer, carry=model.initial_state((sizes.batch,))
    )
    codes = jnp.asarray(random_codes(sizes, seed))
    step = jaxrnn.train_step(loss, optimizer)
    return compile_jax(step, train_state, (codes[:-1], codes[1:]), jax.random.key(seed))


def prepare_training_torch(sizes: Training, seed: int) -> Program:
    """Make the same training step in PyTorch."""
    import torch

    torch.manual_seed(seed)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    embedding = torch.nn.Embedding(sizes.symbols, sizes.features, device=device)
    lstm = torch.nn.LSTM(sizes.features, sizes.hidden, device=device)
    dense = torch.nn.Linear(sizes.hidden, sizes.symbols, device=device)
    params = [*embedding.parameters(), *lstm.parameters(), *dense.parameters()]
    optimizer = torch.optim.Adam(params, 1e-3)
    codes = torch.as_tensor(random_codes(sizes, seed), device=device).long()
    state = None

    def run():
        nonlocal state
        optimizer.zero_grad()
        hidden, new_state = lstm(embedding(codes[:-1]), state)
        logits = dense(hidden)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes[1:].flatten())
        loss.backward()
        optimizer.step()
        state = tuple(part.detach() for part in new_state)
        return loss.item()

    return Program(run, sample(run, 1), None)


def random_codes(sizes: Training, seed: int) -> np.ndarray:
    shape = sizes.length + 1, sizes.batch
    return np.random.default_rng(seed).integers(0, sizes.symbols, shape, dtype=np.int32)


# A loss on every step.

# T, B, I, H and symbols.
LOSS_SHAPES = [(512, 32, 64, 256, 65), (1000, 32, 64, 128, 1000), (2000, 8, 32, 64, 5000)]


def prepare_loss(sizes: Sequence[int], seed: int) -> dict[str, Program]:
    """Compile the gradient of an LSTM's mean cross-entropy, in two ways."""
    length, batch, features, hidden, symbols = sizes
    cell = jaxrnn.lstm(hidden)
    keys = jax.random.split(jax.random.key(seed), 4)
    params = cell.init(keys[0], features), jax.random.normal(keys[1], (hidden, symbols)) / hidden
    inputs = jax.random.normal(keys[2], (length, batch, features))
    labels = jax.random.randint(keys[3], (length, batch), 0, symbols)

    def cross_entropy(readout, outputs, labels):
        logits = outputs @ readout
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    def at_once(params, inputs, labels):
        _, outputs = jaxrnn.unroll(cell, params[0], inputs)
        return cross_entropy(params[1], outputs, labels) / labels.size

    def on_the_way(params, inputs, labels):
        loss = functools.partial(cross_entropy, params[1])
        return jaxrnn.unroll_loss(loss, cell, params[0], inputs, labels)[1] / labels.size

    return {
        name: compile_jax(jax.grad(loss), params, inputs, labels)
        for name, loss in {"unroll": at_once, "unroll_loss": on_the_way}.items()
    }


def run_loss(arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]) -> None:
    """Compare `unroll_loss` with a loss on all outputs."""
    del names
    rows = []
    for sizes in arguments.loss_shapes:
        print(f"\nT, B, I, H, symbols = {', '.join(map(str, sizes))}", flush=True)
        measured = measure(
            prepare_loss(sizes, arguments.seed),
            rounds=arguments.repeats,
            budget=60 * arguments.minutes / len(arguments.loss_shapes),
            shuffle=random.Random(arguments.seed),
        )
        print_table(measured)
        fields = dict(zip(("T", "B", "I", "H", "symbols"), sizes, strict=True))
        rows += [fields | row for row in measured]
    _common.save_csv(arguments.out / "loss.csv", [row | head for row in rows])


# Streaming.


def elman_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of an Elman network."""
    total = inputs @ params.kernel + state.hidden @ params.recurrent_kernel + params.bias
    hidden = jnp.tanh(total)
    return jaxrnn.cells.ElmanState(hidden), hidden


def lstm_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of an LSTM."""
    total = inputs @ params.kernel + state.hidden @ params.recurrent_kernel + params.bias
    i, f, g, o = jnp.split(total, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return jaxrnn.cells.LSTMState(hidden, cell), hidden


def gru_by_hand(params: Any, state: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Return the new state and the output of a step of a GRU."""
    r, z, n = jnp.split(inputs @ params.kernel + params.bias, 3, axis=-1)
    recurrent = state.hidden @ params.recurrent_kernel + params.recurrent_bias
    of_r, of_z, of_n = jnp.split(recurrent, 3, axis=-1)
    z = jax.nn.sigmoid(z + of_z)
    hidden = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + of_r) * of_n) + z * state.hidden
    return jaxrnn.cells.GRUState(hidden), hidden


BY_HAND = {"elman": elman_by_hand, "lstm": lstm_by_hand, "gru": gru_by_hand}


def prepare_streaming(name: str, hidden: int, seed: int) -> dict[str, Program]:
    """Compile a cell's step on one sequence, and the one by hand; calls go through `jax.jit`."""
    cell = CELLS[name](hidden)
    keys = jax.random.split(jax.random.key(seed))
    params, inputs = cell.init(keys[0], hidden), jax.random.normal(keys[1], (1, hidden))
    state = cell.initial_state((1,))

    def program(step: Callable[..., Any]) -> Program:
        run = functools.partial(jax.jit(step), params, state, inputs)
        start = time.perf_counter()
        jax.block_until_ready(run())
        return Program(
            lambda: jax.block_until_ready(run()), time.perf_counter() - start, temporary=None
        )

    return {"cell.step": program(cell.step), "by hand": program(BY_HAND[name])}


def run_streaming(
    arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]
) -> None:
    """Compare a jitted `cell.step` with a step by hand."""
    del names
    rows = []
    for name in arguments.cells:
        print(f"\n{LABELS[name]}, one step, B = 1, I = H = {arguments.streaming_size}", flush=True)
        measured = measure(
            prepare_streaming(name, arguments.streaming_size, arguments.seed),
            rounds=arguments.repeats,
            budget=60 * arguments.minutes / len(arguments.cells),
            shuffle=random.Random(arguments.seed),
        )
        print_table(measured)
        rows += [{"cell": name, "H": arguments.streaming_size} | row for row in measured]
    _common.save_csv(arguments.out / "streaming.csv", [row | head for row in rows])


# Sweeps.


class Sweep(NamedTuple):
    """How many members learn the adding problem at once, its T and B, and H of their cells."""

    members: int = 8
    length: int = 100
    batch: int = 32
    hidden: int = 32


SWEEPS = [Sweep(batch=1), Sweep(batch=8), Sweep(batch=32)]
# How many steps go by between two looks at the clock, as between two reports by default.
SWEEP_STEPS = 100
# How many looks.
SWEEP_REPORTS = 4


def prepare_sweep(
    cell: str, sizes: Sweep, seed: int
) -> dict[str, Callable[[Callable[..., None]], Any]]:
    """Make what trains one network by `fit`, and many by `sweep`, and calls back now and then."""
    key = jax.random.key(seed)
    optimizer = optax.adam(1e-2)
    task = functools.partial(jaxrnn.tasks.adding, batch_size=sizes.batch, length=sizes.length)
    options: dict[str, Any] = {
        "steps": SWEEP_REPORTS * SWEEP_STEPS,
        "report_every": SWEEP_STEPS,
        "clip_norm": 1.0,
        "progress": False,
    }
    runs = {}
    for name, engine in {"default": None, "scan": jaxrnn.engines.scan()}.items():
        of_cell = getattr(jaxrnn, cell)(sizes.hidden)
        model = jaxrnn.serial(
            jaxrnn.rnn(of_cell, return_sequences=False, engine=engine), jaxrnn.dense(1)
        )

        def loss(params, batch, key, model=model):
            inputs, targets = batch
            return jaxrnn.losses.squared_error(model.apply(params, None, inputs)[1], targets)

        def setup(setting, key, model=model, loss=loss):
            return loss, model.init(key, 2), optimizer

        def fit(report, setup=setup):
            loss, params, optimizer = setup(None, key)
            return jaxrnn.fit(loss, params, optimizer, task, key=key, on_report=report, **options)

        def sweep(report, setup=setup):
            keys = jax.random.split(key, sizes.members)
            return jaxrnn.sweep(setup, None, task, key=keys, on_report=report, **options)

        runs |= {f"fit-{name}": fit, f"sweep-{name}": sweep}
    return runs


def run_sweep(arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]) -> None:
    """Compare training many networks at once with training one: a step of it, and the whole."""
    del names
    rows = []
    for cell, sizes in itertools.product(arguments.cells, arguments.sweeps):
        print(f"\n{cell}, members, T, B, H = {', '.join(map(str, sizes))}", flush=True)
        runs = prepare_sweep(cell, sizes, arguments.seed)
        steps: dict[str, list[float]] = {name: [] for name in runs}
        wholes: dict[str, list[float]] = {name: [] for name in runs}
        # All in turn, so that whatever else the machine does hits all alike. Each round compiles
        # anew, and times every call many times over: hence few.
        for _ in range(math.ceil(arguments.repeats / 5)):
            for name, run in runs.items():
                times = [time.perf_counter()]
                run(lambda *_, times=times: times.append(time.perf_counter()))
                wholes[name].append(times[-1] - times[0])
                steps[name] += list(np.diff(times[1:]) / SWEEP_STEPS)
        of_step, of_whole = (
            {name: float(np.median(values)) for name, values in seconds.items()}
            for seconds in (steps, wholes)
        )
        one, whole = (
            min(value for name, value in medians.items() if name.startswith("fit"))
            for medians in (of_step, of_whole)
        )
        measured = []
        for name, median in of_step.items():
            # To train all members, `fit` has to be called for one after the other.
            every = sizes.members * median if name.startswith("fit") else median
            measured.append(
                {
                    "cell": cell,
                    "run": name,
                    "ms a step": 1e3 * median,
                    "times one": median / one,
                    "times apart": every / (sizes.members * one),
                    "whole s": of_whole[name],
                    "times one whole": of_whole[name] / whole,
                }
            )
        _common.print_table(measured)
        rows += [row | sizes._asdict() | head for row in measured]
    _common.save_csv(arguments.out / "sweep.csv", rows)
    print(
        "\ntimes one: as long as a step of one network; times apart: to train all members, as long "
        "as one after the other by the faster fit; whole: "
        f"{SWEEP_REPORTS * SWEEP_STEPS} steps, compiled first"
    )


# Showing.

# jaxrnn's engines are discs; each peer has a shape of its own.
STYLES = {
    "jaxrnn-default": ("o", "#0072B2"),
    "jaxrnn-scan": ("o", "#56B4E9"),
    "jaxrnn-unroll4": ("o", "#CC79A7"),
    "jaxrnn-unroll8": ("o", "#117733"),
    "jaxrnn-hoisted": ("o", "#D55E00"),
    "jaxrnn-checkpointed": ("o", "#E69F00"),
    "jaxrnn-sharded": ("o", "#F0E442"),
    "flax": ("s", "#009E73"),
    "haiku": ("^", "#882255"),
    "equinox": ("v", "#CC79A7"),
    "keras": ("D", "#999999"),
    "jax-cudnn": ("P", "#D55E00"),
    "pytorch": ("*", "#000000"),
}


def header() -> dict[str, str]:
    """Describe the machine, how busy it was in the last minute, and the software."""
    packages = ["jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "keras", "torch"]
    versions = [f"jaxrnn {jaxrnn.__version__}", f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "cores": str(cores()),
        "devices": str(len(jax.devices())),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "backend": device.platform,
        "versions": ", ".join(versions),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_table(rows: Iterable[Mapping[str, Any]], *, leave_out: Iterable[str] = ()) -> None:
    """Print rows without some columns."""
    _common.print_table(
        [{name: row[name] for name in row if name not in leave_out} for row in rows]
    )


def draw(rows: Sequence[Mapping[str, Any]], where: str) -> Any:
    """Draw a panel for each pass and cell: time for each shape, with quartiles."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    shapes = list(dict.fromkeys(shape_label(row) for row in rows))
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(
            len(passes),
            len(cells),
            figsize=(2 + 4.5 * len(cells), 1 + 3.2 * len(passes)),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for (line, pass_), (column, cell) in itertools.product(enumerate(passes), enumerate(cells)):
            axis = axes[line, column]
            here = [row for row in rows if (row["pass"], row["cell"]) == (pass_, cell)]
            for place, name in enumerate(names):
                shift = 0.8 * ((place + 0.5) / len(names) - 0.5)
                draw_dots(axis, [row for row in here if row["contender"] == name], shapes, shift)
            axis.set(yscale="log", title=f"{LABELS[cell]}, {pass_}")
            axis.set_xticks(
                range(len(shapes)), [label.replace(", ", "\n") for label in shapes], fontsize=8
            )
            axis.grid(visible=False, axis="x")
            for edge in range(1, len(shapes)):
                axis.axvline(edge - 0.5, color="0.9", linewidth=1)
            if column == 0:
                axis.set_ylabel("milliseconds")
            if line == len(passes) - 1:
                axis.set_xlabel("T, B, I, H")
        handles = [
            Line2D([], [], marker=STYLES[name][0], color=STYLES[name][1], linestyle="none")
            for name in names
        ]
        figure.legend(handles, names, loc="outside right center")
        # Two lines, as a device's name may be as long as a narrow figure is wide.
        figure.suptitle(f"Time of a call, median and quartiles\n{where}")
    return figure


def draw_dots(
    axis: Any, rows: Sequence[Mapping[str, Any]], shapes: Sequence[str], shift: float
) -> None:
    """Draw one contender's medians, with lines from quartile to quartile."""
    if not rows:
        return
    marker, color = STYLES[rows[0]["contender"]]
    median, lower, upper = (
        np.array([row[name] for row in rows]) for name in ("median_ms", "lower_ms", "upper_ms")
    )
    axis.errorbar(
        [shapes.index(shape_label(row)) + shift for row in rows],
        median,
        [median - lower, upper - median],
        fmt=marker,
        color=color,
        markersize=5,
        elinewidth=1,
    )


def draw_scaling(rows: Sequence[Mapping[str, Any]], where: str) -> Any:
    """Draw time and temporary memory against the length."""
    panels = {"median_ms": "milliseconds", "temporary_MiB": "temporary memory, MiB"}
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for (column, label), axis in zip(panels.items(), axes, strict=True):
            for name in dict.fromkeys(row["contender"] for row in rows):
                points = [
                    (row["length"], row[column])
                    for row in rows
                    if row["contender"] == name and row[column] is not None
                ]
                marker, color = STYLES[name]
                axis.plot(*np.array(points).T, marker=marker, color=color, label=name)
            axis.set(xscale="log", yscale="log", xlabel="T, steps", ylabel=label)
        axes[0].legend()
        figure.suptitle(
            f"Gradient of a loss on the last output, LSTM, B = 1, I = 8, H = 64\n{where}"
        )
    return figure


def shape(text: str) -> tuple[int, int, int, int]:
    """Read T,B,I,H."""
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected four sizes, as in 96,32,64,64")
    return sizes


def estimate(cases: Iterable[tuple[Problem, str]], count: int, peak: float, rounds: int) -> float:
    """Guess a run's seconds: a second to compile, then calls at an eighth of the peak."""
    return sum(
        count * (1 + (rounds + 2) * max(SHORTEST, 8 * flops(problem, pass_) / peak))
        for problem, pass_ in cases
    )


def run_shapes(arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]) -> None:
    """Compare the contenders on every cell, pass and shape, the quickest first."""
    peak = matrix_peak(arguments.dtype)
    print(
        f"matrix product: {peak / 1e9:.1f} GFLOP/s in {arguments.dtype}; of_peak is a share of it"
    )
    problems = [
        Problem(cell, *sizes, dtype=arguments.dtype)
        for cell in arguments.cells
        for sizes in arguments.shapes
    ]
    cases = [(problem, pass_) for problem in problems for pass_ in arguments.passes]
    minutes = min(estimate(cases, len(names), peak, arguments.repeats) / 60, arguments.minutes)
    print(f"{len(cases)} comparisons of {len(names)} contenders, about {minutes:.1f} minutes")

    deadline = time.perf_counter() + 60 * arguments.minutes
    shuffle = random.Random(arguments.seed)
    results = {}
    for number, (problem, pass_) in enumerate(sorted(cases, key=lambda case: flops(*case))):
        title = f"{LABELS[problem.cell]}, {pass_}, T, B, I, H = {shape_label(problem._asdict())}"
        print(f"\n{number + 1}/{len(cases)}: {title}", flush=True)
        programs = prepare(problem, pass_, names, arguments.seed)
        budget = (deadline - time.perf_counter()) / (len(cases) - number)
        rows = measure(programs, rounds=arguments.repeats, budget=budget, shuffle=shuffle)
        for row in rows:
            row["of_peak"] = flops(problem, pass_) / (row["median_ms"] / 1e3) / peak
            row["layout"] = CONTENDERS[row["contender"]].layout
            row |= {"pass": pass_, **problem._asdict()}
        results[problem, pass_] = rows
        if rows:
            print_table(rows, leave_out={"pass", *Problem._fields})

    every = [row for case in cases for row in results[case]]
    if not every:
        sys.exit("none of the contenders has any of the cells")
    head |= {"peak_gflops": f"{peak / 1e9:.1f}"}
    _common.save_csv(arguments.out / "benchmark.csv", [row | head for row in every])
    _common.save_figure(arguments.out / "benchmark.png", draw(every, head["device"]))
    comparisons = [line for case in cases if (line := compare(results[case]))]
    if comparisons:
        print("\njaxrnn's fastest engine, the fastest other JAX contender, and PyTorch")
        print_table(comparisons)
    if any(line["peer ms"] or line["PyTorch ms"] for line in comparisons):
        print("\ngeometric means over shapes: how many times faster jaxrnn is")
        print_table(geometric_means(comparisons))


def run_scaling(arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]) -> None:
    """Measure jaxrnn's contenders on ever longer sequences."""
    names = [name for name in names if CONTENDERS[name].group == "jaxrnn"]
    deadline = time.perf_counter() + 60 * arguments.minutes
    shuffle = random.Random(arguments.seed)
    rows = []
    for number, length in enumerate(sorted(arguments.lengths)):
        print(f"\nT = {length:,}", flush=True)
        programs = {
            name: prepare_scaling(name, length, arguments.dtype, arguments.seed) for name in names
        }
        programs = drop_large(programs, arguments.memory)
        budget = (deadline - time.perf_counter()) / (len(arguments.lengths) - number)
        measured = measure(programs, rounds=arguments.repeats, budget=budget, shuffle=shuffle)
        if measured:
            print_table(measured)
        rows += [{"length": length, **row} for row in measured]
    if not rows:
        sys.exit("nothing was measured: choose one of jaxrnn's contenders, or a greater --memory")
    _common.save_csv(arguments.out / "scaling.csv", [row | head for row in rows])
    _common.save_figure(arguments.out / "scaling.png", draw_scaling(rows, head["device"]))


def run_training(arguments: argparse.Namespace, names: Sequence[str], head: dict[str, str]) -> None:
    """Compare training steps of one model."""
    sizes = arguments.training_sizes
    programs = {}
    for name in names:
        if name == "pytorch":
            programs[name] = prepare_training_torch(sizes, arguments.seed)
        elif name.startswith("jaxrnn-"):
            engine = ENGINES[name.removeprefix("jaxrnn-")]
            programs[name] = prepare_training_jaxrnn(engine, sizes, arguments.seed)
    if not programs:
        sys.exit("nothing was measured: choose pytorch or one of jaxrnn's contenders")
    rows = measure(
        programs,
        rounds=arguments.repeats,
        budget=60 * arguments.minutes,
        shuffle=random.Random(arguments.seed),
    )
    for row in rows:
        row["characters_per_s"] = 1e3 * sizes.length * sizes.batch / row["median_ms"]
    _common.save_csv(arguments.out / "training.csv", [row | sizes._asdict() | head for row in rows])
    print(
        f"\na training step on {sizes.length} characters of {sizes.batch} texts, {sizes.symbols} "
        f"different ones: embedding of {sizes.features}, LSTM of {sizes.hidden} units"
    )
    print_table(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the header, then time every contender that is here."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,I,H", help="which shapes"
    )
    parser.add_argument(
        "--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which cells"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT_CONTENDERS, help="which ones"
    )
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=list(PASSES), help="which passes"
    )
    parser.add_argument("--repeats", type=positive(int), default=15, help="rounds, at most")
    parser.add_argument(
        "--minutes",
        type=positive(float),
        default=20.0,
        help=f"time to aim at; only the {LEAST_ROUNDS} rounds that there are at least exceed it",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of all arrays")
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="measure jaxrnn's gradient against the length instead (LSTM, B 1, I 8, H 64)",
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="compare training steps of a character model instead (T 128, B 32, LSTM of 256)",
    )
    parser.add_argument(
        "--loss",
        action="store_true",
        help="compare a loss added up on the way with one on all outputs instead",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="compare training eight networks at once with training one instead",
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="compare a step of one sequence with one written by hand instead",
    )
    parser.add_argument(
        "--devices",
        type=positive(int),
        default=None,
        help="devices to make of the CPU, for jaxrnn-sharded and --sweep; leave it out for "
        "single-device times",
    )
    parser.add_argument(
        "--lengths", nargs="+", type=positive(int), default=LENGTHS, help="T, with --scaling"
    )
    parser.add_argument(
        "--memory", type=positive(float), default=4.0, help="GiB that --scaling may take"
    )
    parser.set_defaults(
        loss_shapes=LOSS_SHAPES, streaming_size=64, sweeps=SWEEPS, training_sizes=Training()
    )
    arguments = _common.parse(
        parser,
        argv,
        shapes=[(48, 8, 32, 32)],
        cells=["lstm"],
        repeats=3,
        minutes=0.2,
        lengths=[100, 1000, 10_000],
        loss_shapes=[(100, 8, 32, 64, 65)],
        sweeps=[Sweep(members=4, length=50, batch=8, hidden=16)],
        training_sizes=Training(hidden=64),
    )

    if arguments.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if arguments.devices is not None:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    head = header()
    print("\n".join(f"{name}: {value}" for name, value in head.items()))
    modes = {
        "scaling": run_scaling,
        "training": run_training,
        "loss": run_loss,
        "streaming": run_streaming,
        "sweep": run_sweep,
    }
    asked = [mode for mode in modes if getattr(arguments, mode)]
    names = []
    # These compare jaxrnn with itself, whatever the contenders.
    if not asked or set(asked) - {"loss", "streaming", "sweep"}:
        for name in arguments.contenders:
            reason = why_left_out(name, arguments.dtype)
            if reason is None:
                names.append(name)
            else:
                print(f"left out: {name}, as {reason}")
        if not names:
            sys.exit("no contender is left")
    for mode in asked:
        modes[mode](arguments, names, head)
    if not asked:
        run_shapes(arguments, names, head)


if __name__ == "__main__":
    main()
