"""Long short-term memory with peepholes: gates that see the cell state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrnn import _check, initializers
from jaxrnn._cell import Cell, Gated
from jaxrnn.cells._lstm import LSTMState
from jaxrnn.initializers import Initializer


class PeepholeLSTMParams(NamedTuple):
    """Weights of a peephole LSTM cell, gates packed in the order i f g o, peepholes i f o."""

    kernel: Float[Array, "I 4*H"]
    recurrent_kernel: Float[Array, "H 4*H"]
    bias: Float[Array, "4*H"]
    peepholes: Float[Array, "3 H"]


def peephole_lstm(
    hidden_size: int,
    *,
    forget_bias: float = 1.0,
    kernel_init: Initializer = initializers.glorot_uniform,
    recurrent_init: Initializer = initializers.orthogonal(),
) -> Cell[PeepholeLSTMParams, LSTMState]:
    """Long short-term memory whose gates see the cell state, each unit's own.

        i, f, g, o = split(inputs @ kernel + hidden @ recurrent_kernel + bias)
        new_cell = sigmoid(f + peepholes[1] * cell) * cell
                 + sigmoid(i + peepholes[0] * cell) * tanh(g)
        hidden = sigmoid(o + peepholes[2] * new_cell) * tanh(new_cell)

    While the output gate is closed, the hidden state of a plain LSTM tells its gates nothing of
    the cell state; through peepholes they see it all the same, and learn to time and to count.

    Args:
        hidden_size: H, the number of units.
        forget_bias: the forget gate's bias at the start; it is trained like the rest of `bias`.
        kernel_init: initialiser of each gate's `kernel`, `(I, H)`.
        recurrent_init: initialiser of each gate's `recurrent_kernel`, `(H, H)`.

    Returns:
        The cell; equal settings give the same object. Peepholes are zero at first, so that it
        starts as a plain LSTM.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if `hidden_size` is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.peephole_lstm(64)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 16, 32)))
        >>> outputs.shape, params.peepholes.shape
        ((5, 16, 64), (3, 64))

    References:
        Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks",
        JMLR 3, 2002, section 3.
    """
    return _peephole_lstm(
        _check.size("hidden_size", hidden_size),
        _check.real("forget_bias", forget_bias),
        _check.function("kernel_init", kernel_init),
        _check.function("recurrent_init", recurrent_init),
    )


@functools.cache
def _peephole_lstm(
    hidden_size: int, forget_bias: float, kernel_init: Initializer, recurrent_init: Initializer
) -> Cell[PeepholeLSTMParams, LSTMState]:
    def init(key, input_size, dtype):
        kernel_key, recurrent_key = jax.random.split(key)
        forget = slice(hidden_size, 2 * hidden_size)
        return PeepholeLSTMParams(
            initializers.draw(kernel_init, kernel_key, (input_size, hidden_size), dtype, gates=4),
            initializers.draw(
                recurrent_init, recurrent_key, (hidden_size, hidden_size), dtype, gates=4
            ),
            jnp.zeros(4 * hidden_size, dtype).at[forget].set(forget_bias),
            jnp.zeros((3, hidden_size), dtype),
        )

    def initial_state(batch_shape, dtype):
        zeros = jnp.zeros((*batch_shape, hidden_size), dtype)
        return LSTMState(zeros, zeros)

    def project(params, inputs):
        # One array for each gate, as in the LSTM.
        return jnp.split(inputs @ params.kernel + params.bias, 4, axis=-1)

    def recur(params, state):
        return jnp.split(state.hidden @ params.recurrent_kernel, 4, axis=-1)

    def activate(params, state, projected, recurrent):
        i, f, g, o = (p + r for p, r in zip(projected, recurrent, strict=True))
        to_i, to_f, to_o = params.peepholes
        keep = jax.nn.sigmoid(f + to_f * state.cell)
        cell = keep * state.cell + jax.nn.sigmoid(i + to_i * state.cell) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o + to_o * cell) * jnp.tanh(cell)
        return LSTMState(hidden, cell), hidden

    return Cell(init, initial_state, Gated(project, recur, activate), name="peephole_lstm")
