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


# ---- other methods whose time is products

STEPS = 6
SENTENCES = {
    "soap": "soap(lr=0.05, precondition_frequency=2{})",
    "shampoo": "shampoo(lr=0.05, eps=1e-2, precondition_frequency=2{})",
    "kl_shampoo": "kl_shampoo(lr=0.05, precondition_frequency=2{})",
    "kl_soap": "kl_soap(lr=0.05, precondition_frequency=2{})",
    "psgd_kron": "psgd_kron(lr=0.05, update_prob=1{})",
    "kfac": "kfac(lr=0.05, damping=0.1, kl_clip=none{})",
}


def path(method: str, products: str, shape: tuple[int, ...], dtype: type, threads: int = 1) -> np.ndarray:
    """What some steps with fresh gradients move."""
    tw.set_num_threads(threads)
    rng = np.random.default_rng(7)
    w = rng.standard_normal(shape).astype(dtype)
    start = w.copy()
    with tw.Optimizer([w], SENTENCES[method].format(f", products={products}" if products else "")) as opt:
        g = np.empty_like(w)
        opt.bind_gradients([g])
        for _ in range(STEPS):
            g[...] = rng.standard_normal(shape)
            x, d = rng.standard_normal((40, w[0].size)).astype(dtype), rng.standard_normal((40, shape[0])).astype(dtype)
            for request in opt.requests():
                if request.kind == "activations":
                    request.answer_matrix(x, d)
    return w - start


@pytest.mark.parametrize("shape", [(33, 70), (130, 97), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("method", SENTENCES)
def test_products_of_other_methods(method: str, shape: tuple[int, ...]) -> None:
    exact, rounded_ones = path(method, "working", shape, np.float32), path(method, "bf16", shape, np.float32)
    np.testing.assert_array_equal(exact, path(method, "", shape, np.float32))
    apart = np.linalg.norm(exact - rounded_ones) / np.linalg.norm(exact)
    # operands are off by up to 2^-9 each, a few products in a row; bases that turn with them, and Adam's ratio of two
    # turned averages, multiply it
    assert 1e-5 < apart < 0.1
    np.testing.assert_array_equal(rounded_ones, path(method, "bf16", shape, np.float32, threads=2))
    np.testing.assert_array_equal(path(method, "bf16", shape, np.float64), path(method, "working", shape, np.float64))


@pytest.mark.parametrize("method", ["soap", "kl_soap"])
@pytest.mark.parametrize("frequency", [1, 10])
def test_directions_without_a_gradient_stay_small(method: str, frequency: int) -> None:
    """Of rank 1 all but one direction is what rounding leaves: a new basis must not divide it by next to nothing.

    What float32 leaves is not stepped along. What bfloat16 leaves may be taken for a gradient: 24 steps of 0.01 at most
    in each of 48 directions, a common length of 0.24 sqrt(48).
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((48, 1)) * 0.1 + 1
    line = rng.standard_normal((1, 130))
    moves = []
    for products in ("working", "bf16"):
        w = np.ones((48, 130), np.float32)
        with tw.Optimizer([w], f"{method}(lr=0.01, precondition_frequency={frequency}, products={products})") as opt:
            for k in range(24):
                opt.step([(rows * line * (1 + 0.1 * k)).astype(np.float32)])
        moves.append(np.abs(w - 1).max())
    assert moves[0] < 0.05 and moves[1] <= 0.24 * np.sqrt(48), moves  # (beyond 50 before v was held above m²)
