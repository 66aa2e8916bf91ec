"""The training loop: many steps in one compiled program."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._dtypes import without_weak_types
from jaxrnn.training._batches import Batches, make_batches
from jaxrnn.training._checkpoints import (
    Checkpoints,
    Snapshot,
    check_writable,
    digest,
    locked,
    restore,
    save,
)
from jaxrnn.training._loop import key_at, set_index, step_keys
from jaxrnn.training._non_finite import accept_or_reject, first_bad_leaf, non_finite_error
from jaxrnn.training._progress import progress_bar
from jaxrnn.training._result import FitResult
from jaxrnn.training._sharding import gather, put_everywhere
from jaxrnn.training._step import Metrics, TrainState, init_train_state, train_step

if TYPE_CHECKING:
    import optax


def fit(
    loss: Callable[..., Any],
    params: PyTree,
    optimizer: "optax.GradientTransformation",
    batches: Callable[[PRNGKeyArray], PyTree] | PyTree,
    *,
    steps: int,
    key: PRNGKeyArray,
    carry: PyTree = None,
    clip_norm: float | None = None,
    report_every: int = 100,
    on_report: Callable[[int, FitResult], None] | None = None,
    progress: bool | None = None,
    checkpoints: Checkpoints | None = None,
    sharding: PyTree | None = None,
) -> FitResult:
    """Train parameters by gradient descent, many steps in one compiled loop between reports.

    It replaces this loop, and gives the same up to rounding, whatever `report_every` is:

        step = train_step(loss, optimizer, clip_norm=clip_norm)
        state = init_train_state(params, optimizer, carry=carry)
        for number in range(steps):
            batch_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
            state, metrics = step(state, batches(batch_key), loss_key)

    Args:
        loss: `(params, batch, key) -> scalar`, or with a carry
            `(params, carry, batch, key) -> (scalar, carry)`.
        params: the parameters to begin with.
        optimizer: an optax optimizer. Wrapped in `optax.apply_if_finite`, it skips up to so many
            steps in a row whose loss or gradient is not finite, where training would stop.
        batches: a pure function of a key that makes a batch, such as a task of `jaxrnn.tasks`; or a
            pytree of arrays whose first axis counts batches, which are taken in order, and again
            from the first after the last: sequences `(T, B, I)` make arrays `(N, T, B, I)`, of one
            batch `(1, T, B, I)`. The function is traced once: draw with the key, as
            `data[jax.random.randint(key, (B,), 0, len(data))]` does of a JAX array; `numpy.random`
            would draw one batch for ever. With a data loader loop over `train_step`.
        steps: how many steps to train.
        key: the random key that all randomness comes from.
        carry: what the loss carries from step to step, such as a recurrent state.
        clip_norm: the longest global gradient norm let through; None for any.
        report_every: how many steps run on the device between reports. Progress is shown, and
            `on_report` called, only then.
        on_report: called with the number of steps done and the result so far, also after a bad
            step. `metrics_writer` makes one that writes them to a file.
        progress: whether to show a progress bar, which needs tqdm. None shows one on a terminal
            where tqdm is installed.
        checkpoints: where to write checkpoints, and to go on from the newest; None for none. What
            was reported before the newest was written is not reported again.
        sharding: a NamedSharding of a batch, or a pytree of them that is a prefix of it, to train
            on the devices of its mesh: each has its part of the batch and the whole of the rest,
            and the result is that of one device up to rounding. None for one device. It doesn't
            speak of the axis of `batches` that counts batches. The mesh may be one of several
            processes, each of which calls `fit` in the same way.

    Returns:
        The trained parameters, optimizer state and carry, with every step's loss and gradient norm
        as arrays `(steps,)`. Its `skipped` counts the steps that were skipped.

    Raises:
        NonFiniteError: at the first step whose loss, gradient or update is not finite and not
            skipped, or whose carry ceases to be finite. That update is not made, and what was
            reached before it is in the error's `result`. The error names the step, and what went
            bad first.
        TypeError: if a setting is of the wrong kind, a parameter no floating or complex array, or
            the loss no scalar, as in `train_step`.
        ValueError: if a setting is out of range, `batches` has no batch or uneven arrays, or JAX
            would narrow an array of NumPy's 64 bits and change it, or the newest checkpoint is of
            another run or of a later step, or a batch can't be divided as `sharding` says.
        OSError: if checkpoints can't be written to their directory, which is tried first.
        ImportError: if `progress` is True and tqdm is not installed, or checkpoints are asked for
            and Orbax is not.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> def loss(params, batch, key):
        ...     return jnp.mean((params - batch) ** 2)
        >>> result = jaxrnn.fit(
        ...     loss, jnp.array(0.0), optax.sgd(0.1), lambda key: 3 + jax.random.normal(key, (64,)),
        ...     steps=100, key=jax.random.key(0),
        ... )
        >>> result.losses.shape, abs(float(result.params) - 3) < 0.2
        ((100,), True)
    """
    steps = _check.size("steps", steps)
    report_every = min(steps, _check.size("report_every", report_every))
    _check.key("key", key)
    for name, tree in (("params", params), ("carry", carry), ("key", key)):
        _check.untraced(name, tree, "fit")
    if on_report is not None:
        _check.function("on_report", on_report)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"checkpoints: got {_check.describe(checkpoints)}, expected "
            "jaxrnn.training.Checkpoints(directory)"
        )
    step = train_step(loss, optimizer, clip_norm=clip_norm)
    source = make_batches(batches, sharding, key)
    state = without_weak_types(init_train_state(params, optimizer, carry=carry))
    dtypes = _dtypes_of_metrics(step, source, state, key)
    run = _make_run(step, source, dtypes, report_every, key)

    no_history = Metrics(*(np.zeros(0, dtype) for dtype in dtypes))
    now = Snapshot(key, source.period, digest(state), state, no_history)
    if checkpoints is not None:
        now = restore(checkpoints, now)
    total = int(now.state.step)
    if total > steps:
        raise ValueError(
            f"steps: got {steps}, expected {total} or more, as in the newest checkpoint"
        )
    if checkpoints is not None and total < steps:
        check_writable(checkpoints, total, steps)

    everywhere = functools.partial(put_everywhere, shardings=source.shardings)
    key, now = everywhere(key), now._replace(state=everywhere(now.state))
    pauses = [report_every] if checkpoints is None else [report_every, checkpoints.every]
    with locked(checkpoints), progress_bar(total, steps, progress) as bar:
        while total < steps:
            count = min(steps - total, *(every - total % every for every in pauses))
            keys = step_keys(key, total, report_every)
            done, state, history, good = run(now.state, count, keys, source.data)
            now = now._replace(state=state, history=_extended(now.history, history, int(done)))
            total += int(done)
            bar.update(int(done))
            bar.set_postfix(loss=f"{now.history.loss[-1]:.4g}")
            if on_report is not None and (total % report_every == 0 or total == steps or not good):
                on_report(total, _result(now))
            if not good:
                bad_keys = key_at(int(done) - 1, keys, key)
                leaf = first_bad_leaf(loss, step, source, state, bad_keys)
                raise non_finite_error(_result(now), total - 1, leaf)
            # After the report: one that fails, on a full disk, say, is made again when the run is.
            if checkpoints is not None and (total % checkpoints.every == 0 or total == steps):
                save(checkpoints, now)
    return _result(now)


def _make_run(
    step: Any, source: Batches, dtypes: Metrics, most: int, kind: PRNGKeyArray
) -> Callable[..., Any]:
    """Make the program that makes up to `most` training steps, and stops at one that goes bad.

    A while loop, so that one compiled program serves any number of steps, and ends at once when
    there is nothing left to train. Its keys are of the kind of another one.
    """

    @jax.jit
    def run(state: TrainState, count: Array, keys: PRNGKeyArray, data: PyTree):
        def go_on(loop):
            done, _, _, good = loop
            return (done < count) & good

        def body(loop):
            done, state, history, _ = loop
            batch_key, loss_key = key_at(done, keys, kind)
            new_state, metrics = step(state, source.take(state.step, batch_key, data), loss_key)
            state, good = accept_or_reject(state, new_state, metrics)
            history = jax.tree.map(functools.partial(set_index, done), history, metrics)
            return done + 1, state, history, good

        history = jax.tree.map(functools.partial(jnp.zeros, most), dtypes)
        start = jnp.zeros((), jnp.int32), state, history, jnp.array(True)
        return gather(lax.while_loop(go_on, body, start), source.shardings)

    return run


def _dtypes_of_metrics(step: Any, source: Batches, state: TrainState, key: PRNGKeyArray) -> Metrics:
    def measure(state, key, data):
        batch_key, loss_key = jax.random.split(key)
        return step(state, source.take(state.step, batch_key, data), loss_key)[1]

    return jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(measure, state, key, source.data))


def _extended(history: Metrics, more: Metrics, count: int) -> Metrics:
    """Add the first `count` entries of the loop's history."""
    pairs = zip(history, more, strict=True)
    return Metrics(*(np.concatenate([old, np.asarray(new)[:count]]) for old, new in pairs))


def _result(now: Snapshot) -> FitResult:
    """Return the result so far, with a history of its own: `on_report` may change it."""
    state, history = now.state, Metrics(*map(np.copy, now.history))
    return FitResult(
        state.params, state.optimizer_state, state.carry, history.loss, history.gradient_norm
    )
