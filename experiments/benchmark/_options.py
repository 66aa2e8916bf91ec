"""The arguments that several benchmarks share, and what each does first."""

import argparse

import jax

from experiments import _common, _timing
from experiments.benchmark import _contenders

DTYPES = ("float32", "bfloat16", "float16", "float64")


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command's parser, with the arguments that every measurement takes."""
    parser = _common.arguments(description)
    parser.prog = f"python -m experiments.benchmark {command}"
    positive = _common.positive
    parser.add_argument("--repeats", type=positive(int), default=15, help="rounds, at most")
    parser.add_argument(
        "--minutes",
        type=positive(float),
        default=20.0,
        help=f"time to aim at; only the {_timing.LEAST_ROUNDS} rounds that there are at least "
        "exceed it",
    )
    parser.add_argument(
        "--devices",
        type=positive(int),
        default=None,
        help="devices to make of the CPU, for jaxrnn-sharded and sweeps; leave it out for "
        "single-device times",
    )
    return parser


def add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=_contenders.CELLS,
        default=list(_contenders.CELLS),
        help="which cells",
    )


def add_contenders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=_contenders.CONTENDERS,
        default=_contenders.DEFAULT_CONTENDERS,
        help="which ones",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of all arrays")


def begin(arguments: argparse.Namespace) -> dict[str, str]:
    """Configure JAX as asked; print and return the header that goes into every CSV file."""
    if getattr(arguments, "dtype", None) == "float64":
        jax.config.update("jax_enable_x64", True)
    if arguments.devices is not None:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    head = _timing.header()
    print("\n".join(f"{name}: {value}" for name, value in head.items()))
    return head
