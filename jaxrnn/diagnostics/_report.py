"""The report: where a model's gradient dies or explodes, why, and what a remedy changes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxrnn import _check
from jaxrnn._dtypes import at_least_float32_dtype
from jaxrnn.diagnostics._format import Finding, GradientReport, LayerReport, Verdict
from jaxrnn.diagnostics._gradients import gradient_norms
from jaxrnn.diagnostics._horizon import GradientHorizon, gradient_horizon
from jaxrnn.diagnostics._model import Model, as_layer, check_model, run_model, scan
from jaxrnn.diagnostics._suspects import Run, Suspect, suspects, unmoved
from jaxrnn.diagnostics._tangents import finite
from jaxrnn.layers import Layer

# A remedy counts if it makes the horizon, or the time in which a gradient explodes, longer by this.
_HELPS = 1.3
# A loss of outputs below this has no excuse for overflowing: even their squares are finite.
_SQUARES = 1e18


def report(
    loss: Callable[[Any], Float[Array, ""]],
    cell: Model,
    params: PyTree,
    inputs: Shaped[Array, "T *batch"],
    state: PyTree | None = None,
    *,
    fraction: float = 0.01,
    write: Callable[[str], Any] | None = print,
) -> GradientReport:
    """Say where a model's gradient dies or explodes, why, and what a remedy would change.

    The loss's gradient with respect to the last output that it heeds is sent back through time, and
    its norm at each layer's state tells how far it gets. For a layer where it falls below
    `fraction` of what it is at the end, or grows as much, the likely causes are looked for in the
    cell itself: parameters, inputs and activations; for each with evidence its remedy is applied to
    the layer's parameters, and the gradient measured again. The cause is the one whose remedy helps
    most, and where none does, or there is no evidence of any, the sequence's length.

    Every path counts: a layer that forgets is none the worse if the layers above it remember.

    It is no function to trace: it looks at numbers, and compiles a few programs.

    Args:
        loss: `outputs -> scalar`, of the model's outputs.
        cell: the model: a layer such as `jaxrnn.serial(...)`, a cell, or a bare step.
        params: its parameters.
        inputs: a batch of sequences, time-major, as the model takes them.
        state: the state before the first step; the initial one if None.
        fraction: of the gradient at the end, below which it counts as dead.
        write: where the page goes, such as a logger's `info`; None for nowhere.

    Returns:
        A `GradientReport`. Memory is O(T), as for the gradient.

    Raises:
        TypeError: as `state_gradients`, or if `fraction` is no number, or arrays are traced.
        ValueError: as `state_gradients`, but not for parameters or inputs that aren't finite, which
            is a finding; or if there are no steps, or a layer runs backwards in time.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.elman(8, recurrent_init=jaxrnn.initializers.orthogonal(0.3))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> found = jaxrnn.diagnostics.report(
        ...     lambda outputs: outputs[-1].sum(), cell, params, 0.1 * jnp.ones((30, 3)), write=None
        ... )
        >>> found.cause
        'spectral radius too small'
        >>> int(found.findings[0].before.steps), float(found.findings[0].after.steps)
        (4, inf)

    References:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
        2013; Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018 (the remedy for
        forget gates).
    """
    _check.function("loss", loss)
    if write is not None:
        _check.function("write", write)
    fraction = _check.number("fraction", fraction, low=0.0, high=1.0)
    for name, tree in (("params", params), ("inputs", inputs), ("state", state)):
        _check.untraced(name, tree, "report")
    found = _not_finite(params, inputs, state)
    if found is None:
        check_model(cell, params, inputs, state)
        found = _examine(loss, as_layer(cell), params, inputs, state, fraction)
    if write is not None:
        write(str(found))
    return found


def _not_finite(params: PyTree, inputs: Array, state: PyTree | None) -> GradientReport | None:
    for name, tree in (("params", params), ("inputs", inputs), ("state", state)):
        try:
            finite(name, tree)
        except ValueError as error:
            remedy = "parameters from before, and clip_norm in jaxrnn.fit"
            if name == "inputs":
                remedy = "a look at the data"
            return GradientReport(
                len(inputs), (), (Finding(None, "not finite", str(error), remedy),)
            )
    return None


def _examine(
    loss: Callable[[Any], Array],
    model: Layer,
    params: PyTree,
    inputs: Array,
    state: PyTree | None,
    fraction: float,
) -> GradientReport:
    runs, outputs = _runs(model, params, inputs, state)
    steps = len(runs[0].inputs)
    timed = _timed(model, params, inputs, state, outputs)
    value, gradient = jax.value_and_grad(lambda outputs: _check.scalar("loss", loss(outputs)))(
        outputs
    )
    if not _are_moderate((value, gradient), np.inf) and _are_moderate(outputs, _SQUARES):
        evidence = (
            f"the loss is {value:.3g}, and it or its derivative isn't finite for such outputs"
        )
        remedy = "a look at the loss"
        return GradientReport(steps, (), (Finding(None, "not finite", evidence, remedy),))
    last = _last_heeded(gradient, timed, steps)
    if last is None:
        evidence = "the loss's derivative with respect to every output is 0"
        remedy = "a loss that depends on the outputs"
        return GradientReport(steps, (), (Finding(None, "no gradient", evidence, remedy),))

    def norms(params_and_scales, cells):
        changed = [
            run._replace(cell=cell, params=params, scale=scale)
            for run, cell, (params, scale) in zip(runs, cells, params_and_scales, strict=True)
        ]
        at_last = _at_step(loss, last, timed)
        substituted = _substituted(model, changed)
        return gradient_norms(at_last, substituted, params, inputs, state, part=None)

    compiled = jax.jit(norms, static_argnums=1)

    def measure(runs: list[Run]) -> np.ndarray:
        """Return the norms `(T, L)` with the given cells, parameters and scales."""
        arguments = [(run.params, run.scale) for run in runs]
        measured = compiled(arguments, tuple(run.cell for run in runs))[: last + 1]
        # NumPy knows no 16 bits but float16.
        return np.asarray(measured, at_least_float32_dtype(measured.dtype))

    before = measure(runs)
    layers = tuple(
        _layer_report(run, column, fraction) for run, column in zip(runs, before.T, strict=True)
    )
    findings = []
    for number, layer in enumerate(layers):
        if layer.verdict == "no gradient":
            evidence = "what stands between this layer and the loss has a derivative of 0"
            findings.append(Finding(number, "no gradient", evidence, "a look at the layers above"))
        elif layer.verdict != "reaches":

            def after(repaired: Run, number: int = number) -> np.ndarray:
                return measure([*runs[:number], repaired, *runs[number + 1 :]])[:, number]

            findings.append(_find(number, layer, runs[number], after, fraction))
        elif (evident := unmoved(runs[number])) is not None:
            findings.append(Finding(number, "closed gates", *evident))
    findings.sort(key=lambda finding: _severity(finding, layers))
    return GradientReport(last + 1, layers, tuple(findings))


def _runs(model: Layer, params: PyTree, inputs: Array, state: PyTree) -> tuple[list[Run], Any]:
    """Return what each cell of a model is run on, and the model's outputs."""
    runs = []

    def record(cell, params, inputs, state, *, reverse):
        if reverse:
            raise ValueError("cell: got a layer that runs backwards, expected all to run forwards")
        runs.append(Run(cell, params, inputs, state))
        return scan(cell, params, inputs, state)

    outputs = run_model(model, params, inputs, state, record)
    if not runs:
        raise ValueError(f"cell: got {model.name}, expected a layer that unrolls a cell")
    if len(runs[0].inputs) == 0:
        raise ValueError(f"inputs: got {_check.describe(inputs)}, expected at least one step")
    return runs, outputs


def _substituted(model: Layer, runs: list[Run]) -> Layer:
    """Return a model with other cells and parameters, and its cells' inputs scaled."""

    def apply(params: Any, state: Any, inputs: Any, *, unroll: Any, **others: Any) -> Any:
        remaining = iter(runs)

        def substitute(cell, params, inputs, state=None, **options):
            del cell, params
            run = next(remaining)
            return unroll(run.cell, run.params, run.scale * inputs, state, **options)

        return model.apply(params, state, inputs, unroll=substitute, **others)

    return dataclasses.replace(model, apply=apply)


def _timed(model: Layer, params: PyTree, inputs: Array, state: PyTree, outputs: Any) -> Any:
    """Say which outputs have an entry for each step: those that one step more makes longer."""
    longer = jax.eval_shape(
        lambda: run_model(model, params, jnp.concatenate([inputs, inputs[:1]]), state, scan)
    )
    return jax.tree.map(lambda short, long: short.shape != long.shape, outputs, longer)


def _last_heeded(gradient: Any, timed: Any, steps: int) -> int | None:
    """Return the last step whose output has any effect on the loss, None if there is none."""
    last = -1
    for leaf, has_time in zip(jax.tree.leaves(gradient), jax.tree.leaves(timed), strict=True):
        # What isn't a number isn't 0 either.
        heeded = np.asarray(leaf != 0)
        if has_time:
            places = np.flatnonzero(heeded.any(axis=tuple(range(1, leaf.ndim))))
            last = max(last, *places, -1)
        elif heeded.any():
            last = steps - 1
    return None if last < 0 else int(last)


def _are_moderate(tree: Any, limit: float) -> bool:
    """Say whether all numbers are below a limit; what isn't a number isn't."""
    return all(bool((jnp.abs(leaf) < limit).all()) for leaf in jax.tree.leaves(tree))


def _at_step(loss: Callable[[Any], Array], step: int, timed: Any) -> Callable[[Any], Array]:
    """Return a loss whose gradient is the given loss's, but for the outputs of one step only."""

    def at_step(outputs: Any) -> Array:
        gradient = lax.stop_gradient(jax.grad(loss)(outputs))

        def product(output: Array, slope: Array, has_time: bool) -> Array:
            if has_time:
                return jnp.vdot(slope[step], output[step])
            return jnp.vdot(slope, output)

        products = jax.tree.leaves(jax.tree.map(product, outputs, gradient, timed))
        return functools.reduce(jnp.add, products)

    return at_step


def _layer_report(run: Run, norms: np.ndarray, fraction: float) -> LayerReport:
    name = getattr(run.cell, "name", "step")
    return LayerReport(name, norms, _horizon(norms, fraction), _verdict(norms, fraction))


def _horizon(norms: np.ndarray, fraction: float) -> GradientHorizon:
    """Return the horizon of the steps at the end whose norms are finite."""
    broken = np.flatnonzero(~np.isfinite(norms))
    norms = norms[broken[-1] + 1 if broken.size else 0 :]
    if norms.size == 0 or norms[-1] == 0:
        return GradientHorizon(np.float32(np.nan), np.float32(np.nan), np.float32(np.inf))  # pyright: ignore[reportArgumentType]
    return jax.tree.map(np.asarray, gradient_horizon(jnp.asarray(norms), fraction))


def _verdict(norms: np.ndarray, fraction: float) -> Verdict:
    if norms[-1] == 0:
        return "no gradient"
    if not np.isfinite(norms).all() or norms.max() * fraction > norms[-1]:
        return "explodes"
    return "vanishes" if norms.min() < fraction * norms[-1] else "reaches"


def _find(
    number: int,
    layer: LayerReport,
    run: Run,
    measure: Callable[[Run], np.ndarray],
    fraction: float,
) -> Finding:
    """Return the suspect whose remedy helps most; only then is a sequence just too long."""
    explodes = layer.verdict == "explodes"
    *evident, length = suspects(run, float(layer.horizon.decay_rate), explodes=explodes)
    reach = functools.partial(_reach, fraction=fraction, explodes=explodes)
    before = reach(layer.norms)

    def tried(suspect: Suspect) -> tuple[float, Finding]:
        finding = Finding(number, *suspect[:3], layer.horizon)
        if suspect.apply_remedy is None:
            return 1.0, finding
        norms = measure(suspect.apply_remedy(run))
        return reach(norms) / before, finding._replace(after=_horizon(norms, fraction))

    trials = [tried(suspect) for suspect in evident]
    best = max(trials, key=lambda trial: trial[0], default=None)
    if best is not None and best[0] > _HELPS:
        return best[1]
    # Evidence whose remedy couldn't be tried stands; evidence whose remedy is of no use doesn't, if
    # another helps.
    untried = [finding for _, finding in trials if finding.after is None]
    gain, finding = tried(length)
    return [*untried, *(trial[1] for trial in trials if gain <= _HELPS), finding][0]


def _reach(norms: np.ndarray, *, fraction: float, explodes: bool) -> float:
    """Return how many steps back the norm stays within the fraction and its inverse.

    What explodes is repaired where it does so no more, however soon it dies.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norms[::-1] / norms[-1])
    logs = logs if explodes else np.abs(logs)
    # Not a number is not within it, either.
    outside = ~(logs <= -np.log(max(fraction, 1e-300)))
    if not outside.any():
        # The flatter, the better, beyond the sequence's start.
        return len(norms) * (1 + 1 / (1 + np.abs(logs).max()))
    return max(int(outside.argmax()), 1)


def _severity(finding: Finding, layers: tuple[LayerReport, ...]) -> tuple:
    """Sort explosions first, then by the horizon; a layer without gradient is not the culprit."""
    layer = layers[finding.layer or 0]
    order: dict[str, int] = {"explodes": 0, "vanishes": 1, "reaches": 2, "no gradient": 3}
    return order[layer.verdict], float(np.nan_to_num(layer.horizon.steps))
