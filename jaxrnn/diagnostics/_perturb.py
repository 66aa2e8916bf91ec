"""A cell's step with hooks on its new state, found in the step's own jaxpr.

The total derivative with respect to a state needs every path that leaves it: into the next step,
and into this step's own output. Outputs are computed from the new state inside `step`, so the state
has to be disturbed there, at the place where it is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex_core
from jaxtyping import Array, PyTree

from jaxrnn._jaxpr import WRAPPERS, evaluate_one, inner_jaxpr, inner_jaxprs


def perturb_state(step: Callable[..., Any], parts: Sequence[int]) -> Callable[..., Any]:
    """Return a step that takes, last, arrays to add to parts of the new state where they are made.

    Args:
        step: `(params, state, inputs) -> (state, output)`.
        parts: which leaves of the new state to disturb.

    Returns:
        `(params, state, inputs, perturbations) -> (state, output)`, with a perturbation for each of
        `parts`. All that `step` computes from such a part of the new state, be it the output or
        another part, is computed from the disturbed one. It raises a ValueError where these paths
        can't be seen, as inside of a `lax.cond`.
    """

    def perturbed(params: PyTree, state: PyTree, inputs: PyTree, perturbations: Sequence[Array]):
        function = step
        # One after the other: the next one's jaxpr has the last one's addition in it.
        for part, perturbation in zip(parts, perturbations, strict=True):
            function = _perturb_one(function, part, perturbation)
        return function(params, state, inputs)

    return perturbed


def _perturb_one(step: Callable[..., Any], part: int, perturbation: Array) -> Callable[..., Any]:
    def perturbed(*arguments: PyTree):
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(*arguments)
        leaves = jax.tree.leaves(arguments)
        outputs = _evaluate(closed.jaxpr, closed.consts, leaves, part, perturbation)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return perturbed


def _evaluate(jaxpr: Any, consts: Any, args: list, index: int, addition: Array) -> list:
    """Evaluate a jaxpr, adding to its output `index` as soon as that has its value."""
    target = _origin(jaxpr, jaxpr.outvars[index])
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    disturbed = False

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex_core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        place = _find(target, equation.outvars)
        if place is None:
            results = evaluate_one(jaxpr, equation, operands)
        elif equation.primitive.name in WRAPPERS:
            # Go inside, as what depends on the new state may be in there with it.
            inner, inner_consts = inner_jaxpr(equation)
            results = _evaluate(inner, inner_consts, operands, place, addition)
            disturbed = True
        else:
            _check_visible(jaxpr, equation, target)
            results = evaluate_one(jaxpr, equation, operands)
            results[place] = lax.add(results[place], addition)
            disturbed = True
        values.update(zip(equation.outvars, results, strict=True))

    outputs = [read(atom) for atom in jaxpr.outvars]
    if not disturbed:
        # An input that is passed on as the new state is disturbed when it leaves, not when it
        # enters: as an input it is still the old state.
        outputs[index] = lax.add(outputs[index], addition)
    return outputs


def _origin(jaxpr: Any, variable: Any) -> Any:
    """Return the variable whose value a variable has, where wrappers only pass it through."""
    for equation in jaxpr.eqns:
        place = _find(variable, equation.outvars)
        if place is not None and equation.primitive.name in WRAPPERS:
            inner, _ = inner_jaxpr(equation)
            entry = _find(_origin(inner, inner.outvars[place]), inner.invars)
            if entry is not None:
                return _origin(jaxpr, equation.invars[entry])
    return variable


def _find(variable: Any, variables: Any) -> int | None:
    return next((place for place, other in enumerate(variables) if other is variable), None)


def _check_visible(jaxpr: Any, equation: Any, target: Any) -> None:
    """Raise if an equation makes the new state together with what may be computed from it."""
    if next(inner_jaxprs(equation), None) is None:
        return
    read = [*jaxpr.outvars, *(atom for other in jaxpr.eqns for atom in other.invars)]
    others = [variable for variable in equation.outvars if variable is not target]
    if any(_find(variable, read) is not None for variable in others):
        raise ValueError(
            f"cell: got a step that makes its new state in a `{equation.primitive.name}` together "
            "with other results, expected these outside of it: inside, what is computed from the "
            "new state can't be told from what is not"
        )
