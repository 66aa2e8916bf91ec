"""Checkpoints: a run that was ended anyhow goes on as if it never had been; others are refused."""

import multiprocessing
import re
import signal
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn.training import _checkpoints
from tests import survivor

KEY = jax.random.key(0)


def square(params, batch, key):
    return jnp.mean(jnp.square(params["kernel"] - batch + jax.random.uniform(key)))


def start(directory=None, **settings):
    """Fit two numbers to noisy data for 8 steps, with a checkpoint after every second one."""
    arguments = {
        "loss": square,
        "params": {"kernel": jnp.array([1.0, -1.0])},
        "optimizer": optax.sgd(0.1, momentum=0.9),
        "batches": np.arange(6, dtype=np.float32).reshape(3, 2),
        "steps": 8,
        "key": KEY,
        "report_every": 3,
        "progress": False,
        **settings,
    }
    if directory is not None:
        arguments["checkpoints"] = jaxrnn.training.Checkpoints(directory, every=2)
    return jaxrnn.fit(**arguments)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for got, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert got.dtype == expected.dtype
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, expected = jax.random.key_data(got), jax.random.key_data(expected)
        np.testing.assert_array_equal(got, expected)


def begun(step, result):
    pytest.fail("training has begun")


def folders(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def undisturbed():
    return start()


# Going on ---------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, undisturbed):
    def stop(step, result):
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        start(tmp_path, on_report=stop)
    assert folders(tmp_path) == ["step_00000002", "step_00000004"]
    reports = []
    result = start(tmp_path, on_report=lambda *report: reports.append(report))
    equal(result, undisturbed)
    assert [step for step, _ in reports] == [6, 8]
    equal(reports[0][1], start(steps=6))
    equal(reports[1][1], undisturbed)
    assert folders(tmp_path) == ["step_00000006", "step_00000008"]
    # What has ended returns its result again, and reports nothing.
    equal(start(tmp_path, on_report=begun), undisturbed)


def test_a_run_can_be_made_longer(tmp_path, undisturbed):
    equal(start(tmp_path, steps=5), start(steps=5))
    assert folders(tmp_path) == ["step_00000004", "step_00000005"]
    equal(start(tmp_path), undisturbed)


@pytest.mark.slow
def test_everything_is_kept_whatever_its_kind(tmp_path):
    def loss(params, carry, batch, key):
        carry_key, draw_key = jax.random.split(carry["key"])
        noise = jax.random.normal(draw_key, (), jnp.bfloat16)
        error = params["half"] * batch["x"] + params["half"] * noise + params["none"].sum()
        carry = {"key": carry_key, "flag": ~carry["flag"], "count": carry["count"] + 1}
        return jnp.square(error), carry

    settings = {
        "loss": loss,
        "params": {"half": jnp.ones((), jnp.bfloat16), "none": jnp.zeros((0, 3), jnp.bfloat16)},
        "optimizer": optax.chain(optax.add_noise(0.1, 0.5, key=1), optax.sgd(0.1, momentum=0.9)),
        "batches": lambda key: {"x": jax.random.uniform(key, (), jnp.bfloat16)},
        "carry": {"key": KEY, "flag": np.array(True), "count": np.array(0, np.uint8)},
    }
    assert start(tmp_path, steps=4, **settings).losses.dtype == jnp.bfloat16
    equal(start(tmp_path, steps=7, **settings), start(steps=7, **settings))


def test_as_many_are_kept_as_asked_for(tmp_path, undisturbed):
    settings = {
        "checkpoints": jaxrnn.training.Checkpoints(tmp_path / "new" / "folder", every=1, keep=3)
    }
    equal(start(**settings), undisturbed)
    assert folders(tmp_path / "new" / "folder") == [
        "step_00000006",
        "step_00000007",
        "step_00000008",
    ]


def test_after_a_bad_step_training_can_go_on_otherwise(tmp_path):
    data = jnp.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [np.inf, 0.0]])
    with pytest.raises(jaxrnn.training.NonFiniteError, match="stopped at step 3"):
        start(tmp_path, batches=data)
    assert folders(tmp_path) == ["step_00000002"]
    result = start(tmp_path, batches=data.at[3].set(0.0))
    equal(result, start(batches=data.at[3].set(0.0)))


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"kernel": jnp.array([1.0, 2.0])}},
        {"params": {"kernel": jnp.array([1.0, np.nextafter(np.float32(-1), np.float32(0))])}},
        {"carry": jnp.ones(3)},
        {"optimizer": optax.inject_hyperparams(optax.sgd)(0.2)},
    ],
    ids=["params", "one bit of params", "carry", "learning rate"],
)
def test_a_run_that_began_elsewhere_is_refused(tmp_path, change):
    def loss(params, carry, batch, key):
        return square(params, batch, key), carry

    settings = {
        "loss": loss,
        "carry": jnp.zeros(3),
        "optimizer": optax.inject_hyperparams(optax.sgd)(0.1),
    }
    whole = start(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"params: got parameters, .*began with"):
        start(tmp_path, **{**settings, **change})
    equal(start(tmp_path, **settings), whole)


def test_two_runs_do_not_write_to_one_directory(tmp_path):
    def another(step, result):
        with pytest.raises(OSError, match="to which another run is writing"):
            start(tmp_path, steps=9)

    equal(start(tmp_path, on_report=another), start())
    assert "step_00000008" in folders(tmp_path)


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def save(self, *_):
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(_checkpoints, "_orbax_checkpointer", Full)
    with pytest.raises(OSError, match=r"step_00000002 can't be written: .*No space left"):
        start(tmp_path)


# Checkpoints that are damaged -------------------------------------------------------------------


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        place = len(content) // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.unlink()


def snapshot(step):
    state = jaxrnn.training.init_train_state({"kernel": jnp.full(3, float(step))}, optax.adam(0.1))
    history = jaxrnn.training.Metrics(*[np.arange(step, dtype=np.float32)] * 2)
    begun = np.zeros(32, np.uint8)  # where every snapshot here began
    return _checkpoints.Snapshot(KEY, None, begun, state._replace(step=jnp.array(step)), history)


def test_damage_to_any_file_is_found_and_the_one_before_is_taken(tmp_path):
    checkpoints = jaxrnn.training.Checkpoints(tmp_path)
    _checkpoints.save(checkpoints, snapshot(1))
    _checkpoints.save(checkpoints, snapshot(2))
    newest = tmp_path / "step_00000002"
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        for how in ("truncated", "empty", "one bit", "missing"):
            damage(path, how)
            if path.read_bytes() == content if path.exists() else False:
                continue  # there was nothing to truncate
            with pytest.warns(UserWarning, match=f"{newest} is passed over: its"):
                equal(_checkpoints.restore(checkpoints, snapshot(0)), snapshot(1))
            path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(_checkpoints.restore(checkpoints, snapshot(0)), snapshot(2))


def test_training_goes_on_from_the_newest_whole_checkpoint(tmp_path, undisturbed):
    start(tmp_path, steps=6)
    damage(tmp_path / "step_00000006" / "leaves.json", "truncated")
    with pytest.warns(
        UserWarning, match=r"step_00000006 is passed over: .*'leaves.json' is damaged"
    ):
        equal(start(tmp_path), undisturbed)
    assert folders(tmp_path) == ["step_00000006", "step_00000008"]
    for name in folders(tmp_path):
        damage(tmp_path / name / "SHA256SUMS", "missing")
    with pytest.warns(UserWarning, match="passed over: its writing was cut off") as caught:
        equal(start(tmp_path), undisturbed)
    assert len(caught) == 2


def test_what_lies_further_on_than_the_run_is_removed(tmp_path):
    for step in (4, 6):
        _checkpoints.save(jaxrnn.training.Checkpoints(tmp_path, keep=2), snapshot(step))
    for name in ("2026", "step_size"):
        (tmp_path / name).mkdir()
    _checkpoints.save(jaxrnn.training.Checkpoints(tmp_path, keep=1), snapshot(5))
    assert folders(tmp_path) == ["2026", "step_00000005", "step_size"]


def test_checkpoints_of_other_programs_are_passed_over_and_stay(tmp_path):
    """Orbax's own manager may number folders in the same way; and a file is no folder."""
    foreign = tmp_path / "step_00000009" / "default"
    foreign.mkdir(parents=True)
    (foreign / "manifest.ocdbt").write_bytes(b"theirs")
    (tmp_path / "step_00000007").write_bytes(b"theirs too")
    checkpoints = jaxrnn.training.Checkpoints(tmp_path, keep=1)
    _checkpoints.save(checkpoints, snapshot(1))
    with pytest.warns(UserWarning, match="step_00000009 is passed over: it is not of jaxrnn"):
        equal(_checkpoints.restore(checkpoints, snapshot(0)), snapshot(1))
    _checkpoints.save(checkpoints, snapshot(2))
    assert folders(tmp_path) == ["step_00000002", "step_00000007", "step_00000009"]
    assert (foreign / "manifest.ocdbt").read_bytes() == b"theirs"
    with pytest.raises(FileExistsError, match="step_00000009, which is not of jaxrnn"):
        _checkpoints.save(checkpoints, snapshot(9))
    assert (foreign / "manifest.ocdbt").exists()


@pytest.mark.parametrize("name", ["leaves_of_plants", "leaves.txt", "SHA256SUMS.asc"])
def test_what_is_called_nearly_as_ours_stays(tmp_path, name):
    (tmp_path / "step_00000004" / name).mkdir(parents=True)
    _checkpoints.save(jaxrnn.training.Checkpoints(tmp_path, keep=1), snapshot(1))
    assert (tmp_path / "step_00000004" / name).exists()


def test_stray_files_in_a_checkpoint_do_not_matter(tmp_path, undisturbed):
    start(tmp_path, steps=4)
    note = tmp_path / "step_00000004" / "note.txt"
    note.write_text("the best so far")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(start(tmp_path), undisturbed)
    assert note.exists()


@pytest.mark.parametrize("name", ["default/file", "note.txt"])
def test_what_stands_in_the_way_is_told_before_training(tmp_path, name):
    for step in (6, 7):  # at 7 no checkpoint is due
        path = tmp_path / f"step_{step:08d}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"theirs")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(FileExistsError, match="step_00000006, which is not of jaxrnn"),
    ):
        start(tmp_path, report_every=1, on_report=begun)


def test_a_link_to_a_checkpoint_elsewhere_stays_and_so_does_that(tmp_path):
    _checkpoints.save(jaxrnn.training.Checkpoints(tmp_path / "archive"), snapshot(1))
    archived, link = tmp_path / "archive" / "step_00000001", tmp_path / "run" / "step_00000001"
    link.parent.mkdir()
    link.symlink_to(archived)
    checkpoints = jaxrnn.training.Checkpoints(tmp_path / "run", keep=1)
    equal(_checkpoints.restore(checkpoints, snapshot(0)), snapshot(1))
    _checkpoints.save(checkpoints, snapshot(2))
    assert folders(tmp_path / "run") == ["step_00000001", "step_00000002"]
    assert _checkpoints._damage(archived) is None


def test_a_link_to_nowhere_is_told_before_training(tmp_path):
    (tmp_path / "step_00000006").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="step_00000006, which is not of jaxrnn"):
        start(tmp_path, report_every=1, on_report=begun)


def test_the_last_report_is_made_again_if_it_failed(tmp_path, undisturbed):
    def fail(step, result):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        start(tmp_path, on_report=fail)
    assert folders(tmp_path) == ["step_00000004", "step_00000006"]
    reports = []
    equal(start(tmp_path, on_report=lambda *report: reports.append(report)), undisturbed)
    assert [step for step, _ in reports] == [8]


def test_what_cannot_be_listed_is_no_empty_directory(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError("not yours")

    monkeypatch.setattr(_checkpoints.os, "listdir", refuse)
    with pytest.raises(PermissionError, match="not yours"):
        start(tmp_path, on_report=begun)


def test_what_cannot_be_removed_does_not_end_training(tmp_path, monkeypatch, undisturbed):
    remove = _checkpoints._remove

    def refuse(folder):
        if folder.exists():
            raise PermissionError("not yours")
        remove(folder)

    monkeypatch.setattr(_checkpoints, "_remove", refuse)
    with pytest.warns(UserWarning, match="step_00000002 stays: not yours"):
        equal(start(tmp_path), undisturbed)


def test_what_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    checkpoints = jaxrnn.training.Checkpoints(tmp_path)
    for step in (1, 2):
        _checkpoints.save(checkpoints, snapshot(step))
    digests = _checkpoints._digests

    def refuse(folder):
        if folder.name == "step_00000002":
            raise PermissionError("not yours")
        return digests(folder)

    monkeypatch.setattr(_checkpoints, "_digests", refuse)
    with pytest.warns(UserWarning, match="passed over: its files can't be read: not yours"):
        equal(_checkpoints.restore(checkpoints, snapshot(0)), snapshot(1))


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run_that_never_was(tmp_path):
    """A real process, and SIGKILL at random moments: at the start, in steps, and in writes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.survivor"])
    paths = [str(tmp_path / name) for name in ("undisturbed.npz", "killed.npz")]
    rng = np.random.default_rng(0)
    directory = tmp_path / "checkpoints"

    def begin(*arguments):
        process = context.Process(target=survivor.main, args=arguments)
        process.start()
        return process

    undisturbed = begin(paths[0])
    in_writes, step = 0, 0
    for number in range(20):
        receiver, sender = context.Pipe(duplex=False)
        process = begin(paths[1], str(directory), 2, sender)
        sender.close()
        # The first few at any time from their start on; the others once they have made some steps,
        # most of whose time goes into writing.
        for _ in range(0 if number < 4 else rng.integers(1, 5)):
            assert receiver.poll(100), "no report"
            step = receiver.recv()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if directory.exists():
            in_writes += any(not (path / "SHA256SUMS").exists() for path in directory.iterdir())
    assert in_writes >= 3
    assert step > 20
    for process in (undisturbed, begin(paths[1], str(directory))):
        process.join()
        assert process.exitcode == 0
    leaves = [list(np.load(path).values()) for path in paths]
    assert leaves[0][-1].shape == (survivor.STEPS,)
    for expected, got in zip(*leaves, strict=True):
        np.testing.assert_array_equal(got, expected)


# Checkpoints of other runs, and other bad input -------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    directory = tmp_path_factory.mktemp("other")
    start(directory, steps=6)
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"kernel": jnp.ones(1)}},
            r"params['kernel']: got float32[1], expected float32[2] as in the checkpoint ",
        ),
        (
            {"params": {"kernel": jnp.ones(2, jnp.float16)}},
            "params['kernel']: got float16[2], expected float32[2] as in the checkpoint ",
        ),
        (
            {"params": {"bias": jnp.ones(2), "kernel": jnp.ones(2)}},
            "params['bias']: got float32[2], expected nothing as in the checkpoint ",
        ),
        (
            {"params": {"bias": jnp.ones(2)}, "loss": lambda params, batch, key: params["bias"][0]},
            "params['bias']: got float32[2], expected nothing",
        ),
        (
            {"optimizer": optax.sgd(0.1)},
            "optimizer_state[0].trace['kernel']: got nothing, expected float32[2]",
        ),
        (
            {
                "carry": jnp.zeros(3),
                "loss": lambda params, carry, batch, key: (square(params, batch, key), carry),
            },
            "carry: got float32[3], expected nothing",
        ),
        ({"key": jax.random.key(1)}, "key: got [0 1], expected [0 0] as in the checkpoint "),
        ({"key": jax.random.key(0, impl="rbg")}, "key: got key<rbg>[], expected key<fry>[]"),
        ({"key": jax.random.PRNGKey(0)}, "key: got uint32[2], expected key<fry>[]"),
        ({"batches": jax.random.normal}, "batches: got nothing, expected int32[]"),
        ({"batches": jnp.ones((4, 2))}, "batches: got 4, expected 3 as in the checkpoint "),
        ({"steps": 5}, "steps: got 5, expected 6 or more, as in the newest checkpoint"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(other, change, message):
    before = folders(other)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        start(other, **change)
    assert folders(other) == before


def test_checkpoints_without_orbax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrnn\[checkpoints\]"'):
        start(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directory": 3}, TypeError, "directory: got int 3, expected a path"),
        *[
            ({"directory": f"a/b{c}/c"}, ValueError, "directory: got .*without any")
            for c in "[*?\\"
        ],
        ({"every": 0}, ValueError, "every: got 0"),
        ({"every": 1e3}, TypeError, "every: got float 1000.0"),
        ({"keep": 0}, ValueError, "keep: got 0"),
        ({"keep": True}, TypeError, "keep: got bool True"),
    ],
)
def test_bad_input_of_checkpoints(arguments, error, message):
    with pytest.raises(error, match=message):
        jaxrnn.training.Checkpoints(**{"directory": "runs", **arguments})


@pytest.mark.parametrize("directory", ["file", "file/below"])
def test_a_directory_that_cannot_be_written_to_is_told_before_training(tmp_path, directory):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(
        OSError, match=f"checkpoints: got the directory .*{directory}, expected one"
    ):
        start(tmp_path / directory, report_every=1, on_report=begun)


def test_a_path_alone_is_no_setting_of_fit():
    with pytest.raises(TypeError, match="checkpoints: got str 'runs', expected jaxrnn"):
        start(checkpoints="runs")
