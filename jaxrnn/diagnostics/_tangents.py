"""What the diagnostics of a step's Jacobian share: checked arguments, and a state as one vector."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell, SplitStep
from jaxrnn._dtypes import without_weak_types

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def checked_state(
    cell: Cell | Step,
    params: PyTree,
    inputs: Array,
    state: PyTree | None,
    *,
    factorised: bool = False,
) -> PyTree:
    """Check what is to be unrolled, and return the state before the first step.

    Args:
        cell: a cell, or a bare function `(params, state, inputs) -> (state, output)`.
        params: its parameters.
        inputs: the sequence `(T, *batch, I)`.
        state: the state before the first step; a cell makes its own if None.
        factorised: whether `flatten` is to make matrices of it that are factorised: then it may be
            of complex numbers, and neither of 16 bits nor of no sequences.

    Returns:
        The state, whose leaves are floating (or complex) arrays `(*batch, ...)`.
    """
    if not isinstance(cell, Cell) and not callable(cell):
        raise TypeError(
            f"cell: got {_check.describe(cell)}, expected a jaxrnn.Cell or a function "
            "(params, state, inputs) -> (state, output)"
        )
    _check.array("inputs", inputs, min_ndim=2, axes="(T, *batch, features)")
    batch_shape = inputs.shape[1:-1]
    if factorised and 0 in batch_shape:
        raise ValueError(f"inputs: got {_check.describe(inputs)}, expected at least one sequence")
    if state is None:
        if not isinstance(cell, Cell):
            raise TypeError("state: got None, expected a state, as a bare step makes none")
        state = cell.initial_state(batch_shape, dtype=inputs.dtype, params=params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = f"state{jax.tree_util.keystr(path)}"
        if not (factorised and jnp.iscomplexobj(leaf)):
            axes = "that begins with the batch dimensions of inputs"
            _check.array(name, leaf, min_ndim=len(batch_shape), axes=axes)
        if factorised and leaf.dtype.itemsize < 4:
            raise TypeError(
                f"{name}: got {_check.describe(leaf)}, expected float32 or float64, in which "
                "matrices can be factorised"
            )
        check_batch(name, leaf, batch_shape)
    if isinstance(cell, Cell):
        cell.checked_state(params, state, inputs, batch_shape=batch_shape)
    else:
        check_step(cell, params, inputs, state)
    for name, tree in (("params", params), ("inputs", inputs), ("state", state)):
        finite(name, tree)
    return without_weak_types(state)


@contextlib.contextmanager
def forward_mode(cell: Cell | Step) -> Iterator[None]:
    """Name the cell where it can't be differentiated forwards."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            f"cell: got {getattr(cell, 'name', 'a step')}, which has a jax.custom_vjp and so no "
            "forward mode, expected one with a jax.custom_jvp; state_gradients and gradient_norms "
            "work on it as it is"
        ) from error


def check_batch(name: str, leaf: Array, batch_shape: tuple[int, ...]) -> None:
    """Raise if a part of the state doesn't begin with the batch dimensions of the inputs."""
    if leaf.shape[: len(batch_shape)] != batch_shape:
        raise ValueError(
            f"{name}: got {_check.describe(leaf)}, expected an array that begins with "
            f"{list(batch_shape)}, the batch dimensions of inputs"
        )


def check_step(step: Step, params: PyTree, inputs: Array, state: PyTree) -> None:
    """Raise unless a bare step makes such a state as it is given, and an output."""
    for name, tree in (("params", params), ("state", state)):
        _check.no_narrowing(name, tree)
    if not jax.tree.leaves(state):
        raise TypeError(f"state: got {_check.describe(state)}, expected at least one array")
    state = jax.eval_shape(lambda: without_weak_types(state))
    one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    returned = jax.eval_shape(step, params, state, one)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"cell: the step: got {_check.describe(returned)}, expected (state, output)"
        )
    _check.same_spec(
        "cell: the step's new state", returned[0], state, "as the one that it was given"
    )


def finite(name: str, tree: PyTree) -> None:
    """Raise if an array holds NaN or infinity; within a trace arrays have no values."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer) or not hasattr(leaf, "dtype"):
            continue
        # In NumPy, as JAX would make a tracer of a constant within a trace.
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where}: got NaN or infinity, expected finite numbers")


def step_of(cell: Cell | Step) -> Step:
    """Return a cell's step, or the step that was given in its place."""
    return cell.step if isinstance(cell, Cell) else cell


def structure_of(cell: Cell | Step) -> SplitStep | None:
    """Return a cell's parts if it shows them; a bare step shows none."""
    return cell.split_step if isinstance(cell, Cell) else None


def flatten(state: PyTree, batch_ndim: int) -> Float[Array, "*batch N"]:
    """Put a state's arrays side by side, one vector of N numbers for each sequence.

    Complex arrays are put as real and imaginary part: few steps are analytic functions of them.
    """
    leaves = [
        part
        for leaf in jax.tree.leaves(state)
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    return jnp.concatenate(
        [jnp.reshape(leaf, (*leaf.shape[:batch_ndim], -1)) for leaf in leaves], axis=-1
    )


def unflatten(flat: Float[Array, "*batch N"], like: PyTree) -> PyTree:
    """Undo `flatten`: cut a vector into arrays such as those of the state `like`."""
    leaves, treedef = jax.tree.flatten(like)
    batch_ndim = flat.ndim - 1
    sizes = [size_of(leaf, batch_ndim) for leaf in leaves]
    parts = jnp.split(flat, np.cumsum(sizes)[:-1], axis=-1)

    def shaped(part, leaf):
        if jnp.iscomplexobj(leaf):
            part = lax.complex(*jnp.split(part, 2, axis=-1))
        return jnp.reshape(part, leaf.shape).astype(leaf.dtype)

    return jax.tree.unflatten(
        treedef, [shaped(part, leaf) for part, leaf in zip(parts, leaves, strict=True)]
    )


def size_of(state: PyTree, batch_ndim: int) -> int:
    """Return N, how many real numbers one sequence's state holds."""
    return sum(
        int(np.prod(leaf.shape[batch_ndim:])) * (2 if jnp.iscomplexobj(leaf) else 1)
        for leaf in jax.tree.leaves(state)
    )


def flat_step(cell: Cell | Step, params: PyTree, like: PyTree) -> Callable[[Array, Array], Array]:
    """Return `(flat, inputs) -> flat`, the step of a state `like`, as `flatten` makes it."""
    step = step_of(cell)

    def advance(flat, inputs):
        state, _ = step(params, unflatten(flat, like), inputs)
        return flatten(state, flat.ndim - 1)

    return advance


def push(
    advance: Callable[[Array, Array], Array],
    flat: Float[Array, "*batch N"],
    tangents: Float[Array, "K *batch N"],
    inputs: Float[Array, "*batch I"],
) -> tuple[Float[Array, "*batch N"], Float[Array, "K *batch N"]]:
    """Advance a state by one step, and its tangents by the step's Jacobian there.

    The step is linearised once, so that a product with weights takes all tangents at a time.
    """
    flat, derivative = jax.linearize(lambda flat: advance(flat, inputs), flat)
    return flat, jax.vmap(derivative)(tangents)


def fixed_basis(rows: int, columns: int) -> np.ndarray:
    """Return `rows` orthonormal rows of `columns` numbers, always the same ones.

    They are of no particular direction: those of the identity might lie in a subspace that the
    dynamics never leave, as with a diagonal kernel, and would then miss what happens outside of it.
    """
    # Squares have phases that are spread evenly, and every minor of such a matrix is regular.
    numbers = np.sin(np.arange(1.0, rows * columns + 1) ** 2).reshape(columns, rows)
    return np.linalg.qr(numbers)[0].T
