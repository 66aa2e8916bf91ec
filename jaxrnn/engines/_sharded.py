"""The sharded engine: the batch divided over devices, such as the cores of a CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxrnn import _check
from jaxrnn._cell import Cell, ContextParams
from jaxrnn._jaxpr import is_pure
from jaxrnn.engines._engine import Engine, checked_engine, leading_shape
from jaxrnn.engines._hoisted._engine import hoisted_where_it_can

_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class sharded(Engine):
    """An engine that divides the batch over devices, each of which runs another engine.

    XLA runs the small products of a recurrent network on one core of a CPU. JAX can show the cores
    as devices; this must be said before anything is computed:

        jax.config.update("jax_num_cpu_devices", 2)

    Then `unroll(..., engine=sharded())`, gradients through it and training on it use them all.
    Parameters are copied to every device, and their gradients summed over them. What follows in
    the same `jit` is divided too where XLA sees a gain. On several accelerators it does the same.

    Args:
        devices: how many; None takes all of `jax.devices()`.
        engine: what runs on each. None takes `hoisted()` for split cells, and `scan()` for others,
            unrolled on a GPU.

    Raises:
        ValueError: by `unroll`, if there are not that many devices, if they don't divide the first
            batch dimension, or if the cell's step mixes sequences, as a norm over the batch does:
            a device has but its share of them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(4)
        >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((9, 2, 3))
        >>> engine = jaxrnn.engines.sharded(devices=1)
        >>> state, outputs = jaxrnn.unroll(cell, params, xs, engine=engine)
        >>> outputs.shape
        (9, 2, 4)
    """

    devices: int | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        _check.optional_size("devices", self.devices)
        checked_engine("engine", self.engine)

    def __call__(
        self, cell: Cell, params: Any, state: Any, inputs: Any, *, reverse: bool, keep_states: bool
    ) -> tuple[Any, Any, Any]:
        """Run the cell on every device's share of the batch."""
        mesh = _mesh(self.devices)
        _, *batch = leading_shape(inputs)
        if not batch or batch[0] % mesh.size:
            raise ValueError(
                f"inputs: got the batch dimensions {tuple(batch)}, expected (batch, ...) with a "
                f"batch that {mesh.size} devices divide, for sharded()"
            )
        if mesh.size > 1 and _mixes_sequences(cell, params, state, inputs):
            raise ValueError(
                f"engine: got sharded() for {cell.name}, whose step mixes the sequences of a batch "
                "or tells them apart by their places; expected an engine that doesn't divide them, "
                "such as hoisted()"
            )
        engine = self.engine or hoisted_where_it_can(cell)

        def run(params, state, inputs):
            return engine(cell, params, state, inputs, reverse=reverse, keep_states=keep_states)

        everywhere, by_batch = PartitionSpec(), PartitionSpec(mesh.axis_names)
        by_step = PartitionSpec(None, mesh.axis_names)
        has_context = isinstance(params, ContextParams)
        specs = (
            ContextParams(everywhere, by_batch) if has_context else everywhere,
            by_batch,
            by_step,
        )
        arguments = params, state, inputs
        if AxisType.Explicit in mesh.axis_types:
            arguments = tuple(map(_reshard, arguments, specs))
        return jax.shard_map(
            run, mesh=mesh, in_specs=specs, out_specs=(by_batch, by_step, by_step)
        )(*arguments)


def _mixes_sequences(cell: Cell, params: Any, state: Any, inputs: Any) -> bool:
    """Return whether a step makes of three sequences something else than of each by itself."""
    own, context = params if isinstance(params, ContextParams) else (params, None)
    three = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape[1:]), leaf.dtype),
        (context, state, jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], inputs))),
    )
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), own)
    leaves, structure = jax.tree.flatten((own, three))
    return cell.derived(_mixes_three, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


def _mixes_three(cell: Cell, structure: Any, leaves: tuple[Any, ...]) -> bool:
    """Try it on random numbers, as a jaxpr doesn't tell: a product may be over any axes."""
    specs = [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]

    def step(params, arguments):
        context, state, inputs = arguments
        return cell.advance(
            params if context is None else ContextParams(params, context), state, inputs
        )

    def both(params, arguments):
        each = jax.vmap(step, in_axes=(None, 0))(
            params, jax.tree.map(lambda leaf: leaf[:, None], arguments)
        )
        return step(params, arguments), jax.tree.map(lambda leaf: leaf[:, 0], each)

    keys = any(jnp.issubdtype(spec.dtype, jax.dtypes.extended) for spec in specs)
    if keys or not is_pure(step, *structure.unflatten(specs)):
        return False
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        drawn = [jnp.asarray(rng.normal(size=spec.shape), spec.dtype) for spec in specs]
        together, alone = jax.device_get(jax.jit(both)(*structure.unflatten(drawn)))
    return not all(map(_alike, jax.tree.leaves(together), jax.tree.leaves(alone)))


def _alike(one: Any, other: Any) -> bool:
    """Return whether arrays differ by no more than rounding."""
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        return True
    kind = np.complex128 if np.iscomplexobj(one) else np.float64
    rounding = float(jnp.finfo(one.dtype).eps) ** 0.5
    return np.allclose(
        one.astype(kind), other.astype(kind), rtol=rounding, atol=rounding, equal_nan=True
    )


def _mesh(devices: int | None) -> Any:
    """Return a mesh of so many devices, or the one that `jax.set_mesh` has set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Mesh(np.array(_devices(devices)), (_AXIS,))
    if AxisType.Manual in mesh.axis_types:
        raise ValueError(
            "engine: got sharded() within a shard_map, such as the one by which sweep() divides "
            "members over devices; expected an engine for one device, such as hoisted()"
        )
    if devices not in (None, mesh.size):
        raise ValueError(
            f"devices: got {devices}, expected None or the {mesh.size} of the mesh that is set"
        )
    return mesh


def _reshard(tree: Any, spec: Any) -> Any:
    if isinstance(tree, ContextParams):
        return ContextParams(*map(_reshard, tree, spec))
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, spec), tree)


def _devices(count: int | None) -> list[Any]:
    devices = jax.devices()
    if count is not None and count > len(devices):
        hint = ""
        if devices[0].platform == "cpu":
            hint = f"; jax.config.update('jax_num_cpu_devices', {count}) makes as many of a CPU"
        raise ValueError(
            f"devices: got {count}, expected at most the {len(devices)} that jax.devices() "
            f"has{hint}"
        )
    return devices[:count]
