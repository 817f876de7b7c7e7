"""What the library knows: its methods, their hyper-parameters and their state, as it describes them itself."""

from __future__ import annotations

import numbers
from functools import cache
from typing import Any, NamedTuple

from . import _thalweg
from ._errors import ArgumentError, error

TYPES = {
    1: "number",
    2: "integer",
    3: "flag",
    4: "choice",
    5: "list",
    6: "regularizer",
    7: "constraint",
    8: "pipeline",
    9: "schedule",
}


class Parameter(NamedTuple):
    """One hyper-parameter.

    type       number | integer | flag | choice | list | regularizer | constraint | pipeline | schedule
    required   there is no default; `default` is ""
    optional   `none` is a value
    live       it may change while running
    default    as it is written in a sentence
    choices    what a choice may be, else empty
    min, max   the range (infinite where unbounded); excluded themselves where min_open, max_open
    """

    name: str
    meaning: str
    type: str
    required: bool
    optional: bool
    min_open: bool
    max_open: bool
    live: bool
    default: str
    choices: tuple[str, ...]
    min: float
    max: float

    @property
    def range(self) -> str:
        """The range in the notation of intervals, "" when there is none: "(0, inf)"."""
        if self.type not in ("number", "integer") or (self.min == -_INF and self.max == _INF):
            return ""
        left = "(" if self.min_open or self.min == -_INF else "["
        right = ")" if self.max_open or self.max == _INF else "]"
        low, high = (str(int(x)) if abs(x) < 1e16 and x == int(x) else f"{x:g}" for x in (self.min, self.max))
        return f"{left}{low}, {high}{right}"


class Slot(NamedTuple):
    """One kind of state: its name and what it holds."""

    name: str
    meaning: str


class Input(NamedTuple):
    """A tensor that an objective or a solver takes or gives, or that a regularizer needs besides the weights.

    shape           "(B, m)": a name is one size wherever it occurs, a leading ... any axes; none may be empty
    optional        it may be left out
    integer         it holds whole numbers: int32, int64, or floats with whole values
    differentiable  there is a gradient with respect to it; otherwise it is held constant
    result          it is no input: it comes back beside the gradients; what a solver finds ("()": a number)
    """

    name: str
    meaning: str
    shape: str
    optional: bool
    integer: bool
    differentiable: bool
    result: bool


class RequestKind(NamedTuple):
    """A kind of request that a solver or an optimizer makes.

    given, wanted     what it shows, and what the host fills; "()" is a number; "(...)" of an optimizer's request is one
                      tensor for each parameter, of its shape
    takes_nonfinite   an answer that is infinite or NaN is one like any other; else it ends the run
    """

    name: str
    meaning: str
    takes_nonfinite: bool
    given: tuple[Input, ...]
    wanted: tuple[Input, ...]


class Method(NamedTuple):
    """One method of the library.

    kind       optimizer | transform | update | perturbation | aggregator | schedule | average | regularizer | ...
    rule       the update rule, several lines
    source     authors, year, arXiv number
    sentence   what the name stands for when it is made of other methods, else ""
    requests   what it asks for besides one gradient a step
    inputs     the tensors that it takes by name where it is called on its own
    asks       the kinds of request that a solver makes

    print(method("cg")) shows all of it.
    """

    name: str
    kind: str
    summary: str
    rule: str
    source: str
    sentence: str
    requests: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    state: tuple[Slot, ...]
    inputs: tuple[Input, ...] = ()
    asks: tuple[RequestKind, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})\n\n{describe(self)}"

    def parameter(self, name: str) -> Parameter | None:
        """The hyper-parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)


_INF = float("inf")


def _parameter(row: tuple) -> Parameter:
    name, meaning, kind, required, optional, min_open, max_open, live, default, choices, low, high = row
    options = tuple(choices.split("|")) if choices else ()
    return Parameter(
        name, meaning, TYPES.get(kind, str(kind)), required, optional, min_open, max_open, live, default, options,
        low, high,
    )


def _request(row: tuple) -> RequestKind:
    return RequestKind(*row[:3], *(tuple(Input(*i) for i in tensors) for tensors in row[3:]))


def _method(row: tuple) -> Method:
    name, kind, summary, rule, source, sentence, requests, parameters, slots, inputs, asks = row
    return Method(
        name,
        kind,
        summary,
        rule,
        source,
        sentence,
        tuple(part.strip() for part in requests.split(",") if part.strip()),
        tuple(_parameter(p) for p in parameters),
        tuple(Slot(*s) for s in slots),
        tuple(Input(*i) for i in inputs),
        tuple(_request(a) for a in asks),
    )


@cache
def _all() -> tuple[Method, ...]:
    return tuple(_method(row) for row in _thalweg._methods())


@cache
def request_kinds() -> tuple[RequestKind, ...]:
    """What optimizers may ask for, in the order of TW_REQUEST_GRADIENT and those behind it in C."""
    return tuple(_request(row) for row in _thalweg._request_kinds())


def methods(kind: str | None = None) -> list[Method]:
    """Every method of the library, or those of one kind, sorted by name.  ArgumentError where there is no such kind."""
    if kind is not None and kind not in kinds():
        raise error(ArgumentError, f"there is no kind {kind!r} of methods; there are: {', '.join(kinds())}")
    return [m for m in _all() if kind is None or m.kind == kind]


def names(kind: str) -> list[str]:
    """The names of the methods of one kind, sorted."""
    return [name for name, its in _thalweg._names() if its == kind]


def method(name: str) -> Method:
    """The method of that name.  MethodError, with the nearest name, when there is none."""
    return _method(_thalweg._method(name))


@cache
def by_name() -> dict[str, Method]:
    return {m.name: m for m in _all()}


def kinds() -> list[str]:
    """The kinds of method there are, sorted."""
    return sorted({m.kind for m in _all()})


def describe(m: Method) -> str:
    """A method in words: summary, rule, hyper-parameters, state, source."""
    parts = [m.summary]
    if m.rule:
        parts.append("Rule\n" + _indent(m.rule))
    if m.sentence:
        parts.append("Stands for\n" + _indent(m.sentence))
    if m.parameters:
        rows = []
        for p in m.parameters:
            facts = [p.type if p.type != "choice" else " | ".join(p.choices)]
            if p.range:
                facts.append(f"in {p.range}")
            facts.append("required" if p.required else f"default {p.default}")
            if p.optional:
                facts.append("may be none")
            if p.live:
                facts.append("live")
            rows.append((p.name, f"{p.meaning} ({', '.join(facts)})"))
        parts.append("Hyper-parameters\n" + _table(rows))
    if m.inputs:
        parts.append("Inputs\n" + _table([(i.name, _input_facts(i)) for i in m.inputs]))
    if m.state:
        parts.append("State\n" + _table([(s.name, s.meaning) for s in m.state]))
    if m.asks:
        parts.append("Asks for\n" + _table([(a.name, _ask_facts(a)) for a in m.asks]))
    elif m.requests:
        parts.append("Asks for\n" + _indent(", ".join(m.requests)))
    if m.source:
        parts.append("Source\n" + _indent(m.source))
    return "\n\n".join(parts)


def _input_facts(i: Input) -> str:
    facts = [name for name in ("optional", "integer", "differentiable", "result") if getattr(i, name)]
    if i.result:
        facts.remove("optional")
    return f"{i.shape}: {i.meaning}" + (f" ({', '.join(facts)})" if facts else "")


def _ask_facts(a: RequestKind) -> str:
    names = [", ".join(f"{i.name} {i.shape}" for i in side) for side in (a.given, a.wanted)]
    return f"{a.meaning}: {names[0]} -> {names[1]}"


def _indent(text: str) -> str:
    return "\n".join("    " + line if line.strip() else "" for line in text.splitlines())


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"    {name:<{width}}  {meaning}" for name, meaning in rows)


def literal(p: Parameter) -> Any:
    """The default of a hyper-parameter as a Python value; text that is no number, flag, list or none stays text."""
    return read_value(p.default)


def expected(p: Parameter, got: Any = None) -> str:
    """What a hyper-parameter may be, in words; a number, which `got` is, is not told of schedules."""
    kind = {
        "number": "a number", "integer": "a whole number", "flag": "True or False", "list": "a list of numbers",
        "choice": f"one of {', '.join(p.choices)}",
    }.get(p.type, f"a {p.type}")
    within = f" in {p.range}" if p.range else ""
    schedule = ", or a schedule" if p.type == "number" and p.live and not isinstance(got, numbers.Real) else ""
    return f"{kind}{within}{schedule}{', or None' if p.optional else ''}"


def read_value(text: str) -> Any:
    """A value as it is written in a sentence, as a Python value where there is one."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if text == "none":
        return None
    if text.startswith("[") and text.endswith("]") and "[" not in text[1:]:
        inner = text[1:-1].strip()
        return [read_value(part) for part in inner.split(",")] if inner else []
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
