"""Stages of lines go through a large tensor strip by strip: the bits are those of its parts bound one by one."""

import numpy as np
import pytest
import thalweg as tw

SENTENCES = [
    "adamw | prox(group_lasso(1e-3, axis=row))",
    "adamw | prox(l21(1e-3, axis=row)) | ema(0.9)",
    "sgd(lr=0.1) | prox(sparse_group_lasso(0.05, axis=row))",
    "sgd(lr=0.1) | prox(l1_inf(0.05, axis=row))",
    "penalty(norm_loss(0.1)) | adamw",
    "adamw | decoupled(norm_loss(0.1))",
    "adamw | nm_sparsity(1, 2)",
    "sr_ste(1, 2, decay=0.1) | adamw | project(nm_sparsity(1, 2))",
    "adamw | project(l2_ball(0.5, axis=-1))",
    "adamw | project(simplex(axis=1))",
    "adamw | project(l1_ball(0.5, axis=-1))",
    "adamw | project(capped_simplex(0.5, cap=0.2, axis=-1))",
    "agc | gradient_centralization | adamw",
    "penalty(softmax_entropy(0.1)) | adamw",
    # stages that need the whole tensor (and do nothing to it) before, between and behind
    "penalty(group_lasso(0, axis=col)) | agc | adamw | prox(group_lasso(1e-3, axis=row))",
    "agc | penalty(group_lasso(0, axis=col)) | adamw | prox(group_lasso(1e-3, axis=row))",
    "agc | adamw | prox(group_lasso(0, axis=col)) | prox(group_lasso(1e-3, axis=row))",
    "agc | adamw | prox(group_lasso(1e-3, axis=row)) | prox(group_lasso(0, axis=col))",
    "gradient_accumulate(2) | agc | sgd(lr=0.1, momentum=0.9) | prox(group_lasso(1e-3, axis=row))",
    "adamw | lookahead(k=2) | project(l2_ball(0.5, axis=-1))",
    "adamw | cautious_decay | prox(group_lasso(1e-3, axis=row))",
    "powerprop_precond | sgd(lr=0.1) | decoupled_weight_decay(0.1, anchor=start)",
    "ranger(k=2)",
    "sparse_adam",
    "sara(threshold=0.5)",
    "prox_sgd(l1(0.05), lr=0.1, momentum=0.9)",
    "prox_adam(l1(0.05), lr=0.1)",
]
# the first has strips of 16,384 elements, the second of 64,000, and the third none: lines of 514 and chunks of 512
# have no common multiple that fits into a cache
SHAPES = [(320, 256), (180, 4, 250), (140, 514)]
DTYPES = ["float32", "float64", "bfloat16", "strided"]


def tensors(shape, dtype, cuts, rng):
    """One tensor, and the same numbers in parts along the first axis."""
    x = rng.standard_normal(shape)
    edges = np.linspace(0, shape[0], cuts + 1).astype(int)
    parts = [x[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [make(x, dtype)], [make(p, dtype) for p in parts]


def make(x, dtype):
    if dtype == "bfloat16":
        return x.astype(pytest.importorskip("ml_dtypes").bfloat16)
    if dtype == "strided":
        room = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), np.float32)
        room[..., ::2] = x
        return room[..., ::2]
    return np.array(x, dtype)


def joined(arrays):
    return np.concatenate([np.asarray(a, np.float64) for a in arrays])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_tensor_moves_as_its_parts(sentence, shape, dtype):
    rng = np.random.default_rng(0)
    whole, parts = tensors(shape, dtype, 4, rng)
    with tw.Optimizer(whole, sentence) as a, tw.Optimizer(parts, sentence) as b:
        for _ in range(4):
            g, h = tensors(shape, dtype, 4, rng)
            a.step(g)
            b.step(h)
            np.testing.assert_array_equal(joined(whole), joined(parts))
        one, many = a.state(), b.state()
        for slot, rows in one.items():
            if np.shape(rows[0]) == shape:
                np.testing.assert_array_equal(rows[0], np.concatenate(many[slot]))


OVERFLOWING = ["prox(group_lasso(1e-3, axis=row))", "project(l2_ball(0.5, axis=1))", "project(simplex(axis=1))"]


@pytest.mark.parametrize("sentence", OVERFLOWING)
@pytest.mark.parametrize("shape", [(1024, 64), (200, 514), (40, 30)], ids=str)
def test_a_line_that_overflows_stays_alone(sentence, shape):
    """Finite before the step, too large within it: that line is what the step made of it, the others as without it."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    q, h = p.copy(), g.copy()
    h[3, 5] = 3e38
    with tw.Optimizer([p], f"sgd(lr=100) | {sentence}") as a, tw.Optimizer([q], f"sgd(lr=100) | {sentence}") as b:
        a.step([g])
        b.step([h])
    others = np.arange(shape[0]) != 3
    np.testing.assert_array_equal(q[others], p[others])
    assert q[3, 5] == -np.inf
    assert np.isfinite(np.delete(q[3], 5)).all()
