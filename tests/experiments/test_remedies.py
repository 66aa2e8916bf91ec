"""The remedies' experiment: its correlation, what each remedy changes, and that learning shows."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import remedies
from experiments.remedies import REMEDIES, TASKS, Run, learn, make_program
from jaxrnn import diagnostics
from tests.tolerances import FLOAT32

SETTINGS = {"hidden_size": 8, "batch_size": 4, "learning_rate": 1e-2}


def run_of(losses, horizon=(1.0,), decay=(1.0,), remedy="gru"):
    losses = np.array(losses)
    return Run("copy", remedy, 100, losses, np.array(horizon), np.array(decay), 1.0)


def test_what_a_run_has_learnt():
    run = run_of([[1.0, 0.05, 0.2], [2.0, 1.0, 0.5], [1.0, np.nan, np.nan]])
    np.testing.assert_array_equal(run.steps, [2 * remedies.CHUNK, np.inf, np.inf])
    np.testing.assert_allclose(run.learning, [(0 + 0.95 + 0.8) / 3, 0.5 / 3, 0])


def test_correlations_are_of_every_network_and_of_some():
    runs = [
        run_of([[1.0], [0.9]], horizon=(1, 2), decay=(9, 8), remedy="clipping"),
        run_of([[0.1], [0.2]], horizon=(100, 90), decay=(-1, 2), remedy="gru"),
    ]
    rows = remedies.correlations(runs, seed=0)
    # All are of one task and one length, which is not said again.
    assert [(row["runs"], row["networks"]) for row in rows] == [("all runs", 4)] * 2
    assert all(row["Spearman"] == pytest.approx(1) for row in rows)
    rows = remedies.correlations([*runs, runs[0]._replace(length=50)], seed=0)
    assert [row["networks"] for row in rows] == [6, 4, 2] * 2


def test_an_interval_that_is_not_there_has_its_reason():
    row = {"Spearman": 0.5, "95% from": 0.25, "to": 0.75}
    assert remedies.interval_text(row) == "0.25 to 0.75"
    assert "remedies" in remedies.interval_text(row | {"95% from": np.nan})
    assert "equal" in remedies.interval_text(dict.fromkeys(row, np.nan))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_chrono_gates_keep_their_state_as_long_as_a_sequence(name):
    remedy = REMEDIES[f"{name}_chrono"]
    cell = remedy.cell(64)
    params = cell.init(jax.random.key(0), 2)
    assert remedy.bias is not None
    params = remedy.bias(params, jax.random.key(1), 100)
    gates = diagnostics.gate_statistics(cell, params, jnp.zeros((1, 2)))
    # The mean of sigmoid(log(u)) = 1 - 1 / (1 + u) over u from 1 to 99.
    expected = 1 - np.log(100 / 2) / 98
    np.testing.assert_allclose(gates.forget, expected, atol=0.02)


def test_copies_are_asked_for_at_the_end():
    inputs, targets = TASKS["copy"].make_batch(jax.random.key(0), 3, 7)
    assert inputs.shape == (7 + 2 * remedies.TO_COPY, 3, TASKS["copy"].features)
    np.testing.assert_array_equal(inputs.argmax(-1)[: remedies.TO_COPY], targets)


@pytest.mark.slow
def test_seeds_side_by_side_are_as_each_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    both = learn("adding", "identity", 6, keys, steps=remedies.CHUNK, **SETTINGS)
    alone = learn("adding", "identity", 6, keys[1:], steps=remedies.CHUNK, **SETTINGS)
    assert both.losses[0, 0] != both.losses[1, 0]
    for of_both, of_one in zip(both[3:6], alone[3:6], strict=True):
        np.testing.assert_allclose(of_both[1:], of_one, rtol=FLOAT32["rtol"], atol=1e-4)


@pytest.mark.slow
def test_flossing_brings_the_exponents_to_zero():
    keys = jax.random.split(jax.random.key(0), 1)
    inputs, _ = TASKS["copy"].make_batch(jax.random.key(1), 1, 100)
    exponents = {}
    for name in ["clipping", "flossing"]:
        program = make_program(TASKS["copy"], REMEDIES[name], 100, **SETTINGS)
        params = jax.tree.map(lambda leaf: leaf[0], program.init(keys).params[0])
        cell = REMEDIES[name].cell(SETTINGS["hidden_size"])
        spectrum = diagnostics.lyapunov_exponents(cell, params, inputs[:, 0], num_exponents=4)
        exponents[name] = np.abs(spectrum.exponents).mean()
    assert exponents["flossing"] < exponents["clipping"] / 3


@pytest.mark.slow
def test_pascanus_penalty_is_not_counted_as_error():
    keys = jax.random.split(jax.random.key(0), 1)
    run = learn("copy", "pascanu", 10, keys, steps=remedies.CHUNK, **SETTINGS)
    assert 0.3 < run.losses[0, 0] < 1.5


@pytest.mark.slow
def test_the_script_learns_to_copy_and_writes_its_files(tmp_path, capsys):
    settings = "--quick --remedy clipping flossing --length 10 --seeds 2 --steps 300"
    remedies.main([*settings.split(), "--out", str(tmp_path)])
    with (tmp_path / "remedies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2
    assert max(float(row["learning"]) for row in rows) > 0.5
    with (tmp_path / "remedies_curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 300 // remedies.CHUNK
    with (tmp_path / "remedies_correlations.csv").open() as file:
        assert {row["predictor"] for row in csv.DictReader(file)} == set(remedies.PREDICTORS)
    assert (tmp_path / "remedies.png").stat().st_size > 10_000
    assert "Rank correlations" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--steps=1", "--length=2", "--seeds=0", "--remedy=hope"])
def test_a_bad_setting_is_reported(capsys, option):
    with pytest.raises(SystemExit):
        remedies.main([option])
    assert option.split("=")[0] in capsys.readouterr().err.splitlines()[-1]
