"""The gated recurrent unit, in both conventions for its reset gate."""

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


class GRUParams(NamedTuple):
    """Weights of a GRU cell, gates packed in the order r z n.

    The biases are None without them; `recurrent_bias` is None too where the reset acts before the
    product, since then it would be added to the same sum as `bias`.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.gru(64).init(jax.random.key(0), input_size=32)
        >>> params.recurrent_bias.shape
        (192,)
    """

    kernel: Float[Array, "I 3*H"]
    recurrent_kernel: Float[Array, "H 3*H"]
    bias: Float[Array, "3*H"] | None
    recurrent_bias: Float[Array, "3*H"] | None


class GRUState(NamedTuple):
    """State of a GRU cell: its hidden state, which is also its output.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.gru(64).initial_state(16).hidden.shape
        (16, 64)
    """

    hidden: Float[Array, "*batch H"]


@memoized(
    hidden_size=_check.size,
    reset_after=_check.flag,
    use_bias=_check.flag,
    kernel_init=_check.function,
    recurrent_init=_check.function,
)
def gru(
    hidden_size: int,
    *,
    reset_after: bool = True,
    use_bias: bool = True,
    kernel_init: Initializer = initializers.glorot_uniform,
    recurrent_init: Initializer = initializers.orthogonal(),
) -> Cell[GRUParams, GRUState]:
    """Gated recurrent unit: a hidden state that moves towards a candidate as far as z lets it.

    With `reset_after=True`, as in cuDNN, PyTorch and Keras, the reset gate acts after the product:

        r, z, n = split(inputs @ kernel + bias)
        rr, rz, rn = split(hidden @ recurrent_kernel + recurrent_bias)
        r, z = sigmoid(r + rr), sigmoid(z + rz)
        n = tanh(n + r * rn)
        hidden = (1 - z) * n + z * hidden

    With `reset_after=False`, as in Cho et al., it acts before. Then the candidate needs the reset
    gate before its product, two products stand in a row, and the step can't be split:

        r, z = sigmoid(r + hidden @ Ur), sigmoid(z + hidden @ Uz)
        n = tanh(n + (r * hidden) @ Un)

    where `Ur, Uz, Un` are the blocks of `recurrent_kernel`. Weights of one convention are of no use
    in the other. Keras packs the gates as z r n, and PyTorch stores transposed kernels.

    Args:
        hidden_size: H, the number of units.
        reset_after: which convention.
        use_bias: whether to add biases, zero at first.
        kernel_init: initialiser of each gate's `kernel`, `(I, H)`.
        recurrent_init: initialiser of each gate's `recurrent_kernel`, `(H, H)`.

    Returns:
        The cell; equal settings give the same object.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(64)
        >>> params = cell.init(jax.random.key(0), input_size=32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 16, 32)))
        >>> outputs.shape, state.hidden.shape
        ((5, 16, 64), (16, 64))

    References:
        Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
        machine translation", 2014, equations 5 to 8 (reset before the product).
        Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014, and its
        documentation's CUDNN_GRU (reset after the product).
    """

    def init(key, input_size, dtype):
        kernel_key, recurrent_key = jax.random.split(key)
        recurrent_shape = hidden_size, hidden_size
        return GRUParams(
            initializers.draw(kernel_init, kernel_key, (input_size, hidden_size), dtype, gates=3),
            initializers.draw(recurrent_init, recurrent_key, recurrent_shape, dtype, gates=3),
            jnp.zeros(3 * hidden_size, dtype) if use_bias else None,
            jnp.zeros(3 * hidden_size, dtype) if use_bias and reset_after else None,
        )

    def initial_state(batch_shape, dtype):
        return GRUState(jnp.zeros((*batch_shape, hidden_size), dtype))

    # One array per gate, as in the LSTM.
    def project(params, inputs):
        return jnp.split(affine(inputs, params.kernel, params.bias), 3, axis=-1)

    def recur(params, state):
        recurrent = affine(state.hidden, params.recurrent_kernel, params.recurrent_bias)
        return jnp.split(recurrent, 3, axis=-1)

    def combine(projected, recurrent):
        (r, z, n), (rr, rz, rn) = projected, recurrent
        return r + rr, z + rz, n, rn

    def activate(params, state, gates):
        r, z, n, rn = gates
        n = tanh(n + sigmoid(r) * rn)
        hidden = _interpolate(sigmoid(z), n, state.hidden)
        return GRUState(hidden), hidden

    def step_reset_before(params, state, inputs):
        r, z, n = project(params, inputs)
        gates_kernel, candidate_kernel = jnp.split(
            params.recurrent_kernel, [2 * hidden_size], axis=-1
        )
        rr, rz = jnp.split(state.hidden @ gates_kernel, 2, axis=-1)
        n = tanh(n + (sigmoid(r + rr) * state.hidden) @ candidate_kernel)
        hidden = _interpolate(sigmoid(z + rz), n, state.hidden)
        return GRUState(hidden), hidden

    return Cell(
        init,
        initial_state,
        SplitStep(project, recur, activate, combine) if reset_after else step_reset_before,
        readout=lambda state: state.hidden,
        name="gru" if reset_after else "gru_reset_before",
    )


def _interpolate(z: Array, candidate: Array, hidden: Array) -> Array:
    # The textbook's (1 - z) * candidate + z * hidden, with one product less.
    return candidate + z * (hidden - candidate)
