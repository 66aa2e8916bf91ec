"""Both passes through a sequence, chunk by chunk."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn._jaxpr import with_flat_products
from jaxrnn.engines._chunks import scan_chunks, scan_without_duplicates
from jaxrnn.engines._engine import is_static, leading_shape
from jaxrnn.engines._hoisted._backward import Steps, backward_loop
from jaxrnn.engines._hoisted._info import StepInfo
from jaxrnn.engines._hoisted._layout import transposed_kernels, transposed_rows
from jaxrnn.engines._hoisted._leaves import add, add_at

# What the forward pass keeps of every step for the backward pass: its state, or its state and
# its gates.
Keep = Literal["states", "products"]


class Plan(NamedTuple):
    """How to run a cell over a sequence, in both passes.

    Attributes:
        info: what is known of its step.
        chunk: how many steps a chunk has.
        unroll: how many steps the compiled loop's body holds.
        reverse: whether to begin with the last step.
        keep: what is kept of every step.
    """

    info: StepInfo
    chunk: int
    unroll: int
    reverse: bool
    keep: Keep


def forward_pass(plan: Plan, params: Any, state: Any, inputs: Any) -> tuple[Any, Any, Any, Any]:
    """Return the last state, and every step's output, state and gates, these if they are kept."""
    step = plan.info.step

    def body(state, projected):
        recurrent = step.recur(params, step.masked_state(state, projected))
        gates = step.combine(projected, recurrent)
        new_state, output = step.activate(params, state, gates)
        return new_state, (output, new_state, gates if plan.keep == "products" else None)

    def run_chunk(state, _, inputs):
        projected = _over_steps(step.project, params, inputs)
        return scan_without_duplicates(
            body, state, projected, reverse=plan.reverse, unroll=plan.unroll
        )

    final, (outputs, states, gates) = scan_chunks(
        run_chunk,
        state,
        None,
        inputs,
        steps=leading_shape(inputs)[0],
        chunk=plan.chunk,
        reverse=plan.reverse,
    )
    return final, outputs, states, gates


class Residuals(NamedTuple):
    """What the backward pass needs: the arguments, every step's state, and the gates if kept."""

    params: Any
    state: Any
    inputs: Any
    states: Any
    gates: Any


def backward_pass(
    plan: Plan, residuals: Residuals, cotangents: tuple[Any, Any, Any]
) -> tuple[Any, Any, Any]:
    """Return the cotangents of params, first state and inputs."""
    info, chunk, unroll, reverse, keep = plan
    params, state, inputs, states, gates = residuals
    step = info.step
    d_final, d_outputs, d_states = cotangents
    steps, *batch = leading_shape(inputs)
    kernels, restored = transposed_kernels(
        params, batched=not is_static(*batch) or math.prod(batch) > 1
    )

    def product(state, projected):
        return step.product(restored(kernels), state, projected)

    def run_chunk(carry, entering, chunk_steps):
        d_state, d_params = carry
        inputs, states, gates, d_outputs, d_states = chunk_steps
        previous = _shifted(entering, states, reverse=reverse)
        projected, through_project = jax.vjp(
            lambda inputs: _over_steps(step.project, params, inputs), inputs
        )
        seen = jax.vmap(step.masked_state)(previous, projected)
        if keep == "states":
            gates = jax.vmap(step.combine)(projected, _over_steps(step.recur, params, seen))
        back = backward_loop(
            info,
            params,
            product,
            d_state,
            Steps(previous, projected, gates, d_outputs, d_states),
            reverse=not reverse,
            unroll=unroll,
        )
        # Only gradients of this are used, none of the values: XLA leaves those out.
        _, through_weights = jax.vjp(
            lambda params: (
                _over_steps(step.project, params, inputs, transposed_rows),
                _over_steps(step.recur, params, seen, transposed_rows),
            ),
            params,
        )
        d_params = add(d_params, *through_weights((back.projected, back.recurrent)))
        d_params = add_at(info.used, d_params, back.used)
        return (back.state, d_params), *through_project(back.projected)

    (d_state, d_params), d_inputs = scan_chunks(
        run_chunk,
        (d_final, jax.tree.map(jnp.zeros_like, params)),
        _entering(state, states, chunk, reverse=reverse),
        (inputs, states, gates, d_outputs, d_states),
        steps=steps,
        chunk=chunk,
        reverse=not reverse,
    )
    return d_params, d_state, d_inputs


def _over_steps(part: Any, params: Any, arguments: PyTree, layout: Any = None) -> PyTree:
    """Apply a part of a step to many steps, each by itself, with one large product for all."""
    many = jax.vmap(part, in_axes=(None, 0))
    return with_flat_products(many, layout)(params, arguments)


def _entering(state: PyTree, states: PyTree, chunk: int, *, reverse: bool) -> PyTree:
    """Return the state that each chunk starts from, given that after every step."""

    def entering(first, after):
        if reverse:
            return jnp.concatenate([after[chunk::chunk], first[None]])
        return jnp.concatenate([first[None], after[chunk - 1 : -1 : chunk]])

    return jax.tree.map(entering, state, states)


def _shifted(entering: PyTree, states: PyTree, *, reverse: bool) -> PyTree:
    """Return the states before a chunk's steps: that entering it, then those after each step."""

    def shifted(first, after):
        if reverse:
            return jnp.concatenate([after[1:], first[None]])
        return jnp.concatenate([first[None], after[:-1]])

    return jax.tree.map(shifted, entering, states)
