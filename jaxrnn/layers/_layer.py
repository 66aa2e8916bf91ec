"""What layers share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import _check
from jaxrnn._layer import Layer
from jaxrnn._unroll import unroll
from jaxrnn.engines import scan


def no_state(
    batch_shape: tuple[int, ...] = (), *, dtype: Any = None, params: Any = None
) -> tuple[()]:
    """The `initial_state` of a layer that carries nothing."""
    del batch_shape, dtype, params
    return ()


def either_major(apply: Callable[..., Any], return_sequences: bool) -> Callable[..., Any]:
    """Return a time-major `apply` that also takes `time_major=False`.

    Inputs are then `(*batch, T, I)`, or integers `(*batch, T)`, and time takes the same place in
    what is returned.
    """

    def apply_either(
        params: Any, state: Any, inputs: Any, *, time_major: bool = True, **options: Any
    ) -> tuple[Any, Any]:
        if _check.flag("time_major", time_major):
            return apply(params, state, inputs, **options)
        if _check.has_kind(inputs, jnp.integer) and inputs.ndim > 0:
            time = inputs.ndim - 1
        else:
            time = _check.array("inputs", inputs, min_ndim=2, axes="(*batch, T, features)").ndim - 2
        inputs = jnp.moveaxis(inputs, time, 0)
        for name in ("mask", "resets"):
            if options.get(name) is not None:
                shape = inputs.shape[: time + 1]
                options[name] = _check.flags(name, options[name], shape, time_major=False)
        state, outputs = apply(params, state, inputs, **options)
        if return_sequences:
            outputs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time), outputs)
        return state, outputs

    return apply_either


def options_for(layer: Layer, options: dict[str, Any]) -> dict[str, Any]:
    """Return what of the options to `apply` a layer takes, among others that take more."""
    if not layer.recurrent:
        return {}
    return {name: o for name, o in options.items() if name != "context" or layer.takes_context}


def output_size(layer: Layer, params: Any, input_size: int | None, dtype: Any) -> int:
    """Return how many features a layer's outputs have for inputs with so many."""
    one_step = (
        jax.ShapeDtypeStruct((1, 1), jnp.int32)
        if input_size is None
        else jax.ShapeDtypeStruct((1, 1, input_size), dtype)
    )
    options = {"unroll": _scanned} if layer.recurrent else {}
    _, outputs = jax.eval_shape(lambda p, x: layer.apply(p, None, x, **options), params, one_step)
    return outputs.shape[-1]


def _scanned(*arguments: Any, engine: Any, **options: Any) -> tuple[Any, Any]:
    """Do as `unroll` on any number of steps and sequences, which an engine may not take."""
    del engine
    return unroll(*arguments, engine=scan(), **options)
