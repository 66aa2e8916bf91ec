"""The hoisted engine: weight and input gradients leave the backward loop."""

import dataclasses
import functools
import math
from typing import Any, get_args

import jax

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._chunks import nearby_divisor
from jaxrnn.engines._engine import (
    Engine,
    checked_chunk,
    default_unroll,
    is_static,
    leading_shape,
    size_in_bytes,
)
from jaxrnn.engines._hoisted._info import StepInfo, analyse_step
from jaxrnn.engines._hoisted._linear import linear_with_transpose
from jaxrnn.engines._hoisted._passes import Keep, Plan, Residuals, backward_pass, forward_pass
from jaxrnn.engines._scan import scan

# What one chunk's projections, recurrent products and their cotangents may take, in bytes. On a CPU
# that is about what its caches hold: longer chunks go through main memory, and pay for fresh pages
# of it, at each step; shorter ones make products too small for several cores. An accelerator wants
# few and large products.
_WORKING_SET = {"cpu": 4 * 2**20}
_WORKING_SET_OF_ACCELERATORS = 256 * 2**20
# A chunk may use this multiple of the parameters' size, since each chunk also updates every
# gradient.
_PARAMETERS = 4
# Store products when recomputing them would cost more operations than this per stored byte and per
# array: about what the cores compute while a byte is written to fresh memory, and while a kernel
# that writes one is started. Never store more bytes than the last number.
_OPERATIONS_A_BYTE = 40
_OPERATIONS_AN_ARRAY = 15_000
_MOST_PRODUCTS = 2**29
# Up to this many chunks are better run as one: what a chunk costs is more than the cache gains.
_FEW_CHUNKS = 2


@dataclasses.dataclass(frozen=True)
class hoisted(Engine):
    """The engine for training split cells: all weight gradients are taken after the loop.

    Use it to train cells whose step is a `SplitStep`, which `engine=None` does by itself. Going
    back in time needs only the cotangent of the state,

        d_state, d_gates = transpose of activate(d_new_state, d_output)
        d_state += transpose of recur(d_gates)

    so this is all that the backward loop does. From every step's `d_gates` one large product gives
    the gradient of each weight, and one that of the inputs, where `scan` does a small product and a
    sum over the whole weight in every step.

    It works on a chunk of steps at a time. Forward, `project` is one large product for each chunk.
    Backward, `project` and `recur` are computed again, each as one large product, from inputs and
    states, and `activate` is linearised at all of a chunk's steps at once, so only the state of
    each step is kept: a third of what `scan` keeps. Where it is faster, more is kept, and less
    computed again.

    Values and gradients are those of `scan`, in every mode and order of differentiation. Forward
    mode gains nothing here, and keeps what only reverse mode needs, O(T) memory: take `scan` there
    if T is huge. Under `vmap` each example has a weight gradient of its own, so give the batch as
    dimensions of the inputs where you can.

    Args:
        chunk: how many steps a chunk has. None takes as many as the caches of a CPU hold, or the
            whole sequence if it is not much longer than that. A remainder is compiled separately.
        keep: what to keep of every step for the backward pass: its "states" alone, or the gates
            too, "products", so that nothing has to be multiplied again. None keeps products, up to
            512 MiB, where kernels and batches are large, but not on a GPU, where one large product
            takes less time than writing its results.
        unroll: how many steps the body of a compiled loop holds, as in `scan`. None takes 1 on a
            CPU and a divisor of the chunk near 8 on a GPU, where launching kernels dominates.

    Raises:
        ValueError: by `unroll`, for a cell whose step isn't split, and for a chunk longer than the
            sequence.

    A cell with integers or complex numbers among its arrays, with a step that closes over traced
    values, or one that has effects such as printing, runs as with `scan`.

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

    chunk: int | None = None
    keep: Keep | None = None
    unroll: int | None = None

    def __post_init__(self) -> None:
        _check.optional_size("chunk", self.chunk)
        _check.optional_size("unroll", self.unroll)
        if self.keep is not None and self.keep not in get_args(Keep):
            raise ValueError(f"keep: got {self.keep!r}, expected one of {get_args(Keep)} or None")

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell; where it is differentiated in reverse mode, by this engine's rule."""
        if cell.split_step is None:
            raise ValueError(
                f"engine: got hoisted() for {cell.name}, whose step is not split; expected one "
                "that works on any cell: scan() or checkpointed()"
            )
        flags = {"reverse": reverse, "keep_states": keep_states}
        if leading_shape(inputs)[0] == 0:
            return scan()(cell, params, state, inputs, **flags)
        info = analyse_step(cell.split_step, params, state, inputs)
        plan = self._plan(info, params, inputs, reverse=reverse)
        reference = functools.partial(scan(plan.unroll), cell, **flags)
        if not info.differentiable:
            return reference(params, state, inputs)

        @jax.custom_jvp
        def run(params, state, inputs):
            final, outputs, states, _ = forward_pass(
                plan._replace(keep="states"), params, state, inputs
            )
            return final, outputs, states if keep_states else None

        @run.defjvp
        def run_jvp(primals, tangents):
            final, outputs, states, gates = forward_pass(plan, *primals)
            results = final, outputs, states if keep_states else None
            return results, linear_with_transpose(
                lambda residuals, tangents: jax.jvp(reference, residuals[:3], tangents)[1],
                functools.partial(backward_pass, plan),
                residuals=Residuals(*primals, states=states, gates=gates),
                tangents=tangents,
                like=results,
            )

        return run(params, state, inputs)

    def explain(self, cell: Cell, params: Any, state: Any, inputs: Any) -> str:
        """Say how long its chunks are, and whether it keeps states or products."""
        assert cell.split_step is not None
        plan = self._plan(
            analyse_step(cell.split_step, params, state, inputs), params, inputs, reverse=False
        )
        return f"chunks have {plan.chunk} steps, and {plan.keep} are kept of each step"

    def _plan(self, info: StepInfo, params: Any, inputs: Any, *, reverse: bool) -> Plan:
        """Decide what is left open: a length or batch that has no value yet gets no chunks."""
        steps, *batch = leading_shape(inputs)
        chunk = checked_chunk(self.chunk, steps)
        if not is_static(steps, *batch):
            return Plan(info, chunk or steps, self.unroll or 1, reverse, self.keep or "states")
        chunk = chunk or _chunk_length(info, params, steps)
        unroll = self.unroll or nearby_divisor(chunk, default_unroll())
        keep = self.keep or _what_to_keep(info, params, steps, math.prod(batch))
        return Plan(info, chunk, unroll, reverse, keep)


def hoisted_where_it_can(cell: Cell) -> Engine:
    """Return `hoisted()` for split cells, and for others `scan()`, unrolled on a GPU."""
    return scan(default_unroll()) if cell.split_step is None else hoisted()


def _chunk_length(info: StepInfo, params: Any, steps: int) -> int:
    """Return how many steps a chunk should have."""
    cache = _WORKING_SET.get(jax.default_backend(), _WORKING_SET_OF_ACCELERATORS)
    step_size = size_in_bytes((info.projected, info.recurrent, info.recurrent))
    target = max(cache, _PARAMETERS * size_in_bytes(params)) // max(step_size, 1)
    if steps <= _FEW_CHUNKS * target:
        return max(steps, 1)
    return nearby_divisor(steps, max(target, 1))


def _what_to_keep(info: StepInfo, params: Any, steps: int, batch: int) -> Keep:
    """Choose by what is less work: to write to memory and read again, or to compute again."""
    if jax.default_backend() == "gpu":
        return "states"
    size = size_in_bytes(info.gates)
    # Each weight takes part in a multiplication and an addition for each example.
    operations = 2 * batch * sum(leaf.size for leaf in jax.tree.leaves(params))
    arrays = len(jax.tree.leaves(info.gates))
    worth = _OPERATIONS_A_BYTE * size + _OPERATIONS_AN_ARRAY * arrays
    return "products" if operations > worth and steps * size <= _MOST_PRODUCTS else "states"
