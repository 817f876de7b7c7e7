"""Makes `reference` and `support` importable, keeps what a test sets for the whole process from the tests after it, and
selects the tests of a method: pytest --method adamw."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
ENABLE_X64 = os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on", "y", "t")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every test starts with the thread count that the process started with."""
    import thalweg

    before = thalweg.get_num_threads()
    yield
    thalweg.set_num_threads(before)


@pytest.fixture(autouse=True)
def precision_of_jax() -> Iterator[None]:
    """Every test starts with 32 or 64 bits in JAX as its configuration says, whatever the test before it compared with."""
    yield
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_enable_x64", ENABLE_X64)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", action="append", default=[], metavar="NAME",
                     help="only the tests that name this method, as a whole word; may be given again")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--method"):
        return
    chosen = [item for name in config.getoption("--method") for item in of_method(name, items)]
    kept = [item for item in items if item in set(chosen)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def of_method(name: str, items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests that name a method: in their id or what they are given, in the name of their module, or, where no
    case of a test does, in its strings (with its docstring). A word ends at anything but a letter, digit or underscore.
    """
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")

    def named(item: pytest.Item) -> bool:
        given = getattr(item, "callspec", None)
        said = [item.nodeid.partition("::")[2], *(str(value) for value in (given.params.values() if given else ()))]
        return item.path.stem == f"test_{name}" or any(map(word.search, said))

    by_case = {item for item in items if named(item)}
    functions = {getattr(item, "function", None) for item in by_case}
    by_text = {function for function in {getattr(item, "function", None) for item in items} - functions - {None}
               if any(map(word.search, strings(function.__code__)))}
    return [item for item in items if item in by_case or getattr(item, "function", None) in by_text]


def strings(code: CodeType) -> Iterator[str]:
    """The strings that a function has in it."""

    def of(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (tuple, frozenset)):
            for part in value:
                yield from of(part)
        elif isinstance(value, CodeType):
            yield from strings(value)

    for constant in code.co_consts:
        yield from of(constant)
