"""Which engine to run a cell with, and why."""

from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Shaped

from jaxrnn import _check
from jaxrnn._cell import Cell, bind_context
from jaxrnn._jaxpr import is_variable
from jaxrnn._layer import Layer
from jaxrnn._types import Array
from jaxrnn.engines._checkpointed import checkpointed
from jaxrnn.engines._engine import (
    Engine,
    default_unroll,
    is_static,
    leading_shape,
    size_in_bytes,
)
from jaxrnn.engines._hoisted._engine import hoisted_where_it_can
from jaxrnn.engines._scan import scan

# States that take more than this, in bytes, are not all kept.
_MEMORY = 2**30


class EngineChoice(NamedTuple):
    """An engine, and the reason why `choose_engine` chose it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> inputs = jax.ShapeDtypeStruct((200, 32, 64), jnp.float32)
        >>> engine, reason = jaxrnn.engines.choose_engine(jaxrnn.elman(128), inputs)
        >>> engine
        hoisted(chunk=None, keep=None, unroll=None)
    """

    engine: Engine
    reason: str


@overload
def choose_engine(
    model: Cell, inputs: Array | jax.ShapeDtypeStruct, *, context: PyTree = None
) -> EngineChoice: ...


@overload
def choose_engine(
    model: Layer, inputs: Array | jax.ShapeDtypeStruct, *, context: PyTree = None
) -> list[EngineChoice]: ...


def choose_engine(
    model: Cell | Layer,
    inputs: Shaped[Array, "T *batch"] | jax.ShapeDtypeStruct,
    *,
    context: PyTree = None,
) -> EngineChoice | list[EngineChoice]:
    """Choose the engine that `unroll` takes if it is given none, and say why.

    Args:
        model: a cell, or a layer.
        inputs: what the model takes, time first; none of the entries is looked at, so that
            `jax.ShapeDtypeStruct((T, B, I), jnp.float32)` will do.
        context: that of a model that reads one, or its shapes.

    Returns:
        For a cell an `EngineChoice`, the engine and the reason, which says too what a gradient
        keeps: for lengths and a mask a little is added. For a layer a list of them, one for each
        cell that it unrolls.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> inputs = jax.ShapeDtypeStruct((200, 32, 64), jnp.float32)
        >>> choice = jaxrnn.engines.choose_engine(jaxrnn.gru(128), inputs)
        >>> choice.engine
        hoisted(chunk=None, keep=None, unroll=None)
        >>> for part in choice.reason.split("; "):
        ...     print(part)
        gru has a split step, so weight gradients can leave the backward loop
        chunks have 25 steps, and products are kept of each step, 15.6 MiB for a gradient
    """
    if isinstance(model, Layer):
        return _of_layer(model, inputs, context)
    if not isinstance(model, Cell):
        raise TypeError(f"model: got {_check.describe(model)}, expected a jaxrnn.Cell or Layer")
    _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
    model._check_context(context, inputs.shape[1:-1])
    engine = chosen_engine(model, inputs)
    reasons = [_why(model, inputs)]
    if is_static(*inputs.shape):
        reasons.append(_what_is_kept(model, inputs, engine, context))
    unroll = default_unroll()
    if unroll > 1:
        where = jax.default_backend()
        reasons.append(f"on a {where} launching kernels dominates, so loops hold {unroll} steps")
    return EngineChoice(engine, "; ".join(reasons))


def chosen_engine(cell: Cell, inputs: Any) -> Engine:
    """Return the engine for inputs `(T, *batch, I)`, without reasons."""
    return checkpointed() if _size_of_states(cell, inputs) > _MEMORY else hoisted_where_it_can(cell)


def _size_of_states(cell: Cell, inputs: Any) -> int:
    """Return how many bytes the states of all steps take, 0 if that has no value yet."""
    steps, *batch_shape = leading_shape(inputs)
    if not is_static(steps, *batch_shape):
        return 0
    return steps * size_in_bytes(cell.state_spec(tuple(batch_shape), inputs.dtype))


def _of_layer(layer: Layer, inputs: Any, context: PyTree) -> list[EngineChoice]:
    """Return the choice for each cell, in the order in which they run."""
    choices = []

    def unroll(cell: Cell, params: Any, inputs: Any, *_: Any, **options: Any) -> Any:
        engine, context = options["engine"], options.get("context")
        if engine is None:
            choices.append(choose_engine(cell, inputs, context=context))
        else:
            kept = _what_is_kept(cell, inputs, engine, context)
            choices.append(EngineChoice(engine, f"the layer of {cell.name} asks for it; {kept}"))
        cell, params = bind_context(cell, params, context)
        state = cell.initial_state(inputs.shape[1:-1], dtype=inputs.dtype, params=params)
        final, outputs, _ = scan()(cell, params, state, inputs, reverse=False, keep_states=False)
        return final, outputs

    def run(key: jax.Array, inputs: Any, context: PyTree) -> None:
        features = None if _check.has_kind(inputs, jnp.integer) else inputs.shape[-1]
        params = layer.init(key, features)
        options = {"context": context} if layer.takes_context else {}
        layer.apply(params, None, inputs, unroll=unroll, **options)

    if layer.recurrent:
        jax.eval_shape(run, jax.random.key(0), inputs, context)
    return choices


def _why(cell: Cell, inputs: Any) -> str:
    size = _size_of_states(cell, inputs)
    if size > _MEMORY:
        return (
            f"the states of all {inputs.shape[0]} steps would take {size / 2**30:.1f} GiB, so only "
            "the one at the start of each chunk is kept"
        )
    if cell.split_step is None:
        return f"the step of {cell.name} is not split, which other engines need"
    return f"{cell.name} has a split step, so weight gradients can leave the backward loop"


def _what_is_kept(cell: Cell, inputs: Any, engine: Engine, context: PyTree) -> str:
    """Say what a gradient keeps, beside what it is of, from the engine's own program."""
    state = cell.state_spec(tuple(inputs.shape[1:-1]), inputs.dtype)
    cell, params = bind_context(cell, cell.params_spec(inputs.shape[-1], inputs.dtype), context)
    arguments = params, state, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)

    def run(*arguments: Any) -> Any:
        return engine(cell, *arguments, reverse=False, keep_states=False)

    jaxpr = jax.make_jaxpr(lambda *a: jax.tree.leaves(jax.vjp(run, *a)[1]))(*arguments).jaxpr
    kept = {var for var in jaxpr.outvars if is_variable(var)} - set(jaxpr.invars)
    mebibytes = sum(size_in_bytes(var.aval) for var in kept) / 2**20
    return f"{engine.explain(cell, *arguments)}, {mebibytes:.1f} MiB for a gradient"
