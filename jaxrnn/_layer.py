"""The layer: what turns one sequence into another."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrnn import _check
from jaxrnn._cell import Cell, state_layout
from jaxrnn._memoize import Rebuildable


@dataclasses.dataclass(frozen=True, eq=False)
class Layer(Rebuildable):
    """A frozen record of three pure functions from sequence to sequence.

    As a layer takes a state and returns one, a sequence may come in windows of any length: carry
    the state from one window to the next and the outputs are those of the whole sequence, up to
    the rounding of programs compiled for other shapes. Cut `mask` and `resets` as the inputs are;
    `lengths` of a window from step `start` on are what is left of each sequence,
    `jnp.clip(lengths - start, 0, steps)`.

    Attributes:
        init: `(key, input_size=None, *, dtype=float32) -> params`. `input_size` is the number of
            features of the inputs, and None where these are integers without features.
        initial_state: `(batch_shape=(), *, dtype=float32, params=None) -> state`, `()` for layers
            without one; params are needed where they hold the state that a sequence starts from.
        apply: `(params, state, inputs, *, key=None) -> (state, outputs)`, time-major. A state of
            None is the initial one. With a key the layer trains, and draws what it needs at random;
            without, it evaluates.
        name: what error messages call the layer.
        recurrent: whether `apply` also takes `lengths`, `mask` and `resets`, as `unroll` does, and
            an argument `unroll`: a function that runs each cell in the place of `jaxrnn.unroll`, by
            which the diagnostics look inside. Layers that treat each step by itself need none.
        causal: whether the sequence may come in windows; not so if anything in the layer runs from
            the last step to the first.
        return_sequences: whether outputs have a time axis where inputs have one; not so if only the
            last output is returned.
        takes_context: whether `apply` also takes `context`, for a cell that reads one.
        parts: what `print` shows: the cells that are unrolled, or the layers in a row, each with an
            entry of params.

    Example:
        A layer that doubles its inputs:

        >>> import jax.numpy as jnp, jaxrnn
        >>> double = jaxrnn.Layer(
        ...     init=lambda key, input_size=None, *, dtype=jnp.float32: (),
        ...     initial_state=lambda batch_shape=(), *, dtype=jnp.float32, params=None: (),
        ...     apply=lambda params, state, inputs, *, key=None: (state, 2 * inputs),
        ... )
        >>> state, outputs = jaxrnn.serial(double, double).apply(((), ()), None, jnp.ones((3, 1)))
        >>> outputs.ravel()
        Array([4., 4., 4.], dtype=float32)
    """

    init: Callable[..., Any]
    initial_state: Callable[..., Any]
    apply: Callable[..., tuple[Any, Any]]
    name: str = "layer"
    recurrent: bool = False
    causal: bool = True
    return_sequences: bool = True
    takes_context: bool = False
    parts: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"Layer({self.name})"

    def __str__(self) -> str:
        cells = [part for part in self.parts if isinstance(part, Cell)]
        if cells:
            return f"{self.name}: state {' and '.join(state_layout(cell) for cell in cells)}"
        lines = [f"  {line}" for layer in self.parts for line in str(layer).splitlines()]
        return "\n".join([self.name, *lines])


def checked_layer(name: str, value: Any) -> Layer:
    """Return `value`, a layer."""
    if not isinstance(value, Layer):
        raise TypeError(f"{name}: got {_check.describe(value)}, expected a jaxrnn.Layer")
    return value
