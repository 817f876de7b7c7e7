"""Weights that the host writes before a step that does not happen, and writes back after it: as if nothing had been."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

SENTENCES = [
    "sam(0.05) | sgd(lr=0.1) | lookahead(5)", "gradient_accumulate(2) | dog", "sam(0.05) | prodigy(lr=1)",
    "sam(0.05) | schedule_free_sgd(lr=0.1)", "extragradient(lr=0.1) | lookahead(3)",
    "sam(0.05) | sgd(lr=0.1, momentum=0.9) | nm_sparsity(2, 4)",
]


def gradients(k: int, n: int) -> np.ndarray:
    return np.sin(np.arange(n) * 0.7 + k).astype(np.float32) * np.float32(0.1)


def closure(k: int, n: int):
    return lambda request: (0.5, [gradients(k, n)])


@pytest.mark.parametrize("n", [8, 1200])  # marked element by element, and in groups
@pytest.mark.parametrize("how", ["broken off", "exception", "refused", "evaluation"])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_step_that_does_not_happen_leaves_no_trace_of_what_was_written(sentence: str, how: str, n: int) -> None:
    start = np.cos(np.arange(n)).astype(np.float32)
    w, twin = start.copy(), start.copy()
    mine, other = tw.Optimizer([w], sentence, nonfinite="error"), tw.Optimizer([twin], sentence, nonfinite="error")
    for k in range(4):
        mine.step(closure(k, n))
        other.step(closure(k, n))
    keep = w.copy()
    w[:] = 100
    if how == "broken off":
        for _ in mine.requests():
            break
    elif how == "exception":
        def fails(request):
            raise KeyError("no")

        with pytest.raises(KeyError):
            mine.step(fails)
    elif how == "refused":
        with pytest.raises(tw.Error):
            mine.step(lambda request: (0.5, [np.full(n, np.nan, np.float32)]))
    else:
        mine.eval()
        mine.train()
    w[:] = keep
    for k in range(4, 9):
        mine.step(closure(k, n))
        other.step(closure(k, n))
    if how == "evaluation":
        # what was written was looked at: iterates begin anew with the second write, and are near; what a mask hides
        # shows no second write
        assert "nm_sparsity" in sentence or np.abs(w - twin).max() < 2
    else:
        np.testing.assert_array_equal(w, twin)
