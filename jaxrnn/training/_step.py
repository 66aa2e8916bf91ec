"""One training step with optax, as a pure function."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxrnn import _check
from jaxrnn._dtypes import at_least_float32, global_norm

if TYPE_CHECKING:
    import optax


class TrainState(NamedTuple):
    """Everything that training carries from one step to the next."""

    step: Int[Array, ""]
    params: PyTree
    optimizer_state: PyTree
    carry: PyTree = None


class Metrics(NamedTuple):
    """What one training step measured, before its update."""

    loss: Float[Any, ""]
    gradient_norm: Float[Any, ""]


def train_step(
    loss: Callable[..., Any],
    optimizer: "optax.GradientTransformation",
    *,
    clip_norm: float | None = None,
) -> Callable[[TrainState, PyTree, PRNGKeyArray], tuple[TrainState, Metrics]]:
    """Make the jitted function that makes one training step.

        gradient = d loss / d params,  scaled down to a norm of clip_norm if it is longer
        params = params + optimizer(gradient)

    It is a pure function of `(train_state, batch, key)`: scan it, or `vmap` it over seeds.

    The gradient of complex parameters is conjugated, so that it points up the loss, where JAX's
    doesn't. The norm is measured in float32 at least.

    Args:
        loss: `(params, batch, key) -> scalar`, or with a carry in the train state
            `(params, carry, batch, key) -> (scalar, carry)`. A carry, such as a recurrent state,
            passes from step to step, and no gradient passes through it.
        optimizer: an optax optimizer. If the loss or the gradient's norm is not finite, it is given
            a gradient of NaN, which `optax.apply_if_finite` refuses. One that takes more than the
            gradient is given the loss as `value`, the unclipped gradient as `grad`, and functions
            of the params `value_fn` and `grad_fn` on the same batch and key, as `optax.lbfgs` and
            `optax.contrib.sam` want them.
        clip_norm: the longest global gradient norm let through; None for any.

    Returns:
        A jitted function `(train_state, batch, key) -> (train_state, metrics)`; the first train
        state comes from `init_train_state`.

    Raises:
        TypeError: if a setting is of the wrong kind; in a step, if the loss returns no scalar, or
            a carry unlike the one it was given.
        ValueError: if `clip_norm` is not above 0 in float32; in a step, if the carry's shape
            changes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> optimizer = optax.sgd(0.5)
        >>> step = jaxrnn.train_step(lambda params, batch, key: (params - batch) ** 2, optimizer)
        >>> state = jaxrnn.training.init_train_state(jnp.array(1.0), optimizer)
        >>> state, metrics = step(state, jnp.array(3.0), jax.random.key(0))
        >>> float(state.params), float(metrics.loss), float(metrics.gradient_norm)
        (3.0, 4.0, 4.0)
    """
    return jax.jit(_train_step(loss, optimizer, clip_norm))


def init_train_state(
    params: PyTree, optimizer: "optax.GradientTransformation", *, carry: PyTree = None
) -> TrainState:
    """Make the train state before the first step.

    Args:
        params: the parameters to begin with.
        optimizer: the optimizer that will train them.
        carry: what the loss carries from step to step; None if nothing.

    Returns:
        The train state, at step 0.

    Raises:
        TypeError: if the optimizer is none of optax's, or a parameter no floating or complex array.
        ValueError: if JAX would narrow an array of NumPy's 64 bits and change it.

    Example:
        >>> import jax.numpy as jnp, jaxrnn, optax
        >>> int(jaxrnn.training.init_train_state(jnp.zeros(3), optax.adam(1e-3)).step)
        0
    """
    _check_optimizer(optimizer)
    _check.trainable("params", params)
    _check.no_narrowing("params", params)
    _check.no_narrowing("carry", carry)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), carry)


def _train_step(loss, optimizer, clip_norm):
    import optax

    _check.function("loss", loss)
    _check_optimizer(optimizer)
    least = float(jnp.finfo(jnp.float32).tiny)  # what is smaller may be 0 on the device
    if clip_norm is not None and _check.number("clip_norm", clip_norm, low=0.0) < least:
        raise ValueError(
            f"clip_norm: {clip_norm} underflows to 0 in float32 and would stop all learning"
        )

    slope = loss_and_gradient(loss)
    update = _update_of(optimizer)

    def step(state: TrainState, batch: PyTree, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        if not isinstance(state, TrainState):
            raise TypeError(
                f"train_state: got {_check.describe(state)}, expected what init_train_state returns"
            )
        _check.key("key", key)

        def measure(params: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
            (value, carry), gradient = slope(state._replace(params=params), batch, key)
            return (value, carry), jax.tree.map(jnp.conj, gradient)

        (value, carry), raw = measure(state.params)
        norm = global_norm(raw)
        limit = jnp.ones_like(norm)
        if clip_norm is not None:
            limit = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        # A gradient clipped by an infinite norm would be zero, and a bad step pass for a good one.
        scale = jnp.where(jnp.isfinite(value) & jnp.isfinite(norm), limit, jnp.nan)
        gradient = jax.tree.map(lambda leaf: _scaled(leaf, scale), raw)
        updates, optimizer_state = update(
            gradient,
            state.optimizer_state,
            state.params,
            value=value,
            grad=raw,
            value_fn=lambda params: measure(params)[0][0],
            grad_fn=lambda params, _: measure(params)[1],
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer_state, carry), Metrics(value, norm)

    return step


def _update_of(optimizer: Any) -> Callable[..., Any]:
    """Return the optimizer's update, which is given those of our arguments that it takes.

    Whatever takes any gets what line searches want: these hand on the rest to the loss.
    """
    parameters = inspect.signature(optimizer.update).parameters.values()
    names = {parameter.name for parameter in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names |= {"value", "grad", "value_fn"}

    def update(gradient: PyTree, state: PyTree, params: PyTree, **given: Any) -> Any:
        taken = {name: value for name, value in given.items() if name in names}
        try:
            return optimizer.update(gradient, state, params, **taken)
        except TypeError as error:
            error.add_note(f"in the update of optimizer, which train_step gives {sorted(given)}")
            raise

    return update


def _scaled(leaf: Array, scale: Float[Array, ""]) -> Array:
    """Return a leaf times a number that may be too small for its dtype, or too large."""
    wide = at_least_float32(leaf)
    return (wide * scale.astype(wide.real.dtype)).astype(leaf.dtype)


def _check_optimizer(optimizer: Any) -> None:
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(
            f"optimizer: got {_check.describe(optimizer)}, expected an optax.GradientTransformation"
        )


def loss_and_gradient(
    loss: Callable[..., Any],
) -> Callable[[TrainState, PyTree, PRNGKeyArray], tuple[tuple[Array, PyTree], PyTree]]:
    """Make `(train_state, batch, key) -> (loss, carry), gradient`, carry None if there is none."""

    def loss_and_carry(params, carry, batch, key):
        _check_arguments(loss, 3 if carry is None else 4)
        if carry is None:
            return _check.scalar("loss", loss(params, batch, key)), None
        returned = loss(params, carry, batch, key)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise TypeError(f"loss: returned {_check.describe(returned)}, expected (scalar, carry)")
        value, new_carry = returned
        _check.same_spec("carry", new_carry, carry, "like the one that the loss was given")
        return _check.scalar("loss", value), new_carry

    gradient = jax.value_and_grad(loss_and_carry, has_aux=True)
    return lambda state, batch, key: gradient(state.params, state.carry, batch, key)


def _check_arguments(loss: Callable[..., Any], count: int) -> None:
    """Raise unless a loss can be called with so many arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        expected = "(params, batch, key)" if count == 3 else "(params, carry, batch, key)"
        given = "without a carry" if count == 3 else "with a carry"
        raise TypeError(
            f"loss: got one of arguments {signature}, expected {expected} for training {given}"
        ) from error
