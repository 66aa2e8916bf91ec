"""What the engine has to know of a split step, learned from shapes and jaxprs alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._cell import SplitStep
from jaxrnn._jaxpr import holds_tracers, is_pure, leaves_read


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """A split step, and what its parts make of arguments of some shapes.

    Attributes:
        step: the step.
        differentiable: whether the engine's own rule applies: all arrays are real floating ones,
            and the step reads only its arguments and does nothing but return results.
        projected: the shapes and dtypes of what `project` returns for one step.
        recurrent: those of the recurrent product.
        gates: those of what `combine` returns.
        used: the numbers of the leaves of params that `activate` reads. For most cells none: they
            are for peepholes and the like.
        masking: those of the leaves of `projected` that `mask_state` reads, such as dropout's.
    """

    step: SplitStep
    differentiable: bool
    projected: PyTree
    recurrent: PyTree
    gates: PyTree
    used: list[int]
    masking: list[int]


def analyse_step(step: SplitStep, params: Any, state: Any, inputs: Any) -> StepInfo:
    """Look at a split step, for params, a state, and the inputs of one step or more."""
    first = jax.eval_shape(lambda leaves: jax.tree.map(lambda leaf: leaf[0], leaves), inputs)
    projected = jax.eval_shape(step.project, params, first)
    recurrent = jax.eval_shape(step.product, params, state, projected)
    gates = jax.eval_shape(step.combine, projected, recurrent)
    results = jax.eval_shape(step.activate, params, state, gates)
    used, *_ = leaves_read(step.activate, params, state, gates)
    _, masking = leaves_read(step.masked_state, state, projected)
    floating = all(
        jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in jax.tree.leaves((params, first, projected, recurrent, gates, results))
    )
    return StepInfo(
        step,
        floating and is_pure(step, params, state, first) and not holds_tracers(step),
        projected,
        recurrent,
        gates,
        _places(used),
        _places(masking),
    )


def _places(flags: PyTree) -> list[int]:
    return [number for number, flag in enumerate(jax.tree.leaves(flags)) if flag]
