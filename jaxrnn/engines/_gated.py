"""What an engine has to know of a split-step cell, learned from shapes and jaxprs alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import SplitStep
from jaxrnn._jaxpr import is_pure, leaves_added, leaves_read, primitives

# Arrays of up to so many entries are computed in less time than it takes a CPU to start a kernel.
_SMALL = 100
# Primitives whose results depend only on the entries in the same place. None makes a shape smaller,
# so broadcasting can't move an entry elsewhere either.
_POINTWISE = {
    *("abs", "add", "ceil", "clamp", "convert_element_type", "copy", "cos", "div", "eq", "erf"),
    *("exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log"),
    *("log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "pow", "round", "rsqrt"),
    *("select_n", "sign", "sin", "sqrt", "square", "sub", "tan", "tanh"),
    *("and", "not", "or", "broadcast_in_dim", "custom_jvp_call", "jit", "pjit"),
}


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """A gated step, and what its parts make of arguments of some shapes.

    Attributes:
        split_step: the step.
        pure: whether the step reads only its arguments, and does nothing but return results.
        projected: the shapes and dtypes of what `project` returns for one step.
        recurrent: those of what `product` returns.
        results: those of the new state and the output.
        used: the numbers of the leaves of params that `activate` reads. For most cells none: they
            are for peepholes and the like.
        reading: those of the leaves of the state that `activate` reads.
        exposing: those of the leaves of `projected` that the product sees, such as dropout's masks.
        sums: which products are only added.
        pointwise: whether all that `activate` deals with are arrays of one shape, of which it
            combines entries in the same place only, and no params.
        small: whether what a step deals with are some small arrays, which go into the product as
            they are.
    """

    split_step: SplitStep
    pure: bool
    projected: PyTree
    recurrent: PyTree
    results: PyTree
    used: list[int]
    reading: list[int]
    exposing: list[int]
    sums: "Sums"
    pointwise: bool
    small: bool


def analyse_step(split_step: SplitStep, params: Any, state: Any, inputs: Any) -> StepInfo:
    """Look at a gated step, for params, a state, and the inputs of any number of steps."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    projected = jax.eval_shape(split_step.project, params, first)
    recurrent = jax.eval_shape(split_step.product, params, state, projected)
    exposed = jax.eval_shape(split_step.exposed, state, projected)
    _check_many("project", split_step.project, params, first, projected)
    _check_many("recur", split_step.recur, params, exposed, recurrent)
    results = jax.eval_shape(split_step.activate, params, state, projected, recurrent)
    arguments = params, state, projected, recurrent
    used, reading, *_ = map(_places, leaves_read(split_step.activate, *arguments))
    _, exposing = map(_places, leaves_read(split_step.exposed, state, projected))
    pairs = leaves_added(split_step.activate, (params, state), projected, recurrent)
    pairs = {left: right for left, right in pairs.items() if left not in exposing}
    sums = Sums(pairs, jax.tree.structure(recurrent))
    shapes = {
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((state, projected, recurrent, results))
    }
    return StepInfo(
        split_step,
        is_pure(split_step, params, state, first),
        projected,
        recurrent,
        results,
        used,
        reading,
        exposing,
        sums,
        pointwise=(
            not used
            and len(shapes) == 1
            and primitives(split_step.activate, *arguments) <= _POINTWISE
        ),
        small=(
            not exposing
            and len(jax.tree.leaves(recurrent)) > 1
            and all(shape and math.prod(shape) <= _SMALL for shape, _ in shapes)
        ),
    )


def _check_many(
    name: str, part: Callable[[Any, Any], Any], params: Any, one: PyTree, result: PyTree
) -> None:
    """Raise if a part doesn't make of several steps as many of what it makes of one."""

    def several(leaf):
        return jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype)

    got = jax.eval_shape(part, params, jax.tree.map(several, one))
    expected = jax.tree.map(several, result)
    if any(g.shape != w.shape for g, w in zip(*map(jax.tree.leaves, (got, expected)), strict=True)):
        raise ValueError(
            f"engine: got a cell whose `{name}` makes {_check.describe(got)} of two steps, expected "
            f"{_check.describe(expected)}: it has to act on any leading axes; scan() runs it as it is"
        )


@dataclasses.dataclass(frozen=True)
class Sums:
    """How to keep both products of a step in less memory: what is only ever added, as its sum.

    Of an LSTM cell that is all, and takes half as much. A sum stands in the place of its addend of
    `projected`, and to `activate` the other is then zero.

    Attributes:
        pairs: the number of each such leaf of `projected`, with that of its addend in `recurrent`.
        recurrent: the structure of `recurrent`.
    """

    pairs: dict[int, int]
    recurrent: Any

    def add(self, projected: PyTree, recurrent: PyTree) -> tuple[PyTree, list[Any]]:
        """Return `projected` with the sums, and what of `recurrent` is in none."""
        left, right = jax.tree.leaves(projected), jax.tree.leaves(recurrent)
        for number, other in self.pairs.items():
            left[number] = left[number] + right[other]
        rest = [leaf for number, leaf in enumerate(right) if number not in self.pairs.values()]
        return jax.tree.unflatten(jax.tree.structure(projected), left), rest

    def split(self, added: PyTree, rest: list[Any]) -> tuple[PyTree, PyTree]:
        """Return a `projected` and a `recurrent` of which `activate` makes the same."""
        left, addends = jax.tree.leaves(added), {right: left for left, right in self.pairs.items()}
        others = iter(rest)
        right = [
            jnp.zeros_like(left[addends[number]]) if number in addends else next(others)
            for number in range(self.recurrent.num_leaves)
        ]
        return added, self.recurrent.unflatten(right)


def _places(flags: PyTree) -> list[int]:
    return [number for number, flag in enumerate(jax.tree.leaves(flags)) if flag]
