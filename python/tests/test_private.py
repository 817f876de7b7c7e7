"""Private gradients: beside their references, by their cards, and answered badly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference  # noqa: F401  (imports every module)
import thalweg as tw
from reference import base
from reference.private import PrivateReference
from support import stage

SHAPES = [(7,), (), (3, 5)]
SEED = 9
CASES = [pytest.param(c, s, id=f"{c.name}-{i}") for c in base.every(PrivateReference) for i, s in enumerate(c.settings)]


def samples(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    scale = rng.uniform(0.05, 2, count)
    return [scale.reshape((count,) + (1,) * len(s)) * rng.standard_normal((count, *s)) for s in SHAPES]


def normal(release: int, tensor: int) -> np.ndarray:
    """The library's draws; a tensor of 2**32 - 1 stands for the count."""
    if tensor == 2**32 - 1:
        return tw.random_normal(SEED, 0, release, tensor, 1)[0]
    return tw.random_normal(SEED, 0, release, tensor, int(np.prod(SHAPES[tensor], dtype=int))).reshape(SHAPES[tensor])


def optimizer(text: str, dtype: Any = np.float64) -> tuple[list[np.ndarray], tw.Optimizer]:
    params = [np.full(s, 0.5, dtype) for s in SHAPES]
    return params, tw.Optimizer(params, text + " | sgd(lr=1)", seed=SEED)


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-13), (np.float32, 3e-6)])  # sums of some ten terms of order one
@pytest.mark.parametrize("cls, setting", CASES)
def test_released_sums(cls: type, setting: dict[str, Any], dtype: Any, limit: float) -> None:
    rng = np.random.default_rng(2)
    ref = cls(**setting)
    ref.start()
    params, opt = optimizer(stage(cls.name, setting), dtype)
    parts = setting.get("micro_batches", 1)
    for step in range(25):
        before = [p.astype(np.float64) for p in params]
        batches = [samples(rng, int(rng.integers(0, 6))) for _ in range(parts)]
        if step == 3:
            batches[0] = samples(rng, 3)
            batches[0][2][1] = np.nan  # this sample counts nothing
        batches = [[g.astype(dtype) for g in b] for b in batches]
        asked = []
        for request in opt.requests():
            asked.append((request.kind, request.index, request.count))
            request.answer_samples(batches[request.index])
        assert asked == [("sample_gradients", k, parts) for k in range(parts)]
        want = ref.release([[g.astype(np.float64) for g in b] for b in batches], normal)
        for p, b, g in zip(params, before, want):
            assert np.max(np.abs((b - p) - g), initial=0) <= limit * max(1.0, float(np.max(np.abs(b))), float(np.max(np.abs(g))))
        assert opt.get(f"{cls.name}.samples") == sum(len(b[0]) for b in batches)
        assert opt.get(f"{cls.name}.dropped") == (1 if step == 3 else 0)


def test_sensitivity() -> None:
    """Adding one sample moves the sum by at most C."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        batch = [100 * g for g in samples(rng, 6)]
        moves = []
        for count in (5, 6):
            params, opt = optimizer("dp_sgd(noise_multiplier=0, expected_batch_size=1, clip=0.7)")
            before = [p.copy() for p in params]
            for request in opt.requests():
                request.answer_samples([g[:count] for g in batch])
            moves.append(np.concatenate([np.ravel(b - p) for b, p in zip(before, params)]))
        assert np.linalg.norm(moves[1] - moves[0]) <= 0.7 * (1 + 1e-9)


def test_an_empty_batch_releases_noise() -> None:
    params, opt = optimizer("dp_sgd(noise_multiplier=2, expected_batch_size=4, clip=3)")
    for request in opt.requests():
        request.answer_samples([np.zeros((0, *s)) for s in SHAPES])
    for i, p in enumerate(params):
        np.testing.assert_allclose(0.5 - p, 2 * 3 * normal(0, i) / 4, rtol=1e-13)


def test_the_quantile_is_found() -> None:
    """The clip norm settles where 70 of 100 equally spaced norms stay below it."""
    params = [np.zeros(1)]
    opt = tw.Optimizer(params, "dp_adaptive_clip(noise_multiplier=0, expected_batch_size=100, target_quantile=0.7, "
                               "count_std=1e-6, lr=0.1) | sgd(lr=0)")
    for _ in range(300):
        for request in opt.requests():
            request.answer_samples([np.arange(1.0, 101.0).reshape(100, 1) / 10])
    assert opt.get("dp_adaptive_clip.clip") == pytest.approx(7.0, abs=0.15)


def test_any_layout_and_any_threads() -> None:
    rng = np.random.default_rng(5)
    w = np.zeros((300, 200), np.float32)
    g = rng.standard_normal((5, 300, 200)).astype(np.float32)
    wide = np.zeros((5, 300, 400), np.float32)
    wide[:, :, ::2] = g
    found = set()
    threads = tw.get_num_threads()
    try:
        for count in (1, 2, 3):
            tw.set_num_threads(count)
            for form in (g, wide[:, :, ::2], np.asfortranarray(g), g.transpose(0, 2, 1).copy().transpose(0, 2, 1)):
                p = w.copy()
                opt = tw.Optimizer([p], "dp_sgd(noise_multiplier=1, expected_batch_size=5) | adamw(lr=0.1)", seed=1)
                for request in opt.requests():
                    request.answer_samples([form])
                found.add(p.tobytes())
    finally:
        tw.set_num_threads(threads)
    assert len(found) == 1


def test_behind_an_accumulation_and_sam() -> None:
    """gradient_accumulate asks dp_sgd, which asks the host: two private sums with draws of their own."""
    rng = np.random.default_rng(6)
    params, opt = optimizer("dp_sgd(noise_multiplier=1, expected_batch_size=4) | gradient_accumulate(2)")
    before, batches = [p.copy() for p in params], [samples(rng, 4) for _ in range(2)]
    ref = base_reference()
    want = [ref.release([b], normal) for b in batches]
    for b in batches:
        for request in opt.requests():
            request.answer_samples(b)
    for p, b, first, second in zip(params, before, *want):
        np.testing.assert_allclose(b - p, (first + second) / 2, rtol=1e-12, atol=1e-14)


def base_reference() -> PrivateReference:
    ref = next(c for c in base.every(PrivateReference) if c.name == "dp_sgd")(noise_multiplier=1.0, expected_batch_size=4)
    ref.start()
    return ref


def test_bad_answers_leave_the_request_waiting() -> None:
    params, opt = optimizer("dp_sgd(noise_multiplier=0, expected_batch_size=2)")
    good = samples(np.random.default_rng(7), 2)
    with pytest.raises(tw.SequenceError, match="no request for the gradients of samples is waiting"):
        opt._answer_samples(("a", "b", "c"), tuple(good))
    loop = opt.requests()
    request = next(loop)
    for bad, kind, message in (
        (good[:2], tw.CountError, "there are 3 parameters, got the samples of 2"),
        ([good[0], good[1], good[2][:1]], tw.ShapeError, "are 1, those of other parameters 2"),
        ([good[0][0], good[1], good[2]], tw.ShapeError, r"must have the shape \(samples, ...\) of \[7\], got \[7\]"),
        ([good[0], None, good[2]], tw.SequenceError, "are missing"),
    ):
        with pytest.raises(kind, match=message):
            request.answer_samples(bad)
    request.answer_samples(good)
    assert next(loop, None) is None and opt.steps == 1
    with pytest.raises(tw.NeedsError, match="asked for the gradients of the samples: answer with request.answer_samples"):
        for request in opt.requests():
            pass
    assert opt.steps == 1


def test_more_samples_than_memory() -> None:
    """A broadcast view stands for any number of samples; tensors without elements too."""
    for shape in ((7,), (0,)):
        w = np.ones(shape)
        opt = tw.Optimizer([w], "dp_sgd(noise_multiplier=0, expected_batch_size=1) | sgd(lr=1)")
        loop = opt.requests()
        request = next(loop)
        for count in (2**44, 2**57):
            many = np.lib.stride_tricks.as_strided(np.zeros(8), (count, *shape), (0, 8))
            with pytest.raises(tw.Error, match="cannot allocate|large|overflow"):
                request.answer_samples([many])
        request.answer_samples([np.ones((2, *shape))])
        assert next(loop, None) is None and opt.steps == 1


def test_refused_sentences() -> None:
    with pytest.raises(tw.RangeError, match="mode=per_layer"):
        optimizer("dp_sgd(noise_multiplier=1, expected_batch_size=2, clip=[1, 2, 3])")
    with pytest.raises(tw.RangeError, match="below 2"):
        optimizer("dp_adaptive_clip(noise_multiplier=2, expected_batch_size=2)")
    params, opt = optimizer("dp_sgd(noise_multiplier=1, expected_batch_size=2, mode=per_layer, clip=[1, 2])")
    loop = opt.requests()
    request = next(loop)
    with pytest.raises(tw.CountError, match="`clip` has 2 numbers"):
        request.answer_samples(samples(np.random.default_rng(1), 2))
    with pytest.raises(tw.Error, match="asks for no gradient"):
        optimizer("sam(0.1) | dp_sgd(noise_multiplier=1, expected_batch_size=2)")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_policy_for_numbers_that_are_none(policy: str) -> None:
    params = [np.full(s, 0.5) for s in SHAPES]
    opt = tw.Optimizer(params, "dp_sgd(noise_multiplier=1, expected_batch_size=2) | adamw", nonfinite=policy)
    bad = samples(np.random.default_rng(8), 3)
    bad[1][1] = np.inf
    try:
        for request in opt.requests():
            request.answer_samples(bad)
        assert policy == "skip" and opt.skipped == 1
    except tw.NonfiniteError:
        assert policy == "error"
    assert all(np.all(p == 0.5) for p in params) and opt.steps == 0
    for request in opt.requests():
        request.answer_samples(samples(np.random.default_rng(8), 3))
    assert opt.steps == 1


@pytest.mark.parametrize("mode", ["flat", "per_layer"])
@pytest.mark.parametrize("given", ["float32", "float64", "float16", "strided"])
def test_samples_that_are_read_in_groups(mode: str, given: str) -> None:
    """Samples of some ten thousand numbers are looked at a few at a time; the sum is the same, for any threads."""
    count, shapes = 40, [(90, 101), (3,), (2111,), ()]
    rng = np.random.default_rng(11)
    parts = [rng.uniform(0.002, 0.02, count).reshape((count,) + (1,) * len(s)) * rng.standard_normal((count, *s)) for s in shapes]
    parts[0][7, 3, 5] = np.inf  # this sample counts nothing
    if given == "strided":
        answered = [np.repeat(p.astype(np.float32), 2, 0)[::2] for p in parts]
    else:
        answered = [p.astype(given) for p in parts]
    whole = [np.delete(a.astype(np.float64), 7, 0).reshape(count - 1, -1) for a in answered]
    squares = np.stack([(w * w).sum(1) for w in whole])
    norms = np.sqrt(squares if mode == "per_layer" else np.broadcast_to(squares.sum(0), squares.shape))
    want = [np.minimum(1, 1 / (n + 1e-6)) @ w for n, w in zip(norms, whole)]

    def run(threads: int) -> list[np.ndarray]:
        params = [np.zeros(s, np.float32) for s in shapes]
        opt = tw.Optimizer(params, f"dp_sgd(noise_multiplier=0, expected_batch_size=1, mode={mode}) | sgd(lr=1)")
        before = tw.get_num_threads()
        tw.set_num_threads(threads)
        try:
            for request in opt.requests():
                request.answer_samples(answered)
        finally:
            tw.set_num_threads(before)
        return params

    one, three = run(1), run(3)
    for a, b, w in zip(one, three, want, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(-a.reshape(-1), w, rtol=2**-23, atol=1e-12)  # rounded once, from double
