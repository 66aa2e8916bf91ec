"""Data parallel training, as tests run it on several devices, in one process or in many."""

import functools
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxrnn


def shardings():
    """Divide axis 1 of the inputs and axis 0 of the targets over all devices."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    return tuple(
        NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "batch"), ("batch",))
    )


def adding(key):
    return jaxrnn.tasks.adding(key, batch_size=8, length=5)


def train(batches=adding, *, engine=None, **settings):
    """Train an LSTM with dropout on its outputs, momentum and clipping."""
    cell = jaxrnn.lstm(6, recurrent_init=jaxrnn.initializers.glorot_uniform)
    model = jaxrnn.serial(
        jaxrnn.rnn(cell, return_sequences=False, engine=engine),
        jaxrnn.dropout(0.2),
        jaxrnn.dense(1),
    )

    def loss(params, batch, key):
        inputs, targets = batch
        _, outputs = model.apply(params, None, inputs, key=key)
        return jaxrnn.losses.squared_error(outputs, targets)

    arguments = {
        "steps": 12,
        "key": jax.random.key(0),
        "clip_norm": 0.3,
        "report_every": 5,
        "progress": False,
    }
    return jaxrnn.fit(
        loss,
        jax.jit(functools.partial(model.init, input_size=2))(jax.random.key(0)),
        optax.sgd(0.1, momentum=0.9),
        batches,
        **{**arguments, **settings},
    )


def arrays():
    """Three batches."""
    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(adding))(jax.random.split(jax.random.key(0), 3))
    )


def bad_arrays():
    """Three batches, and in the last of them one target of one sequence is infinite."""
    inputs, targets = arrays()
    targets = targets.copy()
    targets[2, 5] = np.inf
    return inputs, targets


def process(number, count, port, directory):
    """Train as one of several processes, twice on the way to the end; the first saves the rest."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    assert jax.process_count() == count
    settings = {
        "sharding": shardings(),
        "on_report": jaxrnn.training.metrics_writer(f"{directory}/curve.csv"),
        "checkpoints": jaxrnn.training.Checkpoints(f"{directory}/checkpoints", every=4),
    }
    train(steps=6, **settings)
    result = train(engine=jaxrnn.engines.sharded(), **settings)
    for leaf in jax.tree.leaves(result.params):
        assert leaf.is_fully_replicated
        assert not leaf.is_fully_addressable
    del settings["checkpoints"]
    inputs, targets = bad_arrays()
    mine = slice(4 * number, 4 * number + 4)
    mesh = settings["sharding"][0].mesh
    parts = [
        jax.make_array_from_process_local_data(
            NamedSharding(mesh, PartitionSpec(*axes, "batch")), np.ascontiguousarray(part)
        )
        for axes, part in (((None, None), inputs[:, :, mine]), ((None,), targets[:, mine]))
    ]
    with pytest.raises(jaxrnn.training.NonFiniteError) as bad:
        train(tuple(parts), **settings)
    leaves = jax.tree.map(np.asarray, jax.tree.leaves(result))
    np.savez(f"{directory}/{number}.npz", *leaves, leaf=bad.value.leaf, step=bad.value.step)


if __name__ == "__main__":
    number, count, port, directory = sys.argv[1:]
    process(int(number), int(count), port, directory)
