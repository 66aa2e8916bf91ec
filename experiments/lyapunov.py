"""Order and chaos: at which gain does a random network begin to amplify what disturbs it?

A network of N tanh units without input, whose recurrent kernel is Gaussian of variance gain**2 / N,
forgets every disturbance while gain < 1 and is chaotic beyond, the more sharply the larger N is.
The largest Lyapunov exponent tells the two apart, and the gradient knows it too: a loss at the last
step has a gradient that decays, going back, at minus that exponent. For infinitely many units
mean-field theory has the exponent in closed form. Everything is in float64, as gradients of chaotic
networks overflow float32 within a hundred steps or two. With --cost: the time that 64 exponents
take, beside a plain loop of the same algorithm in NumPy.
"""

import argparse
import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

import jaxrnn
from experiments import _common, _timing
from jaxrnn import diagnostics

# Colours for an order of sizes or gains, from light to dark, so that grey printing keeps it.
ORDER = plt.get_cmap("viridis")
# Of those gains that are measured, these have their whole spectrum found.
SPECTRUM_GAINS = [0.5, 0.8, 1.5, 2.0, 3.0, 4.0]


class Lengths(NamedTuple):
    """How many steps go into each measurement.

    The gradient is that of a loss at the end of `gradient + turn` steps. The last `turn` of them
    don't count: there it still turns from the loss's direction into the slowest to decay.
    """

    burn_in: int = 1000
    exponents: int = 2000
    spectrum: int = 500
    gradient: int = 400
    turn: int = 50


QUICK_LENGTHS = Lengths(200, 500, 200, 200, 50)


class Measured(NamedTuple):
    """Networks of one size: an entry for each gain and seed, in nats per step, `(G, S)`."""

    exponent: Float[Any, "G S"]
    exponent_error: Float[Any, "G S"]
    decay: Float[Any, "G S"]
    decay_error: Float[Any, "G S"]


def network(
    key: PRNGKeyArray, gain: Float[Array, ""], size: int
) -> tuple[jaxrnn.Cell, Any, jaxrnn.cells.ElmanState]:
    """Draw a random network, and a state to start from."""
    kernel_key, state_key = jax.random.split(key)
    kernel = gain / np.sqrt(size) * jax.random.normal(kernel_key, (size, size), gain.dtype)
    params = jaxrnn.cells.ElmanParams(jnp.zeros((1, size), gain.dtype), kernel, None)
    state = jaxrnn.cells.ElmanState(jax.random.normal(state_key, (size,), gain.dtype))
    return jaxrnn.elman(size, use_bias=False), params, state


def every(
    function: Callable[[PRNGKeyArray, Array], Any], keys: PRNGKeyArray, gains: Float[Array, "G"]
) -> Any:
    """Apply `(key, gain) -> results` to every gain and key, one after the other in one program."""
    # A seed draws the same kernel for each gain, but for its factor.
    apply = functools.partial(lax.map, lambda pair: function(*pair))
    pairs = (jnp.tile(keys, len(gains)), jnp.repeat(gains, len(keys)))
    shape = (len(gains), len(keys))
    results = jax.jit(apply)(pairs)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[1:]), results)


def measure(keys: PRNGKeyArray, gains: Float[Array, "G"], size: int, lengths: Lengths) -> Measured:
    """Measure the largest exponent, and how a gradient decays, of networks of one size."""

    def both(key: PRNGKeyArray, gain: Array) -> Measured:
        network_key, loss_key = jax.random.split(key)
        cell, params, state = network(network_key, gain, size)
        direction = jax.random.normal(loss_key, (size,), gain.dtype)

        def nothing(steps):
            return jnp.zeros((steps, 1), gain.dtype)

        state, _ = jaxrnn.unroll(cell, params, nothing(lengths.burn_in), state)
        spectrum = diagnostics.lyapunov_exponents(
            cell,
            params,
            nothing(lengths.turn + lengths.exponents),
            state,
            num_exponents=1,
            burn_in=lengths.turn,
        )
        norms = diagnostics.gradient_norms(
            lambda outputs: outputs[-1] @ direction,
            cell,
            params,
            nothing(lengths.gradient + lengths.turn),
            state,
        )
        horizon = diagnostics.gradient_horizon(norms[: -lengths.turn])
        return Measured(
            spectrum.exponents[0],
            spectrum.standard_error[0],
            horizon.decay_rate,
            horizon.standard_error,
        )

    return every(both, keys, gains)


def spectra(
    keys: PRNGKeyArray, gains: Float[Array, "G"], size: int, lengths: Lengths
) -> Float[np.ndarray, "G S N"]:
    """Measure all exponents of networks of one size."""

    def spectrum(key: PRNGKeyArray, gain: Array) -> Array:
        cell, params, state = network(jax.random.split(key)[0], gain, size)
        state, _ = jaxrnn.unroll(cell, params, jnp.zeros((lengths.burn_in, 1), gain.dtype), state)
        inputs = jnp.zeros((lengths.turn + lengths.spectrum, 1), gain.dtype)
        return diagnostics.lyapunov_exponents(
            cell, params, inputs, state, burn_in=lengths.turn
        ).exponents

    return every(spectrum, keys, gains)


def mean_field_exponent(gains: Sequence[float] | np.ndarray) -> Float[np.ndarray, "G"]:
    """Largest exponent of infinitely many units, whose recurrent inputs are Gaussian.

        variance = gain**2 * mean of tanh(sqrt(variance) * z)**2
        exponent = log(gain**2 * mean of (1 - tanh(sqrt(variance) * z)**2)**2) / 2

    over a normal z: the variance that the network keeps up, and the growth of a disturbance in it
    (Molgedey, Schuchhardt and Schuster, Physical Review Letters 69, 1992).
    """
    # Equal steps, as they are exact to rounding for smooth functions that end at 0 on both sides.
    nodes = np.linspace(-8, 8, 401)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    squares = np.square(np.asarray(gains, float))
    # By bisection: below its fixed point the variance grows in a step, above it shrinks.
    low, high = np.zeros_like(squares), squares
    for _ in range(60):
        variance = (low + high) / 2
        outputs = np.tanh(np.sqrt(variance)[:, None] * nodes)
        grows = squares * (outputs**2 @ weights) > variance
        low, high = np.where(grows, variance, low), np.where(grows, high, variance)
    growth = squares * ((1 - np.tanh(np.sqrt(low)[:, None] * nodes) ** 2) ** 2 @ weights)
    return np.log(growth) / 2


def agreement(results: Mapping[int, Measured]) -> str:
    """Say how far gradients' decays are from minus the exponents, beside their errors."""
    off, errors = [], []
    for measured in results.values():
        off.append((measured.decay + measured.exponent).ravel())
        errors.append(np.hypot(measured.decay_error, measured.exponent_error).ravel())
    off, errors = np.concatenate(off), np.concatenate(errors)
    rates = np.concatenate([measured.decay.ravel() for measured in results.values()])
    exponents = np.concatenate([measured.exponent.ravel() for measured in results.values()])
    return (
        f"{len(off)} networks: the gradient's decay is minus the exponent to "
        f"{np.sqrt(np.mean(off**2)):.4f} nats per step (root mean square; their errors together "
        f"make {np.sqrt(np.mean(errors**2)):.4f}); correlation "
        f"{np.corrcoef(rates, -exponents)[0, 1]:.5f}"
    )


def spread(values: Float[np.ndarray, "S"], digits: int = 3) -> str:
    """Return the mean and the standard deviation of some seeds' values as text."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def table_rows(
    gains: Sequence[float],
    measured: Measured,
    spectrum_gains: Sequence[float],
    spectrum: np.ndarray,
) -> list[dict[str, Any]]:
    """Return a row for each gain whose whole spectrum is known, of networks of one size."""
    rows = []
    for gain, exponents in zip(spectrum_gains, spectrum, strict=True):
        place = list(gains).index(gain)
        rows.append(
            {
                "gain": gain,
                "largest exponent": spread(measured.exponent[place]),
                "gradient's decay": spread(measured.decay[place]),
                "N infinite": f"{mean_field_exponent([gain])[0]:.3f}",
                "dimension": spread(np.asarray(diagnostics.kaplan_yorke_dimension(exponents)), 1),
                "entropy rate": spread(np.asarray(diagnostics.entropy_rate(exponents)), 2),
            }
        )
    return rows


def draw(
    gains: Sequence[float],
    results: Mapping[int, Measured],
    spectrum_gains: Sequence[float],
    spectrum_size: int,
    spectrum: np.ndarray,
) -> Any:
    """Draw the transition to chaos, some spectra, and gradients' decay against exponents."""
    with plt.rc_context(_common.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
        _draw_transition(axes[0], gains, results)
        _draw_spectra(axes[1], spectrum_gains, spectrum_size, spectrum)
        _draw_decay(axes[2], results)
        figure.suptitle(
            "Beyond gain 1 random networks are chaotic, and gradients grow as fast as disturbances",
            fontsize=13,
            weight="bold",
            x=0.01,
            ha="left",
        )
    return figure


def _shades(count: int) -> Any:
    return ORDER(np.linspace(0.9, 0.0, count))


def _draw_transition(axis: Any, gains: Sequence[float], results: Mapping[int, Measured]) -> None:
    for (size, measured), color in zip(results.items(), _shades(len(results)), strict=True):
        axis.errorbar(
            gains,
            measured.exponent.mean(axis=1),
            measured.exponent.std(axis=1, ddof=1),
            color=color,
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            capsize=2,
            label=f"N = {size}",
        )
    fine = np.linspace(min(gains), max(gains), 200)
    axis.plot(fine, mean_field_exponent(fine), "k--", linewidth=1.4, label="N infinite (theory)")
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.axvline(1, color="0.3", linewidth=0.8, linestyle=":")
    axis.text(1.05, axis.get_ylim()[0], "gain 1", va="bottom", fontsize=9)
    axis.set(xlabel="gain", ylabel="largest Lyapunov exponent, nats per step")
    axis.set_title("The transition to chaos", loc="left")
    axis.legend(loc="lower right", fontsize=9)


def _draw_spectra(
    axis: Any, gains: Sequence[float], size: int, spectrum: Float[np.ndarray, "G S N"]
) -> None:
    share = (1 + np.arange(size)) / size
    for exponents, color in zip(spectrum, _shades(len(gains)), strict=True):
        mean, deviation = exponents.mean(axis=0), exponents.std(axis=0, ddof=1)
        axis.plot(share, mean, color=color)
        axis.fill_between(share, mean - deviation, mean + deviation, color=color, alpha=0.25)
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.set(xlabel="number of the exponent / N", ylabel="Lyapunov exponent, nats per step")
    axis.set(xlim=(0, 1), ylim=(-3, 0.7))
    axis.set_title(f"The spectrum, N = {size}", loc="left")
    # The larger the gain the sooner a line leaves the panel, and the farther left is its label.
    places = (np.linspace(0.9, 0.3, len(gains)) * (size - 1)).astype(int)
    for gain, place, exponents, color in zip(
        gains, places, spectrum, _shades(len(gains)), strict=True
    ):
        middle = exponents[:, place].mean()
        _common.write(
            axis,
            f"gain {gain:g}",
            (float(share[place]), middle),
            (0, 3),
            color=color,
            ha="center",
            fontsize=8,
        )


def _draw_decay(axis: Any, results: Mapping[int, Measured]) -> None:
    for (size, measured), color in zip(results.items(), _shades(len(results)), strict=True):
        axis.errorbar(
            -measured.exponent.ravel(),
            measured.decay.ravel(),
            measured.decay_error.ravel(),
            measured.exponent_error.ravel(),
            linestyle="none",
            marker="o",
            markersize=3,
            elinewidth=0.8,
            color=color,
            label=f"N = {size}",
        )
    ends = np.array(axis.get_xlim())
    axis.plot(ends, ends, color="black", linestyle="--", linewidth=1.2, label="equal")
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.text(0.97, 0.42, "vanishing →", transform=axis.transAxes, ha="right", fontsize=9)
    axis.text(0.03, 0.42, "← exploding", transform=axis.transAxes, fontsize=9)
    axis.set(
        xlabel="minus the largest exponent, nats per step",
        ylabel="measured decay of the gradient, nats per step",
    )
    axis.set_title("The gradient decays as the exponent says", loc="left")
    axis.legend(loc="upper left", fontsize=9)


# The cost.


def numpy_exponents(
    kernel: Float[np.ndarray, "N N"], state: Float[np.ndarray, "N"], *, count: int, steps: int
) -> Float[np.ndarray, "K"]:
    """Find the leading exponents in a plain loop: push tangents, factorise, add logarithms up."""
    tangents = np.eye(count, len(state), dtype=kernel.dtype)
    logarithms = np.zeros(count, kernel.dtype)
    for _ in range(steps):
        state = np.tanh(state @ kernel)
        pushed = tangents @ kernel * (1 - state**2)
        columns, r = np.linalg.qr(pushed.T)
        tangents = columns.T
        logarithms += np.log(np.abs(np.diagonal(r)))
    return logarithms / steps


def run_cost(arguments: argparse.Namespace) -> None:
    """Time the leading exponents of one network, in turns with a loop in NumPy, in float32."""
    size, count, steps = arguments.units, arguments.exponents, arguments.steps
    cell, params, state = network(
        jax.random.key(arguments.seed), jnp.asarray(2.0, jnp.float32), size
    )
    inputs = jnp.zeros((steps, 1), jnp.float32)
    program = _timing.compile_jax(
        lambda *args: diagnostics.lyapunov_exponents(cell, *args, num_exponents=count).exponents,
        params,
        inputs,
        state,
    )
    kernel, hidden = np.asarray(params.recurrent_kernel), np.asarray(state.hidden)
    runs = {
        "jaxrnn": program.run,
        "NumPy loop": lambda: numpy_exponents(kernel, hidden, count=count, steps=steps),
    }
    print(f"{count} exponents of {size} units over {steps:,} steps, float32")
    samples = {name: [] for name in runs}
    largest = {}
    shuffle = random.Random(arguments.seed)
    for number in range(arguments.repeats):
        for name in shuffle.sample(list(runs), len(runs)):
            start = time.perf_counter()
            largest[name] = float(runs[name]()[0])
            samples[name].append(time.perf_counter() - start)
            print(f"round {number + 1}: {name} {samples[name][-1]:.2f} s", flush=True)
    rows = [
        {
            "contender": name,
            **_timing.summary(seconds),
            "first_s": program.first if name == "jaxrnn" else None,
            "temporary_MiB": None,
            "largest exponent": largest[name],
        }
        for name, seconds in samples.items()
    ]
    sizes = {"units": size, "exponents": count, "steps": steps}
    table = pd.DataFrame(rows).assign(**sizes, **_timing.header())
    _common.save_csv(arguments.out / "lyapunov_cost.csv", table)
    print()
    _common.print_table(rows)
    ratio = np.median(np.divide(samples["NumPy loop"], samples["jaxrnn"]))
    verdict = (
        f"is {ratio:.2f} times faster" if ratio >= 1 else f"takes {1 / ratio:.2f} times as long"
    )
    print(f"\njaxrnn {verdict}, median of {arguments.repeats} rounds")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure random networks of each size at each gain, and draw them."""
    positive = _common.positive
    parser = _common.arguments(__doc__)
    parser.add_argument(
        "--gain",
        nargs="+",
        type=positive(float),
        default=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0],
        help="standard deviation of the kernel's entries, times the root of N",
    )
    parser.add_argument(
        "--size", nargs="+", type=positive(int), default=[32, 64, 128, 256], help="N"
    )
    parser.add_argument(
        "--seeds", type=positive(int), default=8, help="networks of each, 2 or more"
    )
    parser.add_argument(
        "--spectrum-gain",
        nargs="+",
        type=positive(float),
        help="those of the gains for which to find all exponents; if None, those of "
        f"{', '.join(map(str, SPECTRUM_GAINS))} that are gains, or else all",
    )
    parser.add_argument(
        "--spectrum-size", type=positive(int), default=128, help="the N, one of the sizes, of these"
    )
    parser.add_argument(
        "--spectrum-seeds", type=positive(int), default=4, help="how many of the seeds, for these"
    )
    parser.add_argument("--cost", action="store_true", help="time it beside NumPy instead")
    parser.add_argument("--units", type=positive(int), default=256, help="with --cost: N")
    parser.add_argument("--exponents", type=positive(int), default=64, help="with --cost: how many")
    parser.add_argument("--steps", type=positive(int), default=10_000, help="with --cost: how many")
    parser.add_argument("--repeats", type=positive(int), default=5, help="with --cost: rounds")
    parser.set_defaults(lengths=Lengths())
    arguments = _common.parse(
        parser,
        argv,
        gain=[0.5, 0.8, 1.0, 1.5, 2.0, 4.0],
        size=[32, 64],
        seeds=4,
        spectrum_size=32,
        lengths=QUICK_LENGTHS,
        units=64,
        exponents=16,
        steps=1000,
        repeats=3,
    )
    if arguments.cost:
        if arguments.exponents > arguments.units:
            parser.error(
                f"--exponents: got {arguments.exponents}, expected {arguments.units} at most, "
                "as many as --units"
            )
        run_cost(arguments)
        return
    if min(arguments.seeds, arguments.spectrum_seeds) < 2:
        parser.error("--seeds: got 1, expected 2 at least, for error bars")
    arguments.spectrum_gain = (
        arguments.spectrum_gain
        or [gain for gain in SPECTRUM_GAINS if gain in arguments.gain]
        or arguments.gain
    )
    if not set(arguments.spectrum_gain) <= set(arguments.gain):
        parser.error(f"--spectrum-gain: got {arguments.spectrum_gain}, expected some of --gain")
    if arguments.spectrum_size not in arguments.size:
        parser.error(f"--spectrum-size: got {arguments.spectrum_size}, expected one of --size")

    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(arguments.seed), arguments.seeds)
    gains = jnp.array(arguments.gain)
    results = {}
    for size in arguments.size:
        start = time.perf_counter()
        results[size] = measure(keys, gains, size, arguments.lengths)
        print(f"N = {size}: {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    size = arguments.spectrum_size
    spectrum = spectra(
        keys[: arguments.spectrum_seeds],
        jnp.array(arguments.spectrum_gain),
        size,
        arguments.lengths,
    )
    print(f"all exponents for N = {size}: {time.perf_counter() - start:.0f} s", flush=True)
    _common.save_csv(
        arguments.out / "lyapunov.csv",
        [
            {
                "N": size,
                "gain": gain,
                "seed": seed,
                **{name: float(value[place, seed]) for name, value in measured._asdict().items()},
            }
            for size, measured in results.items()
            for place, gain in enumerate(arguments.gain)
            for seed in range(arguments.seeds)
        ],
    )
    _common.save_csv(
        arguments.out / "lyapunov_spectrum.csv",
        [
            {"N": size, "gain": gain, "seed": seed, "number": number, "exponent": float(exponent)}
            for gain, of_gain in zip(arguments.spectrum_gain, spectrum, strict=True)
            for seed, of_seed in enumerate(of_gain)
            for number, exponent in enumerate(of_seed, start=1)
        ],
    )
    _common.save_figure(
        arguments.out / "lyapunov.png",
        draw(arguments.gain, results, arguments.spectrum_gain, size, spectrum),
    )
    print(
        f"\nN = {size}, means and standard deviations over seeds; exponents and decay in nats per "
        "step, the dimension is Kaplan and Yorke's, the entropy rate in nats per step"
    )
    _common.print_table(
        table_rows(arguments.gain, results[size], arguments.spectrum_gain, spectrum)
    )
    print(f"\n{agreement(results)}")


if __name__ == "__main__":
    main()
