"""Steps that are not finite: whether to go on, and what went bad first."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from jaxrnn.training._batches import Batches
from jaxrnn.training._result import FitResult, NonFiniteError
from jaxrnn.training._step import Metrics, TrainState, loss_and_gradient


def accept_or_reject(
    old: TrainState, new: TrainState, metrics: Metrics
) -> tuple[TrainState, Bool[Array, ""]]:
    """Decide on a step: take it, skip it, or stay where training was before it.

    A step is skipped where the optimizer, wrapped in `optax.apply_if_finite`, refused its gradient.
    Only the optimizer's count of such steps then changes, and the number of the step.

    Args:
        old: the train state before the step.
        new: the train state that the step made.
        metrics: what the step measured.

    Returns:
        The train state to go on from, and whether to go on at all.
    """
    whole = _all_finite((metrics, new.params)) & ~_became_non_finite(old.carry, new.carry)
    skipped = _skipped_by_optax(new.optimizer_state) & _all_finite(new.params)
    new = new._replace(carry=_select(whole, new.carry, old.carry))
    return _select(whole | skipped, new, old), whole | skipped


def first_bad_leaf(
    loss: Callable[..., Any],
    step: Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, Metrics]],
    batches: Batches,
    state: TrainState,
    keys: tuple[Any, ...],
) -> str:
    """Make a bad step once more, and say what in it went bad first.

    In the training loop that would cost a test of every leaf at every step.
    """

    @jax.jit
    def finite(state, keys, data):
        batch_key, loss_key = keys
        batch = batches.take(state.step, batch_key, data)
        (value, _), gradient = loss_and_gradient(loss)(state, batch, loss_key)
        new, metrics = step(state, batch, loss_key)
        parts = value, gradient, metrics.gradient_norm, new.params
        carry = jax.tree.map(lambda *pair: ~_became_non_finite(*pair), state.carry, new.carry)
        return *jax.tree.map(_all_finite, parts), carry

    names = (
        "the loss",
        "the gradient of params",
        "the gradient's norm",
        "the update of params",
        "the carry",
    )
    for name, part in zip(names, finite(state, keys, batches.data), strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            if not leaf:
                return name + jax.tree_util.keystr(path)
    # This program is not the loop's, and may round otherwise.
    return "nothing in a repetition of that step"


def non_finite_error(result: FitResult, step: int, leaf: str) -> NonFiniteError:
    """Make the error that ends training at a bad step, which `result` has as its last."""
    message = (
        f"training stopped at step {step}: its loss is {result.losses[-1]:.6g} and its gradient "
        f"norm {result.gradient_norms[-1]:.6g}"
    )
    if step > 0:
        message += (
            f", after a loss of {result.losses[-2]:.6g} and a gradient norm of "
            f"{result.gradient_norms[-2]:.6g} the step before"
        )
    message += (
        f". The first to go bad was {leaf}. The parameters from before that step are in this "
        "error's result.params. Exploding gradients ask for clip_norm or a lower learning rate."
    )
    return NonFiniteError(message, result, step, leaf)


def _skipped_by_optax(optimizer_state: PyTree) -> Bool[Array, ""]:
    """Return whether an `optax.apply_if_finite` anywhere in the optimizer refused the gradient."""
    import optax

    def wrapped(node):
        return isinstance(node, optax.ApplyIfFiniteState)

    nodes = jax.tree.leaves(optimizer_state, is_leaf=wrapped)
    refusals = (~node.last_finite for node in nodes if wrapped(node))
    return functools.reduce(jnp.logical_or, refusals, jnp.array(False))


def _select(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, condition), yes, no)


def _became_non_finite(old: PyTree, new: PyTree) -> Bool[Array, ""]:
    """Return whether any number that was finite no longer is: infinity may be there on purpose."""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    lost = (
        (jnp.isfinite(before) & ~jnp.isfinite(after)).any()
        for before, after in pairs
        if jnp.issubdtype(after.dtype, jnp.inexact)
    )
    return functools.reduce(jnp.logical_or, lost, jnp.array(False))


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(
        jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in leaves), jnp.array(True)
    )
