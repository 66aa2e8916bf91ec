"""Pictures of what the laboratory measures: each takes axes to draw on, and returns them.

They need matplotlib, `pip install 'jaxrnn[plots]'`, which is imported by the first one drawn. None
of them changes matplotlib's settings, nor which figure is the current one if axes are given.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrnn import _check
from jaxrnn._types import Array
from jaxrnn.diagnostics import GateStatistics, LyapunovSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "gate_map",
    "gradient_map",
    "gradient_norms",
    "jacobian_spectrum",
    "lyapunov_spectrum",
    "saturation_map",
]


def gradient_norms(
    norms: Float[Array, "T *layers"],
    axes: "Axes | None" = None,
    *,
    labels: Sequence[str] | None = None,
) -> "Axes":
    """Draw a gradient's norm by step, on a logarithmic axis.

    Args:
        norms: as `jaxrnn.diagnostics.gradient_norms` returns them, `(T,)` or `(T, L)`. Norms of 0
            leave a gap.
        axes: where to draw; new ones if None.
        labels: a name for each layer.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if an argument is of another kind.
        ValueError: if the norms have other dimensions, or labels another number.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> axes = jaxrnn.plots.gradient_norms(0.9 ** jnp.arange(50.0)[::-1])
    """
    columns = _two_dimensions("norms", norms, "(T,) or (T, L)")
    names = _labels(labels, columns.shape[1])
    ax = _axes(axes)
    for column, name in zip(columns.T, names, strict=True):
        ax.plot(np.where(column > 0, column, np.nan), label=name)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("norm of the gradient")
    if columns.shape[1] > 1:
        ax.legend()
    return ax


def gradient_map(
    norms: Float[Array, "T L"],
    axes: "Axes | None" = None,
    *,
    labels: Sequence[str] | None = None,
) -> "Axes":
    """Draw a gradient's norm by layer and step, as decades below the largest of all.

    Args:
        norms: as `jaxrnn.diagnostics.gradient_norms` returns them of a stack, `(T, L)`.
        axes: where to draw, the first layer at the bottom; new ones if None.
        labels: a name for each layer.

    Returns:
        The axes, whose figure has a colour bar, too. It ends 8 decades below the largest norm.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if an argument is of another kind.
        ValueError: if the norms have other dimensions, or labels another number, or no norm is
            positive and finite.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> axes = jaxrnn.plots.gradient_map(jnp.ones((50, 2)))
    """
    columns = _two_dimensions("norms", norms, "(T, L)")
    usable = columns[np.isfinite(columns) & (columns > 0)]
    if usable.size == 0:
        raise ValueError("norms: got none that is positive and finite, expected at least one")
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(columns / usable.max())
    image, ax = _image(decades.T, axes, low=-_DECADES, high=0.0)
    bar = ax.figure.colorbar(image, ax=ax, extend="min")
    bar.set_label("norm of the gradient, decades below the largest")
    _name_rows(ax, _labels(labels, columns.shape[1]))
    ax.set_ylabel("layer")
    return ax


def jacobian_spectrum(
    values: Float[Array, "L K"], lags: Sequence[int], axes: "Axes | None" = None
) -> "Axes":
    """Draw the singular values of the Jacobian between states, by the steps between them.

    Args:
        values: as `jaxrnn.diagnostics.jacobian_spectrum` returns them of one sequence, `(L, K)`.
        lags: the L lags that they belong to.
        axes: where to draw; new ones if None.

    Returns:
        The axes. Darker lines are larger values; those of 0 are left out.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if an argument is of another kind.
        ValueError: if dimensions don't fit.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> axes = jaxrnn.plots.jacobian_spectrum(jnp.ones((2, 3)), [1, 10])
    """
    columns = _two_dimensions("values", values, "(L, K)")
    places = np.array(_check.step_counts("lags", lags))
    if len(places) != len(columns):
        raise ValueError(
            f"lags: got {len(places)}, expected {len(columns)}, one for each of values"
        )
    order = np.argsort(places)
    ax = _axes(axes)
    count = columns.shape[1]
    for number, column in enumerate(columns.T):
        shown = np.where(column > 0, column, np.nan)[order]
        # The larger ones last, so that they lie on top.
        ax.plot(
            places[order],
            shown,
            color="C0",
            alpha=1 - 0.8 * number / count,
            linewidth=1.2,
            zorder=3 - number / count,
            marker="." if len(places) < _FEW else None,
        )
    ax.set_yscale("log")
    ax.set_xlabel("steps between the states")
    ax.set_ylabel("singular values of the Jacobian")
    return ax


def lyapunov_spectrum(spectrum: LyapunovSpectrum, axes: "Axes | None" = None) -> "Axes":
    """Draw Lyapunov exponents in descending order, with their standard errors.

    Args:
        spectrum: what `jaxrnn.diagnostics.lyapunov_exponents` returns of one sequence.
        axes: where to draw; new ones if None.

    Returns:
        The axes. An exponent that hasn't converged is an open circle.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if `spectrum` is no `LyapunovSpectrum`.
        ValueError: if it is of several sequences.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> spectrum = jaxrnn.diagnostics.LyapunovSpectrum(
        ...     jnp.array([0.1, -2.0]), jnp.full(2, 0.05), jnp.zeros((20, 2)), jnp.ones(2, bool)
        ... )
        >>> axes = jaxrnn.plots.lyapunov_spectrum(spectrum)
    """
    if not isinstance(spectrum, LyapunovSpectrum):
        raise TypeError(f"spectrum: got {_check.describe(spectrum)}, expected a LyapunovSpectrum")
    exponents = np.asarray(spectrum.exponents, np.float64)
    if exponents.ndim != 1:
        raise ValueError(
            f"spectrum: got exponents {exponents.shape}, expected those of one sequence"
        )
    errors = np.asarray(spectrum.standard_error, np.float64)
    converged = np.asarray(spectrum.converged)
    ax = _axes(axes)
    places = np.arange(1, len(exponents) + 1)
    for chosen, face, name in [(converged, "C0", "converged"), (~converged, "none", "not yet")]:
        if chosen.any():
            ax.errorbar(
                places[chosen],
                exponents[chosen],
                # An error that isn't known has no bar.
                np.where(np.isfinite(errors), errors, 0)[chosen],
                fmt="o",
                color="C0",
                markerfacecolor=face,
                markersize=4,
                capsize=2,
                label=name,
            )
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set_xlabel("number")
    ax.set_ylabel("Lyapunov exponent, nats per step")
    if not converged.all():
        ax.legend()
    return ax


def saturation_map(
    shares: Float[Array, "T *batch G"],
    axes: "Axes | None" = None,
    *,
    labels: Sequence[str] | None = None,
) -> "Axes":
    """Draw the share of saturated units by gate and step, on average over the batch.

    Args:
        shares: as `jaxrnn.diagnostics.saturation` returns them, `(T, *batch, G)`.
        axes: where to draw, the first gate at the bottom; new ones if None.
        labels: a name for each gate, such as `"ifgo"` for an LSTM.

    Returns:
        The axes, whose figure has a colour bar, too.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if an argument is of another kind.
        ValueError: if the shares have fewer than two dimensions or an empty one, or labels another
            number.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> shares = jnp.ones((50, 8, 4))
        >>> axes = jaxrnn.plots.saturation_map(shares, labels="ifgo")
    """
    values = _floats("shares", shares, "(T, *batch, gates)", least=2)
    values = values.mean(axis=tuple(range(1, values.ndim - 1)))
    names = _labels(labels, values.shape[1])
    image, ax = _image(values.T, axes, low=0.0, high=1.0)
    ax.figure.colorbar(image, ax=ax).set_label("share of units that are saturated")
    _name_rows(ax, names)
    ax.set_ylabel("gate")
    return ax


def gate_map(gates: GateStatistics, axes: "Axes | None" = None) -> "Axes":
    """Draw the mean forget gate by sequence and step.

    Args:
        gates: as `jaxrnn.diagnostics.gate_statistics` returns them.
        axes: where to draw, the batch's first sequence at the bottom; new ones if None.

    Returns:
        The axes, whose figure has a colour bar, too.

    Raises:
        ImportError: if matplotlib isn't installed and no axes are given.
        TypeError: if `gates` are no `GateStatistics`.
        ValueError: if they are of no steps or no sequences.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> ones = jnp.ones((50, 8))
        >>> gates = jaxrnn.diagnostics.GateStatistics(0.9 * ones, 9.5 * ones)
        >>> axes = jaxrnn.plots.gate_map(gates)
    """
    if not isinstance(gates, GateStatistics):
        raise TypeError(f"gates: got {_check.describe(gates)}, expected a GateStatistics")
    forget = _floats("gates.forget", gates.forget, "(T, *batch)")
    forget = forget.reshape(len(forget), -1)
    image, ax = _image(forget.T, axes, low=0.0, high=1.0)
    ax.figure.colorbar(image, ax=ax).set_label("forget gate, mean over the units")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("sequence")
    return ax


# How far a map of gradients looks down, and of how many lags each is marked.
_DECADES = 8.0
_FEW = 30


def _axes(axes: Any) -> Any:
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            message = "jaxrnn.plots needs matplotlib: pip install 'jaxrnn[plots]'"
            raise ImportError(message) from error
        return pyplot.subplots(layout="constrained")[1]
    if not hasattr(axes, "plot") or not hasattr(axes, "figure"):
        raise TypeError(f"axes: got {_check.describe(axes)}, expected matplotlib's")
    return axes


def _image(rows: np.ndarray, axes: Any, *, low: float, high: float) -> tuple[Any, Any]:
    """Draw an array with a step in each column; what isn't a number stays blank."""
    ax = _axes(axes)
    image = ax.imshow(
        rows, aspect="auto", origin="lower", interpolation="nearest", vmin=low, vmax=high
    )
    ax.set_xlabel("step")
    return image, ax


def _name_rows(ax: Any, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)


def _labels(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [str(number) for number in range(count)]
    if not isinstance(labels, Sequence | np.ndarray):
        raise TypeError(f"labels: got {_check.describe(labels)}, expected a sequence of names")
    if len(labels) != count:
        raise ValueError(f"labels: got {len(labels)}, expected {count}")
    return list(labels)


def _two_dimensions(name: str, value: Any, axes: str) -> np.ndarray:
    return _floats(name, value, axes, most=2).reshape(len(value), -1)


def _floats(
    name: str, value: Any, axes: str, *, least: int = 1, most: float = np.inf
) -> np.ndarray:
    """Return a floating array of some dimensions, none of them empty, in NumPy's float64."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: got {_check.describe(value)}, expected a floating array {axes}")
    if not least <= value.ndim <= most or 0 in value.shape:
        raise ValueError(f"{name}: got {_check.describe(value)}, expected an array {axes}")
    return np.asarray(value, np.float64)
