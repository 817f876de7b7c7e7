"""Numbers and sizes that no machine has: an error that says so, whatever they are given for."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

# A view of one number that stands for 2^46 of them: 256 TiB in float32.
HUGE = np.broadcast_to(np.float32(1), (1 << 23, 1 << 23))


def test_broadcast_arguments_of_objects() -> None:
    out = np.zeros((2, 2), np.float32)
    for sentence in ("l1(1)", "group_lasso(1)"):
        regularizer = tw.regularizer(sentence)
        with pytest.raises(MemoryError):
            regularizer.value(HUGE)
        with pytest.raises((tw.Error, MemoryError)):
            regularizer.gradient(HUGE, out)
        # and it is as before
        assert regularizer.value(np.ones((1, 2), np.float32)) > 0
    for sentence in ("norm_test(max_batch=100)", "inner_product_test(max_batch=100)"):
        schedule = tw.schedule(sentence)
        with pytest.raises(MemoryError):
            schedule.observe_samples(HUGE)
        schedule.observe_samples(np.broadcast_to(np.float32(1), (4, 3)))
        assert schedule(0) == 4
    with pytest.raises(MemoryError):
        tw.objective("checkered_regression")(z=HUGE, y=np.broadcast_to(np.float32(1), (1 << 23,)))


def test_samples_without_rows_and_without_columns() -> None:
    """No element, but a side of 2^40: nothing of that size is made of it."""
    for shape in ((0, 1 << 40), (1 << 40, 0)):
        schedule = tw.schedule("norm_test(max_batch=100)")
        empty = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0, 0))
        try:
            schedule.observe_samples(empty)
        except (tw.Error, MemoryError):
            pass
        assert schedule(0) >= 1


RANKS = ["1e19", "1e300", "2.5", "0", "-1", "inf", "nan", "constant(2)", "linear(1, end=2, total=10)"]


@pytest.mark.parametrize("rank", RANKS)
def test_rank_is_a_whole_number(rank: str) -> None:
    with pytest.raises(tw.Error, match="rank"):
        tw.Optimizer([np.ones((4, 3), np.float32)], f"adam_snsm(rank={rank})")


def test_a_large_rank_is_full_momentum() -> None:
    """A rank of the smaller side or more is none."""
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((4, 3)), rng.standard_normal((3, 4, 3))
    runs = []
    for rank in ("none", "3", "1e15"):
        w = start.copy()
        opt = tw.Optimizer([w], f"adam_snsm(lr=0.1, rank={rank})")
        for g in grads:
            opt.step([g])
        runs.append(w)
    assert all(np.array_equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize(
    "sentence",
    [
        "sgd(lr=0.1) | nm_sparsity(decay=constant(0.1))",
        "curl_descent(fraction=constant(0.5)) | sgd(lr=0.1)",
        "oasis(beta1=constant(0.5))",
        "sga_uap(inner_steps=2, momentum=constant(0.5))",
    ],
)
def test_what_shapes_the_state_takes_no_schedule(sentence: str) -> None:
    with pytest.raises(tw.ValueTypeError, match="must be a number"):
        tw.Optimizer([np.ones((4, 4), np.float32)], sentence)


def test_whole_numbers_at_the_end_of_their_range() -> None:
    """Every whole hyper-parameter of every method, as large as it may be: made or refused, never worse."""
    made = 0
    for method in tw.methods():
        for p in method.parameters:
            if p.type != "integer":
                continue
            for value in ("9e15", "-9e15", "1e19", "-1e300"):
                try:
                    opt = tw.Optimizer([np.ones((8, 8), np.float32)], f"{method.name}({p.name}={value})")
                    opt.memory_report()
                    made += 1
                except (tw.Error, MemoryError):
                    pass
    assert made > 0
