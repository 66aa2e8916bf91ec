"""What is compared: each framework, and each of jaxrnn's engines, as a program for one problem."""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jaxrnn
from experiments._timing import Program, compile_jax, sample

# Keras reads it when it is imported.
os.environ["KERAS_BACKEND"] = "jax"

CELLS = {"elman": jaxrnn.elman, "lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
LABELS = {"elman": "Elman", "lstm": "LSTM", "gru": "GRU"}
GATES = {"elman": 1, "lstm": 4, "gru": 3}
ENGINES = {
    "default": None,
    "scan": jaxrnn.engines.scan(),
    "unroll4": jaxrnn.engines.scan(unroll=4),
    "unroll8": jaxrnn.engines.scan(unroll=8),
    "hoisted": jaxrnn.engines.hoisted(),
    "checkpointed": jaxrnn.engines.checkpointed(),
    "sharded": jaxrnn.engines.sharded(),
}

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


class Problem(NamedTuple):
    """What every contender computes: a cell's name, T, B, I, H and a dtype's name."""

    cell: str
    length: int
    batch: int
    features: int
    hidden: int
    dtype: str = "float32"


class Contender(NamedTuple):
    """A framework, or one of jaxrnn's engines: `prepare(problem, pass_, seed)` is its program."""

    group: str
    package: str
    layout: str
    prepare: Callable[[Problem, str, int], Program]
    cells: Iterable[str] = tuple(CELLS)
    gpu_only: bool = False


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


def choose(names: Sequence[str], dtype: str) -> list[str]:
    """Return those contenders that can run here; say of each other one why it can't.

    Raises:
        SystemExit: if none is left.
    """
    reasons = {name: why_left_out(name, dtype) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"left out: {name}, as {reason}")
    chosen = [name for name, reason in reasons.items() if reason is None]
    if not chosen:
        sys.exit("no contender is left")
    return chosen


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


def flops(problem: Problem, pass_: str) -> int:
    """Count the floating-point operations of the recurrence's matrix products.

    Each weight takes part in a multiplication and an addition for each step and example; the
    gradient needs two more products of the same size for every one of the forward pass.
    """
    _, length, batch, features, hidden, _ = problem
    weights = GATES[problem.cell] * hidden * (features + hidden)
    return 2 * length * batch * weights * (1 if pass_ == "forward" else 3)
