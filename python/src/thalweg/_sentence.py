"""Sentences: writing Python values into them, and finding the stages in one."""

from __future__ import annotations

import math
import numbers
import reprlib
import sys
from collections.abc import Mapping
from typing import Any

from . import _arrays, _thalweg
from ._errors import ArgumentError, RangeError, ValueTypeError, error
from ._registry import Method, Parameter, expected


LARGEST = sys.float_info.max


def write_value(value: Any, parameter: Parameter | None = None) -> str:
    """`value` as it is written in a sentence.

    Numbers, flags, None and lists become literals.  A str is taken as it stands: a choice, a schedule
    ("cosine(lr=0.1, total=1000)"), a regularizer, or (in parentheses, which are added) a pipeline.  Objects with a
    `sentence` are written as that, schedules with what they remember, arrays and tensors without axes as their number.
    ValueTypeError; RangeError for NaN, and for whole numbers beyond the largest float.
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        text = value.strip()
        if parameter is not None and parameter.type == "pipeline" and not is_enclosed(text):
            return f"({text})"
        return text
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    sentence = value._sentence() if isinstance(value, _thalweg.Schedule) else getattr(value, "sentence", None)
    if isinstance(sentence, str):
        return write_value(sentence, parameter)
    given = value
    if not isinstance(value, numbers.Number) and getattr(value, "shape", None) == () and not _arrays.is_masked(value):
        value = value.item() if hasattr(value, "item") else value
    if type(value).__name__ in ("bool", "bool_"):
        return "true" if value else "false"
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > LARGEST:
            raise error(RangeError, f"a number is at most {LARGEST}")
        return str(int(value))
    if isinstance(value, numbers.Real):
        if math.isnan(value):
            if parameter is None:
                raise error(RangeError, "a hyper-parameter is a number, got nan")
            raise error(RangeError, f"`{parameter.name}` must be {expected(parameter, value)}, got nan")
        return write_number(float(value))
    hint = ""
    if callable(value):
        hint = ": what changes is a schedule, \"cosine(lr=0.1, total=1000)\", or opt.set(...) before a step"
    if parameter is None:
        raise error(ValueTypeError, f"cannot write {_arrays._article(given)} in a sentence{hint}")
    raise error(ValueTypeError, f"`{parameter.name}` must be {expected(parameter)}, got {reprlib.repr(given)}{hint}")


def write_number(value: float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value)


def write_stage(method: Method, values: dict[str, Any]) -> str:
    """The stage `method` with `values` by name."""
    known = {p.name: p for p in method.parameters}
    try:
        arguments = ", ".join(f"{name}={write_value(value, known.get(name))}" for name, value in values.items())
    except (RangeError, ValueTypeError) as problem:
        raise error(type(problem), f"{method.name}: {problem}") from None
    return f"{method.name}({arguments})" if arguments else method.name


def join(*parts: str) -> str:
    """The parts that are not empty as one pipeline.  ArgumentError for one that is no text."""
    for part in parts:
        if not isinstance(part, (str, type(None))):
            raise error(ArgumentError, f"before and after are stages of a sentence, as str, not {type(part).__name__}")
    return " | ".join(part.strip().strip("|").strip() for part in parts if part and part.strip())


def stages(sentence: str) -> list[str]:
    """The names of the stages of a sentence that the library wrote, as in the paths of hyper-parameters.

    The second stage of the same name is called "name#1".  Those outside of route(...) come first, then those of its
    pipelines: the order in which the library counts them.
    """
    outer: list[str] = []
    inner: list[str] = []
    for stage in split(sentence, "|"):
        name, _, rest = stage.partition("(")
        if name.strip() != "route":
            outer.append(name.strip())
            continue
        for branch in split(rest.rstrip().removesuffix(")"), ","):
            pipeline = split(branch, "=", 1)[-1].strip()
            inner += [part.partition("(")[0].strip() for part in split(pipeline[1:-1], "|")]
    names: list[str] = []
    seen: dict[str, int] = {}
    for name in filter(None, outer + inner):
        count = seen.get(name, 0)
        seen[name] = count + 1
        names.append(f"{name}#{count}" if count else name)
    return names


def name_patterns(sentence: str) -> list[str]:
    """The patterns of names, in quotes, that route(...) goes by in a sentence that the library wrote.

    Those that fit the empty name as well ("*") are left out.
    """
    return [selector for selector, _ in branches(sentence) if selector.startswith('"') and selector.strip('"*')]


def branches(sentence: str) -> list[tuple[str, str]]:
    """The selectors of route(...) in a sentence that the library wrote, patterns in their quotes, and the pipelines
    behind them, without parentheses; empty where there is no route."""
    found = []
    for stage in split(sentence, "|"):
        name, _, rest = stage.partition("(")
        if name.strip() == "route":
            parts = (split(branch, "=", 1) for branch in split(rest.rstrip().removesuffix(")"), ","))
            found += [(selector.strip(), pipeline.strip()[1:-1]) for selector, pipeline in parts]
    return found


def arguments(inside: str) -> list[tuple[str | None, str]]:
    """What stands in the parentheses of a stage: names, None for a value without one, and values."""
    parts = [split(part, "=", 1) for part in split(inside, ",") if part.strip()]
    return [(part[0].strip() if len(part) > 1 else None, part[-1].strip()) for part in parts]


def named(method: Method | None, inside: str) -> list[tuple[str, str]]:
    """The same with the names of values that have none: they go to the first places."""
    free = iter(p.name for p in method.parameters) if method else iter(())
    return [(next(free, "") if name is None else name, value) for name, value in arguments(inside)]


def inside(text: str, start: int) -> str:
    """What stands from `start` to where the parenthesis that opened before it closes, or to the end."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] in "([") - (text[i] in ")]")
        if depth == 0:
            return text[start:i]
    return text[start:]


def split(text: str, separator: str, most: int = -1) -> list[str]:
    """The parts between separators (the first `most` of them) that stand in no parentheses, brackets or quotes."""
    parts: list[str] = []
    depth, start, quoted = 0, 0, False
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == separator and depth == 0 and len(parts) != most:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def is_enclosed(text: str) -> bool:
    """True when one pair of parentheses encloses the whole text."""
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i == len(text) - 1
    return False


def check_text(sentence: Any) -> str:
    if not isinstance(sentence, str):
        raise error(ArgumentError, f"the sentence is a str, not {type(sentence).__name__}")
    return sentence


def refuse_keywords(sentence: Any, keywords: Mapping[str, Any], who: str) -> None:
    """Raises the error for keywords of what takes none."""
    if keywords:
        from ._keywords import refusal  # (which needs the registry of all methods)

        raise refusal(sentence, keywords, (), who)
