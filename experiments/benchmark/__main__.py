"""Dispatch to the benchmark that is asked for."""

import argparse
import importlib
from collections.abc import Sequence

from experiments import benchmark

COMMANDS = ("shapes", "scaling", "training", "loss", "sweep", "streaming", "report")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    importlib.import_module(f"experiments.benchmark.{arguments.command}").main(arguments.options)


if __name__ == "__main__":
    main()
