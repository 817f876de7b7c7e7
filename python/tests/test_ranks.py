"""A model that is spread over ranks: the same steps as in one piece, for whole tensors and for parts of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import thalweg as tw

Arrays = list[np.ndarray]


class Group:
    """Ranks as threads: an all-reduce that hands everybody the same numbers."""

    def __init__(self, size: int) -> None:
        self.barrier, self.parts, self.size = threading.Barrier(size, timeout=30), [None] * size, size
        self.calls = 0

    def reducer(self, rank: int) -> Any:
        def reduce(sums: np.ndarray, maxima: np.ndarray) -> None:
            self.parts[rank] = (sums.copy(), maxima.copy())
            self.barrier.wait()
            total, top = sum(p[0] for p in self.parts), np.maximum.reduce([p[1] for p in self.parts])
            self.barrier.wait()
            sums[...], maxima[...] = total, top
            if rank == 0:
                self.calls += 1

        return reduce

    def run(self, body: Any) -> list[Any]:
        results: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            try:
                results[rank] = body(rank)
            except BaseException as error:  # the others must not wait for ever
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(r,)) for r in range(self.size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        for r in results:
            if isinstance(r, BaseException):
                raise r
        return results


SHAPES = [(6,), (4, 6), (12,), (2, 30)]
GLOBAL = [
    "clip_global_norm(0.5) | adamw(lr=0.1)",
    "clip_global_norm(0.5, norm_type=inf) | sgd(lr=0.1)",
    "dog(reps_rel=0.1)",
    "prodigy(d0=0.01)",
    "dadapt_adam(d0=0.01)",
    "sam(0.1) | adamw(lr=0.1)",
    "oasis(lr0=0.05)",
    "adamw(lr=0.1) | lookahead(k=2)",
    "penalty(l2(0.1)) | clip_global_norm(1) | adamw(lr=0.1) | ema(0.9)",
]
LAYERS = ["lamb(lr=0.05)", "lars(lr=0.5, trust_coefficient=0.1)", "adamw(lr=0.1) | clip_update_rms(0.5)", "cautious_adamw(lr=0.1)",
          "clip_block_rms(0.3) | sgd(lr=0.1)", "stable_adamw(lr=0.1)"]


def numbers(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in SHAPES]


def drive(opt: tw.Optimizer, params: Arrays, cut: Any, steps: int = 6) -> None:
    """Gradients of sum cosh(w - c_k): those of a part are the part of those of the whole."""
    grads = [np.zeros_like(p) for p in params]
    opt.bind_gradients(grads)
    for k in range(steps):
        goals = cut(numbers(100 + k))
        for request in opt.requests():
            at = [p - c for p, c in zip(params, goals)]
            if request.kind == "hessian_vector":
                answers = [np.cosh(a) * np.asarray(v) for a, v in zip(at, request.probe)]
            else:
                answers = [np.sinh(a) for a in at]
            for g, a in zip(grads, answers):
                g[...] = a
            if request.wants_loss:
                request.loss = 1.0


def whole(sentence: str) -> Arrays:
    params = numbers(1)
    drive(tw.Optimizer(params, sentence), params, lambda arrays: arrays)
    return params


def elements(rank: int, size: int) -> Any:
    return lambda arrays: [np.ascontiguousarray(np.array_split(a.ravel(), size)[rank]) for a in arrays]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("sentence", GLOBAL + LAYERS)
def test_parts_of_every_tensor_step_as_the_whole(sentence: str, size: int) -> None:
    """Sums of another order: to rounding. (Rules that look at the rank of a tensor see vectors in both runs.)"""
    rows = [a.ravel() for a in numbers(1)]
    flat = [r.copy() for r in rows]
    drive(tw.Optimizer(flat, sentence), flat, lambda arrays: [a.ravel() for a in arrays])
    group = Group(size)

    def body(rank: int) -> Arrays:
        cut = elements(rank, size)
        params = cut(numbers(1))
        opt = tw.Optimizer(params, sentence)
        opt.set_reducer(group.reducer(rank), "elements")
        drive(opt, params, cut)
        return params

    parts = group.run(body)
    for i, want in enumerate(flat):
        np.testing.assert_allclose(np.concatenate([p[i] for p in parts]), want, rtol=1e-11, atol=1e-12)
    assert group.calls > 0


@pytest.mark.parametrize("sentence", GLOBAL + [
    "route(matrix=(muon(lr=0.1)), other=(adamw(lr=0.1)))", "clip_global_norm(1) | lamb(lr=0.05)",
    "sgd(lr=0.1) | magnitude_pruning(0.5)", "sgd(lr=0.1) | magnitude_pruning(cubic_sparsity(final=0.9, end=5), min_keep=3)",
    "sgd(lr=0.1) | structured_pruning(0.4, scope=global)", "sgd(lr=0.1) | structured_pruning(0.9, scope=global, axis=-1, min_keep=2)"])
def test_whole_tensors_on_their_ranks(sentence: str) -> None:
    want, group = whole(sentence), Group(2)

    def body(rank: int) -> Arrays:
        cut = lambda arrays: arrays[rank::2]  # noqa: E731
        params = cut(numbers(1))
        opt = tw.Optimizer(params, sentence)
        opt.set_reducer(group.reducer(rank))
        drive(opt, params, cut)
        return params

    for rank, params in enumerate(group.run(body)):
        for p, w in zip(params, want[rank::2]):
            np.testing.assert_allclose(p, w, rtol=1e-11, atol=1e-12)


def test_all_ranks_skip_a_step_or_none() -> None:
    group = Group(2)

    def body(rank: int) -> tuple[bytes, bytes, int]:
        w = np.ones(4)
        opt = tw.Optimizer([w], "adamw(lr=0.1)", nonfinite="skip")
        opt.set_reducer(group.reducer(rank), "elements")
        before = w.tobytes()
        opt.step([np.full(4, np.nan if rank == 1 else 1.0)])
        skipped, after = opt.skipped, w.tobytes()
        opt.step([np.ones(4)])
        assert opt.steps == 1 and w[0] != 1
        return before, after, skipped

    for before, after, skipped in group.run(body):
        assert before == after and skipped == 1


def test_an_exception_of_the_reducer_ends_the_step_with_nothing_changed() -> None:
    class Lost(Exception):
        pass

    w = np.linspace(1, 2, 6)
    opt = tw.Optimizer([w], "clip_global_norm(1) | adamw(lr=0.1) | ema(0.9)")
    opt.step([np.ones(6)])
    before, state = w.tobytes(), opt.state_dict()["state"]

    def lost(sums: np.ndarray, maxima: np.ndarray) -> None:
        raise Lost("connection reset")

    opt.set_reducer(lost)
    for grads in ([np.ones(6)], [2 * np.ones(6)]):
        with pytest.raises(Lost, match="connection reset"):
            opt.step(grads)
        assert w.tobytes() == before and opt.state_dict()["state"] == state
    loop = opt.requests()
    next(loop).answer([np.ones(6)])
    with pytest.raises(Lost):
        next(loop)
    assert w.tobytes() == before
    opt.set_reducer(None)
    opt.step([np.ones(6)])
    assert w.tobytes() != before


def test_what_is_refused() -> None:
    opt = tw.Optimizer([np.ones((3, 3))], "muon(lr=0.1)")
    with pytest.raises(tw.UnsupportedError, match="muon works on whole tensors"):
        opt.set_reducer(lambda s, m: None, "elements")
    opt.set_reducer(lambda s, m: None)
    with pytest.raises(ValueError, match="tensors, elements"):
        opt.set_reducer(None, "rows")
    with pytest.raises(TypeError, match="callable"):
        opt.set_reducer(3)  # type: ignore[arg-type]
    loop = (busy := tw.Optimizer([np.ones(3)], "sam(0.1) | sgd(lr=0.1)")).requests()
    busy.bind_gradients([np.ones(3)])
    next(loop)
    with pytest.raises(tw.SequenceError, match="under way"):
        busy.set_reducer(lambda s, m: None)
    loop.close()


def test_a_rank_that_is_alone_changes_no_bit() -> None:
    for sentence in GLOBAL + LAYERS:
        a, b = [x.ravel().copy() for x in numbers(1)], [x.ravel().copy() for x in numbers(1)]
        alone, spread = tw.Optimizer(a, sentence), tw.Optimizer(b, sentence)
        spread.set_reducer(lambda s, m: None, "elements")
        cut = lambda arrays: [x.ravel() for x in arrays]  # noqa: E731
        drive(alone, a, cut)
        drive(spread, b, cut)
        assert [x.tobytes() for x in a] == [x.tobytes() for x in b], sentence
