"""Plots: that they show the numbers they were given, on the axes they were given."""

import sys
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from jaxrnn import plots
from jaxrnn.diagnostics import GateStatistics, LyapunovSpectrum

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

NORMS: Any = np.float32(10.0 ** np.random.default_rng(0).normal(size=(20, 3)))
SPECTRUM = LyapunovSpectrum(
    jnp.array([0.1, -0.2, -3.0]),
    jnp.array([0.01, 0.02, jnp.inf]),
    jnp.zeros((5, 3)),
    jnp.array([True, True, False]),
)
SHARES: Any = np.float32(np.random.default_rng(1).uniform(size=(20, 5, 4)))
GATES = GateStatistics(jnp.asarray(SHARES[..., 0]), jnp.asarray(SHARES[..., 1]))

ALL = [
    (plots.gradient_norms, (NORMS,)),
    (plots.gradient_map, (NORMS,)),
    (plots.jacobian_spectrum, (NORMS[:4], [10, 1, 5, 2])),
    (plots.lyapunov_spectrum, (SPECTRUM,)),
    (plots.saturation_map, (SHARES,)),
    (plots.gate_map, (GATES,)),
]
every = pytest.mark.parametrize(
    ("draw", "data"), ALL, ids=lambda value: getattr(value, "__name__", "")
)


@pytest.fixture
def axes() -> Any:
    """Axes of a figure that pyplot knows nothing of."""
    return Figure().subplots()


@every
def test_it_draws_on_the_axes_given_and_changes_nothing_else(draw, data, axes):
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    assert draw(*data, axes=axes) is axes
    assert axes.lines or axes.images
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    axes.figure.canvas.draw()
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


@every
def test_it_makes_axes_where_none_are_given(draw, data):
    axes = draw(*data)
    assert plt.gcf() is axes.figure
    plt.close(axes.figure)


def test_norms(axes):
    norms = NORMS.copy()
    norms[3, 1] = 0
    plots.gradient_norms(norms, axes, labels=["a", "b", "c"])
    assert axes.get_yscale() == "log"
    for layer, line in enumerate(axes.lines):
        shown = np.where(norms[:, layer] > 0, norms[:, layer], np.nan)
        np.testing.assert_allclose(line.get_ydata(), shown)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
    one = plots.gradient_norms(norms[:, 0], Figure().subplots())
    assert len(one.lines) == 1
    assert one.get_legend() is None


@pytest.mark.parametrize(
    ("draw", "data"),
    [
        (plots.gradient_norms, NORMS),
        (plots.gradient_map, NORMS),
        (plots.saturation_map, SHARES),
    ],
)
def test_numpys_float64_is_drawn(draw, data, axes):
    draw(data.astype(np.float64), axes)
    assert axes.lines or axes.images


def test_the_map_of_norms_has_a_row_for_each_layer(axes):
    plots.gradient_map(NORMS, axes, labels="xyz")
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), np.log10(NORMS.T / NORMS.max()), rtol=1e-6)
    assert image.get_clim() == (-8, 0)
    assert image.origin == "lower"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y", "z"]


def test_singular_values_are_sorted_by_lag(axes):
    plots.jacobian_spectrum(NORMS[:4], [10, 1, 5, 2], axes)
    for column, line in zip(NORMS[:4].T, axes.lines, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 5, 10])
        np.testing.assert_allclose(line.get_ydata(), column[[1, 3, 2, 0]])


def test_exponents_have_their_errors_and_say_if_they_have_not_converged(axes):
    plots.lyapunov_spectrum(SPECTRUM, axes)
    known, unknown = axes.containers
    np.testing.assert_allclose(known.lines[0].get_ydata(), [0.1, -0.2])
    np.testing.assert_allclose(unknown.lines[0].get_xydata(), [[3, -3.0]])
    (bars,) = known.lines[2]
    np.testing.assert_allclose(
        [segment[:, 1] for segment in bars.get_segments()],
        [[0.09, 0.11], [-0.22, -0.18]],
        rtol=1e-6,
    )
    assert unknown.lines[0].get_markerfacecolor() == "none"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["converged", "not yet"]


def test_maps_of_gates(axes):
    plots.saturation_map(SHARES, axes, labels="ifgo")
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), SHARES.mean(1).T, rtol=1e-6)
    gates: Any = plots.gate_map(GATES, Figure().subplots())
    np.testing.assert_allclose(gates.images[0].get_array(), SHARES[..., 0].T)
    alone = GateStatistics(*(field[:, 0] for field in GATES))
    gates = plots.gate_map(alone, Figure().subplots())
    assert gates.images[0].get_array().shape == (1, 20)


def test_a_clear_error_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'jaxrnn\[plots\]'"):
        plots.gradient_norms(NORMS)


@pytest.mark.parametrize(
    ("draw", "data", "error", "message"),
    [
        (plots.gradient_norms, (SHARES,), ValueError, r"norms: got float32\[20, 5, 4\]"),
        (plots.gradient_norms, ([1.0],), TypeError, "norms: got list"),
        (plots.gradient_map, (0 * NORMS,), ValueError, "norms: got none that is positive"),
        (plots.jacobian_spectrum, (NORMS, [1]), ValueError, "lags: got 1, expected 20"),
        (plots.lyapunov_spectrum, (NORMS,), TypeError, "expected a LyapunovSpectrum"),
        (
            plots.lyapunov_spectrum,
            (SPECTRUM._replace(exponents=jnp.zeros((2, 3))),),
            ValueError,
            "expected those of one sequence",
        ),
        (plots.saturation_map, (NORMS[:, 0],), ValueError, "shares: got"),
        (plots.saturation_map, (SHARES[:, :0],), ValueError, r"shares: got float32\[20, 0, 4\]"),
        (plots.gate_map, (NORMS,), TypeError, "gates: got .*, expected a GateStatistics"),
        (
            plots.gate_map,
            (GateStatistics(*(field[:0] for field in GATES)),),
            ValueError,
            r"gates.forget: got float32\[0, 5\]",
        ),
        (plots.gate_map, (GATES, "axes"), TypeError, "axes: got str 'axes', expected matplotlib's"),
    ],
)
def test_bad_input(draw, data, error, message):
    with pytest.raises(error, match=message):
        draw(*data)


def test_labels_must_be_one_each(axes):
    with pytest.raises(ValueError, match="labels: got 2, expected 3"):
        plots.gradient_norms(NORMS, axes, labels="ab")
    one: Any = 3
    with pytest.raises(TypeError, match="labels: got int 3, expected a sequence of names"):
        plots.gradient_norms(NORMS, axes, labels=one)
