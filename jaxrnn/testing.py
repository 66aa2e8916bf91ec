"""What to test a cell of your own with: the promises that the rest of the library relies on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from jaxrnn import _check, engines
from jaxrnn._cell import Cell, bind_context, checked_cell, with_noise
from jaxrnn._unroll import unroll

__all__ = ["check_cell"]

_STEPS = 5  # of which chunks of 2 leave a remainder
_BATCH = 3
_ENGINES = (
    engines.hoisted(2, keep="states"),
    engines.hoisted(2, keep="products"),
    engines.checkpointed(2),
)


class _Problem(NamedTuple):
    """A cell, and what to run it on: a batch of sequences and a state amid one."""

    cell: Cell
    params: Any
    state: Any
    inputs: jax.Array
    key: PRNGKeyArray
    context: Any


def check_cell(
    cell: Cell,
    input_size: int = 3,
    *,
    key: PRNGKeyArray | None = None,
    context: PyTree = None,
    finite_differences: bool = True,
) -> None:
    """Check that a cell keeps the promises that engines, layers and diagnostics rely on.

    It runs the cell on a small random batch, and checks that

    - its step and its `SplitStep`, `combine` and `readout` fit together;
    - no sequence of a batch has an effect on another;
    - state and outputs have the dtype of the inputs, none of them weakly typed, in float32, in
      float64 if that is enabled, and with a `compute_dtype` of bfloat16;
    - a second step is not compiled again;
    - values and gradients are those of `scan()` on every engine that runs the cell, in training
      too if the cell draws noise;
    - gradients are finite, and those of finite differences.

    Args:
        cell: the cell.
        input_size: the number of features of the inputs.
        key: where random numbers come from; by default always the same ones.
        context: what a cell that takes a context reads, arrays whose first axis has 3 entries.
        finite_differences: whether gradients are those of finite differences. Not so where a step
            has a surrogate gradient, or jumps.

    Raises:
        AssertionError: if it breaks one. The message says which, and by how much.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> jaxrnn.testing.check_cell(jaxrnn.gru(4))
        >>> mixing = jaxrnn.Cell(
        ...     init=lambda key, input_size, dtype: (),
        ...     initial_state=lambda batch_shape, dtype: jnp.zeros((*batch_shape, 3), dtype),
        ...     step=lambda params, state, inputs: 2 * (inputs - inputs.mean(0),),
        ...     name="mixing",
        ... )
        >>> jaxrnn.testing.check_cell(mixing)
        Traceback (most recent call last):
        AssertionError: mixing mixes the batch: ...
    """
    checked_cell("cell", cell)
    key = _check.key("key", jax.random.key(0) if key is None else key)
    problem = _problem(cell, _check.size("input_size", input_size), key, context)
    for check in (_check_parts, _check_batch, _check_dtypes, _check_retracing, _check_engines):
        check(problem)
    _check_gradients(problem, _check.flag("finite_differences", finite_differences))


def _problem(cell: Cell, input_size: int, key: PRNGKeyArray, context: Any) -> _Problem:
    dtype = jnp.result_type(float)
    of_params, of_inputs, of_noise = jax.random.split(key, 3)
    try:
        params = cell.init(of_params, input_size, dtype=dtype)
        inputs = jax.random.normal(of_inputs, (_STEPS, _BATCH, input_size), dtype)
        state, _ = unroll(cell, params, inputs[::-1], context=context, engine=engines.scan())
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{cell.name} does not run: {error}") from error
    return _Problem(cell, params, state, inputs, of_noise, context)


def _check_parts(problem: _Problem) -> None:
    """Check that the step is what its parts make, and its output what is read from the state."""
    cell, params = bind_context(problem.cell, problem.params, problem.context)
    for noise in (None, cell.noise(problem.inputs, problem.key)):
        inputs = with_noise(*jax.tree.map(lambda leaf: leaf[0], (problem.inputs, noise)))
        state, output = cell.advance(params, problem.state, inputs)
        if cell.readout is not None:
            _assert_close(
                cell.readout(state), output, f"{cell.name}'s readout is not the step's output"
            )
        parts = cell.split_step
        if parts is None:
            continue
        projected = parts.project(params, inputs)
        recurrent = parts.recur(params, parts.masked_state(problem.state, projected))
        gates = parts.combine(projected, recurrent)
        _assert_close(
            parts.activate(params, problem.state, gates),
            (state, output),
            f"{cell.name}'s step is not what its parts make",
        )
        doubled = parts.combine(*jax.tree.map(lambda leaf: 2 * leaf, (projected, recurrent)))
        _assert_close(
            doubled, jax.tree.map(lambda leaf: 2 * leaf, gates), f"{cell.name}: combine: not linear"
        )


def _check_batch(problem: _Problem) -> None:
    """Check that each sequence alone gives what it gives in the batch, and in a nested batch."""
    cell, params, state, inputs, _, context = problem
    run = jax.jit(functools.partial(unroll, cell, engine=engines.scan()))
    final, outputs = run(params, inputs, state, context=context)
    for number in range(_BATCH):
        of_one = jax.tree.map(lambda leaf: leaf[number], (state, context))  # noqa: B023
        alone = run(params, inputs[:, number], of_one[0], context=of_one[1])
        together = (
            jax.tree.map(lambda leaf: leaf[number], final),  # noqa: B023
            jax.tree.map(lambda leaf: leaf[:, number], outputs),  # noqa: B023
        )
        _assert_close(
            alone, together, f"{cell.name} mixes the batch: a sequence alone gives something else"
        )
    nested = jax.tree.map(lambda leaf: leaf[None], (state, context))
    nested_final, nested_outputs = run(params, inputs[:, None], nested[0], context=nested[1])
    flat = jax.tree.map(lambda leaf: leaf[0], nested_final)
    _assert_close(
        (flat, jax.tree.map(lambda leaf: leaf[:, 0], nested_outputs)),
        (final, outputs),
        f"{cell.name} gives something else for two axes of batch",
    )


def _check_dtypes(problem: _Problem) -> None:
    """Check that floats have the dtype of the inputs, and are not weakly typed."""
    cell, input_size = problem.cell, problem.inputs.shape[-1]
    dtypes = [np.dtype(np.float32), problem.inputs.dtype]
    for dtype, compute_dtype in [*((dtype, None) for dtype in dtypes), (dtypes[0], jnp.bfloat16)]:
        context = jax.tree.map(functools.partial(_cast_to, dtype), problem.context)

        def run(key, inputs):
            params = cell.init(key, input_size, dtype=inputs.dtype)
            options = {"context": context, "compute_dtype": compute_dtype}  # noqa: B023
            bound, of_bound = bind_context(cell, params, context)  # noqa: B023
            state = cell.initial_state(_BATCH, dtype=inputs.dtype, params=params)
            one = bound.advance(of_bound, state, inputs[0])
            return params, one, unroll(cell, params, inputs, engine=engines.scan(), **options)

        where = f"for inputs of {dtype}"
        where += "" if compute_dtype is None else " and a compute_dtype of bfloat16"
        inputs = jax.ShapeDtypeStruct(problem.inputs.shape, dtype)
        try:
            params, one, whole = jax.eval_shape(run, jax.random.key(0), inputs)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{cell.name} does not run {where}: {error}") from error
        named = {"params": params, "state": (one[0], whole[0]), "output": (one[1], whole[1])}
        for name, tree in named.items():
            for leaf in jax.tree.leaves(tree):
                floating = jnp.issubdtype(leaf.dtype, jnp.floating)
                assert not floating or leaf.dtype == dtype, (
                    f"{cell.name}: {name}: got {leaf.dtype} {where}, expected {dtype}"
                )
                assert not leaf.weak_type, (
                    f"{cell.name}: {name}: got a weakly typed array, expected one with a dtype of "
                    "its own, such as that of the inputs"
                )


def _check_retracing(problem: _Problem) -> None:
    """Check that a step on the state that a step returned takes no new program."""
    cell, params, _, inputs, _, context = problem
    traced = []

    @jax.jit
    def step(params, state, inputs, context):
        traced.append(state)
        return cell.step(params, state, inputs, context=context)

    state = cell.initial_state(_BATCH, dtype=inputs.dtype, params=params)
    for _ in range(2):
        state, _ = step(params, state, inputs[0], context)
    assert len(traced) == 1, (
        f"{cell.name} is compiled again for the state that its step returned: got types "
        f"{jax.tree.map(jax.typeof, traced[1])}, expected those of its initial_state "
        f"{jax.tree.map(jax.typeof, traced[0])}"
    )


def _check_engines(problem: _Problem) -> None:
    """Check that all engines give the same values and gradients."""
    cell = problem.cell
    keys = (None,) if cell.draw_noise is None else (None, problem.key)
    for key in keys:
        expected = _value_and_gradient(problem, engines.scan(), key)
        for engine in _ENGINES:
            if cell.split_step is None and isinstance(engine, engines.hoisted):
                continue
            got = _value_and_gradient(problem, engine, key)
            for name, ours, theirs in zip(("values", "gradients"), got, expected, strict=True):
                _assert_close(ours, theirs, f"{cell.name}: {engine} gives other {name} than scan()")


def _value_and_gradient(problem: _Problem, engine: Any, key: Any) -> tuple[Any, Any]:
    loss, leaves = _loss(problem, engine, key)
    (_, values), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(leaves)
    return values, gradients


def _check_gradients(problem: _Problem, finite_differences: bool) -> None:
    """Check gradients at the initial state and amid a sequence."""
    cell = problem.cell
    initial = cell.initial_state(_BATCH, dtype=problem.inputs.dtype, params=problem.params)
    for where, state in (("at the initial state", initial), ("within a sequence", problem.state)):
        loss, leaves = _loss(problem._replace(state=state), engines.scan(), None)
        gradients = jax.jit(jax.grad(loss, has_aux=True))(leaves)[0]
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in gradients)
        assert finite, f"{cell.name}: got a gradient that is not finite {where}"
    if finite_differences:
        tolerance = 1e-5 if problem.inputs.dtype == np.float64 else 3e-2
        try:
            jax.test_util.check_grads(
                jax.jit(lambda leaves: loss(leaves)[0]),
                (leaves,),
                order=1,
                modes=["rev"],
                atol=tolerance,
                rtol=tolerance,
            )
        except AssertionError as error:
            raise AssertionError(
                f"{cell.name}: its gradient is not that of finite differences: {error}"
            ) from error


def _loss(problem: _Problem, engine: Any, key: Any) -> tuple[Callable[..., Any], list[jax.Array]]:
    """Return a function of all that has a gradient, and its argument.

    It returns a number that depends on every entry of the state and the outputs, and these.
    """
    arguments = problem.params, problem.inputs, problem.state, problem.context
    leaves, structure = jax.tree.flatten(arguments)
    places = [n for n, leaf in enumerate(leaves) if _check.has_kind(leaf, jnp.inexact)]

    def loss(differentiable):
        filled = list(leaves)
        for place, leaf in zip(places, differentiable, strict=True):
            filled[place] = leaf
        params, inputs, state, context = structure.unflatten(filled)
        results = unroll(
            problem.cell, params, inputs, state, key=key, context=context, engine=engine
        )
        return sum(_weighted(leaf) for leaf in jax.tree.leaves(results)), results

    return loss, [leaves[place] for place in places]


def _weighted(leaf: jax.Array) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return 0
    weights = jnp.cos(jnp.arange(leaf.size)).astype(jnp.finfo(leaf.dtype).dtype)
    flat = leaf.ravel()
    return jnp.sin(flat.real) @ weights + (
        jnp.sin(flat.imag) @ weights if jnp.iscomplexobj(leaf) else 0
    )


def _cast_to(dtype: Any, leaf: Any) -> Any:
    return leaf.astype(dtype) if _check.has_kind(leaf, jnp.floating) else leaf


def _assert_close(got: PyTree, expected: PyTree, message: str) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        where = f"{message}: at {jax.tree_util.keystr(path)}"
        assert ours.shape == theirs.shape, f"{where} got {ours.shape}, expected {theirs.shape}"
        # Rounding in another order; of 64 bits as many again are let through.
        tolerance = 1e-9 if theirs.dtype in (np.float64, np.complex128) else 1e-4
        difference = np.abs(ours - theirs) if theirs.dtype != bool else ours != theirs
        largest = np.max(difference, initial=0)
        assert np.allclose(ours, theirs, rtol=tolerance, atol=tolerance), (
            f"{where} the largest difference is {largest:.3g}, of values of up to "
            f"{np.max(np.abs(theirs), initial=0):.3g}"
        )
