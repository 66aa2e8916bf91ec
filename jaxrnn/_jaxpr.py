"""What can be learned of a function from its jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jex_core
from jaxtyping import PyTree


def leaves_read(function: Callable[..., Any], *arguments: PyTree) -> tuple[PyTree, ...]:
    """Return, for each array of the arguments or its shape and dtype, whether a function reads it.

    The answer is a pytree of bools like `arguments`.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    read |= {id(atom) for atom in jaxpr.outvars}
    answers = [id(variable) in read for variable in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(arguments), answers)


def primitives(function: Callable[..., Any], *arguments: PyTree) -> set[str]:
    """Return the names of all the primitives that a function calls, in calls within calls too."""
    equations = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return {name for equation in equations for name in primitives_of(equation)}


def primitives_of(equation: Any) -> Iterator[str]:
    """Yield the name of an equation's primitive, and those within the jaxprs that it holds."""
    yield equation.primitive.name
    for value in jax.tree.leaves(list(equation.params.values())):
        if isinstance(value, jex_core.Jaxpr | jex_core.ClosedJaxpr):
            equations: Any = getattr(value, "jaxpr", value).eqns
            for inner in equations:
                yield from primitives_of(inner)
