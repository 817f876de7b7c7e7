"""Tensors that are several matrices: `batch_dims`, `split`, `heads`.  Every block steps as if it had been bound alone."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

SENTENCES = (
    "muon(lr=0.1, momentum_form=ema{})", "normuon(lr=0.1, axis=long{})", "adamuon(lr=0.1{})", "polargrad(lr=0.1{})",
    "polargrad(lr=0.1, form=exact{})", "soap(lr=0.1, precondition_frequency=2{})",
    "shampoo(lr=0.1, beta1=0.9, momentum=0.5, grafting=adam{})", "sgd(lr=0.1) | orthogonalize(eps=1e-7{})",
    "newton_schulz(eps=1e-7{}) | sgd(lr=0.1)",
)
# options, the shape of the tensor, and that of each block
CUTS = (
    (", split=3", (12, 5), (4, 5)), (", split=3, heads=2", (12, 5), (2, 5)), (", heads=6", (12, 5), (2, 5)),
    (", batch_dims=1", (3, 4, 5), (4, 5)), (", batch_dims=1", (1, 4, 5), (4, 5)),
    (", batch_dims=1, heads=2", (3, 4, 5), (2, 5)), (", batch_dims=2", (2, 3, 5, 4), (5, 4)),
    (", batch_dims=1, split=2", (2, 6, 2, 2), (3, 2, 2)),
)


def steps(sentence, weights, gradients, save_at=-1, **options):
    """The weights after a step for each list of gradients; `save_at`: goes on from a state saved there."""
    weights = [w.copy() for w in weights]
    opt = tw.Optimizer(weights, sentence, **options)
    for k, g in enumerate(gradients):
        if k == save_at:
            state, opt = opt.state_dict(), tw.Optimizer(weights, sentence, **options)
            opt.load_state_dict(state)
        opt.step(g)
    return weights


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("options, shape, block", CUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_each_block_is_a_matrix_of_its_own(sentence, options, shape, block, dtype):
    rng = np.random.default_rng(1)
    w = rng.standard_normal(shape).astype(dtype)
    gradients = [rng.standard_normal(shape).astype(dtype) for _ in range(5)]
    [together] = steps(sentence.format(options), [w], [[g] for g in gradients], save_at=3)
    alone = steps(sentence.format(""), list(w.reshape(-1, *block)), [list(g.reshape(-1, *block)) for g in gradients])
    np.testing.assert_array_equal(together.reshape(-1, *block), np.stack(alone))


def test_blocks_are_not_the_whole():
    w, g = np.zeros((12, 5)), np.random.default_rng(0).standard_normal((12, 5))
    [one], [three] = (steps(f"muon(lr=1, weight_decay=0, split={n})", [w], [[g]]) for n in (1, 3))
    assert abs(one - three).max() > 0.05
    # each of the three is orthogonal by itself, up to the iteration's own bounds, times sqrt(max(1, 4/5)) = 1
    assert all(0.6 < s < 1.3 for part in three.reshape(3, 4, 5) for s in np.linalg.svd(part)[1])


@pytest.mark.parametrize("sentence, shape, words", [
    ("muon(split=5)", (12, 5), r"12 rows are not 5 times 1 \(`split`, `heads`\)"),
    ("soap(split=2, heads=4)", (12, 5), "12 rows are not 2 times 4"),
    ("muon(batch_dims=1)", (12,), r"batch_dims=1 leaves no matrix of a tensor of shape \(12,\)"),
    ("shampoo(batch_dims=2)", (3, 4), "batch_dims=2 leaves no matrix"),
    ("muon(batch_dims=1)", (3, 4), "needs a tensor of rank 2"),
])
def test_what_does_not_fit_is_refused_with_both_numbers(sentence, shape, words):
    with pytest.raises(tw.ShapeError, match=words):
        tw.Optimizer([np.ones(shape)], sentence)


def test_a_failed_step_changes_no_block():
    w = np.ones((4, 3, 3))
    g = np.ones((4, 3, 3))
    g[3, 0, 0] = np.nan
    opt = tw.Optimizer([w], "soap(batch_dims=1)")
    with pytest.raises(tw.NonfiniteError):
        opt.step([g])
    assert (w == 1).all()
