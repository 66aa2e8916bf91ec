"""The hoisted engine: weight and input gradients leave the backward loop."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._backward import Steps, back_through
from jaxrnn.engines._chunks import nearby_divisor, scan_chunks, scan_without_duplicates
from jaxrnn.engines._engine import (
    Engine,
    checked_chunk,
    default_unroll,
    leading_shape,
    size_in_bytes,
)
from jaxrnn.engines._gated import StepInfo, analyse_step
from jaxrnn.engines._layout import turned_kernels, turned_rows
from jaxrnn.engines._leaves import add, add_at
from jaxrnn.engines._linear import linear_with_transpose
from jaxrnn.engines._members import call_members
from jaxrnn.engines._scan import Scan

# What one chunk's projections, recurrent products and their cotangents may take, in bytes. On a CPU
# that is about what its caches hold: longer chunks go through main memory, and pay for fresh pages
# of it, at each step; shorter ones make products too small for several cores. An accelerator wants
# few and large products.
_WORKING_SET = {"cpu": 4 * 2**20}
_WORKING_SET_OF_ACCELERATORS = 256 * 2**20
# It may take so many times what the parameters take, as each chunk adds to all their gradients.
_PARAMETERS = 4
# Products are kept rather than multiplied again if that is more operations than so many for each
# byte and for each array, about what the cores compute while a byte is written to fresh memory and
# while a kernel that writes one is started, and if they take no more bytes than so many.
_OPERATIONS_A_BYTE = 40
_OPERATIONS_AN_ARRAY = 15_000
_MOST_PRODUCTS = 2**29
# Up to so many chunks are better run as one: what a chunk costs is more than the cache gains.
_FEW_CHUNKS = 3


# What the way forward keeps of every step for the way back: its state, or that and what `project`
# and `recur` returned.
Keep = Literal["states", "products"]


class Plan(NamedTuple):
    """How to run a cell over a sequence, in both directions of time.

    Attributes:
        parts: the anatomy of its step.
        chunk: how many steps a chunk has.
        unroll: how many steps the compiled loop's body holds.
        reverse: whether to begin with the last step.
        keep: what is kept of every step.
    """

    parts: StepInfo
    chunk: int
    unroll: int
    reverse: bool
    keep: Keep


@dataclasses.dataclass(frozen=True)
class Hoisted(Engine):
    """The engine that `hoisted` makes."""

    chunk: int | None
    keep: Keep | None
    unroll: int | None

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell, and where it is differentiated in reverse, hoist the weights' part."""
        split_step = cell.split_step
        if split_step is None:
            raise ValueError(
                f"engine: got hoisted() for {cell.name}, which shows no split step; "
                "expected one that works on any cell: scan() or checkpointed()"
            )
        steps, *batch = leading_shape(inputs)
        chunk = checked_chunk(self.chunk, steps)
        parts = analyse_step(split_step, params, state, inputs)
        chunk = chunk or _chunk_length(parts, params, steps)
        unroll = self.unroll or nearby_divisor(chunk, default_unroll())

        def call(function, keep, *arguments):
            run = functools.partial(function, Plan(parts, chunk, unroll, reverse, keep))
            together = functools.partial(_together, parts, chunk)
            return call_members(run, *arguments, together=together)

        def plain(params, state, inputs):
            final, outputs, states, _ = call(_forward, "states", params, state, inputs)
            return final, outputs, states if keep_states else None

        def reference(params, state, inputs):
            return Scan(unroll)(
                cell, params, state, inputs, reverse=reverse, keep_states=keep_states
            )

        run: Any = jax.custom_jvp(plain)

        @run.defjvp
        def differentiated(primals, tangents):
            keep = self.keep or _what_to_keep(parts, primals[0], steps, math.prod(batch))
            final, outputs, states, kept = call(_forward, keep, *primals)
            results = final, outputs, states if keep_states else None
            return results, linear_with_transpose(
                lambda residuals, tangents: jax.jvp(reference, residuals[:3], tangents)[1],
                lambda residuals, cotangents: call(_backward, keep, *residuals, cotangents),
                residuals=(*primals, states, kept),
                tangents=tangents,
                like=results,
            )

        # Integers, such as a count of steps in the state, have no gradient to hoist.
        floating = all(
            jnp.issubdtype(leaf.dtype, jnp.floating)
            for leaf in jax.tree.leaves((params, parts.results))
        )
        hoistable = floating and parts.pure and steps
        return (run if hoistable else reference)(params, state, inputs)


def hoisted(
    chunk: int | None = None, keep: Keep | None = None, unroll: int | None = None
) -> Hoisted:
    """Make the engine for training split-step cells: all weight gradients are taken after the loop.

    Going back in time needs only the cotangent of the state,

        d_state, d_projected, d_recurrent = transpose of activate(d_new_state, d_output)
        d_state += transpose of recur(d_recurrent)

    so this is all that the backward loop does. From every step's `d_projected` and `d_recurrent`
    one large product gives the gradient of each weight, and one that of the inputs, where `scan`
    does a small product and a sum over the whole weight in every step.

    It works on a chunk of steps at a time. Forward, `project` is one large product for each chunk.
    Backward, `project` and `recur` are computed again, each as one large product, from inputs and
    states, and all of a chunk's steps of `activate` are linearised at once, so that of every step
    only its state is kept: a third of what `scan` keeps. Where that is faster, more is kept, and
    less computed again. Steps of a few small arrays, as of a single sequence, take as long as it
    takes to start their kernels: going back, theirs are as few as can be.

    Values and gradients are those of `scan`, in every mode and order of differentiation. Forward
    mode gains nothing here, and keeps what only reverse mode needs, O(T) memory: take `scan` there
    if T is huge. Under `vmap` each example has a weight gradient of its own, so give the batch as
    dimensions of the inputs where you can. Members with weights of their own, such as seeds, run
    one after another where the caches of a CPU don't hold a chunk of each, and else together.

    Args:
        chunk: how many steps a chunk has. None takes as many as the caches of a CPU hold, or the
            whole sequence if it is not much more than that. If T is no multiple of it, the steps
            that are left over are compiled for themselves.
        keep: what to keep of every step for the way back: its "states" alone, or what `project` and
            `recur` return too, "products" (their sum, where `activate` only adds them up), so that
            nothing has to be multiplied again. None keeps products, up to 512 MiB, where kernels
            and batches are large: of 8 sequences from about 64 units on. On a GPU it keeps states,
            as one large product takes less time there than writing its results.
        unroll: how many steps the body of a compiled loop holds, as in `scan`. None takes 1, which
            is the fastest on a CPU, but on a GPU a divisor of the chunk near 8: there a step takes
            as long as it takes to start its kernels, and of a loop so unrolled one stores the
            results of 8 steps.

    Returns:
        An engine for `unroll(..., engine=...)`. `unroll` raises a ValueError with a cell that has
        no split step, or one whose parts don't act on any leading axes, and with a chunk
        longer than the sequence. It runs as `scan` with integers in params, state or output, and
        with a cell that closes over values which are being traced, or has effects such as printing.

    Raises:
        TypeError: if `chunk` or `unroll` is not an integer.
        ValueError: if one of them is below 1, or `keep` none of these.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(4)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((9, 3))
        >>> def loss(params, engine):
        ...     return jaxrnn.unroll(cell, params, xs, engine=engine)[1].sum()
        >>> plain = jax.grad(loss)(params, jaxrnn.engines.scan())
        >>> fast = jax.grad(loss)(params, jaxrnn.engines.hoisted())
        >>> bool(jnp.allclose(plain.recurrent_kernel, fast.recurrent_kernel, atol=1e-5))
        True

    References:
        Appleyard, Kocisky and Blunsom, "Optimizing performance of recurrent neural networks on
        GPUs", 2016 (the weight gradient as one product).
    """
    if keep is not None and keep not in get_args(Keep):
        raise ValueError(f"keep: got {keep!r}, expected one of {get_args(Keep)} or None")
    return Hoisted(
        None if chunk is None else _check.size("chunk", chunk),
        keep,
        None if unroll is None else _check.size("unroll", unroll),
    )


def hoisted_where_it_can(cell: Cell) -> Engine:
    """Return `hoisted()` for split-step cells, and for others `scan()`, unrolled on a GPU."""
    if cell.split_step is None:
        return Scan(unroll=default_unroll())
    return Hoisted(chunk=None, keep=None, unroll=None)


def _chunk_length(parts: StepInfo, params: Any, steps: int) -> int:
    """Return how many steps a chunk should have."""
    cache = _WORKING_SET.get(jax.default_backend(), _WORKING_SET_OF_ACCELERATORS)
    target = max(cache, _PARAMETERS * size_in_bytes(params)) // max(_step_size(parts), 1)
    if steps <= _FEW_CHUNKS * target:
        return max(steps, 1)
    return nearby_divisor(steps, max(target, 1))


def _together(parts: StepInfo, chunk: int, members: int) -> bool:
    """Return whether so many members of a `vmap` are better run together than one by one.

    On a CPU they are if the caches, which its devices share, hold a chunk of each.
    """
    if jax.default_backend() not in _WORKING_SET:
        return True
    share = _FEW_CHUNKS * _WORKING_SET[jax.default_backend()] // jax.local_device_count()
    return members * chunk * _step_size(parts) <= share


def _step_size(parts: StepInfo) -> int:
    """Return how many bytes a step's projections, recurrent products and cotangents take."""
    return size_in_bytes((parts.projected, parts.recurrent, parts.recurrent))


def _forward(plan: Plan, params: Any, state: Any, inputs: Any) -> tuple[Any, ...]:
    """Return the last state, and every step's output, state and what else is to be kept."""
    parts, chunk, unroll, reverse, keep = plan
    split_step = parts.split_step
    steps = leading_shape(inputs)[0]

    def body(state, projected):
        recurrent = split_step.product(params, state, projected)
        new_state, output = split_step.activate(params, state, projected, recurrent)
        kept = parts.sums.add(projected, recurrent) if keep == "products" else None
        return new_state, (output, new_state, kept)

    def run_chunk(state, _, inputs):
        projected = split_step.project(params, inputs)
        return scan_without_duplicates(body, state, projected, reverse=reverse, unroll=unroll)

    final, kept = scan_chunks(
        run_chunk, state, None, inputs, steps=steps, chunk=chunk, reverse=reverse
    )
    return final, *kept


def _backward(
    plan: Plan,
    params: Any,
    state: Any,
    inputs: Any,
    states: Any,
    kept: Any,
    cotangents: tuple[Any, Any, Any],
) -> tuple[Any, Any, Any]:
    """Return the cotangents of params, first state and inputs."""
    parts, chunk, unroll, reverse, keep = plan
    split_step = parts.split_step
    d_final, d_outputs, d_states = cotangents
    steps, *batch = leading_shape(inputs)
    axes = 1 + len(batch)  # time and batch: all that a product sums over
    kernels, as_params = turned_kernels(params, rows=math.prod(batch))

    def product(state, projected):
        return split_step.product(as_params(kernels), state, projected)

    def run_chunk(carry, entering, of_steps):
        d_state, d_params = carry
        inputs, states, kept, d_outputs, d_states = of_steps
        previous = _shifted(entering, states, reverse=reverse)
        projected, through_project = jax.vjp(
            lambda inputs: _merged(functools.partial(split_step.project, params), inputs, axes),
            inputs,
        )
        exposed = split_step.exposed(previous, projected)
        if keep == "products":
            projected, recurrent = parts.sums.split(*kept)
        else:
            recurrent = _merged(functools.partial(split_step.recur, params), exposed, axes)
        steps_back = Steps(previous, projected, recurrent, d_outputs, d_states)
        back = back_through(
            parts, params, product, d_state, steps_back, reverse=not reverse, unroll=unroll
        )
        # Of these two nothing needs the values, which XLA then leaves out.
        _, through_weights = jax.vjp(
            lambda params: (
                _merged(lambda rows: split_step.project(params, turned_rows(rows)), inputs, axes),
                _merged(lambda rows: split_step.recur(params, turned_rows(rows)), exposed, axes),
            ),
            params,
        )
        d_params = add(d_params, *through_weights((back.projected, back.recurrent)))
        d_params = add_at(parts.used, d_params, back.used)
        return (back.state, d_params), *through_project(back.projected)

    (d_state, d_params), d_inputs = scan_chunks(
        run_chunk,
        (d_final, jax.tree.map(jnp.zeros_like, params)),
        _entering(state, states, chunk, reverse=reverse),
        (inputs, states, kept, d_outputs, d_states),
        steps=steps,
        chunk=chunk,
        reverse=not reverse,
    )
    return d_params, d_state, d_inputs


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


def _merged(function: Callable[[PyTree], PyTree], tree: PyTree, axes: int) -> PyTree:
    """Apply a function of arrays with any leading axes to arrays with so many, as if with one.

    XLA's products over several axes are slower than those over one.
    """
    leaves = jax.tree.leaves(tree)
    leading = leaves[0].shape[:axes] if leaves else ()
    count = math.prod(leading)
    merged = jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[axes:]), tree)
    return jax.tree.map(lambda leaf: leaf.reshape(*leading, *leaf.shape[1:]), function(merged))


def _what_to_keep(parts: StepInfo, params: Any, steps: int, batch: int) -> Keep:
    """Choose by what is less work: to write to memory and read again, or to compute again.

    Products are worth keeping where kernels and batches are large, but not on a GPU.
    """
    if jax.default_backend() == "gpu":
        return "states"
    kept = jax.tree.leaves(jax.eval_shape(parts.sums.add, parts.projected, parts.recurrent))
    size = size_in_bytes(kept)
    # Each weight takes part in a multiplication and an addition for each example.
    operations = 2 * batch * sum(leaf.size for leaf in jax.tree.leaves(params))
    worth = _OPERATIONS_A_BYTE * size + _OPERATIONS_AN_ARRAY * len(kept)
    return "products" if operations > worth and steps * size <= _MOST_PRODUCTS else "states"
