"""The library runs in each of JAX's strict modes: no implicit promotion, no key used twice."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxrnn

T, B, H = 6, 2, 3

MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "key reuse": lambda: jax.debug_key_reuse(True),
}


def model():
    return jaxrnn.serial(
        jaxrnn.rnn(jaxrnn.wrappers.zoneout(jaxrnn.gru(H), 0.1)),
        jaxrnn.dropout(0.1),
        jaxrnn.rnn(jaxrnn.cells.peephole_lstm(H), return_sequences=False),
        jaxrnn.dense(1),
    )


def batches(key):
    return jaxrnn.tasks.adding(key, batch_size=B, length=T)


def loss(params, batch, key):
    inputs, targets = batch
    _, outputs = model().apply(params, None, inputs, key=key)
    return jaxrnn.losses.squared_error(outputs, targets)


def fit():
    params = model().init(jax.random.key(0), 2)
    jaxrnn.fit(loss, params, optax.sgd(1e-2), batches, steps=3, key=jax.random.key(1), clip_norm=1)


def sweep():
    def setup(rate, key):
        return loss, model().init(key, 2), optax.sgd(rate)

    keys = jax.random.split(jax.random.key(1))
    jaxrnn.sweep(setup, jnp.array([0.1, 0.2]), batches, steps=2, key=keys)


def truncated():
    layer = jaxrnn.serial(jaxrnn.rnn(jaxrnn.gru(H)), jaxrnn.dropout(0.1))
    inputs = jnp.ones((T, B, 2))
    jaxrnn.training.truncated_gradient(
        layer,
        lambda outputs, targets: jnp.square(outputs).sum(),
        layer.init(jax.random.key(0), 2),
        inputs,
        None,
        k1=2,
        k2=4,
        key=jax.random.key(1),
        lengths=jnp.array([3, 6]),
    )


def ragged():
    cell = jaxrnn.wrappers.layer_norm(jaxrnn.lstm(H))
    params, inputs = cell.init(jax.random.key(0), 2), jnp.ones((T, B, 2))
    for dtype in (jnp.int32, jnp.uint8, jnp.int16):
        flags = {"lengths": jnp.array([3, 6], dtype), "resets": jnp.zeros((T, B), bool)}
        jax.grad(lambda params, flags=flags: jaxrnn.unroll(cell, params, inputs, **flags)[1].sum())(
            params
        )
    targets = jnp.zeros((T, B), jnp.int32)
    jaxrnn.unroll_loss(
        lambda outputs, targets: jaxrnn.losses.softmax_cross_entropy(outputs, targets) * B,
        cell,
        params,
        inputs,
        targets,
        compute_dtype=jnp.bfloat16,
    )


def diagnostics():
    cell = jaxrnn.lstm(H)
    params, inputs = (
        cell.init(jax.random.key(0), 2),
        jax.random.normal(jax.random.key(1), (T, B, 2)),
    )

    def last(outputs):
        return outputs[-1].sum()

    measure = jaxrnn.diagnostics
    norms = measure.gradient_norms(last, cell, params, inputs, part=None)
    measure.gradient_horizon(norms)
    measure.lyapunov_exponents(cell, params, inputs, num_exponents=2)
    measure.jacobian_spectrum(cell, params, inputs, lags=[1, 2])
    measure.saturation(cell, params, inputs)
    measure.gate_statistics(cell, params, inputs)
    measure.report(last, cell, params, inputs, write=None)
    elman = jaxrnn.elman(H)
    elman_params = elman.init(jax.random.key(2), 2)
    measure.pascanu_bound(elman_params.recurrent_kernel, [1, 2])
    jaxrnn.regularizers.pascanu(last, elman, elman_params, inputs)
    jax.grad(lambda params: jaxrnn.regularizers.flossing(elman, params, inputs))(elman_params)


def tasks():
    for number, task in enumerate(
        (
            jaxrnn.tasks.adding,
            jaxrnn.tasks.temporal_order,
            jaxrnn.tasks.delayed_xor,
        )
    ):
        task(jax.random.key(number), batch_size=B, length=20)
    jaxrnn.tasks.copy_memory(jax.random.key(3), batch_size=B, delay=20)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("use", [fit, sweep, truncated, ragged, diagnostics, tasks])
def test_modes(mode, use):
    with mode():
        use()
