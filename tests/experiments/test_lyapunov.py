"""The transition to chaos: theory against sampling, and networks against theory."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lyapunov
from experiments.lyapunov import Lengths, mean_field_exponent, measure, network, numpy_exponents
from jaxrnn import diagnostics


@pytest.fixture
def float64_ends():
    """Undo what the script switches on."""
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)


def test_without_a_mean_field_the_exponent_is_the_gains_logarithm():
    gains = [0.1, 0.5, 0.99, 1.0]
    np.testing.assert_allclose(mean_field_exponent(gains), np.log(gains), atol=1e-12)


@pytest.mark.parametrize("gain", [1.2, 4.0])
def test_theory_is_what_sampling_finds(gain):
    normal = np.random.default_rng(0).normal(size=100_000)
    variance = gain**2
    for _ in range(60):
        variance = gain**2 * np.mean(np.tanh(np.sqrt(variance) * normal) ** 2)
    slopes = 1 - np.tanh(np.sqrt(variance) * normal) ** 2
    expected = np.log(gain**2 * np.mean(slopes**2)) / 2
    np.testing.assert_allclose(mean_field_exponent([gain]), expected, atol=1e-2)


@pytest.mark.slow
def test_a_forgetting_network_has_its_kernels_spectral_radius():
    keys = jax.random.split(jax.random.key(0), 2)
    gains = jnp.array([0.5, 0.8])
    measured = measure(keys, gains, 8, Lengths(burn_in=30, exponents=100, gradient=60, turn=10))
    assert all(field.shape == (2, 2) for field in measured)
    for row, gain in enumerate(gains):
        for column, key in enumerate(keys):
            _, params, _ = network(jax.random.split(key)[0], gain, 8)
            moduli = np.abs(np.linalg.eigvals(np.asarray(params.recurrent_kernel, np.float64)))
            # Eigenvalues come in pairs, whose planes turn while they shrink.
            np.testing.assert_allclose(
                measured.exponent[row, column], np.log(moduli.max()), atol=0.03
            )
            np.testing.assert_allclose(
                measured.decay[row, column], -np.log(moduli.max()), atol=0.03
            )


def test_the_numpy_loop_finds_the_librarys_exponents():
    cell, params, state = network(jax.random.key(0), jnp.float32(0.9), 8)
    kernel, hidden = np.asarray(params.recurrent_kernel), np.asarray(state.hidden)
    got = numpy_exponents(kernel, hidden, count=3, steps=400)
    expected = diagnostics.lyapunov_exponents(
        cell, params, jnp.zeros((400, 1)), state, num_exponents=3
    )
    # They begin with other tangents, which matters for some of the steps.
    np.testing.assert_allclose(np.sort(got)[::-1], expected.exponents, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("float64_ends")
def test_the_script_finds_order_chaos_and_the_gradient_in_step(tmp_path, capsys):
    lyapunov.main(["--quick", "--out", str(tmp_path)])
    with (tmp_path / "lyapunov.csv").open() as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 2 * 6 * 4
    for row in rows:
        if row["gain"] < 0.9:
            assert row["exponent"] < 0
        if row["gain"] > 3:
            assert row["exponent"] > 0
        error = 4 * np.hypot(row["exponent_error"], row["decay_error"])
        assert abs(row["decay"] + row["exponent"]) < 0.02 + error
    with (tmp_path / "lyapunov_spectrum.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5 * 4 * 32
    assert (tmp_path / "lyapunov.png").stat().st_size > 10_000
    assert "correlation 0.99" in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_is_told_with_its_ratio(tmp_path, capsys):
    lyapunov.main(["--quick", "--cost", "--steps", "50", "--out", str(tmp_path)])
    with (tmp_path / "lyapunov_cost.csv").open() as file:
        rows = {row["contender"]: float(row["median_ms"]) for row in csv.DictReader(file)}
    assert set(rows) == {"jaxrnn", "NumPy loop"}
    assert min(rows.values()) > 0
    assert re.search("jaxrnn (is|takes) .* times (faster|as long), median", capsys.readouterr().out)


@pytest.mark.parametrize(
    "options",
    [
        ["--gain=0"],
        ["--seeds=1"],
        ["--spectrum-gain=7"],
        ["--spectrum-size=7"],
        ["--exponents=5", "--units=4", "--cost"],
    ],
)
def test_a_bad_setting_is_reported(capsys, options):
    with pytest.raises(SystemExit):
        lyapunov.main(options)
    assert options[0].split("=")[0] in capsys.readouterr().err.splitlines()[-1]
