"""The Elman network, also called the simple or vanilla recurrent network."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxrnn import _check, initializers
from jaxrnn._activations import saving_output
from jaxrnn._affine import affine
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._memoize import memoized
from jaxrnn._types import Array
from jaxrnn.initializers import Initializer


class ElmanParams(NamedTuple):
    """Weights of an Elman cell; `bias` is None without one.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.elman(64).init(jax.random.key(0), input_size=32)
        >>> params.kernel.shape
        (32, 64)
    """

    kernel: Float[Array, "I H"]
    recurrent_kernel: Float[Array, "H H"]
    bias: Float[Array, "H"] | None


class ElmanState(NamedTuple):
    """State of an Elman cell: its hidden state, which is also its output.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.elman(64).initial_state(16).hidden.shape
        (16, 64)
    """

    hidden: Float[Array, "*batch H"]


@memoized(
    hidden_size=_check.size,
    activation=_check.function,
    use_bias=_check.flag,
    kernel_init=_check.function,
    recurrent_init=_check.function,
)
def elman(
    hidden_size: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform,
    recurrent_init: Initializer = initializers.orthogonal(),
) -> Cell[ElmanParams, ElmanState]:
    """Elman cell: one activation of a weighted sum of input and hidden state.

        hidden = activation(inputs @ kernel + hidden @ recurrent_kernel + bias)

    Keras' `SimpleRNN` computes the same with the same weights. PyTorch's `RNN` stores transposed
    kernels and adds a second bias, which does nothing that the first can't.

    Args:
        hidden_size: H, the number of units.
        activation: any pointwise function, such as `jnp.tanh`, `jax.nn.relu`, `jax.nn.sigmoid`.
        use_bias: whether to add a bias, zero at first.
        kernel_init: initialiser of `kernel`, `(I, H)`.
        recurrent_init: initialiser of `recurrent_kernel`, `(H, H)`.

    Returns:
        The cell; equal settings give the same object.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(64, use_bias=False)
        >>> params = cell.init(jax.random.key(0), input_size=100)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 1, 100)))
        >>> outputs.shape, state.hidden.shape
        ((5, 1, 64), (1, 64))

    References:
        Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    activation = saving_output(activation)

    def init(key, input_size, dtype):
        kernel_key, recurrent_key = jax.random.split(key)
        return ElmanParams(
            initializers.draw(kernel_init, kernel_key, (input_size, hidden_size), dtype),
            initializers.draw(recurrent_init, recurrent_key, (hidden_size, hidden_size), dtype),
            jnp.zeros(hidden_size, dtype) if use_bias else None,
        )

    def initial_state(batch_shape, dtype):
        return ElmanState(jnp.zeros((*batch_shape, hidden_size), dtype))

    def project(params, inputs):
        return affine(inputs, params.kernel, params.bias)

    def recur(params, state):
        return state.hidden @ params.recurrent_kernel

    def activate(params, state, gates):
        hidden = activation(gates)
        return ElmanState(hidden), hidden

    step = SplitStep(project, recur, activate)
    return Cell(init, initial_state, step, readout=lambda state: state.hidden, name="elman")
