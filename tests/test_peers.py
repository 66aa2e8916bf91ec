"""Live comparison with PyTorch and Keras: outputs in float32, and all gradients too in float64.

The conversions of weights are written out here, as the frameworks document their layouts.
"""

import contextlib
import importlib
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.problems import problem
from tests.tolerances import PEERS_RELATIVE, relative_error, x64

pytestmark = pytest.mark.peers

T, B, I, H = 20, 3, 5, 8


@pytest.fixture(params=["float32", "float64"], autouse=True)
def dtype(request):
    with x64() if request.param == "float64" else contextlib.nullcontext():
        yield request.param


def framework(name):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: it comes with the extra 'peers'")
    return importlib.import_module(name)


def ours(cell, params, inputs, state):
    """Return outputs and the gradients of their weighted sum of squares."""

    def loss(params, inputs, state):
        _, outputs = jaxrnn.unroll(cell, params, inputs, state)
        return (weights() * outputs**2).sum(), outputs

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, outputs), gradients = run(params, inputs, state)
    return outputs, gradients


def weights():
    return np.cos(np.arange(T * B * H, dtype=jnp.result_type(float))).reshape(T, B, H)


def assert_close(got, expected):
    assert got.dtype == jnp.result_type(float)
    assert relative_error(got, expected) < PEERS_RELATIVE[str(got.dtype)]


def assert_gradients_close(got, expected):
    # They are sums over all steps, whose terms cancel: in float32 that leaves fewer digits.
    if got.dtype == jnp.float64:
        assert_close(got, expected)


# PyTorch: kernels are transposed, gates are in our order, and there are always two biases.


@pytest.mark.parametrize(
    ("cell", "layer", "options"),
    [
        (jaxrnn.elman(H), "RNN", {}),
        (jaxrnn.elman(H, activation=jax.nn.relu), "RNN", {"nonlinearity": "relu"}),
        (jaxrnn.elman(H, use_bias=False), "RNN", {"bias": False}),
        (jaxrnn.lstm(H), "LSTM", {}),
        (jaxrnn.lstm(H, use_bias=False), "LSTM", {"bias": False}),
        (jaxrnn.gru(H), "GRU", {}),
        (jaxrnn.gru(H, use_bias=False), "GRU", {"bias": False}),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_pytorch(cell, layer, options, dtype):
    torch = framework("torch")
    params, inputs, state = problem(cell, length=T, batch=(B,), features=I)
    second_bias = getattr(params, "recurrent_bias", None)
    has_bias = params.bias is not None

    def tensor(array):
        return torch.tensor(np.array(array), requires_grad=True)

    theirs = getattr(torch.nn, layer)(I, H, dtype=getattr(torch, dtype), **options)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(tensor(params.kernel.T))
        theirs.weight_hh_l0.copy_(tensor(params.recurrent_kernel.T))
        if has_bias:
            theirs.bias_ih_l0.copy_(tensor(params.bias))
            theirs.bias_hh_l0.copy_(tensor(jnp.zeros_like(params.bias)))
        if second_bias is not None:
            theirs.bias_hh_l0.copy_(tensor(second_bias))
    x = tensor(inputs)
    first = [tensor(leaf[None]) for leaf in state]
    outputs, _ = theirs(x, tuple(first) if len(first) > 1 else first[0])
    (torch.tensor(weights()) * outputs**2).sum().backward()

    got, (params_gradient, inputs_gradient, state_gradient) = ours(cell, params, inputs, state)
    assert_close(got, outputs.detach())
    assert_gradients_close(inputs_gradient, x.grad)
    assert_gradients_close(params_gradient.kernel, theirs.weight_ih_l0.grad.T)
    assert_gradients_close(params_gradient.recurrent_kernel, theirs.weight_hh_l0.grad.T)
    if has_bias:
        assert_gradients_close(params_gradient.bias, theirs.bias_ih_l0.grad)
    if second_bias is not None:
        assert_gradients_close(params_gradient.recurrent_bias, theirs.bias_hh_l0.grad)
    for leaf, tensor_of_leaf in zip(state_gradient, first, strict=True):
        assert_gradients_close(leaf, tensor_of_leaf.grad[0])


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_pytorchs_projection(size, dtype):
    torch = framework("torch")
    cell = jaxrnn.wrappers.projection(jaxrnn.lstm(H), size)
    params, inputs, state = problem(cell, length=T, batch=(B,), features=I)

    def tensor(array):
        return torch.tensor(np.array(array), requires_grad=True)

    theirs = torch.nn.LSTM(I, H, proj_size=size, dtype=getattr(torch, dtype))
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(tensor(params.cell.kernel.T))
        theirs.weight_hh_l0.copy_(tensor(params.cell.recurrent_kernel.T))
        theirs.weight_hr_l0.copy_(tensor(params.projection.T))
        theirs.bias_ih_l0.copy_(tensor(params.cell.bias))
        theirs.bias_hh_l0.copy_(tensor(jnp.zeros_like(params.cell.bias)))
    x, first = tensor(inputs), [tensor(leaf[None]) for leaf in state]
    outputs, (hidden, of_cell) = theirs(x, tuple(first))
    weighted = torch.tensor(weights()[..., :size]) * outputs**2
    (weighted.sum() + (of_cell**2).sum()).backward()

    def loss(params, inputs, state):
        final, outputs = jaxrnn.unroll(cell, params, inputs, state)
        value = (weights()[..., :size] * outputs**2).sum() + (final.cell**2).sum()
        return value, (outputs, final)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, (got, final)), (of_params, of_inputs, of_state) = run(params, inputs, state)
    assert_close(got, outputs.detach())
    assert_close(final.hidden, hidden.detach()[0])
    assert_close(final.cell, of_cell.detach()[0])
    assert_gradients_close(of_inputs, x.grad)
    assert_gradients_close(of_params.cell.kernel, theirs.weight_ih_l0.grad.T)
    assert_gradients_close(of_params.cell.recurrent_kernel, theirs.weight_hh_l0.grad.T)
    assert_gradients_close(of_params.cell.bias, theirs.bias_ih_l0.grad)
    assert_gradients_close(of_params.projection, theirs.weight_hr_l0.grad.T)
    for leaf, tensor_of_leaf in zip(of_state, first, strict=True):
        assert_gradients_close(leaf, tensor_of_leaf.grad[0])


# Keras: kernels lie as ours do, GRU gates are in the order z r n, and batch comes before time.


def swap_gates(array):
    """Turn r z n into z r n, or back."""
    r, z, n = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([z, r, n], axis=-1)


def keras_gru_weights(params):
    kernels = [swap_gates(params.kernel), swap_gates(params.recurrent_kernel)]
    if params.bias is None:
        return kernels
    if params.recurrent_bias is None:
        return [*kernels, swap_gates(params.bias)]
    return [*kernels, jnp.stack([swap_gates(params.bias), swap_gates(params.recurrent_bias)])]


@pytest.mark.parametrize(
    ("cell", "layer", "options"),
    [
        (jaxrnn.elman(H), "SimpleRNN", {}),
        (jaxrnn.elman(H, activation=jax.nn.sigmoid), "SimpleRNN", {"activation": "sigmoid"}),
        (jaxrnn.elman(H, use_bias=False), "SimpleRNN", {"use_bias": False}),
        (jaxrnn.lstm(H), "LSTM", {}),
        (jaxrnn.gru(H), "GRU", {"reset_after": True}),
        (jaxrnn.gru(H, reset_after=False), "GRU", {"reset_after": False}),
        (jaxrnn.gru(H, use_bias=False), "GRU", {"use_bias": False}),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_keras(cell, layer, options, dtype):
    keras = framework("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend than JAX")
    params, inputs, state = problem(cell, length=T, batch=(B,), features=I)
    # Keras' own tanh computes in float32 whatever it gets.
    options = {"activation": jnp.tanh, **options}
    theirs = getattr(keras.layers, layer)(
        H, return_sequences=True, return_state=True, dtype=dtype, **options
    )
    theirs.build((B, T, I))

    def variables(params):
        if layer == "GRU":
            return keras_gru_weights(params)
        return [leaf for leaf in params if leaf is not None]

    def loss(params, inputs, state):
        # Gradients go through the conversion too, so they come back in our layout.
        (outputs, *_), _ = theirs.stateless_call(
            variables(params),
            [variable.value for variable in theirs.non_trainable_variables],
            jnp.swapaxes(inputs, 0, 1),
            initial_state=list(state),
        )
        outputs = jnp.swapaxes(outputs, 0, 1)
        return (weights() * outputs**2).sum(), outputs

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, outputs), gradients = run(params, inputs, state)
    got, our_gradients = ours(cell, params, inputs, state)
    assert_close(got, outputs)
    jax.tree.map(assert_gradients_close, our_gradients, gradients)
