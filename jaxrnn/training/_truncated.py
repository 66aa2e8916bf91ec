"""Truncated backpropagation through time: a long sequence's gradient, window by window."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from jaxrnn import _check
from jaxrnn._dtypes import pvary_like, without_weak_types
from jaxrnn._unroll import checked_flags
from jaxrnn.layers import Layer


class TruncatedCarry(NamedTuple):
    """What one window leaves to the next: the k2 - k1 steps that both go through, and the state.

    Attributes:
        state: the model's state before those steps.
        inputs: their inputs, with zeros in front while the sequence is younger.
        mask: which of them are real: none in front, nor what a batch's mask says of them.
        resets: before which of them to begin anew.
    """

    state: PyTree
    inputs: Shaped[Array, "K *batch"]
    mask: Bool[Array, "K *batch"]
    resets: Bool[Array, "K *batch"]


@dataclasses.dataclass(frozen=True)
class TruncatedLoss:
    """The loss that `truncated_loss` makes: `(params, carry, batch, key) -> (scalar, carry)`.

    Attributes:
        model: the layer that it unrolls.
        loss: `(outputs, targets) -> scalar` for the new steps of a window.
        k1: how many these are.
        k2: through how many steps a gradient goes back.
    """

    model: Layer
    loss: Callable[[Any, Any], Float[Array, ""]]
    k1: int
    k2: int

    def initial_carry(
        self,
        inputs: Shaped[Array, "T *batch"] | jax.ShapeDtypeStruct,
        state: PyTree = None,
        *,
        params: PyTree = None,
    ) -> TruncatedCarry:
        """Make the carry of the first window.

        Args:
            inputs: inputs of any number of steps, or their shape and dtype.
            state: the model's state before the first step; None is its initial one, of the dtype of
                the inputs, or float32 where these are integers.
            params: the model's, if it learns its initial state; what it starts from is a constant
                here all the same, as is every state at a window's start.

        Returns:
            The carry.

        Raises:
            TypeError: if inputs are no array.
            ValueError: if k2 is above k1 and the model has a state and heeds no mask, or JAX would
                narrow a state of NumPy's 64 bits and change it.
        """
        _check_inputs(inputs)
        _check.no_narrowing("inputs", inputs)
        _check.no_narrowing("state", state)
        if state is None:
            floating = jnp.issubdtype(inputs.dtype, jnp.floating)
            dtype = inputs.dtype if floating else jnp.float32
            state = self.model.initial_state(
                _steps_and_batch(inputs)[1:], dtype=dtype, params=params
            )
        if self.k2 > self.k1 and not self.model.recurrent and jax.tree.leaves(state):
            raise ValueError(
                f"model: {self.model!r} is stateful but ignores `mask`; use rnn() or serial(), or "
                f"set k2 equal to k1={self.k1}"
            )
        # NumPy's 64 bits are 32 here, unless they are enabled.
        kept = jnp.zeros((self.k2 - self.k1, *inputs.shape[1:]), jnp.result_type(inputs))
        none = jnp.zeros(_steps_and_batch(kept), bool)
        return TruncatedCarry(without_weak_types(state), kept, none, jnp.copy(none))

    def __call__(
        self,
        params: PyTree,
        carry: TruncatedCarry,
        batch: tuple[Any, ...],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, ""], TruncatedCarry]:
        """Return the loss of the window's k1 new steps, and the carry of the next window."""
        value, (carry, _) = self.of_window(params, carry, batch, key)
        return value, carry

    def of_window(
        self, params: PyTree, carry: TruncatedCarry, batch: Any, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[TruncatedCarry, PyTree]]:
        """Do as a call, and return the state after the window's last step too."""
        k1, k2 = self.k1, self.k2
        inputs, targets, new_mask, new_resets = _checked_window(carry, batch, k1, k2)
        shape = _steps_and_batch(inputs)
        inputs = jnp.concatenate([carry.inputs, inputs])
        mask, resets = (
            jnp.concatenate([old, jnp.full(shape, otherwise) if new is None else new])
            for old, new, otherwise in (
                (carry.mask, new_mask, True),
                (carry.resets, new_resets, False),
            )
        )
        # Without overlap no steps are run again; a layer without state heeds no flags.
        used: dict[str, Array] = {}
        if self.model.recurrent and (k2 > k1 or new_mask is not None):
            used["mask"] = mask
        if self.model.recurrent and (k2 > k1 or new_resets is not None):
            used["resets"] = resets
        keys = (None, None) if key is None else jax.random.split(_check.key("key", key))

        def run(state: PyTree, part: slice, key: PRNGKeyArray | None) -> tuple[Any, Array]:
            options = {name: flag[part] for name, flag in used.items()}
            state, outputs = self.model.apply(params, state, inputs[part], key=key, **options)
            _check.steps("outputs of model", outputs, inputs[part].shape[0])
            return state, outputs

        # In two parts, as the next window begins where the first ends.
        state, outputs = run(carry.state, slice(k1), keys[0])
        next_carry = TruncatedCarry(state, inputs[k1:], mask[k1:], resets[k1:])
        if k2 > k1:
            state, more = run(state, slice(k1, None), keys[1])
            outputs = jnp.concatenate([outputs, more])[-k1:]
        return _check.scalar("loss", self.loss(outputs, targets)), (next_carry, state)


def truncated_loss(
    model: Layer,
    loss: Callable[[Any, Any], Float[Array, ""]],
    *,
    k1: int,
    k2: int | None = None,
) -> TruncatedLoss:
    """Make a loss for `fit` that trains on a sequence as it comes, k1 new steps in each window.

    A window's loss is that of its k1 new steps. Its gradient goes back through the last k2 steps,
    and takes the state before these for a constant. It is then carried on to the next window,
    together with the k2 - k1 steps that this one will go through again, with the new parameters.
    Where the sequence has not had k2 steps yet, the gradient goes back through those there are.

    Args:
        model: a layer that gives an output for each step. With k2 above k1, one with a state must
            heed a mask, as `rnn` and `serial` do.
        loss: `(outputs, targets) -> scalar` for k1 steps.
        k1: how many new steps a window has.
        k2: through how many steps its gradient goes back; k1 if None, so that windows don't
            overlap.

    Returns:
        A loss `(params, carry, batch, key) -> (scalar, carry)`, on batches `(inputs, targets)` of
        k1 steps, or `(inputs, targets, flags)`, where flags are a dict of `mask` or `resets` or
        both, `(k1, *batch)`, as `unroll` takes them: what is padding, and where sequences begin
        anew. Its method `initial_carry(inputs, state=None)` makes the first carry.

    Raises:
        TypeError: if an argument is of the wrong kind; in a call, if `loss` returns no scalar, or
            the carry is none of `initial_carry`.
        ValueError: if the model runs backwards, or gives its last output alone, k1 is below 1 or k2
            below k1; in a call, if the batch hasn't k1 steps, flags aren't of its shape, or the
            carry is of another k2 - k1 or of other inputs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> model = jaxrnn.rnn(jaxrnn.elman(4))
        >>> params = model.init(jax.random.key(0), 4)
        >>> windows = jnp.ones((9, 5, 2, 4))                    # 9 windows of 5 steps in a row
        >>> loss = jaxrnn.training.truncated_loss(model, jaxrnn.losses.squared_error, k1=5, k2=10)
        >>> result = jaxrnn.fit(
        ...     loss, params, optax.adam(1e-2), (windows, windows),
        ...     steps=9, key=jax.random.key(1), carry=loss.initial_carry(windows[0]),
        ... )
        >>> result.losses.shape, bool(result.losses[-1] < result.losses[0])
        ((9,), True)

    References:
        Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent
        network trajectories", Neural Computation 2, 1990: BPTT(h; h') with h = k2 and h' = k1.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model: got {_check.describe(model)}, expected a jaxrnn.Layer")
    if not model.causal:
        raise ValueError(
            f"model: got {model!r}, expected one that streams, from the first step on: what runs "
            "backwards needs the whole sequence"
        )
    if not model.return_sequences:
        raise ValueError(f"model: got {model!r}, expected one that gives an output for each step")
    k1 = _check.size("k1", k1)
    k2 = k1 if k2 is None else _check.size("k2", k2)
    if k2 < k1:
        raise ValueError(f"k2: got {k2}, expected at least k1={k1}, the new steps of a window")
    return TruncatedLoss(model, _check.function("loss", loss), k1, k2)


def truncated_gradient(
    model: Layer,
    loss: Callable[[Any, Any], Float[Array, ""]],
    params: PyTree,
    inputs: Shaped[Array, "T *batch"],
    targets: PyTree,
    state: PyTree = None,
    *,
    k1: int,
    k2: int | None = None,
    key: PRNGKeyArray | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    mask: Bool[Array, "T *batch"] | None = None,
    resets: Bool[Array, "T *batch"] | None = None,
) -> tuple[Any, Float[Array, ""], PyTree]:
    """Gradient of a sequence's loss by truncated backpropagation through time.

    It is the sum of what each k1 steps contribute, if their loss is followed back through the last
    k2 steps only:

        for end in range(k1, T + 1, k1):
            start = max(0, end - k2)
            def of_window(params):
                outputs = model on inputs[start:end], from the state before them, a constant
                return loss(outputs[-k1:], targets[end - k1 : end])
            value, gradient += of_window(params), grad(of_window)(params)

    With k1 = k2 = T, and with k1 = 1 and k2 = T, that is the full gradient. Memory doesn't grow
    with T, and each step is run k2 / k1 times.

    Args:
        model: a layer that gives an output for each step. With k2 above k1, one with a state must
            heed a mask, as `rnn` and `serial` do.
        loss: `(outputs, targets) -> scalar` for k1 steps, such that the values of several parts of
            a sequence add up to that of the whole: a sum over steps, not a mean.
        params: the model's parameters.
        inputs: the sequence, `(T, *batch, I)`, or `(T, *batch)` of integers; T a multiple of k1.
        targets: a pytree of arrays with T as first axis, or None.
        state: the state before the first step; None is the initial one, of the dtype of the inputs,
            or float32 where these are integers.
        k1: how many new steps a window has.
        k2: through how many steps its gradient goes back; k1 if None.
        key: a random key, with which the model trains; without one it evaluates.
        lengths: how many steps of each sequence are real, `(*batch)`, as in `unroll`. The loss gets
            what the model makes of padding too, so let targets say where it is.
        mask: which steps are real, `(T, *batch)`, as in `unroll`.
        resets: before which steps to begin anew, `(T, *batch)`, as in `unroll`. No gradient goes
            back through these.

    Returns:
        `(state, value, gradient)`: the state after the last step, the loss of all steps, which is
        not truncated, and its truncated gradient, a pytree like params.

    Raises:
        TypeError: if an argument is of the wrong kind, or `loss` returns no scalar.
        ValueError: if the model runs backwards, gives its last output alone, or has a state and
            heeds no mask with k2 above k1; if k1 is below 1, k2 below k1 or above T, T no multiple
            of k1, if targets don't have T steps, or lengths, mask or resets don't fit; if JAX would
            narrow an array of NumPy's 64 bits and change it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> model = jaxrnn.rnn(jaxrnn.elman(8))
        >>> params, xs = model.init(jax.random.key(0), 3), jnp.ones((1000, 2, 3))
        >>> state, value, gradient = jaxrnn.training.truncated_gradient(
        ...     model, lambda outputs, targets: jnp.square(outputs - targets).sum(), params,
        ...     xs, jnp.zeros((1000, 2, 8)), k1=10, k2=20,
        ... )
        >>> gradient.kernel.shape
        (3, 8)

    References:
        Williams and Peng, 1990, as for `truncated_loss`; for its bias Tallec and Ollivier,
        "Unbiasing truncated backpropagation through time", 2017.
    """
    of_windows = truncated_loss(model, loss, k1=k1, k2=k2)
    _check_inputs(inputs)
    _check.no_narrowing("params", params)
    _check.no_narrowing("targets", targets)
    steps = inputs.shape[0]
    _check.steps("targets", targets, steps)
    if of_windows.k2 > steps:
        raise ValueError(
            f"k2: got windows of k2={of_windows.k2} steps for a sequence of {steps}, expected at "
            f"most {steps}"
        )
    if steps % of_windows.k1:
        raise ValueError(f"inputs: got {steps} steps, expected a multiple of k1={of_windows.k1}")
    if key is not None:
        _check.key("key", key)
    mask, resets = checked_flags(_steps_and_batch(inputs), lengths, mask, resets)
    flags = {"mask": mask, "resets": resets}
    flags = {name: flag for name, flag in flags.items() if flag is not None}
    carry = of_windows.initial_carry(inputs, state, params=params)
    return _sum_windows(of_windows, params, carry, (inputs, targets, flags), key)


# Jitted, so that a call outside of any jit compiles once; inlined, so that inside of one it leaves
# no trace.
@functools.partial(jax.jit, static_argnames="of_windows", inline=True)
def _sum_windows(
    of_windows: TruncatedLoss, params: PyTree, carry: TruncatedCarry, sequence: PyTree, key: Any
) -> tuple[Any, Float[Array, ""], PyTree]:
    k1 = of_windows.k1
    count = jax.tree.leaves(sequence)[0].shape[0] // k1
    windows = jax.tree.map(lambda leaf: leaf.reshape(count, k1, *leaf.shape[1:]), sequence)
    keys = None if key is None else jax.random.split(key, count)
    differentiate = jax.value_and_grad(of_windows.of_window, has_aux=True)

    def add_window(loop, window):
        carry, _, *totals = loop
        (value, (carry, state)), gradient = differentiate(params, carry, *window)
        return (carry, state, *jax.tree.map(jnp.add, totals, [value, gradient])), None

    carry = pvary_like(carry, jax.tree.leaves(sequence)[0])
    first = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), (windows, keys))
    (value, _), gradient = jax.eval_shape(differentiate, params, carry, *first)
    value, gradient = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, gradient)
    )
    value = pvary_like(value, jax.tree.leaves(sequence)[0])
    (_, state, value, gradient), _ = lax.scan(
        add_window, (carry, carry.state, value, gradient), (windows, keys)
    )
    return state, value, gradient


def _check_inputs(inputs: Any) -> None:
    array = hasattr(inputs, "shape") and hasattr(inputs, "dtype")
    if not array or not _steps_and_batch(inputs):
        raise TypeError(
            f"inputs: got {_check.describe(inputs)}, expected an array (T, *batch, ...)"
        )


def _checked_window(carry: Any, batch: Any, k1: int, k2: int) -> tuple[Any, Any, Any, Any]:
    """Return a window's inputs, targets, mask or None, and resets or None."""
    if not isinstance(carry, TruncatedCarry):
        raise TypeError(
            f"carry: got {_check.describe(carry)}, expected what initial_carry returns, which "
            "fit takes as carry"
        )
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            f"batch: got {_check.describe(batch)}, expected (inputs, targets), or "
            "(inputs, targets, flags)"
        )
    inputs, targets, *flags = batch
    _check_inputs(inputs)
    _check.no_narrowing("batch", batch)
    if inputs.shape[:1] != (k1,):
        raise ValueError(f"inputs: got {_check.describe(inputs)}, expected k1={k1} steps")
    _check.steps("targets", targets, k1)
    mask, resets = _mask_and_resets(flags[0] if flags else {}, _steps_and_batch(inputs))
    _check_kept_steps(carry, inputs, k2 - k1)
    return inputs, targets, mask, resets


def _check_kept_steps(carry: TruncatedCarry, inputs: Array, count: int) -> None:
    """Raise unless a carry has so many steps like those of inputs, of the same batch."""
    steps = jax.ShapeDtypeStruct((count, *inputs.shape[1:]), jnp.result_type(inputs))
    flags = jax.ShapeDtypeStruct(_steps_and_batch(steps), bool)
    carry = carry._replace(state=None)
    want = carry._replace(inputs=steps, mask=flags, resets=flags)
    _check.same_spec("carry", carry, want, f"for the k2 - k1 = {count} steps before such inputs")


def _mask_and_resets(flags: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return a batch's mask and resets, None for each that it hasn't got."""
    if not isinstance(flags, dict) or not flags.keys() <= {"mask", "resets"}:
        raise TypeError(f"flags: got {_check.describe(flags)}, expected a dict of mask and resets")
    return checked_flags(shape, None, flags.get("mask"), flags.get("resets"))


def _steps_and_batch(inputs: Any) -> tuple[int, ...]:
    """Return `(T, *batch)`, the axes but that of the features, which integers don't have."""
    return inputs.shape[:-1] if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs.shape
