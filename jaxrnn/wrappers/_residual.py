"""Residual: a cell's output is added to its input, step by step."""

import functools
from typing import Any

from jaxrnn import _check
from jaxrnn._cell import Cell, NoisyInputs
from jaxrnn.wrappers._wrap import after_step


@functools.cache
def residual_cell(cell: Cell) -> Cell:
    """Wrap a cell so that its output is added to its input; the state is as it was."""

    def split(inputs: Any) -> tuple[Any, Any]:
        return inputs, inputs.inputs if isinstance(inputs, NoisyInputs) else inputs

    def finish(
        params: Any, state: Any, inputs: Any, new_state: Any, output: Any
    ) -> tuple[Any, Any]:
        if getattr(output, "shape", None) != inputs.shape:
            raise ValueError(
                f"inputs: got {_check.describe(inputs)}, wanted the shape of {cell.name}'s output "
                f"{_check.describe(output)}, as this is added to them"
            )
        return new_state, inputs + output

    return cell.replace(step=after_step(cell, split, finish), name=f"residual({cell.name})")
