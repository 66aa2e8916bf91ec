"""The table of cells: one row each, and every engine, wrapper and diagnostic is tested on it.

A row holds the cell as the library has it, and one step of its equations in NumPy, written again
from the papers. The NumPy steps work on complex numbers too, so that the complex step gives their
derivatives to the last digit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import jaxrnn


class Row(NamedTuple):
    """A cell, and its step in NumPy: `(params, state, x) -> (state, output)`, state a tuple.

    A variant differs from another row in a setting only; tests run on it, as on a wrapped cell,
    when slow ones are asked for. A wrapped cell evaluates here: tests/test_wrappers.py trains it.
    """

    name: str
    make: Callable[[int], jaxrnn.Cell]
    numpy_step: Callable[[Any, tuple, np.ndarray], tuple[tuple, np.ndarray]]
    variant: bool = False
    wrapped: bool = False

    @property
    def slow(self):
        return self.variant or self.wrapped


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_elman(activation):
    def step(params, state, x):
        (h,) = state
        total = x @ params.kernel + h @ params.recurrent_kernel
        h = activation(total if params.bias is None else total + params.bias)
        return (h,), h

    return step


def numpy_lstm(params, state, x):
    h, c = state
    total = x @ params.kernel + h @ params.recurrent_kernel
    i, f, g, o = np.split(total if params.bias is None else total + params.bias, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def numpy_peephole_lstm(params, state, x):
    h, c = state
    total = x @ params.kernel + h @ params.recurrent_kernel + params.bias
    i, f, g, o = np.split(total, 4, axis=-1)
    to_i, to_f, to_o = params.peepholes
    i, f = sigmoid(i + c * to_i), sigmoid(f + c * to_f)
    c = f * c + i * np.tanh(g)
    h = sigmoid(o + c * to_o) * np.tanh(c)
    return (h, c), h


def numpy_gru_reset_after(params, state, x):
    (h,) = state
    wr, wz, wn = np.split(params.kernel, 3, axis=-1)
    ur, uz, un = np.split(params.recurrent_kernel, 3, axis=-1)
    br, bz, bn = np.split(params.bias, 3)
    cr, cz, cn = np.split(params.recurrent_bias, 3)
    r = sigmoid(x @ wr + br + h @ ur + cr)
    z = sigmoid(x @ wz + bz + h @ uz + cz)
    n = np.tanh(x @ wn + bn + r * (h @ un + cn))
    h = (1 - z) * n + z * h
    return (h,), h


def numpy_gru_reset_before(params, state, x):
    (h,) = state
    wr, wz, wn = np.split(params.kernel, 3, axis=-1)
    ur, uz, un = np.split(params.recurrent_kernel, 3, axis=-1)
    br, bz, bn = np.split(params.bias, 3)
    r = sigmoid(x @ wr + br + h @ ur)
    z = sigmoid(x @ wz + bz + h @ uz)
    n = np.tanh(x @ wn + bn + (r * h) @ un)
    h = (1 - z) * n + z * h
    return (h,), h


def numpy_zoneout(step, *rates):
    def zoned_out(params, state, x):
        new, _ = step(params, state, x)
        mixed = tuple(
            rate * old + (1 - rate) * new for rate, old, new in zip(rates, state, new, strict=True)
        )
        return mixed, mixed[0]

    return zoned_out


def numpy_layer_norm_gru(params, state, x):
    (h,) = state
    cell = params.cell

    def normalised(total, gain, shift):
        for gate, scale, offset in zip(
            *(np.split(a, 3, -1) for a in (total, gain, shift)), strict=True
        ):
            centred = gate - gate.mean(-1, keepdims=True)
            deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            yield scale * centred / deviation + offset

    r, z, n = normalised(x @ cell.kernel, params.input_gain, cell.bias)
    total = h @ cell.recurrent_kernel + cell.recurrent_bias
    rr, rz, rn = normalised(total, params.recurrent_gain, params.recurrent_shift)
    z = sigmoid(z + rz)
    h = (1 - z) * np.tanh(n + sigmoid(r + rr) * rn) + z * h
    return (h,), h


def numpy_projection_elman(params, state, x):
    _, h = numpy_elman(np.tanh)(params.cell, state, x)
    return (h @ params.projection,), h @ params.projection


def numpy_learned_elman(params, state, x):
    return numpy_elman(np.tanh)(params.cell, state, x)


CELLS = [
    Row("elman", jaxrnn.elman, numpy_elman(np.tanh)),
    Row(
        "elman_no_bias",
        lambda size: jaxrnn.elman(size, use_bias=False),
        numpy_elman(np.tanh),
        variant=True,
    ),
    Row(
        "elman_relu",
        lambda size: jaxrnn.elman(size, activation=jax.nn.relu),
        numpy_elman(lambda x: np.where(x.real > 0, x, 0)),
        variant=True,
    ),
    Row(
        "elman_logistic",
        lambda size: jaxrnn.elman(size, activation=jax.nn.sigmoid),
        numpy_elman(sigmoid),
        variant=True,
    ),
    Row(
        "elman_identity",
        lambda size: jaxrnn.elman(size, activation=jax.nn.identity),
        numpy_elman(lambda x: x),
        variant=True,
    ),
    Row("lstm", jaxrnn.lstm, numpy_lstm),
    Row(
        "lstm_no_bias",
        lambda size: jaxrnn.lstm(size, use_bias=False),
        numpy_lstm,
        variant=True,
    ),
    Row("peephole_lstm", jaxrnn.cells.peephole_lstm, numpy_peephole_lstm, variant=True),
    Row("gru", jaxrnn.gru, numpy_gru_reset_after),
    Row(
        "gru_reset_before",
        lambda size: jaxrnn.gru(size, reset_after=False),
        numpy_gru_reset_before,
    ),
    Row(
        "zoneout_recurrent_dropout_elman",
        lambda size: jaxrnn.wrappers.zoneout(
            jaxrnn.wrappers.recurrent_dropout(jaxrnn.elman(size), 0.3), 0.4
        ),
        numpy_zoneout(numpy_elman(np.tanh), 0.4),
        wrapped=True,
    ),
    Row(
        "state_noise_zoneout_gru_reset_before",
        lambda size: jaxrnn.wrappers.state_noise(
            jaxrnn.wrappers.zoneout(jaxrnn.gru(size, reset_after=False), 0.2), 0.1
        ),
        numpy_zoneout(numpy_gru_reset_before, 0.2),
        wrapped=True,
    ),
    Row(
        "layer_norm_gru",
        lambda size: jaxrnn.wrappers.layer_norm(jaxrnn.gru(size)),
        numpy_layer_norm_gru,
        wrapped=True,
    ),
    Row(
        "projection_elman",
        lambda size: jaxrnn.wrappers.projection(jaxrnn.elman(size), size),
        numpy_projection_elman,
        wrapped=True,
    ),
    Row(
        "learned_initial_state_elman",
        lambda size: jaxrnn.wrappers.learned_initial_state(jaxrnn.elman(size)),
        numpy_learned_elman,
        wrapped=True,
    ),
]

# For tests that take long to compile: in the plain run a cell whose step is split and one whose
# step isn't stand for all.
_STAND_FOR_ALL = ("lstm", "gru_reset_before")
DEEP = [
    pytest.param(row, id=row.name, marks=[] if row.name in _STAND_FOR_ALL else [pytest.mark.slow])
    for row in CELLS
]


def innermost(params: Any) -> Any:
    """Return the params of the cell that a wrapper holds, or of the cell."""
    return innermost(params.cell) if hasattr(params, "cell") else params


def numpy_unroll(row: Row, params: Any, inputs: Any, state: Any) -> tuple[tuple, np.ndarray]:
    """Run the row's NumPy step over a sequence."""
    state, outputs = tuple(state), []
    for x in inputs:
        state, output = row.numpy_step(params, state, x)
        outputs.append(output)
    return state, np.stack(outputs)


def complex_step_gradient(function: Callable[..., Any], tree: Any) -> Any:
    """Gradient of a NumPy function of a pytree, exact to rounding: im f(x + ih) / h."""
    tiny = 1e-30
    leaves, treedef = jax.tree.flatten(tree)
    gradients = []
    for number, leaf in enumerate(leaves):
        gradient = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            disturbed = leaf.astype(complex)
            disturbed[index] += 1j * tiny
            arguments = [*leaves[:number], disturbed, *leaves[number + 1 :]]
            gradient[index] = function(jax.tree.unflatten(treedef, arguments)).imag / tiny
        gradients.append(gradient)
    return jax.tree.unflatten(treedef, gradients)
