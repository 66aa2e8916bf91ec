"""Long short-term memory with peepholes: gates that see the cell state."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check, initializers
from jaxrnn._activations import sigmoid, tanh
from jaxrnn._affine import affine, align
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.cells._lstm import LSTMState, lstm
from jaxrnn.initializers import Initializer


class PeepholeLSTMParams(NamedTuple):
    """Weights of a peephole LSTM cell: those of an LSTM cell, and peepholes in the order i f o.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.cells.peephole_lstm(64).init(jax.random.key(0), input_size=32)
        >>> params.peepholes.shape
        (3, 64)
    """

    kernel: Float[Array, "I 4*H"]
    recurrent_kernel: Float[Array, "H 4*H"]
    bias: Float[Array, "4*H"] | None
    peepholes: Float[Array, "3 H"]


@memoized(
    hidden_size=_check.size,
    forget_bias=_check.number,
    use_bias=_check.flag,
    kernel_init=_check.function,
    recurrent_init=_check.function,
)
def peephole_lstm(
    hidden_size: int,
    *,
    forget_bias: float = 1.0,
    use_bias: bool = True,
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
        use_bias: whether to add a bias, zero at first but for the forget gate's.
        kernel_init: initialiser of each gate's `kernel`, `(I, H)`.
        recurrent_init: initialiser of each gate's `recurrent_kernel`, `(H, H)`.

    Returns:
        The cell; equal settings give the same object. Peepholes are zero at first, so that it
        starts as a plain LSTM.

    Raises:
        ValueError: if a `forget_bias` is given but there is no bias.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.cells.peephole_lstm(64)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 16, 32)))
        >>> outputs.shape, params.peepholes.shape
        ((5, 16, 64), (3, 64))

    References:
        Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks",
        JMLR 3, 2002, section 3.
    """
    plain = lstm(
        hidden_size,
        forget_bias=forget_bias,
        use_bias=use_bias,
        kernel_init=kernel_init,
        recurrent_init=recurrent_init,
    )

    def init(key, input_size, dtype):
        params = plain.init(key, input_size, dtype=dtype)
        return PeepholeLSTMParams(*params, jnp.zeros((3, hidden_size), dtype))

    def project(params, inputs):
        return jnp.split(affine(inputs, params.kernel, params.bias), 4, axis=-1)

    def recur(params, state):
        return jnp.split(state.hidden @ params.recurrent_kernel, 4, axis=-1)

    def activate(params, state, gates):
        i, f, g, o = gates
        to_i, to_f, to_o = (align(peephole, state.cell) for peephole in params.peepholes)
        keep = sigmoid(f + to_f * state.cell)
        cell = keep * state.cell + sigmoid(i + to_i * state.cell) * tanh(g)
        hidden = sigmoid(o + to_o * cell) * tanh(cell)
        return LSTMState(hidden, cell), hidden

    step = SplitStep(project, recur, activate)
    return plain.replace(init=init, step=step, name="peephole_lstm")
