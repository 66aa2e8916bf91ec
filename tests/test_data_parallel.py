"""Data parallel training: on many devices, in one process or more, it is that on one."""

import functools
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxrnn
from tests import parallel
from tests.tolerances import FLOAT32

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)
# Losses near 1, which add the batch up in another order.
SAME_LOSS = 1e-6

needs_devices = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")


def mesh(count=2, name="batch"):
    return Mesh(np.array(jax.devices()[:count]), (name,))


def on_two(*axes):
    return NamedSharding(mesh(), PartitionSpec(*axes))


def start(sharding, batches=None, *, size=4, **settings):
    """Fit a leaky sum of a batch of inputs `(3, B)`, each with its own carry, to targets `(B,)`."""

    def make(key):
        inputs = jax.random.uniform(key, (3, size))
        return {"inputs": inputs, "targets": inputs.sum(0)}

    def loss(params, carry, batch, key):
        carry = 0.5 * carry + params @ batch["inputs"]
        noise = jax.random.uniform(key, carry.shape)
        return jnp.mean(jnp.square(carry + 0.1 * noise - batch["targets"])), carry

    if batches is None:
        inputs = np.random.default_rng(0).random((3, 3, size), np.float32)
        batches = {"inputs": inputs, "targets": inputs.sum(1)}
    arguments = {
        "steps": 5,
        "key": KEY,
        "carry": jnp.zeros(size),
        "report_every": 3,
        "progress": False,
        "sharding": sharding,
        **settings,
    }
    batches = make if batches == "function" else batches
    return jaxrnn.fit(loss, jnp.ones(3), optax.sgd(0.1, momentum=0.9), batches, **arguments)


def close(got, expected):
    np.testing.assert_allclose(got.losses, expected.losses, rtol=0, atol=SAME_LOSS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **FLOAT32), got, expected)


def by_leaf(**others):
    return {"inputs": on_two(None, "batch"), "targets": on_two("batch"), **others}


@needs_devices
@pytest.mark.parametrize("batches", [None, "function"])
def test_two_devices_are_one(batches):
    result = start(by_leaf(), batches)
    close(result, start(None, batches))
    for leaf in jax.tree.leaves(result[:3]):
        assert leaf.is_fully_replicated
        assert len(leaf.sharding.device_set) == 2


@needs_devices
@pytest.mark.parametrize(
    "batches", [np.ones((2, 3, 4), np.float32), lambda key: jax.random.uniform(key, (3, 4))]
)
def test_each_device_has_its_part_of_the_batch(batches):
    shapes = []

    def note(sharding):
        shapes.append(sharding.shard_shape((3, 4)))

    def loss(params, batch, key):
        jax.debug.inspect_array_sharding(batch, callback=note)
        return jnp.mean(params * batch)

    settings = {"steps": 2, "key": KEY, "sharding": on_two(None, "batch")}
    jaxrnn.fit(loss, jnp.ones(()), optax.sgd(0.1), batches, **settings)
    assert shapes
    assert set(shapes) == {(3, 2)}


@needs_devices
@pytest.mark.slow
def test_a_mesh_with_explicit_axes_will_do():
    explicit = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.tree.map(lambda of: NamedSharding(explicit, of.spec), by_leaf())
    close(start(sharding), start(None))


@needs_devices
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    checkpoints = jaxrnn.training.Checkpoints(tmp_path, every=2)
    start(by_leaf(), steps=4, checkpoints=checkpoints)
    close(start(None, checkpoints=checkpoints), start(None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "engine"),
    [("adding", None), ("arrays()", None), ("adding", "jaxrnn.engines.sharded()")],
)
def test_eight_devices_are_one(batches, engine):
    code = f"""
import jax, jaxrnn, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from tests.parallel import adding, arrays, shardings, train
batches = {batches}
one = train(batches)
many = train(batches, engine={engine}, sharding=shardings())
np.testing.assert_allclose(many.losses, one.losses, rtol=0, atol={SAME_LOSS})
assert len(set(one.losses)) == 12
print(jax.device_count())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "8"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Joined over loopback; with checkpoints, a curve and a bad step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.parallel"]
    processes = [
        subprocess.Popen(
            [*command, str(number), "2", port, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    expected = parallel.train()
    with pytest.raises(jaxrnn.training.NonFiniteError) as caught:
        parallel.train(parallel.bad_arrays())
    for number in range(2):
        saved = dict(np.load(tmp_path / f"{number}.npz"))
        leaf, step = str(saved.pop("leaf")), int(saved.pop("step"))
        *leaves, losses, norms = saved.values()
        np.testing.assert_allclose(losses, expected.losses, rtol=0, atol=SAME_LOSS)
        np.testing.assert_allclose(norms, expected.gradient_norms, **FLOAT32)
        for got, want in zip(leaves, jax.tree.leaves(expected[:3]), strict=True):
            np.testing.assert_allclose(got, want, **FLOAT32)
        assert (leaf, step) == (caught.value.leaf, caught.value.step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000008",
        "step_00000012",
    ]
    assert (tmp_path / "curve.csv").read_text().count("\n") == 13


# Bad input --------------------------------------------------------------------------------------


@needs_devices
@pytest.mark.parametrize(
    ("sharding", "error", "message"),
    [
        (
            lambda: by_leaf(inputs=on_two("batch")),
            ValueError,
            "batches['inputs']: got a batch float32[3, 4], expected a multiple of 2 on axis 0, "
            "which sharding divides over 2 devices",
        ),
        (
            lambda: on_two(None, "batch"),
            ValueError,
            "sharding['targets']: got the axes (None, 'batch'), expected at most 1 for a "
            "batch float32[4]",
        ),
        (
            lambda: (on_two(None, "batch"), on_two("batch")),
            ValueError,
            "sharding: got tuple(NamedSharding",
        ),
        (
            lambda: by_leaf(targets=NamedSharding(mesh(name="other"), PartitionSpec("other"))),
            ValueError,
            "sharding: got several meshes, expected one",
        ),
        (
            lambda: PartitionSpec(None, "batch"),
            TypeError,
            "sharding: got P",
        ),
        (mesh, TypeError, "sharding: got Mesh"),
        (lambda: by_leaf(targets=None), TypeError, "sharding: got dict"),
        (dict, TypeError, "sharding: got dict {}"),
        (
            lambda: SingleDeviceSharding(jax.devices()[0]),
            TypeError,
            "sharding: got SingleDeviceSharding",
        ),
        (
            lambda: NamedSharding(AbstractMesh((2,), ("batch",)), PartitionSpec()),
            TypeError,
            "sharding: got NamedSharding",
        ),
    ],
)
def test_bad_input_of_sharding(sharding, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        start(sharding())


@needs_devices
@pytest.mark.parametrize("batches", [None, "function"])
def test_a_batch_that_does_not_divide(batches):
    with pytest.raises(ValueError, match=r"^batches\['inputs'\]: got a batch float32\[3, 5\]"):
        start(by_leaf(), batches, size=5)
