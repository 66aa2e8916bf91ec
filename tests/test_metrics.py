"""The curve that a run leaves in a file: whole, in order, and as far as the run got."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn


def start(path, *, steps=7, directory=None, on_report=None, data=(0.1, -0.7, 3.0)):
    write = jaxrnn.training.metrics_writer(path)

    def report(step, result):
        write(step, result)
        if on_report is not None:
            on_report(step)

    return jaxrnn.fit(
        lambda params, batch, key: jnp.square(params - batch),
        jnp.array(0.3),
        optax.sgd(0.1),
        jnp.array(data),
        steps=steps,
        key=jax.random.key(0),
        report_every=3,
        on_report=report,
        progress=False,
        checkpoints=directory and jaxrnn.training.Checkpoints(directory, every=2),
    )


def read(path):
    with path.open(newline="") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [{name: np.float32(value) for name, value in row.items()} for row in rows]


def rows_of(result):
    columns = range(len(result.losses)), result.losses, result.gradient_norms
    names = ("step", "loss", "gradient_norm")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_file_has_the_history_to_the_last_bit_as_it_comes(tmp_path, suffix):
    path = tmp_path / "new" / f"curve{suffix}"
    lengths = []
    result = start(path, on_report=lambda step: lengths.append((step, len(read(path)))))
    assert lengths == [(3, 3), (6, 6), (7, 7)]
    assert read(path) == rows_of(result)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class Killed(Exception):
    pass


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("torn", ["", "7,0.12", "\x00\x00"])
def test_a_run_that_goes_on_leaves_no_gap_and_no_row_twice(tmp_path, suffix, torn):
    path = tmp_path / f"curve{suffix}"

    def kill(step):
        if step == 9:
            raise Killed

    with pytest.raises(Killed):
        start(path, steps=12, directory=tmp_path / "checkpoints", on_report=kill)
    assert len(read(path)) == 9  # the newest checkpoint has 8
    with path.open("a") as file:
        file.write(torn)
    result = start(path, steps=12, directory=tmp_path / "checkpoints")
    assert read(path) == rows_of(result)
    assert len(result.losses) == 12


def test_the_bad_step_is_in_the_file(tmp_path):
    for suffix, bad in ((".csv", "nan"), (".jsonl", "null")):
        path = tmp_path / f"curve{suffix}"
        with pytest.raises(jaxrnn.training.NonFiniteError):
            start(path, data=(0.1, 0.2, 0.3, np.nan))
        lines = path.read_text().splitlines()
        assert len(lines) == 4 + (suffix == ".csv")
        assert lines[-1].count(bad) == 2


def test_a_new_run_begins_a_new_file(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("what was there before\n")
    result = start(path)
    assert read(path) == rows_of(result)


def test_bad_input_of_metrics_writer():
    with pytest.raises(TypeError, match="path: got int 3, expected a path"):
        jaxrnn.training.metrics_writer(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"path: got 'curve.txt', expected it to end in .csv or"):
        jaxrnn.training.metrics_writer("curve.txt")


def test_the_result_of_a_sweep_is_refused(tmp_path):
    result = jaxrnn.training.FitResult(None, None, None, *[np.ones((3, 2), np.float32)] * 2)
    with pytest.raises(
        ValueError, match=r"result: got losses float32\[3, 2\], expected .* one run"
    ):
        jaxrnn.training.metrics_writer(tmp_path / "curve.csv")(2, result)
