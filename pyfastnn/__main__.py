"""``python -m pyfastnn``: what was found on this machine, a demonstration, and a short benchmark."""

from __future__ import annotations

import argparse

from . import __version__, bench, demo
from .config import show_config


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _workload(text: str) -> str:
    if text not in bench.WORKLOADS:
        raise argparse.ArgumentTypeError(f"unknown {text!r}; known: {', '.join(bench.WORKLOADS)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyfastnn", description="Dense neural networks.")
    parser.add_argument("--version", action="version", version=f"pyfastnn {__version__}")
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    info = commands.add_parser("info", help="backends, instruction sets and threads of this machine")
    info.set_defaults(run=lambda _: show_config())

    trial = commands.add_parser("demo", help="train a digit classifier, beside NumPy and scikit-learn")
    trial.add_argument("--mnist", metavar="FOLDER", help="use MNIST, from its four IDX files (plain or .gz)")
    trial.add_argument("--epochs", metavar="N", type=_positive, help="default: 30, with --mnist 5")
    trial.set_defaults(run=lambda arguments: demo.run(arguments.mnist, arguments.epochs))

    short = commands.add_parser("bench", help="time training beside the libraries installed here")
    short.add_argument(
        "workloads",
        metavar="WORKLOAD",
        nargs="*",
        type=_workload,
        help=f"of {', '.join(bench.WORKLOADS)}; default: {', '.join(bench.SHORT)}",
    )
    short.set_defaults(run=lambda arguments: bench.run(arguments.workloads))
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command, by default that of the command line."""
    chosen = _parser().parse_args(arguments)
    chosen.run(chosen)


if __name__ == "__main__":
    main()
