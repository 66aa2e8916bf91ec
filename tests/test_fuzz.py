"""Random programs: any cell, on any engine, by any derivative, is what `scan()` makes of it.

`JAXRNN_FUZZ_PROGRAMS` says how many programs to run, and `JAXRNN_FUZZ_SEED` which.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxrnn
from jaxrnn._cell import NoisyInputs, with_noise
from tests.tolerances import FLOAT32, SIXTEEN_BITS, x64

PROGRAMS = int(os.environ.get("JAXRNN_FUZZ_PROGRAMS", "60"))
SEED = int(os.environ.get("JAXRNN_FUZZ_SEED", "0"))

# Float64 against float64, relative to the largest entry: a few hundred operations in another order.
FLOAT64 = 1e-12

H, I = 3, 2

# Nearly all the time is compilation.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}


@jax.custom_jvp
def centred(x):
    """Centred over the units, by a rule that no engine can see through."""
    return x - x.mean(-1, keepdims=True)


centred.defjvp(lambda at, by: (centred(at[0]), by[0] - by[0].mean(-1, keepdims=True)))

# What a part may do with an array `(*batch, H)`, beyond what is pointwise. All are bounded, and
# defined for batches without a sequence.
POINTWISE: dict[str, Callable[..., Any]] = {
    "nothing": lambda a, params: a,
    "sine": lambda a, params: jnp.sin(a),
    "relu": lambda a, params: jax.nn.leaky_relu(a),
    "param": lambda a, params: a * params["scale"],
    "closure": lambda a, params: a * np.linspace(0.5, 1, H).astype(a.dtype),
    "within jit": lambda a, params: jax.jit(jnp.tanh)(a),
    "recomputed": lambda a, params: jax.checkpoint(lambda a: jnp.tanh(a) * jnp.cos(a))(a),
    "loop": lambda a, params: jax.lax.fori_loop(0, 2, lambda n, a: jnp.tanh(a + n), a),
}
UNITS: dict[str, Callable[..., Any]] = {
    "flip": lambda a, params: jnp.flip(a, -1),
    "softmax": lambda a, params: jax.nn.softmax(a, -1),
    "mean": lambda a, params: a - a.mean(-1, keepdims=True),
    "norm": lambda a, params: a / jnp.sqrt(1 + jnp.square(a).sum(-1, keepdims=True)),
    "first": lambda a, params: a + 0.1 * a[..., :1],
    "product": lambda a, params: a @ params["mix"],
    "custom_jvp": lambda a, params: jnp.tanh(centred(a)),
}
# Over the batch where there is one, and for a single sequence over units.
BATCH: dict[str, Callable[..., Any]] = {
    "cumsum of the batch": lambda a, params: jnp.tanh(jnp.cumsum(a, 0)),
    "mean of the batch": lambda a, params: a - a.sum(0, keepdims=True) / 3,
    "all": lambda a, params: a / jnp.sqrt(1 + jnp.square(a).sum()),
    "places": lambda a, params: a * jnp.linspace(0.5, 1, a.size, dtype=a.dtype).reshape(a.shape),
    "neighbours": lambda a, params: 0.5 * (a + jnp.roll(a, 1, 0)),
}
MIXERS = {**POINTWISE, **UNITS, **BATCH}


@dataclasses.dataclass(frozen=True)
class Program:
    """All that is drawn of a program; it prints as what makes it again."""

    split: bool
    project: str
    recur: str
    activate: str
    mask_state: str | None
    combine: str
    gates: int
    packed: bool
    container: str
    state: tuple[str, ...]
    output: str
    noise: bool
    context: bool
    batch: tuple[int, ...]
    steps: int
    lengths: bool
    mask: bool
    resets: bool
    poison: bool
    reverse: bool
    return_states: bool
    time_major: bool
    dtype: str
    compute_dtype: str | None
    engine: Any
    derivative: str
    seed: int

    @property
    def mixes_batch(self) -> bool:
        parts = self.project, self.recur, self.activate, self.mask_state
        return any(part in BATCH for part in parts)


@st.composite
def programs(draw) -> Program:
    def flag(often: int = 2):
        return draw(st.integers(0, often - 1)) == often - 1

    def mixer():
        kind = draw(st.sampled_from([POINTWISE, POINTWISE, UNITS, BATCH]))
        return draw(st.sampled_from(sorted(kind)))

    split = not flag(5)
    batch = draw(st.sampled_from([(), (2,), (1,), (4,), (0,), (2, 3), (1, 2), (2, 0), (2, 1, 2)]))
    steps = draw(st.sampled_from([3, 5, 4, 6, 7, 1, 2, 0]))
    chunk = draw(st.one_of(st.none(), st.integers(1, max(steps, 1))))
    unroll = draw(st.sampled_from([None, None, 1, 2, 3]))
    inner = draw(st.sampled_from([None, jaxrnn.engines.scan(2)]))
    engines: list[Any] = [jaxrnn.engines.checkpointed(chunk, inner)]
    if split:
        keep = draw(st.sampled_from([None, "states", "products"]))
        hoisted = jaxrnn.engines.hoisted(chunk, keep, unroll)
        within = jaxrnn.engines.checkpointed(chunk, dataclasses.replace(hoisted, chunk=None))
        engines += [hoisted, hoisted, hoisted, within, None]
    engines.append(jaxrnn.engines.scan(unroll or 1))
    program = Program(
        split=split,
        project=mixer(),
        recur=draw(st.sampled_from(["empty", *6 * [mixer()]])),
        activate=mixer(),
        mask_state=mixer() if flag(3) else None,
        combine=draw(st.sampled_from(sorted(COMBINES))),
        gates=draw(st.integers(1, 3)),
        packed=flag(),
        container=draw(st.sampled_from(["tuple", "dict", "list"])),
        state=("units", *draw(st.lists(st.sampled_from(sorted(PARTS)), max_size=2, unique=True))),
        output=draw(st.sampled_from(["hidden", "scalar", "tree", "copy", "none"])),
        noise=flag(4),
        context=flag(5),
        batch=batch,
        steps=steps,
        lengths=flag(3),
        mask=flag(4),
        resets=flag(3),
        poison=flag(),
        reverse=flag(3),
        return_states=flag(),
        time_major=not flag(4),
        dtype=draw(st.sampled_from([*7 * ["float64"], "float32"])),
        compute_dtype=draw(st.sampled_from([*9 * [None], "bfloat16"])),
        engine=draw(st.sampled_from(engines)),
        derivative=draw(st.sampled_from(sorted(DERIVATIVES))),
        seed=draw(st.integers(0, 99)),
    )
    if batch and batch[0] and batch[0] % 2 == 0 and not program.mixes_batch and flag(5):
        engine = jaxrnn.engines.sharded(2, draw(st.sampled_from(engines)))
        program = dataclasses.replace(program, engine=engine)
    return program


# What a state may have besides the units: how it is made, and what a step makes of it.
PARTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "slow": (
        lambda batch, dtype: jnp.zeros((*batch, H), dtype),
        lambda part, hidden: 0.9 * part + jnp.tanh(hidden),
    ),
    "pair": (
        lambda batch, dtype: {"fast": jnp.zeros((*batch, 2, H), dtype)},
        lambda part, hidden: {"fast": jnp.cos(part["fast"] * hidden[..., None, :])},
    ),
    "scalar": (
        lambda batch, dtype: jnp.ones(batch, dtype),
        lambda part, hidden: 0.5 * part + hidden.sum(-1),
    ),
    "complex": (
        lambda batch, dtype: jnp.zeros((*batch, H), jnp.result_type(dtype, jnp.complex64)),
        lambda part, hidden: part * np.exp(0.5j).astype(part.dtype) / 2 + hidden,
    ),
    "count": (
        lambda batch, dtype: jnp.zeros(batch, jnp.int32),
        lambda part, hidden: part + 1,
    ),
    "still": (
        lambda batch, dtype: (jnp.ones((*batch, H), dtype), ()),
        lambda part, hidden: part,
    ),
}

# How the products meet, list by list; what `activate` then has is flattened, and summed up.
COMBINES: dict[str, Callable[[list, list], Any]] = {
    "sum": lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
    "apart": lambda a, b: (a, b),
    "differences": lambda a, b: {"more": [2 * x for x in a], "less": [-y for y in b]},
    "one": lambda a, b: jnp.concatenate([*a, *b], -1),
    "broadcast": lambda a, b: [x[..., :1] + 0 * x + y for x, y in zip(a, b, strict=True)],
    "stacked": lambda a, b: jnp.stack([*a, *b], -2),
}


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def make_cell(program: Program) -> jaxrnn.Cell:
    """Return the program's cell; its params are a dict, its state as `container` says."""
    count = program.gates
    size = H * count

    def mix(name, array, params):
        return MIXERS[name](array, params)

    def to_list(tree):
        return [
            piece
            for leaf in jax.tree.leaves(tree)
            for piece in jnp.split(leaf, leaf.shape[-1] // H, -1)
        ]

    def contained(arrays):
        if program.packed:
            return jnp.concatenate(arrays, -1)
        if program.container == "dict":
            return {f"gate{number}": array for number, array in enumerate(arrays)}
        return tuple(arrays) if program.container == "tuple" else list(arrays)

    def init(key, input_size, dtype):
        shapes: dict[str, tuple[int, ...]] = {
            "kernel": (input_size, size),
            "recurrent": (H, size),
            "bias": (size,),
            "scale": (H,),
            "mix": (H, H),
            "gain": (),
            "context": (2, H),
        }
        return {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}

    def initial_state(batch, dtype):
        parts = [jnp.zeros((*batch, H), dtype)]
        parts += [PARTS[name][0](batch, dtype) for name in program.state[1:]]
        if program.container == "dict":
            return dict(zip(program.state, parts, strict=True))
        return tuple(parts) if len(parts) > 1 or program.container == "list" else parts[0]

    structure = jax.tree.structure(initial_state((), jnp.float32))

    def parts_of(state) -> list[Any]:
        if program.container == "dict":
            return [state[name] for name in program.state]
        return list(state) if isinstance(state, tuple) else [state]

    def project(params, inputs, *context):
        noise = None
        if isinstance(inputs, NoisyInputs):
            inputs, noise = inputs
        gates = jnp.split(inputs @ params["kernel"] + params["bias"], count, -1)
        gates[0] = mix(program.project, gates[0], params)
        if noise is not None:
            gates[-1] = gates[-1] * noise["scale"]
        for each in context:
            gates[0] = gates[0] + each @ params["context"]
        return contained(gates)

    def recur(params, state):
        if program.recur == "empty":
            return ()
        gates = jnp.split(parts_of(state)[0] @ params["recurrent"], count, -1)
        gates[-1] = mix(program.recur, gates[-1], params)
        return contained(gates)

    def combine(projected, recurrent):
        if program.recur == "empty":
            return projected
        if program.combine == "sum":
            return jax.tree.map(jnp.add, projected, recurrent)
        if program.packed and program.combine in ("one", "stacked", "broadcast"):
            return COMBINES["apart"](projected, recurrent)
        return COMBINES[program.combine](jax.tree.leaves(projected), jax.tree.leaves(recurrent))

    def activate(params, state, gates, *context):
        hidden, *others = parts_of(state)
        if program.combine == "stacked" and not program.packed and program.recur != "empty":
            gates = [gates[..., number, :] for number in range(gates.shape[-2])]
        gates = to_list(gates)
        first = mix(program.activate, gates[0] + 0.1 * hidden, params)
        keep = jax.nn.sigmoid(first + sum(float(np.cos(n + 1)) * g for n, g in enumerate(gates)))
        new = keep * hidden + (1 - keep) * jnp.tanh(params["gain"] * gates[-1])
        for part in others:
            for leaf in jax.tree.leaves(part):
                if is_float(leaf) and leaf.shape == new.shape:
                    new = new + 0.1 * leaf.real
        for each in context:
            new = new + 0.1 * each[..., :1]
        others = [
            PARTS[name][1](part, new) for name, part in zip(program.state[1:], others, strict=True)
        ]
        state = structure.unflatten(jax.tree.leaves([new, *others]))
        if program.container == "dict":  # whose leaves are sorted by their names
            state = dict(zip(program.state, [new, *others], strict=True))
        outputs = {
            "hidden": new,
            "scalar": keep.sum(-1),
            "tree": {"keep": keep, "before": hidden, "others": tuple(others)},
            "copy": 1.0 * new,
            "none": (),
        }
        return state, outputs[program.output]

    def mask_state(state, projected):
        hidden, *others = parts_of(state)
        kept = hidden * jax.nn.sigmoid(to_list(projected)[0])
        hidden = MIXERS[program.mask_state or "nothing"](
            kept, {"scale": 1.0, "mix": jnp.eye(H, dtype=kept.dtype)}
        )
        if program.container == "dict":
            return dict(zip(program.state, [hidden, *others], strict=True))
        return structure.unflatten(jax.tree.leaves([hidden, *others]))

    step = jaxrnn.SplitStep(
        project, recur, activate, combine, mask_state if program.mask_state else None
    )

    def draw_noise(key, shape, dtype):
        # Of any dtype the same numbers.
        return {"scale": jax.random.uniform(key, (*shape, H), jnp.float64).astype(dtype)}

    return jaxrnn.Cell(
        init,
        initial_state,
        step if program.split else lambda *arguments: step(*arguments),
        draw_noise=draw_noise if program.noise else None,
        takes_context=program.context,
        name="fuzzed",
    )


def arguments_of(program: Program, cell: jaxrnn.Cell) -> tuple[Any, Any, dict[str, Any]]:
    """Return what derivatives are taken of, a blank state, and what else `unroll` takes.

    Of the state only floating arrays are among the former, as a list.
    """
    rng = np.random.default_rng(program.seed)
    steps, batch = program.steps, program.batch

    def values(spec):
        if not is_float(spec):
            return rng.integers(0, 5, spec.shape).astype(spec.dtype)
        return (0.7 * rng.normal(size=spec.shape)).astype(spec.dtype)

    state = jax.tree.map(values, cell.state_spec(batch, jnp.float64))
    arguments = {
        "params": jax.tree.map(values, cell.params_spec(I, jnp.float64)),
        "state": [leaf for leaf in jax.tree.leaves(state) if is_float(leaf)],
        "inputs": rng.normal(size=(steps, *batch, I)),
        "context": rng.normal(size=(*batch, 2)) if program.context else None,
    }
    options: dict[str, Any] = {}
    if program.lengths:
        dtype = rng.choice(["int32", "int64", "uint8"])
        options["lengths"] = rng.integers(0, steps + 1, batch).astype(dtype)
    if program.mask:
        options["mask"] = rng.random((steps, *batch)) < 0.6
    if program.resets:
        options["resets"] = rng.random((steps, *batch)) < 0.3
    arguments = jax.tree.map(functools.partial(in_dtype, dtype=program.dtype), arguments)
    return arguments, state, jax.tree.map(jnp.asarray, options)


def in_dtype(leaf, dtype) -> Any:
    if np.iscomplexobj(leaf):
        dtype = jnp.result_type(dtype, jnp.complex64)
    return jnp.asarray(leaf, dtype)


def put_into(state, floating) -> Any:
    """Return a state with other floating arrays."""
    rest = iter(floating)
    return jax.tree.map(lambda leaf: next(rest) if is_float(leaf) else leaf, state)


def real_steps(program: Program, options) -> Any:
    """Return which steps count, by NumPy."""
    real = np.ones((program.steps, *program.batch), bool)
    if "mask" in options:
        real &= np.asarray(options["mask"])
    if "lengths" in options:
        steps = np.arange(program.steps).reshape(-1, *[1] * len(program.batch))
        real &= steps < np.asarray(options["lengths"], np.int64)
    return real


def by_engine(program: Program, cell, engine, options, arguments) -> Any:
    """Return what `unroll` returns, its time axis first."""
    inputs = arguments["inputs"]
    options = dict(options)
    if not program.time_major:
        inputs = jnp.moveaxis(inputs, 0, -2)
        for name in {"mask", "resets"} & set(options):
            options[name] = jnp.moveaxis(options[name], 0, -1)
    state, *series = jaxrnn.unroll(
        cell,
        arguments["params"],
        inputs,
        arguments["state"],
        context=arguments["context"],
        key=jax.random.key(1) if program.noise else None,
        reverse=program.reverse,
        return_states=program.return_states,
        time_major=program.time_major,
        compute_dtype=program.compute_dtype,
        engine=engine,
        **options,
    )
    if not program.time_major:
        series = jax.tree.map(lambda a: jnp.moveaxis(a, len(program.batch), 0), series)
    return [state, *series]


def by_hand(program: Program, cell, options, arguments) -> Any:
    """Return the same by a loop that is written here, for steps that mix no sequences."""
    params, inputs = arguments["params"], arguments["inputs"]
    context = (arguments["context"],) if program.context else ()
    noise = cell.noise(inputs, jax.random.key(1) if program.noise else None)
    real = jnp.asarray(real_steps(program, options))
    resets = options.get("resets", jnp.zeros_like(real))
    if "lengths" in options:
        steps = jnp.arange(program.steps).reshape(-1, *[1] * len(program.batch))
        resets &= steps < options["lengths"]
    initial = cell.initial_state(program.batch, dtype=inputs.dtype)

    def where(flag, yes, no):
        return jax.tree.map(
            lambda a, b: jnp.where(flag.reshape(flag.shape + (1,) * (a.ndim - flag.ndim)), a, b),
            yes,
            no,
        )

    def body(state, of_step):
        inputs, noise, real, reset = of_step
        state = where(reset, initial, state)
        new, output = cell.advance(params, state, with_noise(inputs, noise), *context)
        state = where(real, new, state)
        return state, (where(real, output, jax.tree.map(jnp.zeros_like, output)), state)

    state, (outputs, states) = jax.lax.scan(
        body, arguments["state"], (inputs, noise, real, resets), reverse=program.reverse
    )
    return [state, outputs, states] if program.return_states else [state, outputs]


def flat(tree) -> Any:
    """Return all floating entries of a pytree, those of complex arrays as pairs."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    parts = [
        part.ravel()
        for leaf in leaves
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    return jnp.concatenate([jnp.zeros(1, parts[0].dtype if parts else None), *parts])


def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), tree)


def vmapped(f, a, t):
    """Gradients for each of two params, on the same inputs."""
    return jax.vmap(lambda params: jax.grad(f)({**a, "params": params}))(stacked(a["params"]))


def within_vmap(f, a, t):
    """The gradient of a sum over examples, that have all of their own, in their last axis."""
    examples = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf], -1), a)
    return jax.grad(lambda examples: jax.vmap(f, -1)(examples).sum())(examples)


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "gradient": lambda f, a, t: jax.value_and_grad(f)(a),
    "gradient again": lambda f, a, t: jax.value_and_grad(f)(a),
    "of params": lambda f, a, t: jax.grad(lambda p: f({**a, "params": p}))(a["params"]),
    "jvp": lambda f, a, t: jax.jvp(f, (a,), (t,)),
    "forward over reverse": lambda f, a, t: jax.jvp(jax.grad(f), (a,), (t,))[1],
    "reverse over reverse": lambda f, a, t: jax.grad(
        lambda a: jnp.vdot(flat(jax.grad(f)(a)), flat(t))
    )(a),
    "reverse over forward": lambda f, a, t: jax.grad(lambda a: jax.jvp(f, (a,), (t,))[1])(a),
    "vmap": vmapped,
    "within vmap": within_vmap,
}


def check(program: Program) -> None:
    """Raise unless the program's engine computes what the reference does, in float64."""
    cell = make_cell(program)
    arguments, blank, options = arguments_of(program, cell)
    real = jnp.asarray(real_steps(program, options))[..., None]

    def of_engine(engine, poisoned, arguments):
        if poisoned:
            inputs = jnp.where(real, arguments["inputs"], jnp.nan)
            arguments = {**arguments, "inputs": inputs}
        return by_engine(program, cell, engine, options, arguments)

    by_scan = functools.partial(of_engine, jaxrnn.engines.scan(), False)
    # What is multiplied in 16 bits, or made of padding, has no other reference than `scan()`.
    plain = program.compute_dtype or (program.mixes_batch and not real.all())
    reference = by_scan if plain else functools.partial(by_hand, program, cell, options)
    poison = program.poison and not program.mixes_batch
    got = results(program, functools.partial(of_engine, program.engine, poison), arguments, blank)
    arguments = jax.tree.map(functools.partial(in_dtype, dtype=jnp.float64), arguments)
    expected = results(program, reference, arguments, blank)

    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        if not is_float(other):
            np.testing.assert_array_equal(one, other)
    one, other = np.asarray(flat(got), np.float64), np.asarray(flat(expected), np.float64)
    tolerance = FLOAT64 if program.dtype == "float64" else FLOAT32["rtol"]
    tolerance = SIXTEEN_BITS[program.compute_dtype] if program.compute_dtype else tolerance
    assert np.isfinite(other).all()
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1, np.abs(other).max()))


def results(program: Program, function, arguments, blank) -> Any:
    """Return what a function returns, and the program's derivative of a number made of all that."""

    def everything(arguments):
        return function({**arguments, "state": put_into(blank, arguments["state"])})

    def number(arguments):
        entries = flat(everything(arguments))
        return jnp.sin(entries) @ jnp.cos(jnp.arange(entries.size, dtype=entries.dtype))

    def tangent(leaf):
        return jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)

    @functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def both(arguments):
        tangents = jax.tree.map(tangent, arguments)
        return everything(arguments), DERIVATIVES[program.derivative](number, arguments, tangents)

    return both(arguments)


@pytest.mark.slow
def test_random_programs():
    reached = 0

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=PROGRAMS,
        deadline=None,
        database=None,
        # A program that fails is printed as it is: to shrink it would take minutes of compiling.
        phases=[hypothesis.Phase.generate],
        derandomize=SEED == 0,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(programs())
    def run(program):
        nonlocal reached
        # With these JAX refuses the transpose of a checkpoint in some programs; why is not known.
        checkpointed = isinstance(program.engine, jaxrnn.engines.checkpointed)
        empty = checkpointed and program.derivative == "within vmap" and 0 in program.batch
        hypothesis.assume(not empty)
        with x64():
            check(program)
        reached += 1

    try:
        run()
    finally:
        print(f"{reached} programs without a difference")
