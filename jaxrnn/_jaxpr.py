"""What can be learned of a function from its jaxpr, and how to evaluate that piece by piece."""

import functools
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
from jax.extend import core as jex_core
from jaxtyping import PyTree

from jaxrnn._memoize import Rebuildable

# Calls that only wrap other equations, under all the names that JAX's releases give them.
WRAPPERS = {"pjit", "jit", "closed_call", "core_call", "checkpoint", "remat2"}
_JIT = {"pjit", "jit"}


# Primitives that are linear in all their operands together.
_LINEAR = {
    *("add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy"),
    *("cumsum", "neg", "pad", "reduce_sum", "reshape", "rev", "slice", "split", "squeeze"),
    *("stack", "sub", "tile", "transpose", "unstack"),
}
# Those that are linear in one operand, for constant others.
_LINEAR_IN_ONE = {"dot_general", "mul"}
_LINEAR_IN_THE_FIRST = {"div", "dynamic_slice", "gather"}


def leaves_read(function: Callable[..., Any], *arguments: PyTree) -> tuple[PyTree, ...]:
    """Return, for each array of the arguments or its shape and dtype, whether a function reads it.

    The answer is a pytree of bools like `arguments`.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    read = {atom for equation in jaxpr.eqns for atom in equation.invars if is_variable(atom)}
    read |= {atom for atom in jaxpr.outvars if is_variable(atom)}
    answers = [variable in read for variable in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(arguments), answers)


def results_depend(function: Callable[..., Any], fixed: PyTree, changing: PyTree) -> list[bool]:
    """Return which arrays among a function's results depend on its second argument."""
    jaxpr = jax.make_jaxpr(function)(fixed, changing).jaxpr
    count = len(jax.tree.leaves(changing))
    dependent = set(jaxpr.invars[len(jaxpr.invars) - count :])
    for equation in jaxpr.eqns:
        if any(is_variable(atom) and atom in dependent for atom in equation.invars):
            dependent.update(equation.outvars)
    return [is_variable(atom) and atom in dependent for atom in jaxpr.outvars]


def is_linear(function: Callable[..., Any], *arguments: PyTree) -> bool:
    """Return whether a function's jaxpr shows that it is linear in all its arguments together."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    outputs = _follow_linear(jaxpr, [True] * len(jaxpr.invars))
    return outputs is not None and all(outputs)


def _follow_linear(jaxpr: Any, inputs: list[bool]) -> list[bool] | None:
    """Return which outputs depend on the inputs that are flagged, or None if not linearly."""
    dependent = {variable for variable, flag in zip(jaxpr.invars, inputs, strict=True) if flag}

    def depends(atom: Any) -> bool:
        return is_variable(atom) and atom in dependent

    for equation in jaxpr.eqns:
        name, flags = equation.primitive.name, [depends(atom) for atom in equation.invars]
        if not any(flags):
            continue
        if name in WRAPPERS:
            inner = _follow_linear(inner_jaxpr(equation)[0], flags)
            if inner is None:
                return None
            dependent.update(v for v, flag in zip(equation.outvars, inner, strict=True) if flag)
            continue
        by_constant = sum(flags) == 1 and (
            name in _LINEAR_IN_ONE or (name in _LINEAR_IN_THE_FIRST and flags[0])
        )
        if not by_constant and not (name in _LINEAR and all(flags)):
            return None
        dependent.update(equation.outvars)
    return [depends(atom) for atom in jaxpr.outvars]


def returns_its_state(step: Callable[..., Any], params: Any, state: Any, inputs: Any) -> bool:
    """Return whether a step's output is, by its jaxpr, the very state that it returns."""
    jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(params, state, inputs)
    new_state, output = shapes
    if jax.tree.structure(new_state) != jax.tree.structure(output):
        return False
    atoms = jaxpr.jaxpr.outvars
    half = len(atoms) // 2
    return all(map(operator.is_, atoms[:half], atoms[half:]))


def is_variable(atom: Any) -> bool:
    """Return whether an atom of a jaxpr is a variable, not a literal."""
    return not isinstance(atom, jex_core.Literal)


def is_pure(function: Callable[..., Any], *arguments: PyTree) -> bool:
    """Return whether a function reads only its arguments, and does nothing but return results.

    One that closes over values which are being traced reads more; printing, or summing over a named
    axis, is doing more.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return not closed.effects and not any(isinstance(c, jax.core.Tracer) for c in closed.consts)


def holds_tracers(*values: Any) -> bool:
    """Return whether values are being traced, or functions whose closures hold such, at any depth.

    A jaxpr doesn't tell: the rule of a `custom_jvp` is not in it until something is differentiated.
    """
    seen: set[int] = set()
    queue = list(values)
    while queue:
        value = queue.pop()
        if isinstance(value, jax.core.Tracer):
            return True
        if id(value) in seen or isinstance(value, type | types.ModuleType | str | bytes):
            continue
        seen.add(id(value))
        if isinstance(value, tuple | list | set | frozenset):
            queue += value
        elif isinstance(value, dict):
            queue += value.values()
        elif callable(value) or isinstance(value, Rebuildable):
            queue += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            queue += [getattr(value, "__self__", None), getattr(value, "__wrapped__", None)]
            queue += getattr(value, "__dict__", {}).values()
            slots = getattr(type(value), "__slots__", ())
            queue += [getattr(value, slot, None) for slot in slots]
            if isinstance(value, functools.partial):
                queue += [value.func, value.args, value.keywords]
    return False


def bytes_written(function: Callable[..., Any], *arguments: PyTree) -> int:
    """Return how many bytes a function's operations return, those within a loop once."""

    def written(jaxpr: Any) -> int:
        return sum(
            sum(map(written, inner_jaxprs(equation)))
            + sum(atom.aval.size * atom.aval.dtype.itemsize for atom in equation.outvars)
            for equation in jaxpr.eqns
        )

    return written(jax.make_jaxpr(function)(*arguments).jaxpr)


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


def with_flat_products(
    function: Callable[..., PyTree], layout: Callable[[jax.Array], jax.Array] | None = None
) -> Callable[..., PyTree]:
    """Return the same function, with one axis of rows in its matrix products in place of several.

    `(T, B, I) @ (I, O)` becomes `(T * B, I) @ (I, O)`, which XLA multiplies faster, most of all in
    the gradient with respect to the weights. Whatever else the function does stays as it is.

    Args:
        function: any function of pytrees of arrays.
        layout: applied to the rows of each such product, where it is to lie otherwise in memory.
    """

    def flat(*arguments: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _evaluate_flat(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), layout)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return flat


def _evaluate_flat(jaxpr: Any, consts: Any, arguments: list, layout: Any) -> list:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return values[atom] if is_variable(atom) else atom.val

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if equation.primitive.name in _JIT:
            inner, constants = inner_jaxpr(equation)
            results = _evaluate_flat(inner, constants, operands, layout)
        elif equation.primitive.name == "dot_general" and _multiplies_rows(equation):
            results = [_flat_product(equation, *operands, layout=layout)]
        else:
            results = evaluate_one(jaxpr, equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _multiplies_rows(product: Any) -> bool:
    """Return whether a product is of `(*rows, I)` and a matrix, whose `I` is contracted."""
    contracted, batched = product.params["dimension_numbers"]
    left, right = (atom.aval for atom in product.invars)
    return (
        left.ndim > 1
        and right.ndim == 2
        and not batched[0]
        and tuple(contracted[0]) == (left.ndim - 1,)
        and not any(left.sharding.spec)  # axes that are divided over devices can't be merged
    )


def _flat_product(product: Any, left: Any, right: Any, *, layout: Any) -> Any:
    *rows, features = left.shape
    (_, contracted), batched = product.params["dimension_numbers"]
    left = left.reshape(math.prod(rows), features)
    flat = jax.lax.dot_general(
        left if layout is None else layout(left),
        right,
        (((1,), contracted), batched),
        precision=product.params["precision"],
        preferred_element_type=product.params["preferred_element_type"],
    )
    return flat.reshape(*rows, flat.shape[-1])
