"""`ns_precision=bf16`: Newton-Schulz with operands rounded to bfloat16, beside the same iteration in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import thalweg as tw

SENTENCE = "muon(lr=1, weight_decay=0, momentum=0, adjust_lr=none, ns_steps={}, ns_precision=bf16)"
QUINTIC = (3.4445, -4.7750, 2.0315)


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def factor(matrix: np.ndarray, steps: int) -> np.ndarray:
    """Operands of every product rounded, everything else in float64."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T) / max(np.linalg.norm(matrix), 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        r = rounded(x)
        gram = r @ r.T
        s = rounded(gram)
        p = a * np.eye(len(gram)) + b * gram + c * s @ s
        x = rounded(p) @ r
    return x if wide else x.T


SHAPES = [(1, 7), (7, 1), (8, 48), (37, 101), (101, 37), (64, 64), (129, 97), (300, 520), (4, 3, 5, 5)]


@pytest.mark.parametrize(("steps", "limit"), [(2, 2e-4), (5, 3e-2)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factor(shape: tuple[int, ...], count: int, steps: int, limit: float) -> None:
    tw.set_num_threads(count)
    gradient = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    moved = np.zeros(shape, np.float32)
    with tw.Optimizer([moved], SENTENCE.format(steps)) as opt:
        opt.step([gradient])
    ours, theirs = -moved.reshape(shape[0], -1).astype(np.float64), factor(gradient.reshape(shape[0], -1).astype(np.float64), steps)
    # A sum that differs in its last float32 bit may round to the next bfloat16 (2^-8). Few do, but every later iteration multiplies the
    # difference by up to 3.4: after two it is below 1e-4, after five that of any two bfloat16 runs. No rounding at all differs by 3e-3 after two.
    assert np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs)


def test_double_keeps_its_precision() -> None:
    gradient = np.random.default_rng(3).standard_normal((9, 14))
    results = []
    for precision in ("working", "bf16"):
        moved = np.zeros((9, 14))
        with tw.Optimizer([moved], f"muon(lr=1, ns_precision={precision})") as opt:
            opt.step([gradient])
        results.append(moved)
    np.testing.assert_array_equal(*results)
