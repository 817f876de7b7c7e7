"""The references that are not first-order optimizers, against public peers and against the laws of their cards.

Two float64 programs of one formula differ by rounding alone: some 1e-16 an operation, so 1e-12 relative after a few
hundred of them.  Wider tolerances say why where they stand.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from reference import (
    aggregators,
    averages,
    batch_rules,
    constraints,
    diagnostics,
    masks,
    muon,
    perturbations,  # noqa: E402
    regularizers,
    schedules,
    transforms,
)
from reference.base import Reference, every  # noqa: E402

pytest.importorskip("hypothesis")
from hypothesis import given, settings, strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

EXACT = dict(rtol=1e-12, atol=1e-14)
MODULES = (
    aggregators,
    averages,
    batch_rules,
    constraints,
    masks,
    muon,
    perturbations,
    regularizers,
    schedules,
    transforms,
)
laws = settings(max_examples=40, deadline=None)
entries = st.floats(-4, 4, allow_nan=False).map(lambda x: round(x, 6))
vectors = arrays(np.float64, st.integers(1, 8), elements=entries)
matrices = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=entries)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture
def optax() -> Any:
    pytest.importorskip("jax").config.update("jax_enable_x64", True)
    return pytest.importorskip("optax")


def mine() -> list[type]:
    return [c for c in every() if c.__module__ in {m.__name__ for m in MODULES}]


@pytest.mark.parametrize("cls", mine(), ids=lambda c: c.name)
def test_declaration(cls: type[Reference]) -> None:
    required = set(getattr(cls, "required", ()))
    assert not required & set(cls.defaults)
    assert 2 <= len(cls.settings) <= 6
    for s in cls.settings:
        assert required <= set(s) <= required | set(cls.defaults)
        cls(**s)
    with pytest.raises(TypeError):
        cls(no_such_thing=1)


@pytest.mark.parametrize("cls", [*perturbations.Perturbation.__subclasses__(), muon.Muon], ids=lambda c: c.name)
def test_every_setting_of_an_optimizer_descends(cls: type[Reference], rng: np.random.Generator) -> None:
    for s in cls.settings:
        method, params = cls(**s), [rng.standard_normal((4, 3)), rng.standard_normal((2, 3, 2))]
        start = sum(np.sum(w * w) for w in params)
        method.start(params)
        for _ in range(20):
            method.step(params, [w.copy() for w in params], gradient_at=lambda point: [w.copy() for w in point])
        assert sum(np.sum(w * w) for w in params) < start


@pytest.mark.parametrize("cls", [c for c in mine() if c.kind in ("transform", "constraint")], ids=lambda c: c.name)
def test_every_setting_keeps_shapes(cls: type[Reference], rng: np.random.Generator) -> None:
    for s in cls.settings:
        w = rng.standard_normal((4, 3))
        if cls.kind == "constraint":
            outs = [cls(**s).project(w)]
        elif cls is transforms.TrAct:
            outs = cls(**s).transform([w], layers=[(rng.standard_normal((6, 3)), rng.standard_normal((6, 4)))])
        else:
            extra = {"update": [w]} if cls is transforms.Cautious else {"normal": lambda t: [np.ones((4, 3))]}
            outs = cls(**s).transform([w], **extra) or [w]
        assert outs[0].shape == w.shape and np.isfinite(outs[0]).all()


# Schedules


def values(schedule: Any, steps: int) -> np.ndarray:
    return np.array([schedule.value(k) for k in range(steps)])


def torch_rates(torch: Any, make: Callable[[Any], Any], lr: float, steps: int) -> np.ndarray:
    opt = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=lr)
    scheduler, rates = make(opt), []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return np.array(rates)


S = schedules
TORCH_SCHEDULES: dict[str, tuple[Any, Callable[[Any, Any], Any], int]] = {
    "constant": (S.Constant(lr=0.3), lambda L, o: L.ConstantLR(o, 1.0, 5), 12),
    "linear": (S.Linear(lr=0.3, end=0.09, total=15), lambda L, o: L.LinearLR(o, 1.0, 0.3, 15), 25),
    "cosine": (S.Cosine(lr=0.3, end=0.02, total=20), lambda L, o: L.CosineAnnealingLR(o, 20, 0.02), 21),
    "restarts": (
        S.CosineRestarts(lr=0.3, end=0.01, t0=6),
        lambda L, o: L.CosineAnnealingWarmRestarts(o, 6, 1, 0.01),
        40,
    ),
    "restarts x2": (S.CosineRestarts(lr=0.3, t0=4, t_mult=2), lambda L, o: L.CosineAnnealingWarmRestarts(o, 4, 2), 70),
    "exponential": (S.Exponential(lr=0.3, gamma=0.9), lambda L, o: L.ExponentialLR(o, 0.9), 40),
    "step": (S.StepDecay(lr=0.3, gamma=0.5, every=5), lambda L, o: L.StepLR(o, 5, 0.5), 30),
    "milestones": (
        S.StepDecay(lr=0.3, gamma=0.5, milestones=[3, 8, 8, 20]),
        lambda L, o: L.MultiStepLR(o, [3, 8, 8, 20], 0.5),
        30,
    ),
    "polynomial": (S.Polynomial(lr=0.3, total=15, power=2.0), lambda L, o: L.PolynomialLR(o, 15, 2.0), 25),
    "sequential": (
        S.Join(schedules=[S.Exponential(lr=0.3, gamma=0.8), S.StepDecay(lr=0.3, gamma=0.5, every=3)], boundaries=[7]),
        lambda L, o: L.SequentialLR(o, [L.ExponentialLR(o, 0.8), L.StepLR(o, 3, 0.5)], [7]),
        20,
    ),
    "warmup": (
        S.Warmup(warmup_steps=6, start=0.03, inner=S.Exponential(lr=0.3, gamma=0.8)),
        lambda L, o: L.SequentialLR(o, [L.LinearLR(o, 0.1, 1.0, 6), L.ExponentialLR(o, 0.8)], [6]),
        20,
    ),
}
for _anneal, _three in itertools.product(("cos", "linear"), (False, True)):
    TORCH_SCHEDULES[f"one cycle {_anneal} {_three}"] = (
        S.OneCycle(
            lr=0.3, total=33, pct_start=0.35, div_factor=10.0, final_div_factor=50.0, anneal=_anneal, three_phase=_three
        ),
        lambda L, o, a=_anneal, t=_three: L.OneCycleLR(
            o,
            0.3,
            33,
            pct_start=0.35,
            anneal_strategy=a,
            cycle_momentum=False,
            div_factor=10.0,
            final_div_factor=50.0,
            three_phase=t,
        ),
        32,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TORCH_SCHEDULES)
def test_schedule_equals_torch(case: str, torch: Any) -> None:
    ours, make, steps = TORCH_SCHEDULES[case]
    theirs = torch_rates(torch, lambda o: make(torch.optim.lr_scheduler, o), 0.3, steps)
    # torch multiplies the last rate; up to 70 roundings accumulate
    np.testing.assert_allclose(values(ours, steps), theirs, rtol=1e-12, atol=1e-15)


def test_schedule_equals_optax(optax: Any) -> None:
    pairs = [
        (S.Constant(lr=0.3), optax.constant_schedule(0.3)),
        (S.Linear(lr=0.3, end=0.05, total=15), optax.linear_schedule(0.3, 0.05, 15)),
        (S.Linear(lr=0.3, end=0.05, total=15, begin=4), optax.linear_schedule(0.3, 0.05, 15, transition_begin=4)),
        (S.Polynomial(lr=0.3, end=0.05, total=15, power=2.5), optax.polynomial_schedule(0.3, 0.05, 2.5, 15)),
        (S.Cosine(lr=0.3, end=0.03, total=15), optax.cosine_decay_schedule(0.3, 15, alpha=0.1)),
        (S.Exponential(lr=0.3, gamma=0.5, every=7), optax.exponential_decay(0.3, 7, 0.5)),
        (
            S.Exponential(lr=0.3, gamma=0.5, every=7, staircase=True),
            optax.exponential_decay(0.3, 7, 0.5, staircase=True),
        ),
        (S.Exponential(lr=0.3, gamma=0.8, end=0.05), optax.exponential_decay(0.3, 1, 0.8, end_value=0.05)),
        (S.StepDecay(lr=0.3, gamma=0.5, milestones=[3, 8]), optax.piecewise_constant_schedule(0.3, {3: 0.5, 8: 0.5})),
        (
            S.WarmupCosine(peak=0.3, warmup=5, total=20, end=0.02),
            optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 20, 0.02),
        ),
        (
            S.WarmupLinear(peak=0.3, warmup=5, total=20, end=0.02),
            optax.join_schedules([optax.linear_schedule(0.0, 0.3, 5), optax.linear_schedule(0.3, 0.02, 15)], [5]),
        ),
        (
            S.Warmup(warmup_steps=5, start=0.1, inner=S.Cosine(lr=0.3, total=15)),
            optax.warmup_cosine_decay_schedule(0.1, 0.3, 5, 20),
        ),
        (
            S.Join(
                schedules=[S.Constant(lr=0.1), S.Exponential(lr=0.3, gamma=0.8), S.Constant(lr=0.01)],
                boundaries=[4, 15],
            ),
            optax.join_schedules(
                [optax.constant_schedule(0.1), optax.exponential_decay(0.3, 1, 0.8), optax.constant_schedule(0.01)],
                [4, 15],
            ),
        ),
    ]
    for ours, theirs in pairs:
        expected = np.array([float(theirs(np.int64(k))) for k in range(30)])
        np.testing.assert_allclose(values(ours, 30), expected, **EXACT, err_msg=ours.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "shape, peer, end", [("linear", "linear", 0.0), ("sqrt", "1-sqrt", 0.0), ("cosine", "cosine", 0.1)]
)
def test_wsd_equals_pytorch_optimizer(shape: str, peer: str, end: float, torch: Any) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    # its linear and square-root decays head for 0 and jump to the floor at the end: the same schedule only for end = 0
    ours = S.WSD(lr=0.3, end=0.3 * end, warmup_steps=5, stable_steps=8, decay_steps=10, shape=shape)
    theirs = torch_rates(
        torch, lambda o: po.get_wsd_schedule(o, 5, 8, 10, min_lr_ratio=end, cooldown_type=peer), 0.3, 30
    )
    np.testing.assert_allclose(values(ours, 30), theirs, **EXACT)


def test_wsd_begins_its_decay_early() -> None:
    ours = S.WSD(lr=0.3, warmup_steps=2, stable_steps=1000, decay_steps=4)
    ours.begin_decay(10)
    np.testing.assert_allclose(values(ours, 15)[9:], [0.3, 0.3, 0.225, 0.15, 0.075, 0.0], **EXACT)


def test_warmup_counts() -> None:
    late, early = (S.Warmup(warmup_steps=4, inner=0.4, offset=offset) for offset in (0, 1))
    np.testing.assert_allclose(values(late, 6), [0, 0.1, 0.2, 0.3, 0.4, 0.4], **EXACT)
    np.testing.assert_allclose(values(early, 6), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], **EXACT)


def test_inverse_schedules() -> None:
    root = S.InverseSqrt(lr=0.3, warmup_steps=16)
    np.testing.assert_allclose(
        [root.value(0), root.value(8), root.value(16), root.value(64)], [0, 0.15, 0.3, 0.15], **EXACT
    )
    assert S.InverseSqrt(lr=0.3, warmup_steps=0).value(0) == 0.3
    k = np.arange(1, 20_000)
    rates = 1 / (1 + 0.05 * k)
    np.testing.assert_allclose(rates[:50], values(S.InverseTime(lr=1.0, k_decay=0.05), 51)[1:], **EXACT)
    assert rates.sum() > 20 * math.log(900) and (rates**2).sum() < 20  # diverges like log k; below the integral 1/kappa


@pytest.mark.parametrize("h", S.ReduceOnPlateau.settings)
def test_plateau_equals_torch(h: dict[str, Any], torch: Any, rng: np.random.Generator) -> None:
    opt = torch.optim.SGD([torch.zeros(1)], lr=h["lr"])
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **{k: v for k, v in h.items() if k != "lr"})
    ours = S.ReduceOnPlateau(**h)
    cuts = 0
    metrics = 0.3 + np.exp(-np.arange(80) / 15) + 0.1 * rng.standard_normal(80)
    for x in metrics[::-1] if ours.mode == "max" else metrics:
        before = ours.now
        theirs.step(float(x))
        assert ours.observe(float(x)) == opt.param_groups[0]["lr"] == ours.value(3)
        cuts += ours.now < before
    assert cuts


def test_plateau_ignores_nan() -> None:
    ours = S.ReduceOnPlateau(lr=1.0, patience=1, factor=0.5)
    assert [ours.observe(x) for x in (math.nan, math.nan, 1.0)] == [1.0, 0.5, 0.5] and ours.best == 1.0


def test_refined_schedule(rng: np.random.Generator) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    T = 40
    flat = S.RefinedSchedule(norms=[3.0] * T, lr=0.3)
    np.testing.assert_allclose(values(flat, T), 0.3 * (T - np.arange(1, T + 1)) / (T - 1), **EXACT)
    G = 1 + np.abs(rng.standard_normal(T))
    for frac in (0.0, 0.1, 0.3):
        width = 2 * (int(frac * T) // 2) + 1
        pad = 2 * width
        smooth = ndimage.median_filter(np.pad(G, (0, pad), mode="reflect"), size=width, mode="nearest")[:-pad]
        np.testing.assert_array_equal(S.median_filter(G, width), smooth)
        # the authors' closed form: w_t (sum of later weights)/(sum of all)
        w = smooth**-2.0
        tails = w[::-1].cumsum()[::-1]
        authors = np.array([w[t] * tails[t + 1] / tails[0] for t in range(T - 1)] + [0.0])
        raw = S.RefinedSchedule(norms=G, frac=frac, normalize=False).table()
        np.testing.assert_allclose(raw / w.sum(), authors, **EXACT)
        np.testing.assert_allclose(S.RefinedSchedule(norms=G, frac=frac).table(), authors / authors.max(), **EXACT)
    large_first = S.RefinedSchedule(norms=[10.0] * 10 + [1.0] * 30, frac=0.0).table()
    assert large_first[0] < 0.02 and np.argmax(large_first) == 10  # a warm-up appears
    assert np.isfinite(S.RefinedSchedule(norms=[0.0, 0.0, 1.0, 1.0], frac=0.0).table()).all()
    np.testing.assert_allclose(
        S.resample(S.RefinedSchedule(norms=G).table(), T), S.RefinedSchedule(norms=G).table(), **EXACT
    )


@laws
@given(k=st.integers(0, 500), total=st.integers(0, 200), lr=st.floats(0, 1), end=st.floats(0, 1))
def test_decays_stay_between_their_ends(k: int, total: int, lr: float, end: float) -> None:
    lo, hi = min(lr, end), max(lr, end)
    shapes = [
        S.Linear(lr=lr, end=end, total=total),
        S.Cosine(lr=lr, end=end, total=total),
        S.Polynomial(lr=lr, end=end, total=total, power=1.7),
        S.WSD(lr=lr, end=end, warmup_steps=0, stable_steps=10, decay_steps=total),
    ]
    for s in shapes:
        assert lo - 1e-15 <= s.value(k) <= hi + 1e-15
        assert s.value(total + 10_000) == pytest.approx(end, abs=1e-15)
    assert S.Polynomial(lr=lr, end=end, total=total).value(k) == pytest.approx(shapes[0].value(k), rel=1e-12, abs=1e-15)


# Batch sizes


def test_norm_test_closed_form(rng: np.random.Generator) -> None:
    # exact moments: m rows mean + c Z with Z standardised, so that V = c^2 n and the mean is the mean
    m, n, c = 200, 6, 0.7
    Z = rng.standard_normal((m, n))
    Z = (Z - Z.mean(0)) / Z.std(0, ddof=1)
    mean = np.array([0.3, -0.1, 0.2, 0.05, -0.4, 0.1])
    samples = mean + c * Z
    need = c * c * n / (0.25 * mean @ mean)
    assert batch_rules.NormTest(max_batch=10_000).need(samples) == pytest.approx(need, rel=1e-10)
    assert batch_rules.NormTest(max_batch=10_000).batch(samples, 5) == math.ceil(need)
    assert batch_rules.NormTest(max_batch=10_000, coordinate=True).need(samples) == pytest.approx(
        c * c / (0.25 * 0.05**2), rel=1e-9
    )
    assert batch_rules.NormTest(max_batch=10_000).batch(samples, 500) == 500  # never shrinks
    assert batch_rules.NormTest(max_batch=20).batch(samples, 5) == 20
    assert batch_rules.NormTest(max_batch=20).batch(samples[:1], 5) == 5
    assert batch_rules.NormTest(max_batch=99).batch(np.array([[1.0], [-1.0]]), 2) == 99
    every_third = batch_rules.NormTest(max_batch=10_000, interval=3)
    assert [every_third.batch(samples, 5) for _ in range(3)] == [5, 5, math.ceil(need)]


def test_inner_product_test_closed_form(rng: np.random.Generator) -> None:
    m, c = 100, 0.5
    z = rng.standard_normal((m, 2))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T)).T)  # exactly uncorrelated
    samples = np.array([0.2, 0.0]) + c * z  # mean along axis 0: p is the first coordinate, q the second
    plain = batch_rules.InnerProductTest(max_batch=10**6).need(samples)
    assert plain == pytest.approx(0.04 * c * c / (0.25 * 0.04**2), rel=1e-9)
    augmented = batch_rules.InnerProductTest(max_batch=10**6, nu=0.1).need(samples)
    assert augmented == pytest.approx(c * c / (0.01 * 0.04), rel=1e-9) and augmented >= plain


@laws
@given(
    samples=arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=entries),
    size=st.integers(1, 50),
)
def test_batch_grows_and_is_capped(samples: np.ndarray, size: int) -> None:
    for rule in (
        batch_rules.NormTest(max_batch=64),
        batch_rules.NormTest(max_batch=64, coordinate=True),
        batch_rules.InnerProductTest(max_batch=64, nu=1.0),
    ):
        assert size <= rule.batch(samples, size) <= 64


def test_batch_lr_scaling() -> None:
    linear, root = batch_rules.BatchLrScaling(), batch_rules.BatchLrScaling(rule="sqrt")
    assert linear.rescale(0.1, 32, 64) == pytest.approx(0.2) and root.rescale(0.1, 32, 128) == pytest.approx(0.2)
    assert batch_rules.BatchLrScaling(rule="none").rescale(0.1, 32, 64) == 0.1
    assert batch_rules.BatchLrScaling(max_lr=0.15).rescale(0.1, 32, 64) == 0.15
    for rule in (linear, root):
        assert rule.rescale(0.1, 32, 32) == 0.1
        assert rule.rescale(rule.rescale(0.1, 8, 24), 24, 56) == pytest.approx(rule.rescale(0.1, 8, 56), rel=1e-14)
    with pytest.raises(ValueError):
        linear.rescale(0.1, 0, 8)


# Averages


def walk(rng: np.random.Generator, steps: int = 23) -> list[list[np.ndarray]]:
    return [[rng.standard_normal((2, 3)), rng.standard_normal(4)] for _ in range(steps)]


def run(average: Any, points: list[list[np.ndarray]]) -> list[np.ndarray]:
    average.start(points[0])
    for p in points:
        average.update([w.copy() for w in p])
    return average.value()


def close(ours: list[np.ndarray], theirs: list[Any], **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), **(tolerance or EXACT))


def test_ema_warmup_rates() -> None:
    points = [[np.array([x])] for x in (1.0, 2.0, 4.0)]
    a = 0.9 * 1.0  # d_0 = 1/10, d_1 = 2/11, then the bound d = 0.2 instead of 3/12
    a = 2 / 11 * a + 9 / 11 * 2.0
    a = 0.2 * a + 0.8 * 4.0
    close(run(averages.Ema(decay=0.2, warmup=True, first="zero"), points), [np.array([a])])


def test_swa(rng: np.random.Generator) -> None:
    points = walk(rng)
    mean = [np.mean(t, axis=0) for t in zip(*points)]
    close(run(averages.Swa(), points), mean)
    close(run(averages.PolyDecayAverage(gamma=0.0), points), mean)
    close(run(averages.Swa(start=2, freq=4), points), [np.mean(t, axis=0) for t in zip(*points[2::4])])
    with pytest.raises(ValueError):
        run(averages.Swa(start=100), points)


@pytest.mark.parametrize("ema", [False, True])
def test_average_equals_torch(ema: bool, torch: Any, rng: np.random.Generator) -> None:
    utils = torch.optim.swa_utils
    points = walk(rng)
    module = torch.nn.ParameterList([torch.from_numpy(w.copy()) for w in points[0]])
    theirs = utils.AveragedModel(module, multi_avg_fn=utils.get_ema_multi_avg_fn(0.9) if ema else None)
    for point in points:
        with torch.no_grad():
            for p, w in zip(module, point):
                p.copy_(torch.from_numpy(w))
        theirs.update_parameters(module)
    ours = run(averages.Ema(decay=0.9) if ema else averages.Swa(), points)
    close(ours, [p.detach().numpy() for p in theirs.module])


@pytest.mark.parametrize("debias", [False, True])
def test_ema_equals_optax(debias: bool, optax: Any, rng: np.random.Generator) -> None:
    points = walk(rng)
    peer = optax.ema(0.9, debias=debias)
    state = peer.init(points[0])
    for p in points:
        theirs, state = peer.update(p, state)
    close(run(averages.Ema(decay=0.9, first="zero", debias=debias), points), theirs)


@laws
@given(w=vectors, n=st.integers(1, 30), decay=st.floats(0, 0.999), warm=st.booleans())
def test_constant_sequence_comes_out(w: np.ndarray, n: int, decay: float, warm: bool) -> None:
    points = [[w]] * n
    # a debiased value is divided by at least 1 - 0.999 (n = 1), which costs three digits
    for average in (
        averages.Ema(decay=decay, warmup=warm),
        averages.Ema(decay=decay, warmup=warm, first="zero", debias=True),
        averages.PolyDecayAverage(gamma=3.0),
        averages.Swa(),
    ):
        np.testing.assert_allclose(run(average, points)[0], w, rtol=1e-12, atol=1e-15)


def sgd_steps(update: Callable[[list[np.ndarray]], None], w: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """SGD with lr 0.1 and momentum 0.9, followed each time by `update`."""
    params, b = [w.copy()], np.zeros_like(w)
    for g in grads:
        b = 0.9 * b + g
        params[0] -= 0.1 * b
        update(params)
    return params[0]


@pytest.mark.parametrize("k, alpha", [(5, 0.5), (1, 0.8), (4, 0.3)])
def test_lookahead_equals_peers(k: int, alpha: float, torch: Any, optax: Any, rng: np.random.Generator) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    w, grads = rng.standard_normal(6), rng.standard_normal((17, 6))
    ours = averages.Lookahead(k=k, alpha=alpha)
    ours.start([w])
    last = sgd_steps(ours.update, w, grads)

    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    peer = po.Lookahead(torch.optim.SGD([p], lr=0.1, momentum=0.9), k=k, alpha=alpha)
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        peer.step()
    np.testing.assert_allclose(last, p.detach().numpy(), **EXACT)

    peer = optax.lookahead(optax.sgd(0.1, momentum=0.9), k, alpha)
    params = optax.LookaheadParams.init_synced(w)
    state = peer.init(params)
    for g in grads:
        updates, state = peer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(last, params.fast, **EXACT)
    np.testing.assert_allclose(ours.value()[0], params.slow, **EXACT)


def test_lookahead_with_alpha_one_is_the_inner_rule(rng: np.random.Generator) -> None:
    w, grads = rng.standard_normal(6), rng.standard_normal((17, 6))
    ours = averages.Lookahead(k=3, alpha=1.0)
    ours.start([w])
    np.testing.assert_allclose(sgd_steps(ours.update, w, grads), sgd_steps(lambda _: None, w, grads), **EXACT)


# Transforms


def gradients(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((3, 4)), rng.standard_normal(5), rng.standard_normal(())]


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clip_global_norm_equals_torch(p: float, bound: float, torch: Any, rng: np.random.Generator) -> None:
    g = gradients(rng)
    params = [torch.zeros(x.shape, dtype=torch.float64, requires_grad=True) for x in g]
    for q, x in zip(params, g):
        q.grad = torch.from_numpy(np.array(x))
    total = torch.nn.utils.clip_grad_norm_(params, bound, norm_type=p)
    ours = transforms.ClipGlobalNorm(max_norm=bound, norm_type=p, eps=1e-6)
    close(ours.transform(g), [q.grad.numpy() for q in params])
    assert ours.norm == pytest.approx(float(total), rel=1e-13)


def test_clips_equal_optax_and_torch(optax: Any, torch: Any, rng: np.random.Generator) -> None:
    g = gradients(rng)
    for bound in (0.5, 100.0):
        peer = optax.clip_by_global_norm(bound)
        close(transforms.ClipGlobalNorm(max_norm=bound).transform(g), peer.update(g, peer.init(g))[0])
    peer = optax.clip(0.3)
    for ours in (transforms.ClipValue(max_value=0.3), transforms.CoordinateClip(threshold=0.3)):
        np.testing.assert_array_equal(
            np.hstack([x.ravel() for x in ours.transform(g)]),
            np.hstack([np.ravel(x) for x in peer.update(g, peer.init(g))[0]]),
        )
    q = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    q.grad = torch.from_numpy(g[1].copy())
    torch.nn.utils.clip_grad_value_([q], 0.3)
    np.testing.assert_array_equal(transforms.ClipValue(max_value=0.3).transform(g)[1], q.grad.numpy())
    assert np.isnan(transforms.ClipValue(max_value=0.3).transform([np.array([np.nan])])[0]).all()


def test_clip_global_norm_laws(rng: np.random.Generator) -> None:
    g = gradients(rng)
    clip = transforms.ClipGlobalNorm(max_norm=0.5)
    out = clip.transform(g)
    assert transforms._global_norm(out, 2.0) == pytest.approx(0.5, rel=1e-14)
    small = transforms.ClipGlobalNorm(max_norm=1e9).transform(g)
    assert all((a == b).all() for a, b in zip(small, g))  # bit for bit
    alone = transforms.ClipGlobalNorm(max_norm=0.5, per_tensor=True).transform(g)
    assert all(np.linalg.norm(x) <= 0.5 * (1 + 1e-15) for x in alone)
    assert (transforms.ClipGlobalNorm().transform([np.zeros(3)])[0] == 0).all()
    assert np.isnan(transforms.ClipGlobalNorm().transform([np.array([np.nan, 1.0])])[0]).all()


@laws
@given(x=vectors, y=vectors, fraction=st.floats(0, 0.95))
def test_coordinate_clip_laws(x: np.ndarray, y: np.ndarray, fraction: float) -> None:
    clip = transforms.CoordinateClip(fraction=fraction)
    out, k = clip.transform([x])[0], min(int(fraction * x.size), x.size - 1)
    order = np.argsort(np.abs(x))
    assert (np.diff(np.abs(out)[order]) >= 0).all()  # the order of magnitudes is kept
    assert np.count_nonzero(out != x) <= k
    assert (np.abs(out[order[: x.size - k]]) == np.abs(x[order[: x.size - k]])).all()
    fixed = transforms.CoordinateClip(threshold=0.5)
    n = min(len(x), len(y))
    a, b = fixed.transform([x[:n], y[:n]])
    assert np.linalg.norm(a - b) <= np.linalg.norm(x[:n] - y[:n]) + 1e-15  # non-expansive


def test_coordinate_clip_nonzero_floor() -> None:
    x = np.array([0.0, 0.0, 0.0, 0.5, -2.0, 0.0])
    assert not transforms.CoordinateClip(fraction=0.5).transform([x])[0].any()
    np.testing.assert_array_equal(
        transforms.CoordinateClip(fraction=0.5, nonzero_floor=True).transform([x])[0], [0, 0, 0, 0.5, -0.5, 0]
    )


def test_gradient_noise(rng: np.random.Generator) -> None:
    draws = [[rng.standard_normal(2000)] for _ in range(11)]
    noise, g = transforms.GradientNoise(eta=0.3, gamma=0.55), [np.ones(2000)]
    for t in range(11):
        out = noise.transform(g, normal=lambda t: draws[t])
        np.testing.assert_allclose(out[0], 1 + math.sqrt(0.3 / (1 + t) ** 0.55) * draws[t][0], **EXACT)
    silent = transforms.GradientNoise(eta=0.0).transform(g, normal=lambda t: draws[t])
    assert (silent[0] == g[0]).all()


@laws
@given(u=vectors, data=st.data())
def test_cautious_laws(u: np.ndarray, data: Any) -> None:
    g = data.draw(arrays(np.float64, u.shape, elements=entries))
    for scale in ("mean", "count", "none"):
        out = transforms.Cautious(scale=scale).transform([g], update=[u])[0]
        assert (out * g >= 0).all() and (out[u * g <= 0] == 0).all()
    kept = np.count_nonzero(u * g > 0)
    if kept:  # the scale of `mean` keeps the sum of a constant update
        assert np.sum(transforms.Cautious().transform([g], update=[np.sign(u)])[0] * np.sign(u)) == pytest.approx(
            u.size
        )
    rare = np.where(np.arange(2000) == 5, 1.0, -1.0)  # one in 2000 agrees: the divisor stays at 1e-3
    assert transforms.Cautious().transform([np.ones(2000)], update=[rare])[0][5] == pytest.approx(1000)
    same = transforms.Cautious().transform([np.sign(u) + 0.0], update=[u])[0]
    if (u != 0).all():
        assert (same == u).all()


def test_cautious_equals_pytorch_optimizer(torch: Any, rng: np.random.Generator) -> None:
    pytest.importorskip("pytorch_optimizer")
    from pytorch_optimizer.base.optimizer import BaseOptimizer

    u, g = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    theirs = torch.from_numpy(u.copy())
    BaseOptimizer.apply_cautious(theirs, torch.from_numpy(g))
    close(transforms.Cautious(scale="count").transform([g], update=[u]), [theirs.numpy()])


def test_accumulate(optax: Any, rng: np.random.Generator) -> None:
    stream = [gradients(rng) for _ in range(8)]
    ours, peer = transforms.GradientAccumulate(every=4), optax.MultiSteps(optax.sgd(1.0), 4, accumulator_dtype=None)
    state = peer.init(stream[0])
    for i, g in enumerate(stream):
        out = ours.transform(g)
        theirs, state = peer.update(g, state)
        assert (out is None) == (i % 4 != 3)
        if out is not None:
            close(out, [-np.asarray(t) for t in theirs])
    pooled = transforms.GradientAccumulate(every=3, mode="weighted")
    per_sample = rng.standard_normal((10, 5))
    parts = np.split(per_sample, [2, 5])
    outs = [pooled.transform([p.mean(axis=0)], count=len(p)) for p in parts]
    close(outs[-1], [per_sample.mean(axis=0)])
    short = transforms.GradientAccumulate(every=4)
    short.transform(stream[0])
    close(short.flush(), stream[0])
    assert short.flush() is None


@pytest.mark.parametrize("n, inputs", [(30, 5), (4, 9)])
def test_tract(n: int, inputs: int, rng: np.random.Generator) -> None:
    X, G, lam = rng.standard_normal((n, inputs)), rng.standard_normal((n, 3)), 0.1
    dW = transforms.TrAct(lam=lam).gradient(X, G)
    np.testing.assert_allclose(dW @ (X.T @ X / n + lam * np.eye(inputs)), G.T @ X, rtol=1e-10, atol=1e-11)
    dual = np.linalg.solve(X @ X.T / n + lam * np.eye(n), G).T @ X
    np.testing.assert_allclose(dW, dual, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(
        transforms.TrAct(lam=1e9).gradient(X, G) * 1e9, G.T @ X, rtol=1e-6
    )  # first order in 1/lam
    if n > inputs:
        fit = np.linalg.lstsq(X, n * G, rcond=None)[0].T
        np.testing.assert_allclose(
            transforms.TrAct(lam=1e-9).gradient(X, G), fit, rtol=1e-6, atol=1e-6
        )  # first order in lam
    assert not transforms.TrAct().gradient(0 * X, G).any()


# Diagnostics


def nearest_zero(z: np.ndarray, a: np.ndarray) -> float:
    """The smallest |tau| with sum_k exp(z_k + a_k tau) = 0, for integer a: roots x = e^tau of a polynomial."""
    powers = (a - a.min()).astype(int)
    c = np.zeros(powers.max() + 1)
    np.add.at(c, powers.max() - powers, np.exp(z))
    roots = np.roots(c)
    return float(np.abs(np.log(roots[roots != 0].astype(complex))).min())


@laws
@given(
    a=arrays(np.int64, st.integers(2, 5), elements=st.integers(-3, 3)).filter(lambda a: np.ptp(a) > 0),
    seed=st.integers(0, 99),
)
def test_ghost_radius_is_safe(a: np.ndarray, seed: int) -> None:
    z = np.random.default_rng(seed).standard_normal(len(a))
    radius, _ = diagnostics.ghost_step(a[None].astype(float), 1e9, z[None])
    true = nearest_zero(z, a)
    assert radius <= true * (1 + 1e-6)  # roots of multiplicity cost digits
    if len(a) == 2:
        assert radius == pytest.approx(true, rel=1e-6)


def test_ghost_step(rng: np.random.Generator) -> None:
    step, a = diagnostics.ghost_step, rng.standard_normal((6, 4))
    rho = np.pi / np.ptp(a, axis=1)
    assert step(a, 1e9)[0] == pytest.approx(rho.min()) and step(a, 1e-3) == (1e-3, pytest.approx(1e-3 / rho.min()))
    assert step(a, 1e-3, mode="set", safety=0.5)[0] == pytest.approx(rho.min() / 2)
    assert step(a, 1e9, quantile=0.5)[0] == pytest.approx(np.sort(rho)[2])
    assert step(3.0 * a, 1e9)[0] == pytest.approx(rho.min() / 3)  # radius scales against the direction
    assert step(0 * a, 0.7, mode="set") == (0.7, 0.0) and step(np.zeros((0, 4)), 0.7) == (0.7, 0.0)
    z, b = rng.standard_normal((6, 1)), rng.standard_normal((6, 1))
    two = step(np.hstack([b, 0 * b]), 1e9, np.hstack([z, 0 * z]))
    assert step(b, 1e9, z) == two and step(b, 1e9)[0] < two[0]
    with pytest.raises(ValueError):
        step(np.array([[np.nan, 1.0]]), 1.0)


# Regularizers

CONVEX = [regularizers.L1, regularizers.L2, regularizers.ElasticNet, regularizers.GroupLasso, regularizers.NuclearNorm]
PENALTIES = [(c, h) for c in CONVEX + [regularizers.NormLoss] for h in c.settings]
penalties = pytest.mark.parametrize("cls, h", PENALTIES, ids=lambda x: x.name if isinstance(x, type) else str(x))


def inputs(cls: type, rng: np.random.Generator) -> list[np.ndarray]:
    shapes: list[tuple[int, ...]] = [(4, 3), (2, 3, 2)]
    return [rng.standard_normal(s) for s in shapes + ([] if cls.shapes == "matrix" else [(7,), (1,)])]


@penalties
def test_gradient_is_that_of_the_value(cls: type, h: dict[str, Any], rng: np.random.Generator) -> None:
    if h.get("rtol", 0) > 0.1:
        pytest.skip("a subgradient of a truncated spectrum")
    penalty = cls(**h)
    for w in inputs(cls, rng):
        d, s = rng.standard_normal(w.shape), 1e-6
        slope = (penalty.value(w + s * d) - penalty.value(w - s * d)) / (2 * s)
        # central difference: s^2 |f'''| + 1e-16 |f|/s, both near 1e-10 for |f| of order 1
        assert np.sum(penalty.gradient(w) * d) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert not penalty.gradient(np.zeros((3, 2))).any()
    assert penalty.value(np.zeros((0, 3))) == 0


@penalties
def test_prox_is_optimal(cls: type, h: dict[str, Any], rng: np.random.Generator) -> None:
    penalty = cls(**({**h, "eps": 0.0} if cls is regularizers.NormLoss else h))
    for w, t in itertools.product(inputs(cls, rng), (0.1, 2.0)):
        u = penalty.prox(w, t)
        best = np.sum((u - w) ** 2) / 2 + t * penalty.value(u)
        for scale in (1e-4, 1e-2, 1.0):
            for _ in range(20):
                v = u + scale * rng.standard_normal(w.shape)
                assert np.sum((v - w) ** 2) / 2 + t * penalty.value(v) >= best - 1e-12
        assert (penalty.prox(w, 0.0) == w).all()


@pytest.mark.parametrize("cls", CONVEX, ids=lambda c: c.name)
def test_prox_is_firmly_nonexpansive(cls: type, rng: np.random.Generator) -> None:
    for h, _ in itertools.product(cls.settings, range(10)):
        penalty, (x, y) = cls(**h), 2 * rng.standard_normal((2, 4, 3))
        p, q = penalty.prox(x, 1.3), penalty.prox(y, 1.3)
        assert np.sum((p - q) ** 2) <= np.sum((p - q) * (x - y)) + 1e-12


def test_regularizers_special_cases(rng: np.random.Generator) -> None:
    R, w = regularizers, rng.standard_normal((4, 6))
    for ratio, other in ((0.0, R.L2(weight=0.3)), (1.0, R.L1(weight=0.3))):
        net = R.ElasticNet(weight=0.3, l1_ratio=ratio)
        assert net.value(w) == pytest.approx(other.value(w))
        close([net.gradient(w), net.prox(w, 0.7)], [other.gradient(w), other.prox(w, 0.7)])
    assert (R.GroupLasso(weight=1e9).prox(w, 1.0) == 0).all()
    tiny = 1e-200 * np.ones((2, 3))
    assert R.GroupLasso(weight=1.0).value(tiny) == pytest.approx(2 * math.sqrt(3) * math.sqrt(3) * 1e-200)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    rowwise, nuclear = R.GroupLasso(weight=0.3), R.NuclearNorm(weight=0.3)
    for penalty in (rowwise, nuclear):  # invariant under a rotation of the columns
        assert penalty.value(w @ Q) == pytest.approx(penalty.value(w))
        close([penalty.prox(w @ Q, 0.7)], [penalty.prox(w, 0.7) @ Q], rtol=1e-10, atol=1e-12)
    u, target = w.copy(), R.NormLoss(weight=0.5)
    for _ in range(60):  # each prox halves the distance of |w_r| to 1
        u = target.prox(u, 1.0)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(target.gradient(u), 0.0, atol=1e-8)
    assert not target.prox(np.zeros((2, 2)), 1.0).any()
    with pytest.raises(ValueError):
        nuclear.value(np.ones(3))


def test_elastic_net_equals_sklearn(rng: np.random.Generator) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    # X = sqrt(n) I turns |y - X w|^2/(2 n) + penalty into the prox problem at y/sqrt(n)
    n = 12
    y = 3 * rng.standard_normal(n)
    for ratio in (0.3, 1.0):
        fit = linear_model.ElasticNet(alpha=0.4, l1_ratio=ratio, fit_intercept=False, tol=1e-14).fit(
            math.sqrt(n) * np.eye(n), y
        )
        ours = regularizers.ElasticNet(weight=0.4, l1_ratio=ratio).prox(y / math.sqrt(n), 1.0)
        np.testing.assert_allclose(ours, fit.coef_, rtol=1e-12, atol=1e-13)


def test_nuclear_norm_equals_torch(torch: Any, rng: np.random.Generator) -> None:
    w = rng.standard_normal((5, 3))
    x = torch.from_numpy(w).requires_grad_()
    value = 0.3 * torch.linalg.matrix_norm(x, "nuc")
    value.backward()
    ours = regularizers.NuclearNorm(weight=0.3)
    assert ours.value(w) == pytest.approx(value.item(), rel=1e-13)
    U, s, Vt = np.linalg.svd(w, full_matrices=False)
    top = regularizers.NuclearNorm(weight=0.3, rtol=(s[0] + s[1]) / 2 / s[0]).gradient(w)
    np.testing.assert_allclose(top, 0.3 * np.outer(U[:, 0], Vt[0]), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.gradient(w), x.grad.numpy(), rtol=1e-10, atol=1e-12)


# Constraints

SETS: list[tuple[Any, Callable[[np.ndarray], bool]]] = [
    (constraints.Box(lo=-0.2, hi=0.5), lambda p: bool(((p >= -0.2) & (p <= 0.5)).all())),
    (constraints.Simplex(radius=1.5), lambda p: bool((p >= 0).all() and abs(p.sum() - 1.5) < 1e-12)),
    (constraints.Simplex(axis=0), lambda p: bool((p >= 0).all() and np.allclose(p.sum(0), 1, atol=1e-12))),
    (constraints.L2Ball(radius=0.7), lambda p: bool(np.linalg.norm(p) <= 0.7 * (1 + 1e-14))),
    (constraints.L2Ball(radius=0.7, axis=-1), lambda p: bool((np.linalg.norm(p, axis=-1) <= 0.7 * (1 + 1e-14)).all())),
    (
        constraints.L2Ball(radius=0.7, center=np.array(0.4)),
        lambda p: bool(np.linalg.norm(p - 0.4) <= 0.7 * (1 + 1e-14)),
    ),
]


@laws
@given(w=matrices, data=st.data())
def test_projection_laws(w: np.ndarray, data: Any) -> None:
    v = data.draw(arrays(np.float64, w.shape, elements=entries))
    for C, inside in SETS:
        p, q = C.project(w), C.project(v)
        assert inside(p)
        np.testing.assert_allclose(C.project(p), p, rtol=1e-14, atol=1e-14)  # idempotent
        assert np.sum((w - p) * (q - p)) <= 1e-12 * (1 + np.sum(w * w))  # variational inequality: p is nearest
        assert np.linalg.norm(p - q) <= np.linalg.norm(w - v) + 1e-13  # non-expansive
        best = C.lmo(w)
        assert inside(best) and np.sum(w * best) <= np.sum(w * q) + 1e-12


def test_projections_equal_optax(optax: Any, rng: np.random.Generator) -> None:
    w, P, C = 2 * rng.standard_normal(9), optax.projections, constraints
    close(
        [
            C.Box(lo=-0.2, hi=0.5).project(w),
            C.Simplex(radius=1.5).project(w),
            C.L2Ball(radius=0.7).project(w),
            C.L2Ball(radius=70.0).project(w),
        ],
        [
            P.projection_box(w, -0.2, 0.5),
            P.projection_simplex(w, 1.5),
            P.projection_l2_ball(w, 0.7),
            P.projection_l2_ball(w, 70.0),
        ],
    )


def test_projection_edges() -> None:
    C, inside = constraints, np.array([0.25, 0.5, 0.25])
    assert (C.Simplex().project(inside) == inside).all() and C.Simplex().project(np.zeros(0)).size == 0
    np.testing.assert_array_equal(C.Simplex().lmo(np.array([2.0, 1.0, 1.0])), [0, 1, 0])  # the lowest index
    assert not C.L2Ball(radius=0.0).project(inside).any()
    np.testing.assert_array_equal(C.Box(lo=0.0, hi=np.inf).project(np.array([-1.0, 2.0])), [0, 2])
    with pytest.raises(ValueError):
        C.Box(lo=0.0, hi=np.inf).lmo(np.array([-1.0]))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4), (3, 2, 4)])
@pytest.mark.parametrize("h", constraints.Stiefel.settings, ids=str)
def test_stiefel(h: dict[str, Any], shape: tuple[int, ...], rng: np.random.Generator) -> None:
    M = constraints.Stiefel(**h)

    def defect(x: np.ndarray) -> float:
        X = x.reshape(shape[0], -1)
        return float(np.abs((X.T @ X if X.shape[0] >= X.shape[1] else X @ X.T) - np.eye(min(X.shape))).max())

    w = rng.standard_normal(shape)
    x = M.project(w)
    assert defect(x) < 1e-13
    np.testing.assert_allclose(M.project(x), x, atol=1e-13)
    for _ in range(30):  # nearest: no other point of the manifold is nearer
        assert np.linalg.norm(w - x) <= np.linalg.norm(w - M.project(w + rng.standard_normal(shape))) + 1e-12
    u, v, g = M.proj(x, rng.standard_normal(shape)), M.proj(x, rng.standard_normal(shape)), rng.standard_normal(shape)
    np.testing.assert_allclose(M.proj(x, u), u, atol=1e-13)
    assert np.sum((g - M.proj(x, g)) * v) == pytest.approx(0, abs=1e-12)
    r = M.egrad2rgrad(x, g)
    np.testing.assert_allclose(M.proj(x, r), r, atol=1e-12)  # tangent
    assert M.inner(x, r, v) == pytest.approx(np.sum(g * v), abs=1e-12)  # Riesz
    assert defect(M.retract(x, u)) < 1e-13
    # first order: the error of a step t u is t^2 times a constant near 1
    t = 1e-4
    assert np.linalg.norm(M.retract(x, t * u) - (x + t * u)) < 20 * t * t * (1 + np.linalg.norm(u) ** 2)
    assert M.transport(x, M.retract(x, u), v).shape == shape
    assert defect(M.project(np.zeros(shape))) < 1e-13


def test_stiefel_finds_the_smallest_eigenvectors(rng: np.random.Generator) -> None:
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    A, N = Q @ np.diag([1.0, 2, 3, 6, 7, 8]) @ Q.T, np.diag([2.0, 1.0])  # Brockett: tr(X'A X N)
    for retraction in ("qr", "polar", "cayley"):
        M = constraints.Stiefel(retraction=retraction)
        x = M.project(rng.standard_normal((6, 2)))
        for _ in range(400):
            x = M.retract(x, -0.05 * M.egrad2rgrad(x, 2 * A @ x @ N))
        np.testing.assert_allclose(np.abs(Q[:, :2].T @ x), np.eye(2), atol=1e-6)


# Masks


@laws
@given(
    n=st.integers(1, 4),
    w=arrays(np.float64, st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 12])), elements=entries),
)
def test_nm_mask_laws(n: int, w: np.ndarray) -> None:
    M = masks.NMSparsity(n=n, m=4, decay=0.05)
    mask = M.mask(w)
    groups, magnitudes = mask.reshape(-1, 4), np.abs(w).reshape(-1, 4)
    assert (groups.sum(axis=1) == n).all()
    for keep, x in zip(groups.astype(bool), magnitudes):
        assert set(np.flatnonzero(keep)) == set(
            sorted(range(4), key=lambda i: (-x[i], i))[:n]
        )  # ties to the lower index
    np.testing.assert_array_equal(M.forward(M.forward(w)), M.forward(w))
    np.testing.assert_array_equal(M.gradient(np.ones_like(w), w), np.where(mask == 1, 1.0, 1 + 0.05 * w))


def test_nm_mask_axes(rng: np.random.Generator) -> None:
    kernel = rng.standard_normal((2, 8, 3, 3))
    assert (masks.NMSparsity().mask(kernel).reshape(2, 2, 4, 3, 3).sum(axis=2) == 2).all()  # input channels
    w = rng.standard_normal((8, 3))
    np.testing.assert_array_equal(masks.NMSparsity(axis=0).mask(w), masks.NMSparsity().mask(w.T).T)
    with pytest.raises(ValueError):
        masks.NMSparsity().mask(w)


# Aggregators


def test_pcgrad_equals_torchjd(torch: Any, rng: np.random.Generator) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    for m in (2, 3, 5):
        J = rng.standard_normal((m, 7)) - 0.3
        torch.manual_seed(3)
        theirs = aggregation.PCGrad()(torch.from_numpy(J)).numpy()
        torch.manual_seed(3)
        orders = np.array([torch.randperm(m).numpy() for _ in range(m)])
        np.testing.assert_allclose(J.T @ aggregators.PCGrad().weights(J, permutations=orders), theirs, **EXACT)


def test_pcgrad_equals_its_definition(rng: np.random.Generator) -> None:
    J = np.vstack([rng.standard_normal((4, 6)), np.zeros(6)])
    orders = np.array([rng.permutation(5) for _ in range(5)])
    rows = []
    for i in range(5):
        r = J[i].copy()
        for j in orders[i]:
            if j != i and r @ J[j] < 0:
                r -= (r @ J[j]) / (J[j] @ J[j]) * J[j]
        rows.append(r)
    np.testing.assert_allclose(
        J.T @ aggregators.PCGrad().weights(J, permutations=orders), np.sum(rows, axis=0), **EXACT
    )
    np.testing.assert_allclose(
        J.T @ aggregators.PCGrad(reduction="mean").weights(J, permutations=orders), np.mean(rows, axis=0), **EXACT
    )
    pair = J[:2] * [[1], [-1 if J[0] @ J[1] > 0 else 1]]
    assert (pair @ pair.T @ aggregators.PCGrad().weights(pair) >= -1e-13).all()  # m = 2 conflicts with neither


@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_upgrad_equals_torchjd(m: int, torch: Any, rng: np.random.Generator) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    for n in (3, 20):
        J = rng.standard_normal((m, n))
        theirs = aggregation.UPGrad()(torch.from_numpy(J)).numpy()
        # torchjd solves by quadprog with a condition of 1e4: 1e-16 * 1e4, and some
        np.testing.assert_allclose(J.T @ aggregators.UPGrad().weights(J), theirs, rtol=1e-9, atol=1e-10)


def exhaustive(G: np.ndarray, u: np.ndarray) -> np.ndarray:
    """argmin v'Gv with v >= u, by trying every active set of a positive definite G."""
    m = len(G)
    best, value = u, math.inf
    for size in range(m + 1):
        for free in map(list, itertools.combinations(range(m), size)):
            s = np.zeros(m)
            s[free] = -np.linalg.solve(G[np.ix_(free, free)], (G @ u)[free]) if free else 0.0
            v = u + s
            if (s >= -1e-13).all() and v @ G @ v < value:
                best, value = v, v @ G @ v
    return best


@laws
@given(
    J=arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=entries),
    reg=st.sampled_from([1e-4, 0.01]),
)
def test_upgrad_solves_its_problems(J: np.ndarray, reg: float) -> None:
    ours = aggregators.UPGrad(reg_eps=reg)
    G, m = ours.gramian(J), len(J)
    for u, v in zip(np.eye(m) / m, ours.duals(J)):
        multipliers = G @ v
        assert (v >= u - 1e-13).all() and (multipliers >= -1e-12).all()  # feasible, both sides
        # complementary; s = v - u may be as large as 1/reg, and multiplies the rounding of G v
        assert abs(multipliers @ (v - u)) <= 1e-12 * (1 + np.abs(v).max())
        np.testing.assert_allclose(v, exhaustive(G, u), rtol=1e-10, atol=1e-10)  # rounding times a condition up to 1e4


def test_upgrad_laws(rng: np.random.Generator) -> None:
    U = aggregators.UPGrad
    for _ in range(10):
        J = rng.standard_normal((3, 5))
        assert (J @ J.T @ U(reg_eps=0.0).weights(J) >= -1e-10).all()  # no conflict without the regularisation
        a, b = J[:2] * [[1], [-1 if J[0] @ J[1] > 0 else 1]]  # m = 2: the mean of mutual projections
        mutual = ((a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)) / 2
        np.testing.assert_allclose(
            np.array([a, b]).T @ U(reg_eps=0.0).weights(np.array([a, b])), mutual, rtol=1e-10, atol=1e-11
        )
    agreeing = np.abs(rng.standard_normal((4, 6)))
    np.testing.assert_allclose(U(reg_eps=0.0).weights(agreeing), 0.25, rtol=1e-13)  # then the mean, exactly
    np.testing.assert_allclose(
        U(pref=[0.1, 0.2, 0.3, 0.4], reg_eps=0.0).weights(agreeing), [0.1, 0.2, 0.3, 0.4], rtol=1e-13
    )
    for J in (np.zeros((3, 4)), 1e-6 * rng.standard_normal((3, 4))):  # the trace is below norm_eps
        np.testing.assert_allclose(U().weights(J), 1 / 3, rtol=1e-13)
    twin = np.vstack([agreeing[0] - 1, agreeing[0] - 1, -agreeing[1]])  # duplicate rows, singular G
    assert (twin @ twin.T @ U(reg_eps=0.0).weights(twin) >= -1e-10).all()
    assert np.isnan(U().weights(np.array([[np.nan, 1.0], [0.0, 1.0]]))).all()


# Perturbations


class Quartic:
    """sum_i l_i w_i^2/2 + q sum w^4/4 over two tensors: a smooth toy with a known Hessian."""

    def __init__(self, rng: np.random.Generator, q: float = 0.3) -> None:
        self.q, self.l = q, [np.linspace(0.5, 2.0, 6).reshape(2, 3), np.linspace(1.0, 3.0, 4)]
        self.w = [rng.standard_normal((2, 3)), rng.standard_normal(4)]

    def gradient(self, w: list[Any]) -> list[Any]:
        return [l * x + self.q * x**3 for l, x in zip(self.l, w)]

    def product(self, w: list[np.ndarray], v: list[np.ndarray]) -> list[np.ndarray]:
        return [(l + 3 * self.q * x * x) * y for l, x, y in zip(self.l, w, v)]


def flat(x: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([a.ravel() for a in x])


def loop(method: Any, toy: Quartic, steps: int) -> list[np.ndarray]:
    params = [w.copy() for w in toy.w]
    method.start(params)
    for _ in range(steps):
        method.step(params, toy.gradient(params), gradient_at=toy.gradient)
    return params


def test_sam_equals_peers(torch: Any, optax: Any, rng: np.random.Generator) -> None:
    po, contrib = pytest.importorskip("pytorch_optimizer"), pytest.importorskip("optax.contrib")
    toy, steps = Quartic(rng), 15
    ours = loop(perturbations.SAM(rho=0.3), toy, steps)

    params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in toy.w]
    peer = po.SAM(params, torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)

    def fill() -> None:
        for p, g in zip(params, toy.gradient([p.detach() for p in params])):
            p.grad = torch.as_tensor(g)

    toy.l = [torch.from_numpy(l) for l in toy.l]
    for _ in range(steps):
        fill()
        peer.first_step()
        fill()
        peer.second_step()
    toy.l = [np.asarray(l) for l in toy.l]
    close(ours, [p.detach().numpy() for p in params], rtol=1e-6, atol=1e-7)  # its norm is a float32 number

    point: list[Any] = [w.copy() for w in toy.w]
    peer = contrib.sam(
        optax.sgd(0.1, momentum=0.9), optax.chain(contrib.normalize(), optax.sgd(0.3)), sync_period=2, opaque_mode=True
    )
    state = peer.init(point)
    for _ in range(steps):
        updates, state = peer.update(toy.gradient(point), state, point, grad_fn=lambda p, _: toy.gradient(p))
        point = optax.apply_updates(point, updates)
    close(ours, point, rtol=1e-9, atol=1e-10)  # no eps in its norm (1e-12 relative), in 15 steps


def test_sam_laws(rng: np.random.Generator) -> None:
    toy = Quartic(rng)
    g, seen = toy.gradient(toy.w), []

    def watch(point: list[np.ndarray]) -> list[np.ndarray]:
        seen.append(flat(point) - flat(toy.w))
        return toy.gradient(point)

    n = np.linalg.norm(flat(g))
    errors = []
    for rho in (1e-2, 5e-3):
        out = perturbations.SAM(rho=rho).perturbed(toy.w, g, watch)
        assert np.linalg.norm(seen[-1]) == pytest.approx(rho, rel=1e-10)
        predicted = flat(g) + rho / n * flat(toy.product(toy.w, g))
        errors.append(np.linalg.norm(flat(out) - predicted))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # O(rho^2)
    perturbations.SAM(rho=0.1, norm="linf").perturbed(toy.w, g, watch)
    np.testing.assert_allclose(seen[-1], 0.1 * np.sign(flat(g)), atol=1e-15)
    zero = [np.zeros_like(w) for w in toy.w]
    assert not flat(perturbations.SAM(eps=0.0).perturbed(zero, toy.gradient(zero), toy.gradient)).any()
    close(loop(perturbations.SAM(rho=0.0), toy, 5), loop(perturbations.FdGradReg(gamma=0.0), toy, 5))


@pytest.mark.parametrize("radius, attracted", [(0.1, True), (1.0, False)])
def test_sam_near_a_saddle(radius: float, attracted: bool) -> None:
    l, rho = np.array([-1.0]), 0.5
    w = np.array([radius])
    out = perturbations.SAM(rho=rho).perturbed([w], [l * w], lambda p: [l * p[0]])[0]
    assert (w - 0.01 * out)[0] == pytest.approx((w * (1 - 0.01 * l * (1 + rho * l / abs(l * w))))[0])
    assert (abs(w - 0.01 * out)[0] < radius) == attracted


@pytest.mark.parametrize("scheme, order", [("forward", 1), ("backward", 1), ("central", 2)])
@pytest.mark.parametrize("step", ["absolute", "relative"])
def test_fd_grad_reg(scheme: str, order: int, step: str, rng: np.random.Generator) -> None:
    toy = Quartic(rng)
    g = toy.gradient(toy.w)
    exact = flat(g) + 0.1 * flat(toy.product(toy.w, g))
    errors = [
        np.linalg.norm(
            flat(
                perturbations.FdGradReg(gamma=0.1, eps=eps, scheme=scheme, step=step).perturbed(toy.w, g, toy.gradient)
            )
            - exact
        )
        for eps in (1e-3, 5e-4)
    ]
    # the quartic has a constant fourth derivative, so the next term of the error is small
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)
    zero = [np.zeros_like(w) for w in toy.w]
    assert not flat(
        perturbations.FdGradReg(scheme=scheme, step=step).perturbed(zero, toy.gradient(zero), toy.gradient)
    ).any()


def test_fd_grad_reg_with_gamma_equal_step_is_unnormalised_sam(rng: np.random.Generator) -> None:
    toy = Quartic(rng)
    g = toy.gradient(toy.w)
    ascended = toy.gradient([w + 0.05 * x for w, x in zip(toy.w, g)])
    close(perturbations.FdGradReg(gamma=0.05, eps=0.05).perturbed(toy.w, g, toy.gradient), ascended)


# Muon


def muon_run(h: dict[str, Any], start: list[np.ndarray], stream: list[list[np.ndarray]]) -> list[np.ndarray]:
    ours, params = muon.Muon(**h), [w.copy() for w in start]
    ours.start(params)
    for g in stream:
        ours.step(params, g)
    return params


@pytest.mark.parametrize("h", [{}, {"nesterov": False, "weight_decay": 0.0}, {"adjust_lr": "match_rms_adamw"}], ids=str)
def test_muon_equals_torch(h: dict[str, Any], torch: Any, rng: np.random.Generator) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start = [rng.standard_normal(s) for s in ((8, 5), (5, 8))]
    stream = [[rng.standard_normal(w.shape) for w in start] for _ in range(4)]
    params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    peer = torch.optim.Muon(
        params, lr=0.02, adjust_lr_fn=h.get("adjust_lr"), **{k: v for k, v in h.items() if k != "adjust_lr"}
    )
    for g in stream:
        for p, x in zip(params, g):
            p.grad = torch.from_numpy(x.copy())
        peer.step()
    ours = muon_run({"lr": 0.02, **h}, start, stream)
    # bfloat16 (2^-9 a rounding) through five quintics of slope up to 3.4: a few percent of the step
    for a, p, w in zip(ours, params, start):
        step = np.abs(a - w).max()
        np.testing.assert_allclose(a, p.detach().numpy(), rtol=0, atol=0.05 * step)


@pytest.mark.parametrize("rms", [None, 0.2])
def test_muon_equals_optax(rms: float | None, optax: Any, rng: np.random.Generator) -> None:
    contrib = pytest.importorskip("optax.contrib")
    start = [rng.standard_normal(s) for s in ((8, 5), (4, 7))]
    stream = [[rng.standard_normal(w.shape) for w in start] for _ in range(6)]
    peer = contrib.muon(0.02, eps=1e-30, weight_decay=0.1, nesterov=False, consistent_rms=rms)
    point: list[Any] = [w.T for w in start]  # its weights are (in, out)
    state = peer.init(point)
    for g in stream:
        updates, state = peer.update([x.T for x in g], state, point)
        point = optax.apply_updates(point, updates)
    h = {"lr": 0.02, "nesterov": False, "eps": 1e-30, "adjust_lr": "original" if rms is None else "match_rms_adamw"}
    # without eps the orthogonal factor does not see its bias correction: only rounding is left
    close(muon_run(h, start, stream), [np.asarray(p).T for p in point], rtol=1e-11, atol=1e-12)


def test_orthogonalize_equals_optax(optax: Any, rng: np.random.Generator) -> None:
    module = pytest.importorskip("optax.contrib._muon")
    jnp = pytest.importorskip("jax.numpy")
    for shape in ((6, 4), (4, 6), (5, 5)):
        M = rng.standard_normal(shape)
        for name, steps in (("simple", 5), ("quintic", 5)):
            C = muon.PRESETS[name]
            coefficients = jnp.asarray(C[0] if len(C) == 1 else C, dtype=jnp.float64)
            theirs = module.orthogonalize_via_newton_schulz(jnp.asarray(M), coefficients, steps, eps=1e-7)
            np.testing.assert_allclose(muon.orthogonalize(M, ns_coefficients=name), theirs, rtol=1e-10, atol=1e-12)


def test_orthogonalize_laws(rng: np.random.Generator) -> None:
    O = muon.orthogonalize
    M = rng.standard_normal((7, 4))
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    np.testing.assert_allclose(O(M, ns_coefficients="cubic", ns_steps=60), U @ Vt, atol=1e-8)
    np.testing.assert_allclose(O(M, method="svd"), U @ Vt, atol=1e-13)
    for name in muon.PRESETS:
        np.testing.assert_allclose(O(M.T, ns_coefficients=name), O(M, ns_coefficients=name).T, atol=1e-13)
    for seed in range(5):
        s = np.linalg.svd(O(np.random.default_rng(seed).standard_normal((12, 6))), compute_uv=False)
        assert 0.67 < s.min() and s.max() < 1.15  # about [0.68, 1.14]
    assert not O(np.zeros((3, 2))).any() and not O(np.zeros((3, 2)), eps_mode="clamp").any()
    low = np.outer(rng.standard_normal(5), rng.standard_normal(4))
    assert np.linalg.matrix_rank(O(low), tol=1e-8) == np.linalg.matrix_rank(O(low, method="svd"), tol=1e-8) == 1
    C = ((3.0, -3.2, 1.2), (1.5, -0.5, 0.0))  # the last triple repeats; of too many the first are used
    np.testing.assert_array_equal(
        O(M, ns_coefficients=C, ns_steps=4), O(M, ns_coefficients=(*C, C[1], C[1]), ns_steps=4)
    )
    np.testing.assert_array_equal(O(M, ns_coefficients=C, ns_steps=1), O(M, ns_coefficients=C[0], ns_steps=1))
    with_safety = O(M, ns_coefficients="polar_express")
    np.testing.assert_allclose(with_safety, O(M, ns_coefficients=muon.PRESETS["polar_express"], safety=1.02), **EXACT)


def test_muon_laws(rng: np.random.Generator) -> None:
    start = [rng.standard_normal((6, 4)), rng.standard_normal((3, 2, 2, 2))]
    stream = [[rng.standard_normal(w.shape) for w in start] for _ in range(5)]
    for nesterov in (True, False):  # without eps both forms of the momentum have the same orthogonal factor
        h = {"nesterov": nesterov, "eps": 1e-30, "lr": 0.02}
        close(
            muon_run(h, start, stream), muon_run({**h, "momentum_form": "ema"}, start, stream), rtol=1e-11, atol=1e-12
        )
    exact = {"lr": 0.02, "weight_decay": 0.0, "ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 60}
    for rule, s in (
        ("original", math.sqrt(6 / 4)),
        ("match_rms_adamw", 0.2 * math.sqrt(6)),
        ("spectral", math.sqrt(6 / 4)),
        ("none", 1.0),
    ):
        after = muon_run({**exact, "adjust_lr": rule}, start[:1], [stream[0][:1]])[0]
        np.testing.assert_allclose(np.linalg.svd((start[0] - after) / (0.02 * s), compute_uv=False), 1.0, rtol=1e-8)
    conv = muon_run({"lr": 0.02}, start[1:], [s[1:] for s in stream])[0]
    matrix = muon_run({"lr": 0.02}, [start[1].reshape(3, 8)], [[s[1].reshape(3, 8)] for s in stream])[0]
    np.testing.assert_array_equal(conv, matrix.reshape(conv.shape))
    still = muon_run({"weight_decay": 0.0}, start, [[0 * w for w in start]])
    close(still, start, rtol=0, atol=0)
    with pytest.raises(ValueError):
        muon.Muon().start([np.ones(3)])


def test_muon_solves_least_squares(rng: np.random.Generator) -> None:
    A, B = rng.standard_normal((60, 30)), rng.standard_normal((60, 20))
    best = np.linalg.lstsq(A, B, rcond=None)[0].T
    W, ours, lr = [np.zeros((20, 30))], muon.Muon(lr=0.01, weight_decay=0.0, momentum=0.9), 0.01
    ours.start(W)
    for _ in range(400):
        ours.step(W, [(A @ W[0].T - B).T @ A / 60])
    # every singular value of a step is near lr, so the iterate ends in a ball of a few steps about the optimum
    assert np.linalg.norm(W[0] - best, 2) < 10 * lr
