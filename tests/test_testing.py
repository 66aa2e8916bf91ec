"""The check of a user's cell: it passes the cells here, and catches one that is broken."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.cells import DEEP
from tests.tolerances import x64

H = 3
check_cell = jaxrnn.testing.check_cell


@pytest.mark.parametrize("row", DEEP)
def test_cells_here_pass(row):
    check_cell(row.make(H))


@pytest.mark.slow
@pytest.mark.parametrize("row", DEEP)
def test_cells_here_pass_in_float64(row, float64):
    check_cell(row.make(H))


def test_a_cell_with_a_context_an_integer_and_jumps():
    """A cell of all kinds: it reads a context, counts its steps, and has a surrogate gradient."""

    def step(params, state, inputs, context):
        potential = jnp.tanh(state["potential"] + inputs @ params["kernel"] + context)
        spike = (potential > 0).astype(inputs.dtype)
        spike = potential + jax.lax.stop_gradient(spike - potential)
        return {"potential": potential, "count": state["count"] + 1}, spike

    cell = jaxrnn.Cell(
        lambda key, size, dtype: {"kernel": jax.random.normal(key, (size, H), dtype)},
        lambda batch, dtype: {
            "potential": jnp.zeros((*batch, H), dtype),
            "count": jnp.zeros(batch, jnp.int32),
        },
        step,
        takes_context=True,
        name="spiking",
    )
    context = np.random.default_rng(0).normal(size=(3, H)).astype(np.float32)
    check_cell(cell, 2, context=context, finite_differences=False)
    with pytest.raises(AssertionError, match="spiking: its gradient is not that of finite diff"):
        check_cell(cell, 2, context=context)
    with pytest.raises(AssertionError, match="spiking does not run: context: got none"):
        check_cell(cell, 2)


class Own(jaxrnn.SplitStep):
    """A step that is not what its parts make."""

    def __call__(self, params, state, inputs, *context):
        state, output = super().__call__(params, state, inputs, *context)
        return state, output + 1


def split(kind: Any = jaxrnn.SplitStep, **parts):
    """A step of products, of which some parts are given."""
    plain = {
        "project": lambda params, inputs: inputs @ params,
        "recur": lambda params, state: state @ params[:H],
        "activate": lambda params, state, gates: 2 * (jnp.tanh(gates),),
    }
    return kind(**{**plain, **parts})


def cell(step, initial_state=None, **options):
    def zeros(batch, dtype):
        return jnp.zeros((*batch, H), dtype)

    def init(key, input_size, dtype):
        return jax.random.normal(key, (input_size, H), dtype)

    return jaxrnn.Cell(init, initial_state or zeros, step, name="own", **options)


def plain(function):
    """A step that is not split, whose output is its state."""
    return lambda params, state, inputs: 2 * (function(state, inputs @ params),)


@jax.custom_jvp
def steep(x):
    return jnp.tanh(x)


steep.defjvps(lambda tangent, result, x: 3 * tangent)


BROKEN = {
    "parts": (cell(split(Own)), "own's step is not what its parts make: at .* difference is 1, of"),
    "combine": (
        cell(split(combine=lambda projected, recurrent: projected * recurrent)),
        "own does not run: combine: own's is not linear",
    ),
    "readout": (
        cell(split(), readout=lambda state: 2 * state),
        "own's readout is not the step's output",
    ),
    "batch": (
        cell(plain(lambda state, x: jnp.tanh(x - x.mean(0)))),
        "own mixes the batch: a sequence alone gives something else",
    ),
    "axes": (
        cell(plain(lambda state, x: jnp.tanh(x) * (1 if x.ndim < 3 else 2))),
        "own gives something else for two axes of batch",
    ),
    "output's dtype": (
        cell(lambda params, state, x: (state, x.astype(jnp.bfloat16))),
        "own: output: got bfloat16 for inputs of float32, expected float32",
    ),
    "weak type": (
        cell(lambda params, state, x: (state, jnp.where(x > 0, 1.0, 0.0))),
        "own: output: got a weakly typed array",
    ),
    "retracing": (
        cell(split(), lambda batch, dtype: jnp.full((*batch, H), 0.0)),
        "own is compiled again for the state that its step returned",
    ),
    "not finite": (
        cell(plain(lambda state, x: jnp.sqrt(jnp.abs(state)) + x)),
        "own: got a gradient that is not finite at the initial state",
    ),
    "gradient": (
        cell(plain(lambda state, x: steep(state + x))),
        "own: its gradient is not that of finite differences",
    ),
    "shape": (cell(plain(lambda state, x: state[..., :1])), "own does not run: cell: own's step"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cell_is_caught(name):
    broken, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check_cell(broken)


@dataclasses.dataclass(frozen=True)
class off(jaxrnn.engines.Engine):
    """An engine with other values than `scan()`, or with other gradients."""

    part: str

    def __call__(self, cell, params, state, inputs, **options):
        if self.part == "gradients":
            inputs = jax.lax.stop_gradient(inputs)
        final, outputs, states = jaxrnn.engines.scan()(cell, params, state, inputs, **options)
        return final, outputs * (1.01 if self.part == "values" else 1), states


@pytest.mark.parametrize("part", ["values", "gradients"])
def test_an_engine_that_is_off_is_caught(part, monkeypatch):
    monkeypatch.setattr(jaxrnn.testing, "_ENGINES", (off(part),))
    message = rf"elman: off\(part='{part}'\) gives other {part} than scan\(\): at"
    with pytest.raises(AssertionError, match=message):
        check_cell(jaxrnn.elman(H))


def test_a_dtype_of_its_own_is_caught_in_float64():
    fixed = cell(split(), lambda batch, dtype: jnp.zeros((*batch, H), jnp.float32))
    check_cell(fixed)
    with x64(), pytest.raises(AssertionError, match=r"own does not run: .*float64.*float32"):
        check_cell(fixed)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gru",), TypeError, "cell: got str 'gru'"),
        ((jaxrnn.elman(3), 0), ValueError, "input_size: got 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        check_cell(*arguments)
    with pytest.raises(TypeError, match="key: got int 3"):
        check_cell(jaxrnn.elman(3), key=3)  # pyright: ignore[reportArgumentType]
