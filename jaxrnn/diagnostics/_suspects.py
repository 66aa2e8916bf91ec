"""What may be wrong with a cell whose gradient vanishes or explodes: evidence and remedies."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from jaxrnn._cell import Cell, SplitStep
from jaxrnn.cells import ElmanParams, elman
from jaxrnn.diagnostics._causes import gate_statistics, saturation
from jaxrnn.diagnostics._products import factors_of_state, with_products
from jaxrnn.diagnostics._tangents import Step, step_of, structure_of

Cause = Literal[
    "not finite",
    "no gradient",
    "flat activation",
    "input scale",
    "saturation",
    "spectral radius too small",
    "spectral radius too large",
    "forget bias too low",
    "closed gates",
    "length",
]

# Beyond these a quantity is evidence. What a cell starts with here is well within them: slope 1,
# parts of pre-activations with a root mean square near 1, radius 1, a forget gate of 0.73.
_FLAT = 0.3
_LARGE = 2.0
_SMALL_RADIUS, _LARGE_RADIUS = 0.8, 1.1
_LOW_FORGET = 0.55
# By how much less than the inputs move the pre-activations they must move the state to be kept out.
_UNMOVED = 1e-3


# What measures raise of a step that they can't look into: its products are within a loop, its units
# reach one another, as under layer normalisation, or its state has integers in it.
_OUT_OF_SIGHT = (TypeError, ValueError)


class Run(NamedTuple):
    """One run of a cell within a model, and a factor on its inputs."""

    cell: Cell | Step
    params: PyTree
    inputs: Array
    state: PyTree
    scale: float = 1.0


class Suspect(NamedTuple):
    """A possible cause with its evidence, and a remedy.

    `apply_remedy` is None where none can be tried.
    """

    cause: Cause
    evidence: str
    remedy: str
    apply_remedy: Callable[[Run], Run] | None


def suspects(run: Run, rate: float, *, explodes: bool) -> list[Suspect]:
    """Return the causes for which there is evidence, and last the sequence's mere length.

    Args:
        run: the cell, and what it was run on.
        rate: nats per step at which its gradient decays, going back.
        explodes: whether the gradient explodes, rather than vanishes.
    """
    split_step = structure_of(run.cell)
    forget = _forget_entries(run)
    found = []
    if not explodes:
        flat = _flat_units(run)
        found += _of_slope(run, split_step)
        found += _of_drive(run, split_step, flat)
        found += _of_bias(run, forget, flat)
    found += _of_kernel(run, explodes=explodes)
    if not explodes:
        found += _of_forget_gate(run, forget)
    return [*found, _length(run, rate, forget, explodes=explodes)]


def _of_slope(run: Run, split_step: SplitStep | None) -> list[Suspect]:
    slope = _steepest_slope(run, split_step)
    if not slope < _FLAT:
        return []
    steep = None
    if split_step is not None and isinstance(run.params, ElmanParams):
        size = len(run.params.recurrent_kernel)
        steep = elman(size, use_bias=run.params.bias is not None)
    return [
        Suspect(
            "flat activation",
            f"the activation's steepest slope is {slope:.2f}: a step keeps no more of the gradient "
            "than that times the recurrent kernel's norm",
            "an activation of slope 1, such as tanh",
            steep and (lambda run: run._replace(cell=steep)),
        )
    ]


def _of_drive(run: Run, split_step: SplitStep | None, flat: str) -> list[Suspect]:
    drive = _drive(run, split_step)
    if not drive > _LARGE:
        return []
    return [
        Suspect(
            "input scale",
            f"what the inputs add to the pre-activations has a root mean square of {drive:.3g}"
            f"{flat}",
            f"inputs (or an input kernel) divided by {drive:.3g}",
            lambda run: run._replace(scale=1 / drive),
        )
    ]


def _of_bias(run: Run, forget: np.ndarray, flat: str) -> list[Suspect]:
    bias = _field(run, "bias")
    if bias is None:
        return []
    other = np.broadcast_to(forget == 0, bias.shape)
    if not other.any():
        return []
    size = _root_mean_square(np.asarray(bias)[other])
    if not size > _LARGE:
        return []
    return [
        Suspect(
            "saturation",
            f"the biases have a root mean square of {size:.3g}{flat}",
            "biases of zero",
            lambda run: _with(run, "bias", jnp.where(other, 0, bias)),
        )
    ]


def _flat_units(run: Run) -> str:
    """Return how many units are saturated, to be added to the evidence."""
    try:
        share = float(jnp.mean(saturation(run.cell, run.params, run.inputs, run.state)))
    except _OUT_OF_SIGHT:
        return ""
    return f"; {share:.0%} of the units are saturated"


def _of_kernel(run: Run, *, explodes: bool) -> list[Suspect]:
    kernels = _recurrent_kernels(run)
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
    try:
        gates = gate_statistics(run.cell, run.params, run.inputs, run.state)
    except _OUT_OF_SIGHT:
        return []
    forget = float(jnp.mean(gates.forget))
    if not 0 < forget < _LOW_FORGET:
        return []
    evidence = (
        f"the forget gates are {forget:.2f} on average, a time constant of "
        f"{-1 / np.log(forget):.1f} steps against {len(run.inputs)}"
    )
    if not entries.any():
        return [Suspect("forget bias too low", evidence, "a bias that opens them", None)]
    return [Suspect("forget bias too low", evidence, *_chrono(run, entries))]


def unmoved(run: Run) -> tuple[str, str] | None:
    """Return evidence and remedy if inputs don't move the state, as where gates keep everything."""
    drive = _drive(run, structure_of(run.cell))
    if not drive > 0:
        return None
    states = [
        lax.scan(lambda state, x: 2 * (step_of(run.cell)(run.params, state, x)[0],), run.state, xs)
        for xs in (run.inputs, jnp.zeros_like(run.inputs))
    ]
    moved = _root_mean_square(jax.tree.map(jnp.subtract, states[0][1], states[1][1]))
    if not moved < _UNMOVED * min(drive, 1.0):
        return None
    return (
        f"inputs that change the pre-activations by {drive:.3g} change the state by {moved:.3g}",
        "biases that let the gates open, such as zero",
    )


def _length(run: Run, rate: float, forget: np.ndarray, *, explodes: bool) -> Suspect:
    """Return the suspect that is left where the cell itself is in order."""
    length = len(run.inputs)
    evidence = (
        f"no fault was found in the cell, but a factor of {np.exp(-rate):.3g} a step, over "
        f"{length} steps, is too {'much' if explodes else 'little'}"
    )
    if np.isnan(rate):
        evidence = "the state does not depend on the one before, so no gradient passes a step"
    if forget.any() and not explodes:
        return Suspect("length", evidence, *_chrono(run, forget))
    kernel = _field(run, "recurrent_kernel")
    if kernel is None or not np.isfinite(rate):
        return Suspect("length", evidence, "shorter sequences, or a split-step cell", None)
    gain = float(np.clip(np.exp(rate), 0.5, 2.0))
    return Suspect(
        "length",
        evidence,
        f"a recurrent kernel scaled by {gain:.3g}"
        + (
            ", and clip_norm in jaxrnn.fit"
            if explodes
            else "; or a split-step cell, with chrono biases"
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
    bias = np.array(_field(run, "bias"))
    bias[chosen] = entries[chosen] * np.log(times)
    return (
        f"forget biases of jaxrnn.initializers.chrono({length})",
        lambda run: _with(run, "bias", jnp.asarray(bias)),
    )


def _orthogonalised(run: Run) -> Run:
    """Replace each recurrent kernel by the orthogonal matrix that is nearest to it."""
    nearest = []
    for kernel in _recurrent_kernels(run) or []:
        left, _, right = np.linalg.svd(kernel)
        nearest.append(left @ right)
    old = _field(run, "recurrent_kernel")
    return _with(run, "recurrent_kernel", jnp.asarray(np.concatenate(nearest, -1), old.dtype))


def _drive(run: Run, split_step: SplitStep | None) -> float:
    """Return the root mean square of what the inputs add to the pre-activations.

    Of a step that shows no structure those are the matrix products of its inputs, from rest.
    """
    rest = jax.tree.map(jnp.zeros_like, run.state)

    def products(inputs: Array) -> list[Array]:
        return _products(lambda inputs: step_of(run.cell)(run.params, rest, inputs)[0], inputs)

    project = (
        functools.partial(split_step.project, run.params) if split_step else jax.vmap(products)
    )
    try:
        resting, driven = project(jnp.zeros_like(run.inputs[:1])), project(run.inputs)
    except _OUT_OF_SIGHT:
        return 0.0
    return _root_mean_square(jax.tree.map(jnp.subtract, driven, resting))


def _products(function: Callable[[PyTree], PyTree], at: PyTree) -> list[Array]:
    found = []

    def record(product: Array) -> Array:
        found.append(product)
        return product

    with_products(function, record)(at)
    return found


def _steepest_slope(run: Run, split_step: SplitStep | None) -> float:
    """Return the largest derivative of a cell's only activation.

    Infinity, which is beyond suspicion, if it has several, or another way for the state to go on.
    """
    state, inputs = jax.tree.map(jnp.zeros_like, (run.state, run.inputs[0]))
    if split_step is not None:
        projected = jax.tree.map(jnp.zeros_like, split_step.project(run.params, inputs))
        products = jax.tree.leaves(split_step.product(run.params, state, projected))

        def new_state(total: Array) -> PyTree:
            recurrent = split_step.product(run.params, state, projected)
            same = jax.tree.map(lambda leaf: jnp.full_like(leaf, total), recurrent)
            gates = split_step.combine(projected, same)
            return split_step.activate(run.params, state, gates)[0]

    else:

        def advance(state: PyTree) -> PyTree:
            return step_of(run.cell)(run.params, state, inputs)[0]

        def new_state(total: Array) -> PyTree:
            return with_products(advance, lambda product: jnp.full_like(product, total))(state)

        try:
            products = _products(advance, state)
        except _OUT_OF_SIGHT:
            return np.inf

    widths = [product.shape[-1] for product in products]
    if widths != [leaf.shape[-1] for leaf in jax.tree.leaves(state)] or _keeps(run):
        return np.inf

    def slope(total: Array) -> Array:
        _, tangent = jax.jvp(new_state, (total,), (jnp.ones_like(total),))
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tangent)]))

    totals = jnp.linspace(-8, 8, 161, dtype=run.inputs.dtype)
    try:
        return float(jnp.max(jax.vmap(slope)(totals)))
    except _OUT_OF_SIGHT:
        return np.inf


def _keeps(run: Run) -> bool:
    """Say whether a part of the state goes on without passing an activation."""
    try:
        gates = gate_statistics(run.cell, run.params, run.inputs[:1], run.state)
    except _OUT_OF_SIGHT:
        return True
    return bool((gates.forget > 0).any())


def _forget_entries(run: Run) -> np.ndarray:
    """Return 1 where an entry of the bias opens forget gates, -1 where it closes them, else 0.

    With all parameters zero the forget gates depend on nothing but their own bias.
    """
    place = _place(run, "bias")
    if place is None:
        return np.zeros(())
    nothing = jax.tree.map(jnp.zeros_like, run.params)

    def forget(bias: Array) -> Array:
        params = _replaced(nothing, place, bias)
        state = jax.tree.map(jnp.zeros_like, run.state)
        gates = gate_statistics(run.cell, params, jnp.zeros_like(run.inputs[:1]), state)
        return jnp.mean(gates.forget)

    try:
        slopes = jax.jit(jax.grad(forget))(jnp.zeros_like(jax.tree.leaves(run.params)[place]))
    except _OUT_OF_SIGHT:
        return np.zeros(())
    return np.sign(np.nan_to_num(slopes))


def _root_mean_square(tree: PyTree) -> float:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return 0.0
    return float(np.sqrt(np.mean(np.square(np.concatenate(leaves)))))


def _recurrent_kernels(run: Run) -> list[np.ndarray] | None:
    """Return the recurrent kernel of each gate, if there is one parameter that holds them."""
    kernel = _field(run, "recurrent_kernel")
    if kernel is None or kernel.ndim != 2 or kernel.shape[1] % kernel.shape[0]:
        return None
    return np.split(np.asarray(kernel, np.float64), kernel.shape[1] // kernel.shape[0], axis=-1)


def _place(run: Run, name: str) -> int | None:
    """Return which leaf of the parameters is the recurrent kernel, or the bias, if it is just one.

    It is the one of that name, however deep it is. Parameters with other names are known by their
    use: the recurrent kernel is what the state is multiplied with, and the bias is a vector with a
    number for each of its columns.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(run.params)]
    keys = [
        getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
        for path in paths
    ]
    if name in keys:
        return keys.index(name) if keys.count(name) == 1 else None
    step = step_of(run.cell)
    places = factors_of_state(
        lambda params, state: step(params, state, run.inputs[0])[0], run.params, run.state
    )
    if len(places) == 1 and name == "bias":
        leaves = jax.tree.leaves(run.params)
        columns = leaves[places[0]].shape[-1:]
        places = [place for place, leaf in enumerate(leaves) if leaf.shape == columns]
    return places[0] if len(places) == 1 else None


def _field(run: Run, name: str) -> Any:
    """Return the parameter of a name, None if there is none."""
    place = _place(run, name)
    return None if place is None else jax.tree.leaves(run.params)[place]


def _replaced(params: PyTree, place: int, value: Array) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    new = [value if number == place else leaf for number, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, new)


def _with(run: Run, name: str, value: Array) -> Run:
    place: Any = _place(run, name)
    old = jax.tree.leaves(run.params)[place]
    return run._replace(params=_replaced(run.params, place, value.astype(old.dtype)))
