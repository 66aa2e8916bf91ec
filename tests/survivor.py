"""A small training run in a process of its own, which tests kill or join with others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (in a fork server all imports are done once)

import jaxrnn

STEPS = 400


def train(checkpoints=None, on_report=None, steps=STEPS):
    """Train an Elman network with noise, a carried state, momentum and a schedule."""
    cell = jaxrnn.elman(4)

    def loss(params, state, batch, key):
        inputs, targets = batch
        noise = 0.1 * jax.random.normal(key, inputs.shape)
        state, outputs = jaxrnn.unroll(cell, params, inputs + noise, state)
        return jaxrnn.losses.squared_error(outputs, targets), state

    sequence = jnp.sin(jnp.arange(7 * 5 * 2 * 3.0)).reshape(7, 5, 2, 3)  # 7 batches, T 5, B 2
    return jaxrnn.fit(
        loss,
        jax.jit(functools.partial(cell.init, input_size=3))(jax.random.key(1)),
        optax.adam(optax.linear_schedule(1e-2, 1e-3, STEPS)),
        (sequence, jnp.cos(sequence[..., :1]) * jnp.ones(4)),
        steps=steps,
        key=jax.random.key(2),
        carry=cell.initial_state((2,)),
        clip_norm=0.5,
        report_every=3,
        on_report=on_report,
        progress=False,
        checkpoints=checkpoints,
    )


def main(path, directory=None, connection=None):
    """Train to the end, or as far as one is let, and save the result's leaves."""
    checkpoints = None if directory is None else jaxrnn.Checkpoints(directory, every=2)
    on_report = None if connection is None else lambda step, _: connection.send(step)
    result = train(checkpoints, on_report)
    np.savez(path, *jax.tree.leaves(result))
