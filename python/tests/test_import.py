"""What `import thalweg` loads, and what waits until it is asked for."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys

import numpy as np
import pytest

import thalweg as tw

# What NumPy has not loaded already, and only an error, a checkpoint or a warning needs.
LATER = ("dataclasses", "difflib", "json", "logging", "thalweg._partial", "thalweg._keywords")


def test_import_loads_what_every_program_needs() -> None:
    code = "import sys, numpy; before = {*sys.modules}; import thalweg; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()}.isdisjoint(LATER)


def test_import_does_not_ask_for_the_names_of_all_methods() -> None:
    code = ("import thalweg; print('__all__' in vars(thalweg)); from thalweg import *; "
            "print(AdamW.__name__, LoadReport.__name__)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "AdamW", "LoadReport"]
    assert {"AdamW", "LoadReport", "Optimizer", "Error"} <= {*tw.__all__} <= {*dir(tw)}


def test_cards_compare_and_cannot_be_changed() -> None:
    card = tw.method("adamw")
    assert card == tw.method("adamw") and hash(card) == hash(tw.method("adamw"))
    assert repr(card.state[0]).startswith("Slot(name='exp_avg'") and str(card).startswith("adamw (optimizer)")
    with pytest.raises(AttributeError):
        card.name = "other"  # type: ignore[misc]


def test_signatures_are_there() -> None:
    assert [*inspect.signature(tw.AdamW).parameters][:2] == ["params", "lr"]
    assert "state_dtype" in inspect.signature(tw.AdamW).parameters


def test_warnings_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    opt = tw.Optimizer([np.ones(3)], "sgd(lr=1)", nonfinite="skip")
    with caplog.at_level(logging.WARNING, "thalweg"):
        opt.step([np.full(3, np.nan)])
    assert "1 of 1 steps skipped" in caplog.text
