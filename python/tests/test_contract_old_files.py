"""Checkpoints of the first version of the format still load, and the run goes on as it did then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from data.old_checkpoints import LAST, RUNS, SAVED, Run

FOLDER = Path(__file__).parent / "data"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())

# Other processors contract products and sums otherwise, and a later version may order a sum otherwise: some rounding
# errors a step.
# The 16-bit weights are those of a float32 copy, rounded: at most one unit of the last place apart.
LIMIT = {np.dtype(np.float64): 1e-13, np.dtype(np.float32): 2e-6, np.dtype(np.float16): 2.0**-10}


def loaded(name: str, names: tuple[str, ...] = ("w", "b")) -> Run:
    run = RUNS[name](names)
    for n, x in run.arrays.items():
        x.ravel()[:] = EXPECTED[name]["start"][n]
    run.opt.load(FOLDER / f"{name}.safetensors")
    return run


def near(run: Run, row: dict[str, list[float]]) -> None:
    for n, x in run.arrays.items():
        np.testing.assert_allclose(x.ravel().astype(np.float64), row[n], rtol=LIMIT[x.dtype], atol=LIMIT[x.dtype])


def goes_on(run: Run, name: str) -> None:
    for k in range(SAVED, LAST):
        if k == SAVED and run.inside is not None:
            for _ in run.loop(k):
                pass
        else:
            run.step(k)
        near(run, EXPECTED[name]["rows"][k - SAVED])
    assert run.opt.steps == LAST


@pytest.mark.parametrize("name", RUNS)
def test_an_old_file_loads(name: str) -> None:
    run = loaded(name)
    assert run.opt.steps == SAVED and run.opt.training
    goes_on(run, name)


@pytest.mark.parametrize("name", RUNS)
def test_the_straight_run_is_what_it_was(name: str) -> None:
    """Without the file: what is expected does not rest on it."""
    run = RUNS[name]()
    for k in range(LAST):
        run.step(k)
        if k >= SAVED:
            near(run, EXPECTED[name]["rows"][k - SAVED])


@pytest.mark.parametrize("name", RUNS)
def test_what_was_loaded_is_saved_anew(name: str, tmp_path: Path) -> None:
    """An old file, written by this version, holds the same run."""
    first = loaded(name)
    first.opt.save(tmp_path / "new")
    run = RUNS[name]()
    for n, x in run.arrays.items():
        x[...] = first.arrays[n]
    run.opt.load(tmp_path / "new")
    goes_on(run, name)


@pytest.mark.parametrize("name", [n for n in RUNS if n not in ("groups", "noise")])
def test_in_another_order(name: str) -> None:
    """The counters in an old file stand in the order of its tensors: the right ones get them, or the order is refused.

    A file without state of single tensors, as that of noise, names none: nothing in it tells the order.
    """
    try:
        run = loaded(name, ("b", "w"))
    except tw.MismatchError:
        return
    goes_on(run, name)


def test_a_damaged_old_file_changes_nothing() -> None:
    data = (FOLDER / "adamw.safetensors").read_bytes()
    run: Any = RUNS["adamw"]()
    run.step(0)
    before = run.opt.state_dict()["state"]
    for at in (0, 9, 300, len(data) - 5):
        wrong = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises((tw.FormatError, tw.VersionError, tw.MismatchError)):
            run.opt.load_state_dict({"format": 1, "state": wrong})
        assert run.opt.state_dict()["state"] == before
