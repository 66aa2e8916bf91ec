"""What may be wrong with a cell whose gradient dies or explodes: evidence and remedies."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxrnn._cell import Cell, Gated
from jaxrnn.cells import ElmanParams, elman
from jaxrnn.diagnostics._causes import gate_statistics, saturation
from jaxrnn.diagnostics._tangents import Step

Cause = Literal[
    "not finite",
    "no gradient",
    "flat activation",
    "input scale",
    "saturation",
    "spectral radius too small",
    "spectral radius too large",
    "forget bias too low",
    "length",
]

# Beyond these a quantity is evidence. What a cell starts with here is well within them: slope 1,
# parts of pre-activations with a root mean square near 1, radius 1, a forget gate of 0.73.
_FLAT = 0.3
_LARGE = 2.0
_SMALL_RADIUS, _LARGE_RADIUS = 0.8, 1.1
_LOW_FORGET = 0.55


class Run(NamedTuple):
    """One run of a cell within a model, and a factor on its inputs."""

    cell: Cell | Step
    params: PyTree
    inputs: Array
    state: PyTree
    scale: float = 1.0


class Suspect(NamedTuple):
    """A possible cause with its evidence, and a remedy; `mend` is None where none can be tried."""

    cause: Cause
    evidence: str
    remedy: str
    mend: Callable[[Run], Run] | None


def suspects(run: Run, rate: float, *, explodes: bool) -> list[Suspect]:
    """Return the causes for which there is evidence, and last the sequence's mere length.

    Args:
        run: the cell, and what it was run on.
        rate: nats per step at which its gradient decays, going back.
        explodes: whether the gradient explodes, rather than dies.
    """
    gated = run.cell.structure if isinstance(run.cell, Cell) else None
    found = []
    if gated is not None and not explodes:
        found += _of_activations(run, gated)
    found += _of_kernel(run, explodes=explodes)
    forget = _forget_entries(run) if gated is not None else np.zeros(())
    if forget.any() and not explodes:
        found += _of_forget_gate(run, forget)
    return [*found, _length(run, rate, forget, explodes=explodes)]


def _of_activations(run: Run, gated: Gated) -> list[Suspect]:
    found = []
    slope = _steepest_slope(run, gated)
    if slope < _FLAT:
        steep = None
        if isinstance(run.params, ElmanParams):
            size = len(run.params.recurrent_kernel)
            steep = elman(size, use_bias=run.params.bias is not None)
        found.append(
            Suspect(
                "flat activation",
                f"the activation's steepest slope is {slope:.2f}: a step keeps no more of the "
                "gradient than that times the recurrent kernel's norm",
                "an activation of slope 1, such as tanh",
                steep and (lambda run: run._replace(cell=steep)),
            )
        )
    share = float(jnp.mean(saturation(run.cell, run.params, run.inputs, run.state)))  # pyright: ignore[reportArgumentType]
    flat = f"; {share:.0%} of the units are saturated"
    resting = gated.project(run.params, jnp.zeros_like(run.inputs[:1]))
    driven = gated.project(run.params, run.inputs)
    drive = _root_mean_square(jax.tree.map(jnp.subtract, driven, resting))
    if drive > _LARGE:
        found.append(
            Suspect(
                "input scale",
                f"what the inputs add to the pre-activations has a root mean square of {drive:.3g}"
                f"{flat}",
                f"inputs (or an input kernel) divided by {drive:.3g}",
                lambda run: run._replace(scale=1 / drive),
            )
        )
    bias = _field(run.params, "bias")
    if bias is not None:
        other = ~_forget_entries(run).astype(bool)
        size = _root_mean_square(bias[other]) if other.any() else 0.0
        if size > _LARGE:
            found.append(
                Suspect(
                    "saturation",
                    f"the biases have a root mean square of {size:.3g}{flat}",
                    "biases of zero",
                    lambda run: _with(run, "bias", jnp.where(other, 0, bias)),
                )
            )
    return found


def _of_kernel(run: Run, *, explodes: bool) -> list[Suspect]:
    kernels = _recurrent_kernels(run.params)
    if kernels is None:
        return []
    radius = max(float(np.abs(np.linalg.eigvals(kernel)).max()) for kernel in kernels)
    evidence = f"the recurrent kernel's spectral radius is {radius:.3g}"
    remedy = "an orthogonal recurrent kernel, jaxrnn.initializers.orthogonal()"
    if radius > _LARGE_RADIUS:
        if explodes:
            remedy += ", and until then clip_norm in jaxrnn.fit"
        return [Suspect("spectral radius too large", evidence, remedy, _orthogonalised)]
    if radius < _SMALL_RADIUS and not explodes:
        return [Suspect("spectral radius too small", evidence, remedy, _orthogonalised)]
    return []


def _of_forget_gate(run: Run, entries: np.ndarray) -> list[Suspect]:
    gates = gate_statistics(run.cell, run.params, run.inputs, run.state)  # pyright: ignore[reportArgumentType]
    forget = float(jnp.mean(gates.forget))
    if forget >= _LOW_FORGET:
        return []
    evidence = (
        f"the forget gates are {forget:.2f} on average, a time constant of "
        f"{-1 / np.log(max(forget, 1e-30)):.1f} steps against {len(run.inputs)}"
    )
    return [Suspect("forget bias too low", evidence, *_chrono(run, entries))]


def _length(run: Run, rate: float, forget: np.ndarray, *, explodes: bool) -> Suspect:
    """Return the suspect that is left where the cell itself is in order."""
    length = len(run.inputs)
    evidence = (
        f"nothing is wrong with the cell, but a factor of {np.exp(-rate):.3g} a step, over "
        f"{length} steps, is too {'much' if explodes else 'little'}"
    )
    if forget.any() and not explodes:
        return Suspect("length", evidence, *_chrono(run, forget))
    kernel = _field(run.params, "recurrent_kernel")
    if kernel is None or not np.isfinite(rate):
        return Suspect("length", evidence, "shorter sequences, or a gated cell", None)
    gain = float(np.clip(np.exp(rate), 0.5, 2.0))
    return Suspect(
        "length",
        evidence,
        f"a recurrent kernel scaled by {gain:.3g}"
        + (
            ", and clip_norm in jaxrnn.fit" if explodes else "; or a gated cell, with chrono biases"
        ),
        lambda run: _with(run, "recurrent_kernel", gain * kernel),
    )


def _chrono(run: Run, entries: np.ndarray) -> tuple[str, Callable[[Run], Run]]:
    """Return the remedy of forget biases for all time constants up to the sequence's length.

    They are the quantiles of what `initializers.chrono` draws.
    """
    length = max(len(run.inputs), 3)
    chosen = entries != 0
    times = np.linspace(1, length - 1, int(chosen.sum()))
    bias = np.array(_field(run.params, "bias"))
    bias[chosen] = entries[chosen] * np.log(times)
    return (
        f"forget biases of jaxrnn.initializers.chrono({length})",
        lambda run: _with(run, "bias", jnp.asarray(bias)),
    )


def _orthogonalised(run: Run) -> Run:
    """Replace each recurrent kernel by the orthogonal matrix that is nearest to it."""
    nearest = []
    for kernel in _recurrent_kernels(run.params) or []:
        left, _, right = np.linalg.svd(kernel)
        nearest.append(left @ right)
    old = _field(run.params, "recurrent_kernel")
    return _with(run, "recurrent_kernel", jnp.asarray(np.concatenate(nearest, -1), old.dtype))


def _steepest_slope(run: Run, gated: Gated) -> float:
    """Return the largest derivative of a cell's only activation, infinity if it has several."""
    state = jax.tree.map(jnp.zeros_like, run.state)
    recurrent = gated.recur(run.params, state)
    if len(jax.tree.leaves(recurrent)) > 1 or _forget_entries(run).any():
        return np.inf
    projected = jax.tree.map(jnp.zeros_like, gated.project(run.params, run.inputs[0]))

    def new_state(total: Array) -> PyTree:
        same = jax.tree.map(lambda leaf: jnp.full_like(leaf, total), recurrent)
        return gated.activate(run.params, state, projected, same)[0]

    def slope(total: Array) -> Array:
        _, tangent = jax.jvp(new_state, (total,), (jnp.ones_like(total),))
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tangent)]))

    totals = jnp.linspace(-8, 8, 161, dtype=run.inputs.dtype)
    return float(jnp.max(jax.vmap(slope)(totals)))


def _forget_entries(run: Run) -> np.ndarray:
    """Return 1 where an entry of the bias opens forget gates, -1 where it closes them, else 0.

    With all parameters zero the forget gates depend on nothing but their own bias.
    """
    bias = _field(run.params, "bias")
    if bias is None:
        return np.zeros(())
    nothing = jax.tree.map(jnp.zeros_like, run.params)

    def forget(bias: Array) -> Array:
        params = _replaced(nothing, "bias", bias)
        state = jax.tree.map(jnp.zeros_like, run.state)
        gates = gate_statistics(run.cell, params, jnp.zeros_like(run.inputs[:1]), state)  # pyright: ignore[reportArgumentType]
        return jnp.mean(gates.forget)

    return np.sign(np.nan_to_num(jax.jit(jax.grad(forget))(jnp.zeros_like(bias))))


def _root_mean_square(tree: PyTree) -> float:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(leaves)))))


def _recurrent_kernels(params: PyTree) -> list[np.ndarray] | None:
    """Return the recurrent kernel of each gate, if the parameters have a field of that name."""
    kernel = _field(params, "recurrent_kernel")
    if kernel is None or kernel.ndim != 2 or kernel.shape[1] % kernel.shape[0]:
        return None
    return np.split(np.asarray(kernel, np.float64), kernel.shape[1] // kernel.shape[0], axis=-1)


def _field(params: PyTree, name: str) -> Any:
    """Return a field of a dictionary, a NamedTuple or a dataclass, None if there is none."""
    if isinstance(params, Mapping):
        return params.get(name)
    replaceable = hasattr(params, "_replace") or dataclasses.is_dataclass(params)
    return getattr(params, name, None) if replaceable else None


def _replaced(params: PyTree, name: str, value: Array) -> PyTree:
    if isinstance(params, Mapping):
        return {**params, name: value}
    if dataclasses.is_dataclass(params):
        return dataclasses.replace(params, **{name: value})  # pyright: ignore[reportArgumentType]
    return params._replace(**{name: value})


def _with(run: Run, name: str, value: Array) -> Run:
    old = _field(run.params, name)
    return run._replace(params=_replaced(run.params, name, value.astype(old.dtype)))
