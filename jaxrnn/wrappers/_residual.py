"""Residual: a cell's output is added to its input, step by step."""

from typing import Any

from jaxrnn import _check
from jaxrnn._cell import Cell, NoisyInputs, checked_cell
from jaxrnn._memoize import memoized
from jaxrnn.wrappers._wrap import wrap_step


def residual(cell: Cell) -> Cell:
    """Residual cell: the cell's output is added to its input.

        state, output = step(state, inputs)
        output = inputs + output

    Args:
        cell: a cell whose output has the shape of its input.

    Returns:
        A cell with the same params and state. The state is the cell's own, without the input.

    Raises:
        ValueError: in `step`, if the output's shape differs from the input's.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.wrappers.residual(jaxrnn.gru(32))
        >>> params = cell.init(jax.random.key(0), 32)
        >>> state, outputs = jaxrnn.unroll(cell, params, jnp.ones((5, 32)))
        >>> outputs.shape
        (5, 32)

    References:
        He et al., "Deep residual learning for image recognition", 2016, equation 1.
    """
    return _residual(checked_cell("cell", cell))


@memoized()
def _residual(cell: Cell) -> Cell:

    def split(inputs: Any) -> tuple[Any, Any]:
        return inputs, inputs.inputs if isinstance(inputs, NoisyInputs) else inputs

    def finish(
        params: Any, state: Any, inputs: Any, new_state: Any, output: Any
    ) -> tuple[Any, Any]:
        if getattr(output, "shape", None) != inputs.shape:
            raise ValueError(
                f"inputs: got {_check.describe(inputs)}, expected the shape of {cell.name}'s "
                f"output {_check.describe(output)}, as this is added to them"
            )
        return new_state, inputs + output

    # The output depends on the input, too: it is no function of the state.
    step = wrap_step(cell, split, finish)
    return cell.replace(step=step, readout=None, name=f"residual({cell.name})")
