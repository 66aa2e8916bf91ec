"""The sharded engine: the batch divided over devices, such as the cores of a CPU."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrnn import _check
from jaxrnn._cell import Cell
from jaxrnn.engines._engine import Engine, checked_engine, leading_shape
from jaxrnn.engines._hoisted import hoisted_where_it_can

_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Sharded(Engine):
    """The engine that `sharded` makes."""

    devices: int | None
    engine: Engine | None

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell on every device's share of the batch."""
        devices = _devices(self.devices)
        _, *batch = leading_shape(inputs)
        if not batch or batch[0] % len(devices):
            raise ValueError(
                f"inputs: got the batch dimensions {tuple(batch)}, expected (batch, ...) with a "
                f"batch that {len(devices)} devices divide, for sharded()"
            )
        engine = self.engine or hoisted_where_it_can(cell)

        def run(params, state, inputs):
            return engine(cell, params, state, inputs, reverse=reverse, keep_states=keep_states)

        of_state, of_sequence = PartitionSpec(_AXIS), PartitionSpec(None, _AXIS)
        return jax.shard_map(
            run,
            mesh=Mesh(np.array(devices), (_AXIS,)),
            in_specs=(PartitionSpec(), of_state, of_sequence),
            out_specs=(of_state, of_sequence, of_sequence),
            check_vma=False,  # the hoisted engine's primitive has no rule for it
        )(params, state, inputs)


def sharded(devices: int | None = None, engine: Engine | None = None) -> Sharded:
    """Make an engine that divides the batch over devices, each of which runs another engine.

    XLA runs the small products of a recurrent network on one core of a CPU. JAX can show the cores
    as devices; this must be said before anything is computed:

        jax.config.update("jax_num_cpu_devices", 2)

    Then `unroll(..., engine=sharded())`, gradients through it and training on it use them all.
    Parameters are copied to every device, and their gradients summed over them. What follows in
    the same `jit` is divided too where XLA sees a gain. On several accelerators it does the same.

    Args:
        devices: how many; None takes all of `jax.devices()`.
        engine: what runs on each. None takes `hoisted()` for split-step cells, and `scan()` for others,
            unrolled on a GPU.

    Returns:
        An engine for `unroll(..., engine=...)`. `unroll` raises a ValueError if there are not so
        many devices, or if they don't divide the first batch dimension.

    Raises:
        TypeError: if `devices` is not an integer or `engine` not an engine.
        ValueError: if `devices` is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(4)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((9, 2, 3))
        >>> state, outputs = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.engines.sharded(devices=1))
        >>> outputs.shape
        (9, 2, 4)
    """
    return Sharded(
        None if devices is None else _check.size("devices", devices),
        checked_engine(engine),
    )


def _devices(count: int | None) -> list[Any]:
    devices = jax.devices()
    if count is not None and count > len(devices):
        hint = ""
        if devices[0].platform == "cpu":
            hint = f"; jax.config.update('jax_num_cpu_devices', {count}) makes as many of a CPU"
        raise ValueError(
            f"devices: got {count}, expected at most the {len(devices)} that jax.devices() has{hint}"
        )
    return devices[:count]
