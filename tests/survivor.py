"""A small training run in a process of its own, which tests kill or join with others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (in a fork server all imports are done once)

import jaxrnn

STEPS = 2000


def train(checkpoints=None, on_report=None, steps=STEPS):
    """Train an Elman network, one step of its state a batch, with noise and momentum.

    All else is NumPy's: what takes long here is compiling.
    """
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(7, 2, 3)), rng.normal(size=(3, 4))

    def loss(params, hidden, inputs, key):
        noise = 0.1 * jax.random.uniform(key, hidden.shape)
        hidden = jnp.tanh(inputs @ params[0] + hidden @ params[1] + noise)
        return jnp.mean(jnp.square(hidden - inputs.sum(-1, keepdims=True))), hidden

    return jaxrnn.fit(
        loss,
        (np.float32(kernel), np.eye(4, dtype=np.float32)),
        optax.sgd(0.05, momentum=0.9),
        np.float32(inputs),
        steps=steps,
        key=jax.random.key(2),
        carry=np.zeros((2, 4), np.float32),
        clip_norm=0.5,
        report_every=3,
        on_report=on_report,
        progress=False,
        checkpoints=checkpoints,
    )


def main(path, directory=None, every=STEPS, connection=None):
    """Train to the end, or as far as it is let, and save the result's leaves."""
    checkpoints = None if directory is None else jaxrnn.training.Checkpoints(directory, every=every)
    on_report = None if connection is None else lambda step, _: connection.send(step)
    result = train(checkpoints, on_report)
    np.savez(path, *jax.tree.leaves(result))
