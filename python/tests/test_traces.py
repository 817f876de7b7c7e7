"""What every method asks for, request by request, beside a file: whoever changes the conversation sees what changes with it.

The file is written anew by THALWEG_WRITE_TRACES=1 python -m pytest tests/test_traces.py.  A request is "kind", with "#index/count" where
it has one and "@k" where its minibatch is not the first of the step: k counts the minibatches of the step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from contract import CASES, Host

FILE = Path(__file__).parent / "data" / "traces.json"
STEPS = 4


def trace(name: str) -> list[list[str]]:
    host, steps = Host(name), []
    for k in range(STEPS):
        host.tell(k)
        asked: list[str] = []
        minibatches: dict[int, int] = {}
        for request in host.opt.requests():
            number = minibatches.setdefault(request.tag, len(minibatches))
            which = f"#{request.index}/{request.count}" if request.count else ""
            asked.append(request.kind + which + (f"@{number}" if number else ""))
            assert request.pass_ == len(asked) - 1
            host.answer(request, k)
        steps.append(asked)
    return steps


def known() -> dict[str, list[list[str]]]:
    if os.environ.get("THALWEG_WRITE_TRACES"):
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(trace(name))}" for name in CASES)
        FILE.write_text("{\n" + rows + "\n}\n")
    return json.loads(FILE.read_text())


KNOWN = known()


def test_the_file_is_complete() -> None:
    assert list(KNOWN) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_method_asks_for_what_it_asked_for(name: str) -> None:
    assert trace(name) == KNOWN[name]
