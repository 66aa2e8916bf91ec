"""A run's curve in a file, written as it comes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrnn import _check
from jaxrnn.training._result import FitResult

_HEADERS = {".csv": "step,loss,gradient_norm\n", ".jsonl": ""}


def metrics_writer(path: str | os.PathLike[str]) -> Callable[[int, FitResult], None]:
    """Make an `on_report` for `fit` that writes each step's loss and gradient norm to a file.

    The rows of all steps up to a report are in the file when it ends, so a run that is killed
    leaves its curve. The first report of a run writes the file anew, in one stroke, from the run's
    whole history: in a run that goes on from a checkpoint no row is missing or there twice, and
    none is torn. With several processes the first writes.

    Args:
        path: the file, which ends in .csv, or in .jsonl for a JSON object on each line, with null
            for what is not finite. Steps are counted from 0.

    Returns:
        A function for the argument `on_report` of one run.

    Raises:
        TypeError: if the path is no path.
        ValueError: if it ends in anything else; in a report, if the result is a sweep's.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax, pathlib, tempfile
        >>> def loss(params, batch, key):
        ...     return (params - batch) ** 2
        >>> path = pathlib.Path(tempfile.mkdtemp(), "curve.csv")
        >>> result = jaxrnn.fit(
        ...     loss, jnp.array(0.0), optax.sgd(0.25), jnp.array([1.0, 2.0]), steps=2,
        ...     key=jax.random.key(0), on_report=jaxrnn.training.metrics_writer(path),
        ... )
        >>> print(path.read_text())
        step,loss,gradient_norm
        0,1.0,2.0
        1,2.25,3.0
        <BLANKLINE>
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: got {_check.describe(path)}, expected a path")
    path = Path(path)
    if path.suffix not in _HEADERS:
        raise ValueError(f"path: got {str(path)!r}, expected it to end in .csv or .jsonl")
    row = {".csv": _csv_row, ".jsonl": _json_row}[path.suffix]
    written = 0

    def write(step: int, result: FitResult) -> None:
        nonlocal written
        if np.ndim(result.losses) != 1:
            raise ValueError(
                f"result: got losses {_check.describe(result.losses)}, expected those of one run, "
                "not of a sweep"
            )
        if jax.process_index() != 0:
            return
        rows = "".join(
            row(number, result.losses[number], result.gradient_norms[number])
            for number in range(written, step)
        )
        if written:
            with path.open("a") as file:
                file.write(rows)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.unfinished")
            unfinished.write_text(_HEADERS[path.suffix] + rows)
            unfinished.replace(path)
        written = step

    return write


# NumPy's text of a number is the shortest that is read as the same number of its dtype.
def _csv_row(step: int, loss: Any, norm: Any) -> str:
    return f"{step},{loss},{norm}\n"


def _json_row(step: int, loss: Any, norm: Any) -> str:
    loss, norm = (value if np.isfinite(value) else "null" for value in (loss, norm))
    return f'{{"step": {step}, "loss": {loss}, "gradient_norm": {norm}}}\n'
