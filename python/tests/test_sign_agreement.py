"""AND-mask: the share of agreeing entries is one of each tensor, whatever else there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference.sign_agreement import ANDMask
from test_ranks import Group

Arrays = list[np.ndarray]
SHAPES = [(), (7,), (5, 3), (33,), (2, 3, 4)]


def rows(rng: np.random.Generator, tasks: int, shapes: Any = SHAPES) -> list[Arrays]:
    """Of normal numbers with zeros among them, and a common part."""
    common = [rng.standard_normal(s) for s in shapes]
    return [[np.asarray((c + rng.standard_normal(s)) * (rng.uniform(size=s) > 0.1)) for c, s in zip(common, shapes)] for _ in range(tasks)]


def update(opt: tw.Optimizer, J: list[Arrays]) -> None:
    for request in opt.requests():
        assert request.kind == "task_gradient" and request.count == len(J)
        request.answer([np.asarray(g, p.dtype) for g, p in zip(J[request.index], opt.params)])


def combined(sentence: str, J: list[Arrays], dtype: Any = np.float64) -> Arrays:
    params = [np.zeros(g.shape, dtype) for g in J[0]]
    update(tw.Optimizer(params, f"{sentence} | sgd(lr=1.0)"), J)
    return [-p for p in params]


def expected(J: list[Arrays], tau: float) -> Arrays:
    ref = ANDMask(tau=tau)
    return [ref.combine(np.stack([row[i].ravel() for row in J])).reshape(J[0][i].shape) for i in range(len(J[0]))]


@pytest.mark.parametrize("tau", [1.0, 0.6, 0.5, 0.2, 0.0])
@pytest.mark.parametrize("tasks", [2, 3, 5, 10, 64])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_reference(tasks: int, tau: float, dtype: Any) -> None:
    J = [[g.astype(dtype).astype(np.float64) for g in row] for row in rows(np.random.default_rng(tasks), tasks)]
    # sums of up to 64 terms of order one; a share of few entries makes them larger
    limit = dict(rtol=1e-13, atol=1e-13) if dtype is np.float64 else dict(rtol=1e-5, atol=1e-5)
    for got, want in zip(combined(f"and_mask(tasks={tasks}, tau={tau})", J, dtype), expected(J, tau)):
        np.testing.assert_allclose(got, want, **limit)


def test_by_hand() -> None:
    J = [[np.array([1.0, 2.0, -1.0, 0.0]), np.array([1.0])], [np.array([3.0, -2.0, -3.0, 1.0]), np.array([-1.0])]]
    got = combined("and_mask", J)  # entries 0 and 2 of four agree; nothing of the second tensor does
    np.testing.assert_allclose(got[0], [2 / 0.5, 0, -2 / 0.5, 0], rtol=1e-9)
    assert got[1] == 0
    got = combined("and_mask(tau=0.5)", J)  # an entry of one sign and a zero as well: |mean of signs| = 1/2
    np.testing.assert_allclose(got[0], [2 / 0.75, 0, -2 / 0.75, 0.5 / 0.75], rtol=1e-9)
    got = combined("and_mask(tau=0)", J)
    np.testing.assert_allclose(np.concatenate(got), [2, 0, -2, 0.5, 0], rtol=1e-9)


def test_a_tensor_counts_for_itself() -> None:
    """Its update is the same alone, beside others, in pieces of another order, and where others have no gradient."""
    J = rows(np.random.default_rng(1), 3)
    together = combined("and_mask(tasks=3)", J)
    for i in range(len(SHAPES)):
        np.testing.assert_array_equal(combined("and_mask(tasks=3)", [[row[i]] for row in J])[0], together[i])
    back = combined("and_mask(tasks=3)", [row[::-1] for row in J])[::-1]
    for a, b in zip(together, back):
        np.testing.assert_array_equal(a, b)
    params = [np.zeros(s) for s in SHAPES]
    opt = tw.Optimizer(params, "and_mask(tasks=3) | sgd(lr=1.0)")
    for request in opt.requests():
        request.answer([None if i == 2 else g for i, g in enumerate(J[request.index])])
    for i, p in enumerate(params):
        np.testing.assert_array_equal(-p, 0 * p if i == 2 else together[i])


def test_groups_have_their_own_threshold() -> None:
    J = rows(np.random.default_rng(2), 4)
    params = [np.zeros(s) for s in SHAPES]
    opt = tw.Optimizer([{"params": params[:2], "and_mask.tau": 0.5}, {"params": params[2:]}], "and_mask(tasks=4) | sgd(lr=1.0)")
    update(opt, J)
    want = expected(J, 0.5)[:2] + expected(J, 1.0)[2:]
    for p, w in zip(params, want):
        np.testing.assert_allclose(-p, w, rtol=1e-13, atol=1e-13)


def test_large_tensors_on_any_number_of_threads() -> None:
    rng, before, bits = np.random.default_rng(3), tw.get_num_threads(), set()
    shapes = [(300, 700), (5,), (100_003,)]
    J = rows(rng, 3, shapes)
    try:
        for threads in (1, 2, 4):
            tw.set_num_threads(threads)
            got = combined("and_mask(tasks=3)", J, np.float32)
            bits.add(tuple(g.tobytes() for g in got))
    finally:
        tw.set_num_threads(before)
    assert len(bits) == 1
    J = [[g.astype(np.float32).astype(np.float64) for g in row] for row in J]
    for g, w in zip(got, expected(J, 1.0)):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_tensors_on_ranks(size: int) -> None:
    """The share is one of the whole tensor; and whole tensors on their ranks keep theirs."""
    J = [[g.ravel() for g in row[1:]] for row in rows(np.random.default_rng(4), 3)]
    want = combined("and_mask(tasks=3) | clip_global_norm(1)", J)

    def drive(cut: Any, shards: str) -> list[Arrays]:
        group = Group(size)

        def body(rank: int) -> Arrays:
            mine = [cut(row, rank) for row in J]
            params = [np.zeros_like(g) for g in mine[0]]
            opt = tw.Optimizer(params, "and_mask(tasks=3) | clip_global_norm(1) | sgd(lr=1.0)")
            opt.set_reducer(group.reducer(rank), shards)
            update(opt, mine)
            return [-p for p in params]

        return group.run(body)

    parts = drive(lambda row, rank: [np.array_split(g, size)[rank].copy() for g in row], "elements")
    for i, w in enumerate(want):
        np.testing.assert_allclose(np.concatenate([p[i] for p in parts]), w, rtol=1e-13, atol=1e-14)
    for rank, got in enumerate(drive(lambda row, rank: row[rank::size], "tensors")):
        for g, w in zip(got, want[rank::size]):
            np.testing.assert_allclose(g, w, rtol=1e-13, atol=1e-14)


def test_inside_other_sources_and_routes() -> None:
    J = rows(np.random.default_rng(5), 2)
    params = [np.zeros(s) for s in SHAPES]
    opt = tw.Optimizer(params, "route(matrix=(and_mask(tasks=2) | sgd(lr=1.0)), other=(and_mask(tasks=2, tau=0) | sgd(lr=1.0)))")
    for request in opt.requests():
        request.answer(J[request.index])
    want = [a if p.ndim >= 2 else b for a, b, p in zip(expected(J, 1.0), expected(J, 0.0), params)]
    for p, w in zip(params, want):
        np.testing.assert_allclose(-p, w, rtol=1e-13, atol=1e-13)
