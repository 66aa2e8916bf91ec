"""What an engine has to know of a gated cell, learned from shapes and jaxprs alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._cell import Gated
from jaxrnn._jaxpr import leaves_added, leaves_read


def first(inputs: PyTree) -> PyTree:
    """Return the shape and dtype of one step's inputs."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)


def products(gated: Gated, params: Any, state: Any, inputs: Any) -> tuple[PyTree, PyTree]:
    """Return the shapes and dtypes of what `project` and `product` return for one step."""
    projected = jax.eval_shape(gated.project, params, first(inputs))
    return projected, jax.eval_shape(gated.product, params, state, projected)


def uses(gated: Gated, params: Any, state: Any, inputs: Any) -> tuple[list[int], list[int]]:
    """Return which leaves of params `activate` reads, and which of `projected` the product sees.

    For most cells none: the former is for peepholes and the like, the latter for dropout's masks.
    """
    projected, recurrent = products(gated, params, state, inputs)
    of_params, *_ = leaves_read(gated.activate, params, state, projected, recurrent)
    _, of_projected = leaves_read(gated.exposed, state, projected)
    return _places(of_params), _places(of_projected)


@dataclasses.dataclass(frozen=True)
class Sums:
    """How to keep both products of a step in less memory: what is only ever added, as its sum.

    Of an LSTM cell that is all, and takes half as much. A sum stands in the place of its addend of
    `projected`, and to `activate` the other is then zero.

    Attributes:
        pairs: the place of each such leaf of `projected`, with that of its addend in `recurrent`.
        recurrent: the structure of `recurrent`.
    """

    pairs: dict[int, int]
    recurrent: Any

    def add(self, projected: PyTree, recurrent: PyTree) -> tuple[PyTree, list[Any]]:
        """Return `projected` with the sums, and what of `recurrent` is in none."""
        left, right = jax.tree.leaves(projected), jax.tree.leaves(recurrent)
        for place, other in self.pairs.items():
            left[place] = left[place] + right[other]
        rest = [leaf for place, leaf in enumerate(right) if place not in self.pairs.values()]
        return jax.tree.unflatten(jax.tree.structure(projected), left), rest

    def split(self, added: PyTree, rest: list[Any]) -> tuple[PyTree, PyTree]:
        """Return a `projected` and a `recurrent` of which `activate` makes the same."""
        left, addends = jax.tree.leaves(added), {v: k for k, v in self.pairs.items()}
        others = iter(rest)
        right = [
            jnp.zeros_like(left[addends[place]]) if place in addends else next(others)
            for place in range(self.recurrent.num_leaves)
        ]
        return added, self.recurrent.unflatten(right)


def sums(gated: Gated, params: Any, state: Any, inputs: Any) -> Sums:
    """Return which products `activate` does nothing with but add them to one another."""
    projected, recurrent = products(gated, params, state, inputs)
    _, exposed = uses(gated, params, state, inputs)
    pairs = leaves_added(gated.activate, (params, state), projected, recurrent)
    kept = {left: right for left, right in pairs.items() if left not in exposed}
    return Sums(kept, jax.tree.structure(recurrent))


def _places(flags: PyTree) -> list[int]:
    return [place for place, flag in enumerate(jax.tree.leaves(flags)) if flag]
