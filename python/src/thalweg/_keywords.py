"""Keywords that an optimizer of a sentence does not have: most are settings, which belong in the sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from . import _registry, _sentence
from ._errors import Error
from ._hints import clipping, familiar


def refusal(
    sentence: Any, keywords: Mapping[str, Any], options: Iterable[str], who: str = "Optimizer"
) -> TypeError:
    """The error for keywords that are none of the options: with the sentence as it has them, where a stage of it does,
    else with the name that is nearest."""
    what = "an unexpected keyword argument" if len(keywords) == 1 else "unexpected keyword arguments"
    text = f"{who}() got {what} {', '.join(map(repr, keywords))}"
    places, written, left = _written(sentence if isinstance(sentence, str) else "", keywords)
    if written:
        text += f": settings belong in the sentence, as in {written}"
    options, settings = set(options), {p.name for _, m, _ in places for p in m.parameters}
    for key in left:
        near = difflib.get_close_matches(key, options | settings, 1)
        if stage := clipping(key, keywords[key]):
            text += f"; gradients are clipped in front of the rule, \"{stage} | ...\""
        elif not near:
            text += f"; no stage of the sentence has {key!r}"
        else:
            text += f"; did you mean {near[0]!r}{'' if near[0] in options else ', in the sentence'}?"
    return TypeError(text)


def _written(
    sentence: str, keywords: Mapping[str, Any]
) -> tuple[list[tuple[str, _registry.Method, str]], str, list[str]]:
    """The stages of a sentence (their text, method and arguments); the sentence with the keywords as settings of them,
    in quotes (of pipelines in a route the stage alone); and the keywords that no stage has."""
    places = list(_places(sentence))
    # An update rule has what several stages have.
    order = sorted(range(len(places)), key=lambda k: places[k][1].kind != "optimizer")
    new: dict[int, dict[str, str]] = {}
    left = []
    for key, value in keywords.items():
        for k in order:
            if settings := _settings(places[k][1], key, value):
                new.setdefault(k, {}).update(settings)
                break
        else:
            left.append(key)
    stages = {}
    for k, settings in new.items():
        text, method, inside = places[k]
        now = dict(_sentence.named(method, inside)) | settings
        stages[text] = f"{method.name}({', '.join(f'{name}={value}' for name, value in now.items())})"
    whole = [part.strip() for part in _sentence.split(sentence, "|")]
    if all(text in whole for text in stages):
        shown = [" | ".join(stages.get(part, part) for part in whole)] if stages else []
    else:
        shown = list(stages.values())
    return places, ", ".join(f'"{text}"' for text in shown), left


def _places(sentence: str) -> Iterable[tuple[str, _registry.Method, str]]:
    """The stages of a sentence as they are written, those of pipelines in route(...) in its place."""
    for part in _sentence.split(sentence, "|"):
        name, _, rest = part.strip().partition("(")
        inside = rest.rstrip().removesuffix(")")
        if name.strip() == "route":
            for branch in _sentence.split(inside, ","):
                inner = _sentence.split(branch, "=", 1)[-1].strip()
                yield from _places(inner[1:-1] if _sentence.is_enclosed(inner) else inner)
        elif (method := _registry.by_name().get(name.strip())) is not None:
            yield part.strip(), method, inside


def _settings(method: _registry.Method, key: str, value: Any) -> dict[str, str]:
    """A keyword as settings of a method, by name, as they are written; empty where it has no such thing."""
    names = [p.name for p in method.parameters]
    if key == "betas" and key not in names and {"beta1", "beta2"} <= {*names} and isinstance(value, (tuple, list)):
        found: dict[str, Any] = {f"beta{k + 1}": beta for k, beta in enumerate(value)}
    else:
        name = key if key in names else familiar(key, names)
        found = {} if name is None else {name: value}
    written = {}
    for name, one in found.items():
        try:
            written[name] = _sentence.write_value(one, method.parameter(name))
        except Error:
            written[name] = "..."
    return written
