"""What an engine has to know of a gated cell, learned from shapes and jaxprs alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._cell import Gated
from jaxrnn._jaxpr import leaves_added, leaves_read


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """A gated step, and what its parts make of arguments of some shapes.

    Attributes:
        gated: the step.
        projected: the shapes and dtypes of what `project` returns for one step.
        recurrent: those of what `product` returns.
        results: those of the new state and the output.
        used: the numbers of the leaves of params that `activate` reads. For most cells none: they
            are for peepholes and the like.
        exposing: those of the leaves of `projected` that the product sees, such as dropout's masks.
        sums: which products are only added.
    """

    gated: Gated
    projected: PyTree
    recurrent: PyTree
    results: PyTree
    used: list[int]
    exposing: list[int]
    sums: "Sums"


def anatomy(gated: Gated, params: Any, state: Any, inputs: Any) -> Anatomy:
    """Look at a gated step, for params, a state, and the inputs of any number of steps."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    projected = jax.eval_shape(gated.project, params, first)
    recurrent = jax.eval_shape(gated.product, params, state, projected)
    results = jax.eval_shape(gated.activate, params, state, projected, recurrent)
    of_params, *_ = leaves_read(gated.activate, params, state, projected, recurrent)
    _, of_projected = leaves_read(gated.exposed, state, projected)
    exposing = _places(of_projected)
    pairs = leaves_added(gated.activate, (params, state), projected, recurrent)
    pairs = {left: right for left, right in pairs.items() if left not in exposing}
    sums = Sums(pairs, jax.tree.structure(recurrent))
    return Anatomy(gated, projected, recurrent, results, _places(of_params), exposing, sums)


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
