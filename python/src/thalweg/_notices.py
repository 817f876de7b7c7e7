"""What is said unasked: that gradients are no numbers, that two schedules meet, that a branch of route(...) is idle."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _sentence

if TYPE_CHECKING:
    from ._optimizer import Optimizer

ROLES = ("bias", "norm", "embedding", "head")
SELECTORS = ("matrix", "vector", "scalar", *ROLES, "other")
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


class Tensor(NamedTuple):
    """What route(...) looks at."""

    name: str
    shape: tuple[int, ...]
    role: str | None


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Inside, branches are not looked at: an adapter makes optimizers of a part of the tensors, and looks itself."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def log(text: str) -> None:
    """A warning to the logger "thalweg", which says nothing where nobody listens."""
    import logging

    logger = logging.getLogger("thalweg")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.warning(text)


def _warn(text: str, category: type[Warning]) -> None:
    """A warning at who called into the package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("thalweg", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def say_minibatch(optimizer: Optimizer) -> None:
    """The warning that a closure is asked for one of several minibatches again, and cannot know of which."""
    optimizer._told_of_tags = True
    _warn(f"{optimizer._text}: the method asks for the gradient of an earlier one of the minibatches of this step "
          "again, and a closure without arguments cannot know of which: give it one argument, the request (equal "
          "request.tag: the same minibatch and dropout); thalweg.torch.Answers is such a closure", UserWarning)


def say_nonfinite(optimizer: Optimizer) -> None:
    """The warning that a gradient which is no number has become weights."""
    text = (f"step {optimizer.steps} of {optimizer._text!r}: NaN or Inf in a gradient has become weights; "
            "nonfinite='skip' leaves such steps out, nonfinite='error' raises")
    log(text)
    _warn(text, RuntimeWarning)


def say_overruled(sentence: str, rate: float, first: float) -> None:
    """The warning that a scheduler of torch has taken a rate over from the schedule of the sentence.

    rate   what it wrote
    first  the rate that it found, which most schedulers scale: the 0 of a warm-up stays 0
    """
    _warn(f"{sentence!r} has a schedule of its own, and a torch scheduler has ended it: lr={rate:g}, reckoned from the "
          f"lr={first:g} that it found.  Take one of the two; for tools that want a scheduler, "
          "thalweg.torch.SentenceLR(opt) leaves the rates to the sentence", UserWarning)


def say_alone(text: str) -> None:
    """The warning that a model is spread over processes, and nothing says how."""
    _warn(text, UserWarning)


def say_unwatched(sentence: str, what: str, others: Sequence[str]) -> None:
    """The warning that a number is told which nobody watches, where others are watched."""
    named = " and ".join(f"`{other}`" for other in dict.fromkeys(others))
    _warn(f"{sentence}: no stage watches `{what}`; there is {named}", UserWarning)


# ---- settings that are allowed, and hardly ever meant

HARDLY_MEANT = (
    ("sgd", "momentum", lambda x: x >= 1, "a momentum of {} does not fade: the buffer grows without end"),
    ("curl_descent", "fraction", lambda x: x == 1, "a fraction of {} is ascent on the whole layer"),
    *((name, "total", lambda x: x == 0, "with a total of {} it stands at its end from the first step")
      for name in ("linear", "cosine", "polynomial")),
)


def say_hardly_meant(sentence: str) -> None:
    """One warning for each such setting, and for each value without a name that stands behind one with a name: it goes
    to the first place."""
    from . import _registry

    for name, inside in () if _QUIET.get() else _calls(sentence):
        if (method := _registry.by_name().get(name)) is None:
            continue
        given, is_behind = _sentence.named(method, inside), False
        for (as_written, _), (taken_as, value) in zip(_sentence.arguments(inside), given):
            if as_written is None and is_behind:
                _warn(f"{name}: {value} has no name and stands behind a value that has one; it is taken as "
                      f"{taken_as}={value}", UserWarning)
            is_behind |= as_written is not None
        for of, parameter, is_odd, text in HARDLY_MEANT:
            written = dict(given).get(parameter, "") if of == name else ""
            if (value := _number(written)) is not None and is_odd(value):
                _warn(f"{name}: {text.format(written)}", UserWarning)


def say_known_seed(sentence: str) -> None:
    """The warning that private gradients get their noise from a seed that everybody knows."""
    from . import _registry

    for name, inside in () if _QUIET.get() else _calls(sentence):
        if name != "dp_sgd":
            continue
        given = dict(_sentence.named(_registry.by_name()[name], inside))
        if _number(given.get("noise_multiplier", "")) != 0:
            _warn(f"{sentence}: the noise of dp_sgd comes from seed 0, which everybody knows, and is the same in every "
                  "run; give a secret one, as seed=secrets.randbits(64)", UserWarning)
            return


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _calls(text: str) -> Iterator[tuple[str, str]]:
    """What stands before and within each pair of parentheses, innermost ones too."""
    for found in re.finditer(r"(\w*)\s*\(", text):
        yield found[1], _sentence.inside(text, found.end())


# ---- branches of route(...)


def say_idle(sentence: str, tensors: Iterable[Tensor]) -> None:
    """One warning where branches of route(...) have no tensors, but for other=(...), which has what is left.

    sentence  as the library writes it
    """
    branches = [] if _QUIET.get() else _sentence.branches(sentence)
    if not branches:
        return
    tensors = list(tensors)
    goes = [next((b for b, _ in branches if takes(b, t)), "") for t in tensors]
    said = [_of_branch(b, text, tensors, goes) for b, text in branches if b not in ("other", *goes)]
    if said:
        shapes = _some([str(shape) for shape in dict.fromkeys(t.shape for t in tensors)])
        _warn(f"{'; '.join(said)}.  The tensors have shapes {shapes}; a branch is chosen by {', '.join(SELECTORS)} or "
              "a pattern of names in quotes, \"*.weight\"=(...)", UserWarning)


def takes(selector: str, tensor: Tensor) -> bool:
    """Whether a branch would take a tensor, were there no other: as the library decides it."""
    if selector.startswith('"'):
        pattern = re.escape(selector.strip('"').encode()).replace(rb"\*", b".*").replace(rb"\?", b".")
        return re.fullmatch(pattern, tensor.name.encode(), re.DOTALL) is not None
    if selector == "matrix":
        return len(tensor.shape) >= 2 and tensor.role not in ("embedding", "head")
    return selector in ("other", tensor.role, {1: "vector", 0: "scalar"}.get(len(tensor.shape)))


def nearest_selector(pattern: str) -> str | None:
    """The selector that was meant by a pattern which is a misspelt word ("matrices", "Matrix")."""
    import difflib

    near = difflib.get_close_matches(pattern.strip('"').lower(), SELECTORS, 1)
    return near[0] if near else None


def _of_branch(selector: str, text: str, tensors: Sequence[Tensor], goes: Sequence[str]) -> str:
    """What is wrong with a branch that has no tensors, and what to write."""
    said = f"route: no tensor goes to {selector}=({text if len(text) <= 60 else text[:57] + '...'})"
    first = next((other for t, other in zip(tensors, goes) if takes(selector, t)), None)
    if first is not None:
        return f"{said}: {first}=(...) stands before it and takes all that it would; write {selector}=(...) first"
    if selector in ROLES:
        group = f'{{"params": [...], "role": "{selector}"}}'
        return f"{said}: no parameter has that role; give it in a group, {group}"
    if not selector.startswith('"'):
        return said
    meant = nearest_selector(selector)
    names = _some([repr(t.name) for t in tensors])
    return f"{said}: no name fits ({names})" + (f"; for the selector write {meant}=(...)" if meant else "")


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")


def tensors_of(optimizer: Any) -> list[Tensor]:
    """What route(...) looks at, of the parameters of an optimizer."""
    roles = [role for (_, start, stop), role in zip(optimizer._layout, optimizer._roles) for _ in range(start, stop)]
    named = zip(optimizer.names, optimizer._shapes(), roles)
    return [Tensor(str(k) if name is None else name, shape, role) for k, (name, shape, role) in enumerate(named)]
