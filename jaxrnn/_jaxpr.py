"""What can be learned of a function from its jaxpr, and how to evaluate that piece by piece."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
from jax.extend import core as jex_core
from jaxtyping import PyTree

# Calls that only wrap other equations, under all the names that JAX's releases give them.
WRAPPERS = {"pjit", "jit", "closed_call", "core_call", "checkpoint", "remat2"}


def leaves_read(function: Callable[..., Any], *arguments: PyTree) -> tuple[PyTree, ...]:
    """Return, for each array of the arguments or its shape and dtype, whether a function reads it.

    The answer is a pytree of bools like `arguments`.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    read |= {id(atom) for atom in jaxpr.outvars}
    answers = [id(variable) in read for variable in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(arguments), answers)


def leaves_added(
    function: Callable[..., Any], others: tuple[Any, ...], left: PyTree, right: PyTree
) -> dict[int, int]:
    """Return which arrays of `left` a function only adds to one of `right`, and does so once.

    Args:
        function: a function of `(*others, left, right)`.
        others: its first arguments, arrays or their shapes and dtypes.
        left: a pytree of such.
        right: another one.

    Returns:
        The number of each such leaf of `left`, with that of its addend in `right`, of which the
        same is true.
    """
    jaxpr = jax.make_jaxpr(function)(*others, left, right).jaxpr
    used = [id(atom) for equation in jaxpr.eqns for atom in equation.invars]
    used += [id(atom) for atom in jaxpr.outvars]
    once = {number for number, times in collections.Counter(used).items() if times == 1}
    start, middle = (len(jax.tree.leaves(part)) for part in (others, (*others, left)))
    places = {id(variable): place for place, variable in enumerate(jaxpr.invars)}
    pairs = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "add" and all(id(atom) in once for atom in equation.invars):
            here, there = sorted(places.get(id(atom), -1) for atom in equation.invars)
            if start <= here < middle <= there:
                pairs[here - start] = there - middle
    return pairs


def is_pure(function: Callable[..., Any], *arguments: PyTree) -> bool:
    """Return whether a function reads only its arguments, and does nothing but return results.

    One that closes over values which are being traced reads more; printing, or summing over a named
    axis, is doing more.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return not closed.effects and not any(isinstance(c, jax.core.Tracer) for c in closed.consts)


def primitives(function: Callable[..., Any], *arguments: PyTree) -> set[str]:
    """Return the names of all the primitives that a function calls, in calls within calls too."""
    equations = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return {name for equation in equations for name in primitives_of(equation)}


def primitives_of(equation: Any) -> Iterator[str]:
    """Yield the name of an equation's primitive, and those within the jaxprs that it holds."""
    yield equation.primitive.name
    for inner in inner_jaxprs(equation):
        for held in inner.eqns:
            yield from primitives_of(held)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation holds."""
    for value in jax.tree.leaves(list(equation.params.values())):
        if isinstance(value, jex_core.Jaxpr | jex_core.ClosedJaxpr):
            yield getattr(value, "jaxpr", value)


def inner_jaxpr(equation: Any) -> tuple[Any, Any]:
    """Return the jaxpr that a wrapper holds, and its constants: some are closed and some open."""
    inner = equation.params["jaxpr"]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def evaluate_one(jaxpr: Any, equation: Any, operands: list) -> list:
    """Evaluate one equation, as a jaxpr of its own: JAX's public way to do that."""
    known = {
        atom: value
        for atom, value in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, jex_core.Literal)
    }
    alone = jaxpr.replace(
        constvars=[],
        invars=list(known),
        outvars=equation.outvars,
        eqns=[equation],
        debug_info=jaxpr.debug_info._replace(
            arg_names=("",) * len(known), result_paths=("",) * len(equation.outvars)
        ),
    )
    return list(jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(alone, []))(*known.values()))
