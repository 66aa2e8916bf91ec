"""The adding problem's experiment: seeds don't touch one another, and learning shows."""

import csv

import jax
import numpy as np
import pytest

from experiments import adding
from tests.tolerances import FLOAT32

SETTINGS = {"hidden_size": 4, "batch_size": 8, "learning_rate": 1e-2}


@pytest.mark.slow
def test_seeds_side_by_side_are_as_each_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    both = adding.learn("relu", 6, keys, steps=adding.CHUNK, **SETTINGS)
    assert both.losses.shape == (2, 1)
    assert both.losses[0, 0] != both.losses[1, 0]
    alone = adding.learn("relu", 6, keys[1:], steps=adding.CHUNK, **SETTINGS)
    np.testing.assert_allclose(both.losses[1:], alone.losses, rtol=FLOAT32["rtol"])


def test_the_summary_counts_the_seeds_that_learnt():
    losses = np.array([[0.1, 0.01], [0.01, 0.1], [0.01, 0.001]])
    row = adding.summary(adding.Run("gru", 50, losses, 1.0))
    assert row["learnt"] == "2 of 3"
    assert (row["lowest"], row["median error"], row["highest"]) == (0.001, 0.01, 0.1)


def test_the_threshold_of_the_table_is_drawn():
    runs = [adding.Run("gru", 50, np.array([[0.1, 0.01]]), 1.0)]
    axis = adding.draw_curves(runs, [50]).axes[0]
    assert any((line.get_ydata() == np.array(adding.LEARNT)).all() for line in axis.lines)


def test_a_seed_that_diverged_counts_as_the_worst():
    losses = np.array([[0.1, np.nan], [0.1, 0.2], [0.1, 0.001]])
    row = adding.summary(adding.Run("relu", 50, losses, 1.0))
    assert row["learnt"] == "1 of 3"
    assert (row["lowest"], row["median error"], row["highest"]) == (0.001, 0.2, np.inf)


@pytest.mark.slow
def test_the_script_learns_short_sums_and_writes_its_files(tmp_path, capsys):
    settings = "--quick --cell relu --length 4 --seeds 2 --steps 600 --learning-rate 1e-2"
    adding.main([*settings.split(), "--out", str(tmp_path)])
    with (tmp_path / "adding.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 600 // adding.CHUNK
    for row in rows:
        if row["step"] == "600":
            assert float(row["error"]) < adding.CHANCE / 3
    assert (tmp_path / "adding.png").stat().st_size > 10_000
    assert "Elman, relu" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gru_learns_what_a_tanh_network_does_not(tmp_path):
    adding.main(["--quick", "--out", str(tmp_path)])
    with (tmp_path / "adding.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["step"]) for row in rows)
    errors = {
        cell: np.median(
            [float(r["error"]) for r in rows if r["cell"] == cell and int(r["step"]) == last]
        )
        for cell in ("gru", "elman")
    }
    assert errors["gru"] < adding.LEARNT < errors["elman"]


def test_the_title_says_up_to_which_length_each_cell_learns():
    learnt, missed = np.array([[0.1, 0.001]] * 2), np.array([[0.2, 0.2]] * 2)
    runs = [
        adding.Run("gru", 50, learnt, 1.0),
        adding.Run("gru", 100, missed, 1.0),
        adding.Run("elman", 50, missed, 1.0),
    ]
    assert adding.claim(runs) == "GRU up to T = 50; Elman, tanh at no T"


@pytest.mark.parametrize("option", ["--steps=1", "--length=1", "--seeds=0"])
def test_a_bad_setting_is_reported(capsys, option):
    with pytest.raises(SystemExit):
        adding.main([option])
    assert f"{option.split('=')[0]}: got" in capsys.readouterr().err
