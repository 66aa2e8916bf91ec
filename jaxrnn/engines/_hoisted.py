"""The hoisted engine: weight and input gradients leave the backward loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from jaxrnn._cell import Cell, Gated
from jaxrnn.engines._engine import Engine
from jaxrnn.engines._linear import linear_with_transpose
from jaxrnn.engines._scan import Scan


@dataclasses.dataclass(frozen=True)
class Hoisted(Engine):
    """The engine that `hoisted` makes."""

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell, and where it is differentiated in reverse, hoist the weights' part."""
        gated = cell.structure
        if gated is None:
            raise ValueError(
                f"engine: got hoisted() for {cell.name}, which shows no gated structure; "
                "wanted one that works on any cell: scan()"
            )

        def reference(params, state, inputs):
            return Scan(unroll=1)(
                cell, params, state, inputs, reverse=reverse, keep_states=keep_states
            )

        run: Any = jax.custom_jvp(reference)

        @run.defjvp
        def differentiated(primals, tangents):
            out, saved = _forward(gated, *primals, reverse=reverse, keep_states=keep_states)
            tangents_out = linear_with_transpose(
                lambda residuals, tangents: jax.jvp(reference, residuals[0], tangents)[1],
                lambda residuals, cotangents: _backward(
                    gated, residuals[0], residuals[1], cotangents, reverse=reverse
                ),
                (primals, saved),
                tangents,
            )
            return out, tangents_out

        # Integers, such as a count of steps in the state, have no gradient to hoist.
        everything = params, jax.eval_shape(gated, params, state, _first(inputs))
        floating = all(
            jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(everything)
        )
        return (run if floating else reference)(params, state, inputs)


def hoisted() -> Hoisted:
    """Make the engine for training gated cells: all weight gradients are taken after the loop.

    Going back in time needs only the cotangent of the state,

        d_state, d_projected, d_recurrent = transpose of activate(d_new_state, d_output)
        d_state += transpose of recur(d_recurrent)

    so this is all that the backward loop does. From every step's `d_projected` and `d_recurrent`
    one large product gives the gradient of each weight, and one that of the inputs, where `scan`
    does a small product and a sum over the whole weight in every step.

    Values and gradients are those of `scan`, in every mode and order of differentiation. Forward
    mode gains nothing here, and keeps what only reverse mode needs, O(T) memory: take `scan` there
    if T is huge. Under `vmap` each example has a weight gradient of its own, so give the batch as
    dimensions of the inputs where you can.

    Returns:
        An engine for `unroll(..., engine=...)`. With a cell that has no gated structure `unroll`
        raises a ValueError; with integers in params, state or output it runs as `scan`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(4)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((9, 3))
        >>> def loss(params, engine):
        ...     return jaxrnn.unroll(cell, params, xs, engine=engine)[1].sum()
        >>> plain = jax.grad(loss)(params, jaxrnn.scan())
        >>> fast = jax.grad(loss)(params, jaxrnn.hoisted())
        >>> bool(jnp.allclose(plain.recurrent_kernel, fast.recurrent_kernel, atol=1e-5))
        True

    References:
        Appleyard, Kocisky and Blunsom, "Optimizing performance of recurrent neural networks on
        GPUs", 2016 (the weight gradient as one product).
    """
    return Hoisted()


def _forward(
    gated: Gated, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
) -> tuple[Any, Any]:
    """Run the cell; return what the reference does, and what going back needs of every step."""

    def body(state, inputs):
        projected, recurrent = gated.project(params, inputs), gated.recur(params, state)
        (new_state, output), pullback = jax.vjp(gated.activate, params, state, projected, recurrent)
        return new_state, (output, new_state if keep_states else None, state, pullback)

    final, (outputs, states, previous, pullbacks) = lax.scan(body, state, inputs, reverse=reverse)
    return (final, outputs, states), (previous, pullbacks)


def _backward(
    gated: Gated,
    primals: tuple[Any, Any, Any],
    saved: tuple[Any, Any],
    cotangents: tuple[Any, Any, Any],
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """Return the cotangents of params, first state and inputs."""
    params, state, inputs = primals
    previous, pullbacks = saved
    d_final, d_outputs, d_states = cotangents
    used = _params_that_activate_uses(gated, params, state, inputs)

    def body(carry, step):
        d_state, d_used = carry
        previous, pullback, d_output, d_kept = step
        if d_kept is not None:
            d_state = _add(d_state, d_kept)
        d_params, d_state, d_projected, d_recurrent = pullback((d_state, d_output))
        d_used = _add(d_used, _pick(used, d_params))
        _, through_recur = jax.vjp(lambda state: gated.recur(params, state), previous)
        return (_add(d_state, *through_recur(d_recurrent)), d_used), (d_projected, d_recurrent)

    zeros = jax.tree.map(jnp.zeros_like, _pick(used, params))
    (d_state, d_used), (d_projected, d_recurrent) = lax.scan(
        body, (d_final, zeros), (previous, pullbacks, d_outputs, d_states), reverse=not reverse
    )
    _, through_recur = jax.vjp(lambda params: gated.recur(params, previous), params)
    _, through_project = jax.vjp(gated.project, params, inputs)
    d_params, d_inputs = through_project(d_projected)
    d_params = _add(d_params, *through_recur(d_recurrent))
    leaves, tree = jax.tree.flatten(d_params)
    for number, extra in zip(used, d_used, strict=True):
        leaves[number] = leaves[number] + extra
    return tree.unflatten(leaves), d_state, d_inputs


def _params_that_activate_uses(gated: Gated, params: Any, state: Any, inputs: Any) -> list[int]:
    """Return which leaves of params `activate` reads: for most cells none, for peepholes some."""
    projected = jax.eval_shape(gated.project, params, _first(inputs))
    recurrent = jax.eval_shape(gated.recur, params, state)
    jaxpr = jax.make_jaxpr(gated.activate)(params, state, projected, recurrent).jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    read |= {id(atom) for atom in jaxpr.outvars}
    count = len(jax.tree.leaves(params))
    return [number for number in range(count) if id(jaxpr.invars[number]) in read]


def _first(inputs: PyTree) -> PyTree:
    """Return the shape and dtype of one step's inputs."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)


def _pick(numbers: list[int], tree: PyTree) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [leaves[number] for number in numbers]


def _add(left: PyTree, right: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, left, right)
