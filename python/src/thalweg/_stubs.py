"""The type stubs of the package, thalweg/__init__.pyi, from the registry: `python -m thalweg stubs --write`."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from . import _errors, _registry
from ._classes import class_name, common, signature

HEAD = '''\
# Written by `python -m thalweg stubs --write` from what the library says of its methods; do not edit.

from collections.abc import Iterable as _Iterable, Sequence as _Sequence
from typing import Any as _Any, ClassVar as _ClassVar, Literal as _Literal

'''

EXPORTS = {
    "_aggregate": "Aggregator aggregate",
    "_objects": "Cache Constraint Diagnostic Objective Regularizer Schedule Weighting constraint diagnostic objective "
    "random_normal regularizer schedule weighting",
    "_groups": "ParamGroup",
    "_optimizer": "Optimizer",
    "_partial": "LoadReport",
    "_registry": "Input Method Parameter RequestKind Slot kinds method methods",
    "_requests": "Request",
    "_saved": "MemoryReport StateRow",
    "_solvers": "Solver SolverRequest SolverResult SolverRun solver",
    "_thalweg": "get_num_threads set_num_threads",
}

TYPES = {
    "number": "float | str | Schedule",
    "integer": "int",
    "flag": "bool",
    "list": "_Sequence[float]",
    "regularizer": "str | Regularizer",
    "constraint": "str | Constraint",
    "pipeline": "str",
    "schedule": "float | str | Schedule",
}


def type_of(parameter: _registry.Parameter) -> str:
    if parameter.type == "choice":
        # As it is written in a sentence, or as the value that stands there: "none" or None.
        values = [v for v in map(_registry.read_value, parameter.choices) if not isinstance(v, str)]
        text = "_Literal[" + ", ".join([*(f'"{c}"' for c in parameter.choices), *map(repr, values)]) + "]"
    elif parameter.type == "list" and parameter.default and isinstance(_registry.literal(parameter), str):  # a name
        text = f"{TYPES['list']} | str"
    else:
        text = TYPES.get(parameter.type, "_Any")
    return f"{text} | None" if parameter.optional else text


def argument(parameter: inspect.Parameter, annotation: str) -> str:
    if parameter.default is inspect.Parameter.empty:
        return f"{parameter.name}: {annotation}"
    default = parameter.default
    text = "..." if isinstance(default, (list, float)) and repr(default) in ("inf", "-inf", "nan") else repr(default)
    return f"{parameter.name}: {annotation} = {'...' if isinstance(default, list) else text.replace(chr(39), chr(34))}"


def annotation_of(name: str, method: _registry.Method) -> str:
    own = method.parameter(name)
    if own is not None:
        return type_of(own)
    if name == "params":
        return "_Iterable[_Any]"
    if name == "betas":
        return "_Sequence[float] | None"
    annotations = {p.name: p.annotation for p in common()}
    return str(annotations.get(name, "str")).replace("Sequence", "_Sequence")


def class_stub(method: _registry.Method) -> str:
    lines = [f"class {class_name(method.name)}(Optimizer):", f"    # {method.summary}", "    method: _ClassVar[str]"]
    lines.append("    def __init__(")
    lines.append("        self,")
    starred = False
    for parameter in signature(method).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("        *,")
            starred = True
        lines.append(f"        {argument(parameter, annotation_of(parameter.name, method))},")
    lines.append("    ) -> None: ...")
    return "\n".join(lines)


def generate() -> str:
    """The text of __init__.pyi."""
    parts = [HEAD]
    exports = {**EXPORTS, "_errors": " ".join(cls.__name__ for cls in _errors.ERRORS)}
    for module in sorted(exports):
        for name in sorted(exports[module].split()):
            parts.append(f"from .{module} import {name} as {name}\n")
    parts.append("\n__version__: str\nversion: str\nbuild_info: str\n")
    for method in _registry.methods("optimizer"):
        parts.append("\n" + class_stub(method) + "\n")
    return "".join(parts)


def main(arguments: argparse.Namespace) -> int:
    text = generate()
    if arguments.write is None and arguments.check is None:
        sys.stdout.write(text)
        return 0
    named = arguments.write or arguments.check
    path = Path(named) if named else Path(__file__).with_name("__init__.pyi")
    if arguments.write is not None:
        path.write_text(text)
        return 0
    if path.exists() and path.read_text() == text:
        return 0
    print(f"{path} is not up to date: run `python -m thalweg stubs --write`", file=sys.stderr)
    return 1
