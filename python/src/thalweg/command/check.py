"""`check`: whether a sentence is one, and all that it says, with what it does not say."""

from __future__ import annotations

import argparse
import math
import re
import warnings

import numpy as np

import thalweg

from .. import _registry, _sentence
from .._classes import ALONE
from .._optimizer import bare
from .._registry import Method, Parameter
from .catalogue import needs
from .console import Refusal, print_table

# Parameters that state is shown for, in float32: the first of these that the sentence takes.
SHAPES: list[list[tuple[int, ...]]] = [[(64, 64), (64,)], [(64, 64)], [(64,)], [(64, 64, 4, 4)]]


def check(arguments: argparse.Namespace) -> int:
    """`check SENTENCE`: the sentence in full, what it asks for, its state; Refusal, with a caret, where it is none."""
    try:
        full, stages = read(arguments.sentence)
    except thalweg.Error as problem:
        raise Refusal(str(problem)) from None
    print(full)
    _section("Hyper-parameters", ["name", "range", "what"],
             [[f"{stage}.{p.name}", p.range or "|".join(p.choices) or p.type, p.meaning]
              for stage, m in stages for p in m.parameters])
    if any(m.kind in ALONE for _, m in stages):
        _section("Requests", ["from", "asks for"], [[s, ", ".join(needs(m))] for s, m in stages if needs(m)])
        return 0
    asked = [[stage, ", ".join(m.requests)] for stage, m in stages if m.requests]
    _section("Requests", ["from", "besides one gradient a step"], asked or [["all", "nothing"]])
    _section("State of float32 parameters", ["name", "stored", "bytes an element", "what"],
             state(arguments.sentence, stages) or [["none", "", "", ""]])
    return 0


def read(sentence: str) -> tuple[str, list[tuple[str, Method]]]:
    """The sentence with every hyper-parameter, and its stages by the names that paths have.  thalweg.Error where it is
    none, of a pipeline or of what stands alone: a regularizer, a constraint, an objective, a schedule, a solver, ..."""
    named = re.match(r"\s*(\w+)", sentence)
    method = _registry.by_name().get(named[1]) if named else None
    if method is None or method.kind not in ALONE or len(_sentence.split(sentence, "|")) > 1:
        with bare(sentence) as opt:
            return in_full(opt.sentence), opt._stages()
    getattr(thalweg, method.kind)(sentence)
    return in_full(sentence), [(method.name, method)]


def in_full(text: str) -> str:
    """A sentence that the library takes, with the names and defaults of all hyper-parameters, inside of values too."""
    return " | ".join(_stage(part.strip()) for part in _sentence.split(text, "|"))


def _stage(text: str) -> str:
    name, opened, rest = text.partition("(")
    method = _registry.by_name().get(name.strip())
    if method is None:
        return text
    given = dict(_sentence.named(method, _sentence.inside(rest, 0) if opened else ""))
    if method.kind != "routing":  # (whose branches have names of their own)
        given = {p.name: given.get(p.name, p.default) for p in method.parameters}
    values = ", ".join(f"{key}={_value(value, method.parameter(key))}" for key, value in given.items())
    return f"{method.name}({values})" if values else method.name


def _value(text: str, parameter: Parameter | None) -> str:
    if _sentence.is_enclosed(text):
        return f"({in_full(text[1:-1])})"
    if text.startswith("["):
        return f"[{', '.join(_value(part.strip(), None) for part in _sentence.split(text[1:-1], ','))}]"
    held = parameter is not None and parameter.type in ("regularizer", "constraint", "schedule")
    return _stage(text) if held or text.endswith(")") else text  # (a choice may be called as a method is)


def state(sentence: str, stages: list[tuple[str, Method]]) -> list[list[str]]:
    """A row for each kind of state: as it is for float32 parameters of SHAPES, or as declared where none of them fit."""
    meanings = {f"{stage}.{slot.name}": slot.meaning for stage, m in stages for slot in m.state}
    for shapes in SHAPES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of branches that no parameter goes to
                opt = thalweg.Optimizer([np.zeros(s, np.float32) for s in shapes], sentence)
        except thalweg.Error:
            continue
        rows, found = [row for row in opt.memory_report().rows if row.bytes], []
        for name in dict.fromkeys(f"{row.stage}.{row.slot}" for row in rows):
            own = [row for row in rows if f"{row.stage}.{row.slot}" == name]
            having = {row.tensor for row in own}
            elements = sum(math.prod(shape) for i, shape in enumerate(shapes) if having & {i, -1})
            stored = "|".join(dict.fromkeys(row.storage for row in own))
            found.append([name, stored, f"{sum(row.bytes for row in own) / elements:.3g}", meanings.get(name, "")])
        return found
    return [[name, "", "", meaning] for name, meaning in meanings.items()]


def _section(title: str, columns: list[str], rows: list[list[str]]) -> None:
    if rows:
        print()
        print_table(columns, rows, title=title)
