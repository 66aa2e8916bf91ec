"""A step's matrix products, found in its own jaxpr: what a step that shows no structure hides.

Between two of them everything is pointwise, but for the rare step that mixes its units otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex_core
from jaxtyping import Array, PyTree

from jaxrnn._jaxpr import WRAPPERS, evaluate_one, inner_jaxpr, primitives_of

_PRODUCTS = {"dot_general", "conv_general_dilated"}


def with_products(
    function: Callable[[PyTree], PyTree], replace: Callable[[Array], Array]
) -> Callable[[PyTree], PyTree]:
    """Return a function of a state that computes the same from replaced matrix products.

    Args:
        function: of a state.
        replace: what to put in place of the result of each product that depends on the state, in
            the order in which they are computed.

    Returns:
        The function. It raises a ValueError where products are out of sight, as in a `lax.scan`.
    """

    def replaced(state: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(state)
        leaves = jax.tree.leaves(state)
        depends = [True] * len(leaves)
        outputs, _ = _evaluate(closed.jaxpr, closed.consts, leaves, depends, replace)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return replaced


def factors_of_state(
    function: Callable[[PyTree, PyTree], PyTree], params: PyTree, state: PyTree
) -> list[int]:
    """Return which leaves of the parameters a state is multiplied with on its way to the result.

    Args:
        function: `(params, state) -> result`.
        params: its first argument.
        state: its second one.

    Returns:
        The leaves' numbers, of matrix products of something that depends on the state with
        something that depends on one leaf alone, and not on the state.
    """
    jaxpr = jax.make_jaxpr(function)(params, state).jaxpr
    count = len(jax.tree.leaves(params))
    sources = [frozenset({min(number, count)}) for number in range(len(jaxpr.invars))]
    found: set[int] = set()
    _follow(jaxpr, sources, [True] * len(jaxpr.outvars), count, found)
    return sorted(found)


def _follow(
    jaxpr: Any, sources: list[frozenset[int]], expected: list[bool], state: int, found: set[int]
) -> list[frozenset[int]]:
    """Return which leaves a jaxpr's outputs depend on, where the number `state` is the state's.

    What no expected output depends on is left out: a step's readout is no way into the next state.
    """
    known = dict(zip(jaxpr.invars, sources, strict=True))
    live = {id(atom) for atom, flag in zip(jaxpr.outvars, expected, strict=True) if flag}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in live for variable in equation.outvars):
            live |= {id(atom) for atom in equation.invars}
            equations.append(equation)

    def source(atom: Any) -> frozenset[int]:
        return frozenset() if isinstance(atom, jex_core.Literal) else known.get(atom, frozenset())

    for equation in reversed(equations):
        operands = [source(atom) for atom in equation.invars]
        if equation.primitive.name in WRAPPERS:
            inner = inner_jaxpr(equation)[0]
            flags = [id(variable) in live for variable in equation.outvars]
            results = _follow(inner, operands, flags, state, found)
        else:
            results = [frozenset[int]().union(*operands)] * len(equation.outvars)
        if equation.primitive.name in _PRODUCTS:
            for one, other in (operands, operands[::-1]):
                if state in one and len(other) == 1:
                    found |= other - {state}
        known.update(zip(equation.outvars, results, strict=True))
    return [source(atom) for atom in jaxpr.outvars]


def _evaluate(
    jaxpr: Any, consts: Any, args: list, depends: list[bool], replace: Callable[[Array], Array]
) -> tuple[list, list[bool]]:
    """Evaluate a jaxpr; return its outputs, and which of them depend on the state."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    dependent = {variable for variable, flag in zip(jaxpr.invars, depends, strict=True) if flag}

    def read(atom: Any) -> tuple[Any, bool]:
        if isinstance(atom, jex_core.Literal):
            return atom.val, False
        return values[atom], atom in dependent

    def read_all(atoms: Any) -> tuple[list, list[bool]]:
        pairs = [read(atom) for atom in atoms]
        return [value for value, _ in pairs], [flag for _, flag in pairs]

    for equation in jaxpr.eqns:
        operands, flags = read_all(equation.invars)
        name = equation.primitive.name
        after = [any(flags)] * len(equation.outvars)
        if not any(flags) or _PRODUCTS.isdisjoint(primitives_of(equation)):
            results = evaluate_one(jaxpr, equation, operands)
        elif name in _PRODUCTS:
            results = [replace(result) for result in evaluate_one(jaxpr, equation, operands)]
        elif name in WRAPPERS:
            results, after = _evaluate(*inner_jaxpr(equation), operands, flags, replace)
        else:
            raise ValueError(
                f"cell: got a step with a matrix product of its state in a `{name}`, expected it "
                "outside, where it can be seen"
            )
        values.update(zip(equation.outvars, results, strict=True))
        dependent.update(
            variable for variable, flag in zip(equation.outvars, after, strict=True) if flag
        )
    return read_all(jaxpr.outvars)
