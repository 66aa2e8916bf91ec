"""What can be learned of a function from its jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
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
