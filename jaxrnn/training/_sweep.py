"""Sweeps: many trainings side by side in one compiled program."""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._dtypes import without_weak_types
from jaxrnn._jaxpr import bytes_written
from jaxrnn.training._batches import Batches, make_batches
from jaxrnn.training._loop import key_at, set_index, step_keys
from jaxrnn.training._non_finite import accept_or_reject
from jaxrnn.training._progress import progress_bar
from jaxrnn.training._result import FitResult
from jaxrnn.training._step import Metrics, TrainState, init_train_state, train_step

# What the mesh's one axis is called.
_AXIS = "members"
# Up to so many members are made one by one, by operations that JAX has compiled before. A program
# that makes any number takes about a second to compile, in each call.
_FEW = 32
# What a member's step may write, in bytes, and still be better run together with others.
_LITTLE = 2**22


def sweep(
    setup: Callable[[Any, PRNGKeyArray], tuple[Any, PyTree, Any]],
    settings: PyTree,
    batches: Callable[[PRNGKeyArray], PyTree] | PyTree,
    *,
    steps: int,
    key: PRNGKeyArray,
    carry: PyTree = None,
    clip_norm: float | None = None,
    report_every: int = 100,
    on_report: Callable[[int, FitResult], None] | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train many members, such as seeds or learning rates, at once in one compiled program.

    It replaces this loop, and stacks what it returns:

        for number in range(members):
            init_key, fit_key = jax.random.split(key[number])
            loss, params, optimizer = setup(settings[number], init_key)
            fit(loss, params, optimizer, batches, steps=steps, key=fit_key)

    The members are mapped over by `vmap`, and divided evenly over as many of `jax.devices()` as
    divide their number, the cores of a CPU too once `jax_num_cpu_devices` shows them. Batches that
    are drawn from keys of the kind "rbg" are others than `fit`'s, as JAX's `vmap` draws others.

    Args:
        setup: `(setting, key) -> (loss, params, optimizer)`, as `fit` takes them. It is traced for
            all members together, so that a setting may go where arrays may, as in
            `optax.adam(setting)` or `setting * kernel`, and not into a cell's constructor.
        settings: a pytree of arrays whose first axis counts members; None if they differ by their
            keys alone.
        batches: as in `fit`, a function of a key or arrays; arrays are the same for all members.
        steps: how many steps to train.
        key: an array of keys `(members,)`, so that each member draws its own parameters and
            batches; or one key for all, so that they differ by their settings alone.
        carry: what each member's loss carries from step to step, to begin with.
        clip_norm: the longest global gradient norm let through; None for any. To sweep over it, put
            `optax.clip_by_global_norm` into the optimizer.
        report_every: how many steps run on the device between reports.
        on_report: called with the number of steps done and the result so far.
        progress: whether to show a progress bar, as in `fit`.

    Returns:
        A `FitResult` in which every array has the members as first axis: parameters, optimizer
        state, carry, losses and gradient norms `(members, steps)`. A member whose loss, gradient or
        update is not finite stops there with the parameters from before, as `fit` does, and its
        history is NaN after that step; the others go on.

    Raises:
        TypeError: if an argument is of the wrong kind, or the loss no scalar, as in `train_step`.
        ValueError: if one is out of range, or settings and keys don't count the same members, or
            JAX would narrow an array of NumPy's 64 bits in `batches`, `carry` or parameters and
            change it.
        ImportError: if `progress` is True and tqdm is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> def setup(learning_rate, key):
        ...     def loss(params, batch, key):
        ...         return jnp.mean((params - batch) ** 2)
        ...     return loss, jax.random.normal(key), optax.sgd(learning_rate)
        >>> rates = jnp.array([0.001, 0.1, 1e20])
        >>> result = jaxrnn.sweep(
        ...     setup, rates, lambda key: 3 + jax.random.normal(key, (64,)),
        ...     steps=100, key=jax.random.key(0),
        ... )
        >>> result.losses.shape, jnp.isfinite(result.losses[:, -1]).tolist()
        ((3, 100), [True, True, False])
    """
    _check.function("setup", setup)
    steps = _check.size("steps", steps)
    report_every = min(steps, _check.size("report_every", report_every))
    if on_report is not None:
        _check.function("on_report", on_report)
    for name, tree in (("settings", settings), ("carry", carry), ("key", key)):
        _check.untraced(name, tree, "sweep")
    own_keys = _has_own_keys(key)
    members = _count_members(settings, key if own_keys else None)
    # Floats are settings in whichever dtype JAX keeps; integers that don't fit would be others.
    _check.no_narrowing(
        "settings",
        [leaf for leaf in jax.tree.leaves(settings) if _check.has_kind(leaf, jnp.integer)],
    )
    source = make_batches(batches, None, _one_key(key) if own_keys else key)

    init_keys, fit_key = _split(key) if own_keys else jax.random.split(key)
    if not own_keys:
        init_keys = jnp.broadcast_to(init_keys, (members, *init_keys.shape))
    mesh = _mesh(members)
    run = _make_run(setup, source, clip_norm, report_every)
    run = _over_members(run, mesh, (0, 0, 0 if own_keys else None, 0, None, None, None))
    keys_of_steps = _member_step_keys if own_keys else step_keys
    settings = jax.tree.map(jnp.asarray, settings)
    member = _start(setup, carry, settings, jax.random.clone(init_keys))
    # Divided as `run` returns it, which would else be compiled a second time. Not by the program
    # itself, which with jaxlib 0.7 then crashes where it factorises matrices.
    member = jax.device_put(member, NamedSharding(mesh, PartitionSpec(_AXIS)))
    histories: list[Metrics] = []

    def result() -> FitResult:
        losses, norms = (np.concatenate(parts, axis=1) for parts in zip(*histories, strict=True))
        state, _ = member
        return FitResult(state.params, state.optimizer_state, state.carry, losses, norms)

    with progress_bar(0, steps, progress) as bar:
        for total in range(0, steps, report_every):
            count = min(report_every, steps - total)
            keys = keys_of_steps(fit_key, total, report_every)
            again = jax.random.clone(init_keys)
            member, history = run(settings, again, keys, member, total, count, source.data)
            histories.append(Metrics(*(np.asarray(array)[:, :count] for array in history)))
            bar.update(count)
            bar.set_postfix(loss=f"{np.median(histories[-1].loss[:, -1]):.4g}")
            if on_report is not None:
                on_report(total + count, result())
    return result()


def _start(
    setup: Callable[..., Any], carry: PyTree, settings: PyTree, keys: PRNGKeyArray
) -> tuple[TrainState, Bool[Array, "members"]]:
    """Return each member as training begins, and that it has not stopped."""

    def start(of_member: tuple[PyTree, PRNGKeyArray]) -> TrainState:
        _, params, optimizer = _checked_setup(setup(*of_member))
        return without_weak_types(init_train_state(params, optimizer, carry=carry))

    if len(keys) > _FEW:
        # Not by vmap: initialisers factorise matrices, and jaxlib's batched factorisations can wait
        # for one another without end where a CPU has few threads.
        state = jax.jit(functools.partial(lax.map, start))((settings, keys))
    else:
        members = [jax.tree.map(itemgetter(n), (settings, keys)) for n in range(len(keys))]
        jax.eval_shape(start, members[0])  # raises where a setting is used as arrays can't be
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(start, members))
    return state, jnp.ones(len(keys), bool)


def _make_run(
    setup: Callable[..., Any], source: Batches, clip_norm: float | None, most: int
) -> Callable[..., Any]:
    """Make the function that makes up to `most` training steps of one member."""

    def run(setting, key, keys, member, total, count, data):
        loss, _, optimizer = _checked_setup(setup(setting, key))
        step = train_step(loss, optimizer, clip_norm=clip_norm)

        def advance(done, member):
            state, alive = member
            batch_key, loss_key = key_at(done, keys, key)
            # Not `state.step`, of which each member has one: all would gather their own batch.
            batch = source.take(total + done, batch_key, data)
            new_state, metrics = step(state, batch, loss_key)
            # Once a member has stopped it measures NaN, and so stays stopped: as it is, although
            # the optimizer may refuse a gradient of its own accord.
            metrics = jax.tree.map(lambda value: jnp.where(alive, value, jnp.nan), metrics)
            settled, good = accept_or_reject(state, new_state, metrics)
            still = alive & good
            state = jax.tree.map(functools.partial(jnp.where, still), settled, state)
            return (state, still), metrics

        def body(done, loop):
            member, history = loop
            member, metrics = advance(done, member)
            return member, jax.tree.map(functools.partial(set_index, done), history, metrics)

        _, shapes = jax.eval_shape(advance, 0, member)
        history = jax.tree.map(lambda leaf: jnp.zeros(most, leaf.dtype), shapes)
        return lax.fori_loop(0, count, body, (member, history))

    return run


def _mesh(members: int) -> Mesh:
    """Return a mesh of as many devices as there are and divide the members."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    return Mesh(np.array(devices[:count]), (_AXIS,))


def _over_members(
    function: Callable[..., PyTree], mesh: Mesh, in_axes: tuple[int | None, ...]
) -> Callable[..., PyTree]:
    """Map a function over members, and divide these over devices."""
    specs = {0: PartitionSpec(_AXIS), None: PartitionSpec()}

    def members(*arguments: PyTree) -> PyTree:
        mapped = [axis is not None for axis in in_axes]
        own = [argument for argument, yes in zip(arguments, mapped, strict=True) if yes]

        def one(own: list[PyTree]) -> PyTree:
            each = iter(own)
            return function(
                *(next(each) if yes else a for a, yes in zip(arguments, mapped, strict=True))
            )

        together = jax.vmap(one) if _better_together(one, own) else functools.partial(lax.map, one)
        return together(own)

    return jax.jit(
        jax.shard_map(
            members,
            mesh=mesh,
            in_specs=tuple(specs[axis] for axis in in_axes),
            out_specs=specs[0],
            check_vma=False,  # the counters of a member's loop vary over devices from its end only
        )
    )


def _better_together(one: Callable[[list[PyTree]], PyTree], members: list[PyTree]) -> bool:
    """Return whether members are better run by `vmap` than one after another.

    They are on accelerators, and where each writes so little that starting kernels takes longest.
    Otherwise the caches of a CPU hold what one member writes, but not what all do, and products of
    weights that differ are copied together: one after another, eight LSTMs of 64 units on 32
    sequences train 2.5 times as fast.
    """
    if jax.default_backend() != "cpu":
        return True
    first = jax.eval_shape(lambda members: jax.tree.map(lambda leaf: leaf[0], members), members)
    return bytes_written(one, first) <= _LITTLE


# One after the other: a program for all at once takes four times as long to compile.
@functools.partial(jax.jit, static_argnames="count")
def _member_step_keys(keys: PRNGKeyArray, start: Array, count: int) -> Array:
    return lax.map(lambda key: step_keys(key, start, count), keys)


@jax.jit
def _split(keys: PRNGKeyArray) -> PRNGKeyArray:
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def _one_key(keys: PRNGKeyArray) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of one of several keys, without a use of it."""
    return jax.ShapeDtypeStruct(keys.shape[1:], keys.dtype)


def _has_own_keys(key: Any) -> bool:
    """Return whether these are several keys, of either kind that JAX has, and not one."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    own = getattr(key, "ndim", 0) == (1 if typed else 2)
    _check.key("key", _one_key(key) if own and key.shape[0] else key)
    return own


def _count_members(settings: PyTree, keys: PRNGKeyArray | None) -> int:
    leaves = jax.tree.leaves(settings)
    if not all(getattr(leaf, "shape", ()) for leaf in leaves):
        raise TypeError(
            f"settings: got {_check.describe(settings)}, expected arrays whose first axis counts "
            "members"
        )
    counts = {leaf.shape[0] for leaf in leaves}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"settings: got {sorted(counts)} members, expected one number > 0")
    if keys is not None:
        if counts and keys.shape[0] not in counts:
            raise ValueError(
                f"key: got {_check.describe(keys)}, expected {counts.pop()} keys, as settings have "
                "members"
            )
        counts.add(keys.shape[0])
    if not counts:
        raise TypeError("settings: got None and a single key, expected arrays, or an array of keys")
    return counts.pop()


def _checked_setup(returned: Any) -> tuple[Any, PyTree, Any]:
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise TypeError(
            f"setup: returned {_check.describe(returned)}, expected (loss, params, optimizer)"
        )
    return returned
