"""What a report consists of, and the page that it prints."""

import textwrap
from typing import Literal, NamedTuple

import numpy as np

from jaxrnn.diagnostics._horizon import GradientHorizon
from jaxrnn.diagnostics._suspects import Cause

Verdict = Literal["reaches", "vanishes", "explodes", "no gradient"]

_WIDTH = 60
_LEVELS = " .:-=+*#@"


class LayerReport(NamedTuple):
    """How the gradient goes back through one recurrent layer.

    Attributes:
        name: the cell's.
        norms: the gradient's norm at the layer's whole state, `(T,)` up to the last step whose
            output the loss heeds.
        horizon: of these norms.
        verdict: "vanishes" if the horizon is within the sequence, "explodes" if the norm grows as
            much as it would fall there, or beyond what the dtype holds, "no gradient" if none
            arrives from above, else "reaches".
    """

    name: str
    norms: np.ndarray
    horizon: GradientHorizon
    verdict: Verdict


class Finding(NamedTuple):
    """What is wrong with one recurrent layer, and what a remedy changed.

    Attributes:
        layer: which of the report's layers; None for the whole model.
        cause: the likely cause.
        evidence: what speaks for it.
        remedy: what to try.
        before: the layer's horizon as it is; None where nothing could be measured.
        after: its horizon with the remedy; None where it couldn't be tried.
    """

    layer: int | None
    cause: Cause
    evidence: str
    remedy: str
    before: GradientHorizon | None = None
    after: GradientHorizon | None = None


class GradientReport(NamedTuple):
    """What `report` found; as a string it is the page.

    Attributes:
        steps: T, up to the last step whose output the loss heeds.
        layers: a `LayerReport` for each cell, in the order in which the model runs them.
        findings: a `Finding` for each that is in trouble, the worst first; none if all is well.
    """

    steps: int
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]

    @property
    def cause(self) -> Cause | None:
        """The worst finding's cause, None if all is well."""
        return self.findings[0].cause if self.findings else None

    def __str__(self) -> str:
        return "\n".join(_page(self))


def _page(report: GradientReport) -> list[str]:
    lines = [f"Gradient report, {_count(report.steps, 'step')}", ""]
    if report.layers:
        lines += [*_table(report), "", *_map(report), ""]
    if not report.findings:
        return [*lines, "The gradient reaches the first step in every recurrent layer."]
    for finding in report.findings:
        where = "the model" if finding.layer is None else _title(report, finding.layer)
        lines.append(f"{where}: {finding.cause}")
        lines += _paragraph("evidence", finding.evidence)
        lines += _paragraph("remedy", finding.remedy)
        if finding.before is not None and finding.after is not None:
            before, after = (_horizon_text(each) for each in (finding.before, finding.after))
            lines += _paragraph("tried", f"horizon {before} before; {after} with it")
        lines.append("")
    return lines[:-1]


def _paragraph(title: str, text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"  {title:<10}", subsequent_indent=" " * 12)


def _count(number: float, what: str) -> str:
    return f"{number:.0f} {what}{'s' * (number != 1)}"


def _title(report: GradientReport, number: int) -> str:
    return f"layer {number} ({report.layers[number].name})"


def _horizon_text(horizon: GradientHorizon) -> str:
    steps, rate = float(horizon.steps), float(horizon.decay_rate)
    reach = "none" if np.isnan(steps) else "all" if np.isinf(steps) else _count(steps, "step")
    return reach if np.isnan(rate) else f"{reach}, x {np.exp(-rate):.3g} a step"


def _table(report: GradientReport) -> list[str]:
    rows = [("layer", "norm at the end", "at the start", "horizon", "")]
    for number, layer in enumerate(report.layers):
        rows.append(
            (
                f"{number} {layer.name}",
                f"{layer.norms[-1]:.3g}",
                f"{layer.norms[0]:.3g}",
                _horizon_text(layer.horizon),
                layer.verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _map(report: GradientReport) -> list[str]:
    """Draw each layer's norms as characters, one for each factor of 10 below the end's."""
    lines = [
        f"first step to last, '{_LEVELS[-1]}' as at the end, each of '{_LEVELS[-2:0:-1]}' 10 times "
        "less, '^' 10 times more"
    ]
    for number, layer in enumerate(report.layers):
        places = np.linspace(0, len(layer.norms) - 1, min(_WIDTH, len(layer.norms))).round()
        with np.errstate(divide="ignore", invalid="ignore"):
            decades = np.log10(layer.norms[places.astype(int)] / layer.norms[-1])
        lines.append(f"{number} |" + "".join(_character(decade) for decade in decades) + "|")
    return lines


def _character(decades: float) -> str:
    if np.isnan(decades):
        return "?"
    if decades >= 1:
        return "^"
    # Rounding must not make a norm that stays look as if it fell.
    return _LEVELS[int(np.clip(np.ceil(decades - 1e-3), 1 - len(_LEVELS), 0)) - 1]
