"""python -m thalweg: what the library knows, how fast it is here, and how its methods compare on small problems."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import thalweg

from .console import Refusal

# Each command is a function of a module that is imported when it is called for: matplotlib and rich take their time.
COMMANDS = {
    "methods": ".catalogue:list_methods",
    "show": ".catalogue:show",
    "check": ".check:check",
    "info": ".info:info",
    "bench": ".bench:bench",
    "race": ".race:race",
    "sweep": ".sweep:sweep",
    "landscape": ".landscape:landscape",
    "stubs": ".._stubs:main",
}
PROBLEMS = ("digits", "logreg", "noisy-quadratic", "matrix", "rosenbrock", "beale", "himmelblau", "ravine", "rastrigin")
FUNCTIONS = PROBLEMS[4:]


def whole_number(text: str) -> int:
    """A whole number, which may be written 1e6."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m thalweg", description=__doc__)
    top.add_argument("--version", action="version", version=thalweg.build_info)
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")

    command = commands.add_parser("methods", help="list the methods, all or those that fit")
    command.add_argument("text", nargs="*",
                         help="words that must all occur in name, summary, rule, hyper-parameters or source; case and "
                              "hyphens do not count, and some words that people use are known")
    command.add_argument("--kind", help="only those of one kind: " + ", ".join(thalweg.kinds()))
    command.add_argument("--need", action="append", metavar="REQUEST",
                         help="only those that ask for it (loss, hessian_vector, task_gradient, ...); "
                              "none: for nothing but a gradient")
    command.add_argument("--state", metavar="BYTES",
                         help="only those whose state takes at most so many bytes an element of float32 parameters; "
                              "also '>8', '=0'")
    command.add_argument("--json", action="store_true", help="all that is known of them, as JSON")

    command = commands.add_parser(
        "show", help="rule, hyper-parameters, requests, state, source, examples and neighbours of a method")
    command.add_argument("name", nargs="+", help="names of methods")

    command = commands.add_parser(
        "check", help="whether a sentence is one: in full, with requests and state; status 1 where it is none")
    command.add_argument("sentence", help="a pipeline, or a regularizer, constraint, objective, schedule, solver, ...")

    commands.add_parser("info", help="versions, instruction set, OpenBLAS, threads, and what would be faster")

    command = commands.add_parser("bench", help="time a step beside a copy of as many bytes")
    command.add_argument("sentence", nargs="?", default="adamw(lr=1e-3)")
    command.add_argument("--size", type=whole_number, default=1 << 24, metavar="N", help="elements (default 2**24)")
    command.add_argument("--threads", type=int, metavar="T", help="threads of a step")
    command.add_argument("--matrix", action="store_true", help="one square matrix in place of a vector")

    command = commands.add_parser("race", help="sentences against each other on a small problem")
    command.add_argument("sentence", nargs="+", help="what to run; {steps} stands for the number of steps")
    _trials(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="every loss of every run")

    command = commands.add_parser("sweep", help="a sentence over the values of a hyper-parameter")
    command.add_argument("sentence")
    command.add_argument("--over", action="append", required=True, metavar="PATH=LOW:HIGH[:log][:COUNT]",
                         help="the values, as adamw.lr=1e-4:1e-1:log, or sgd.momentum=0,0.5,0.9; twice: every pair")
    _trials(command)

    command = commands.add_parser(
        "landscape", help="draw the trajectories of sentences over a function of two variables")
    command.add_argument("sentence", nargs="+", help="what to run; {steps} stands for the number of steps")
    command.add_argument("--function", choices=FUNCTIONS, default="rosenbrock", help="(default rosenbrock)")
    command.add_argument("--steps", type=int, default=200, help="(default 200)")
    command.add_argument("--start", metavar="X,Y", help="where they start, as --start=-1.5,2")
    command.add_argument("--noise", type=float, default=0.0,
                         help="standard deviation of the noise of gradients (default 0)")
    command.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    command.add_argument("--plot", type=Path, default=Path("landscape.png"), metavar="FILE",
                         help="the picture (default landscape.png)")

    command = commands.add_parser("stubs", help="the type stubs of the package")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--write", metavar="FILE", nargs="?", const="", help="write them (default: into the package)")
    mode.add_argument("--check", metavar="FILE", nargs="?", const="", help="fail when the file is not up to date")
    return top


def _trials(command: argparse.ArgumentParser) -> None:
    """What `race` and `sweep` have in common."""
    command.add_argument("--problem", choices=PROBLEMS, default="logreg",
                         help="(default logreg; digits needs scikit-learn)")
    command.add_argument("--seeds", type=int, default=5, metavar="K", help="runs, each from another start (default 5)")
    command.add_argument("--steps", type=int, metavar="N", help="steps of a run (default 300)")
    command.add_argument("--state-dtype", choices=("f32", "bf16", "q8"), default="f32",
                         help="how state is stored (default f32)")
    command.add_argument("--plot", type=Path, metavar="FILE", help="a picture: .png, .svg or .pdf")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its status."""
    arguments = parser().parse_args(argv)
    module, _, name = COMMANDS[arguments.command].partition(":")
    try:
        return getattr(importlib.import_module(module, __name__), name)(arguments)
    except Refusal as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
