"""Long short-term memory, with a forget gate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check, initializers
from jaxrnn._activations import sigmoid, tanh
from jaxrnn._affine import affine
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.initializers import Initializer


class LSTMParams(NamedTuple):
    """Weights of an LSTM cell, gates packed in the order i f g o; `bias` is None without one.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.lstm(64).init(jax.random.key(0), input_size=32)
        >>> params.kernel.shape
        (32, 256)
    """

    kernel: Float[Array, "I 4*H"]
    recurrent_kernel: Float[Array, "H 4*H"]
    bias: Float[Array, "4*H"] | None


class LSTMState(NamedTuple):
    """State of an LSTM cell: the hidden state, which is also its output, and the cell state.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.lstm(64).initial_state(16).cell.shape
        (16, 64)
    """

    hidden: Float[Array, "*batch H"]
    cell: Float[Array, "*batch H"]


@memoized(
    hidden_size=_check.size,
    forget_bias=_check.number,
    use_bias=_check.flag,
    kernel_init=_check.function,
    recurrent_init=_check.function,
)
def lstm(
    hidden_size: int,
    *,
    forget_bias: float = 1.0,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform,
    recurrent_init: Initializer = initializers.orthogonal(),
) -> Cell[LSTMParams, LSTMState]:
    """Long short-term memory: a cell state that gates write to, keep and read.

        i, f, g, o = split(inputs @ kernel + hidden @ recurrent_kernel + bias)
        cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
        hidden = sigmoid(o) * tanh(cell)

    Where the forget gate is open, `cell` is a sum, and its gradient passes through time unchanged:
    this is what the LSTM was made for. Keras and PyTorch pack the gates in the same order. PyTorch
    stores transposed kernels and a second bias, and starts its biases, the forget gate's too, near
    zero. Flax keeps a kernel for each gate.

    Args:
        hidden_size: H, the number of units.
        forget_bias: the forget gate's bias at the start; it is trained like the rest of `bias`.
        use_bias: whether to add a bias, zero at first but for the forget gate's.
        kernel_init: initialiser of each gate's `kernel`, `(I, H)`.
        recurrent_init: initialiser of each gate's `recurrent_kernel`, `(H, H)`.

    Returns:
        The cell; equal settings give the same object.

    Raises:
        ValueError: if a `forget_bias` is given but there is no bias.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.lstm(64)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 16, 32)))
        >>> outputs.shape, state.hidden.shape, state.cell.shape
        ((5, 16, 64), (16, 64), (16, 64))

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
        Gers, Schmidhuber and Cummins, "Learning to forget: continual prediction with LSTM", Neural
        Computation 12, 2000, section 3 (the forget gate).
        Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network
        architectures", 2015 (its bias of 1).
    """
    if not use_bias and forget_bias != 1.0:
        raise ValueError(f"forget_bias: got {forget_bias} with use_bias=False, expected a bias too")

    def init(key, input_size, dtype):
        initializers.check_fits("forget_bias", forget_bias, dtype)
        kernel_key, recurrent_key = jax.random.split(key)
        forget = slice(hidden_size, 2 * hidden_size)
        recurrent_shape = hidden_size, hidden_size
        return LSTMParams(
            initializers.draw(kernel_init, kernel_key, (input_size, hidden_size), dtype, gates=4),
            initializers.draw(recurrent_init, recurrent_key, recurrent_shape, dtype, gates=4),
            jnp.zeros(4 * hidden_size, dtype).at[forget].set(forget_bias) if use_bias else None,
        )

    def initial_state(batch_shape, dtype):
        shape = (*batch_shape, hidden_size)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    # One array per gate: XLA vectorises the pointwise part badly when it has to split a packed
    # input of the loop inside it.
    def project(params, inputs):
        return jnp.split(affine(inputs, params.kernel, params.bias), 4, axis=-1)

    def recur(params, state):
        return jnp.split(state.hidden @ params.recurrent_kernel, 4, axis=-1)

    def activate(params, state, gates):
        i, f, g, o = gates
        cell = sigmoid(f) * state.cell + sigmoid(i) * tanh(g)
        hidden = sigmoid(o) * tanh(cell)
        return LSTMState(hidden, cell), hidden

    step = SplitStep(project, recur, activate)
    return Cell(init, initial_state, step, readout=lambda state: state.hidden, name="lstm")
