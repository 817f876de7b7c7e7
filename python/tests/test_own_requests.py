"""Methods that choose where their gradients are taken: svrg, spider, harpg, o2nc, rolling_ball, sga_uap."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference.o2nc import fraction
from support import SHAPES, Problem, assert_same_bits, sentence_of, snapshot, take_step

NAMES = ["svrg", "spider", "harpg", "o2nc", "rolling_ball", "sga_uap"]


def made(sentence: str, *start: Any, **options: Any) -> tuple[tw.Optimizer, list[np.ndarray], list[np.ndarray]]:
    params = [np.array(p, np.float64) for p in start]
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    return opt, params, grads


def norm(tensors: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(t)) for t in tensors)))


class LeastSquares:
    """Samples of a linear model; a request with several in it is answered with their mean."""

    def __init__(self, samples: int = 20, features: int = 5) -> None:
        rng = np.random.default_rng(3)
        self.x, self.y = rng.standard_normal((samples, features)), rng.standard_normal(samples)
        self.solution = np.linalg.lstsq(self.x, self.y, rcond=None)[0]

    def gradient(self, w: np.ndarray, rows: Any = slice(None)) -> np.ndarray:
        x, y = self.x[rows], self.y[rows]
        return x.T @ (x @ w - y) / len(y)

    def train(self, sentence: str, period: int, steps: int) -> np.ndarray:
        """The distances to the solution; all data at every `period`-th step, else one sample a step."""
        opt, (w,), (g,) = made(sentence, np.zeros(self.x.shape[1]))
        rng, far = np.random.default_rng(0), []
        for t in range(steps):
            one = rng.integers(0, len(self.y), 1)
            for _ in opt.requests():
                g[:] = self.gradient(w, slice(None) if t % period == 0 else one)
            far.append(np.linalg.norm(w - self.solution))
        return np.array(far)


# ---- save, resume, cancel


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_resumed_at_each_request(name: str, dtype: Any) -> None:
    """A step that is saved at any request goes on elsewhere with the same bits, or is cancelled there."""
    sentence = sentence_of(tw.method(name))
    problem = Problem(SHAPES, seed=5)
    params = problem.start(dtype)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, seed=4)
    opt.bind_gradients(grads)
    seen = 0
    for k in range(4):
        before = [p.copy() for p in params]
        others = []
        for request in opt.requests():
            for goes_on in (True, False):
                mine = [p.copy() for p in params]
                other = tw.Optimizer(mine, sentence, seed=4)
                other.bind_gradients([np.zeros_like(p) for p in mine])
                other.load_state_dict(opt.state_dict())
                if goes_on:
                    others.append((other, mine))
                elif request.pass_ > 0:
                    other.cancel()
                    assert_same_bits(mine, before)
            seen += 1
            problem.answer(request, params, grads, k)
        for other, mine in others:
            for request in other.requests():
                problem.answer(request, mine, other.grads, k)
            assert snapshot(other) == snapshot(opt)
    assert seen >= 4


@pytest.mark.parametrize("name", [n for n in NAMES if n != "o2nc"])
def test_one_call_is_not_enough(name: str) -> None:
    opt, (w,), _ = made(sentence_of(tw.method(name)), np.ones(3))
    with pytest.raises(tw.NeedsError, match=name):
        opt.step([np.ones(3)])
    np.testing.assert_array_equal(w, np.ones(3))


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_without_a_gradient_stays(name: str) -> None:
    """While the others go back and forth, and after that."""
    problem = Problem([(4,), (3, 2)], seed=1)
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence_of(tw.method(name)))
    opt.bind_gradients(grads)
    for k in range(6):
        here = k % 3 != 2
        opt.bind_gradients([grads[0], grads[1] if here else None])
        still = params[1].copy()
        for request in opt.requests():
            assert here or np.array_equal(params[1], still)
            if request.kind == "hessian_vector" and not here:
                assert not request.probe[1].any()
            problem.answer(request, params, grads, k)
        assert here or np.array_equal(params[1], still)
        assert all(np.all(np.isfinite(p)) for p in params)


# ---- svrg


def test_svrg_asks_at_its_snapshot() -> None:
    opt, (w,), (g,) = made("svrg(lr=0.1, inner=3)", [1.0, 2.0])
    snapshot_at, asked = w.copy(), []
    for t in range(6):
        points, tags = [], []
        if t % 3 == 0:
            snapshot_at = w.copy()
        for request in opt.requests():
            assert request.kind == "gradient"
            points.append(w.copy())
            tags.append(request.tag)
            g[:] = 3 * w
        asked.append(len(points))
        assert len(set(tags)) == 1
        if t % 3:
            np.testing.assert_array_equal(points[1], snapshot_at)
    assert asked == [1, 2, 2, 1, 2, 2]


def test_svrg_converges_linearly_on_single_samples() -> None:
    far = LeastSquares().train("svrg(lr=0.02, inner=60)", 60, 6000)
    rounds = far[::600]
    assert np.all(rounds[1:] < 0.7 * rounds[:-1] + 1e-14)
    assert far[-1] < 1e-7 * far[0]


def test_svrg_with_a_snapshot_at_every_step_is_sgd() -> None:
    problem = Problem(SHAPES, seed=2)
    ours, plain = problem.start(), problem.start()
    a, b = tw.Optimizer(ours, "svrg(lr=0.2, inner=1)"), tw.Optimizer(plain, "sgd(lr=0.2)")
    for k in range(5):
        for request in a.requests():
            request.answer(problem.gradient(ours, k))
        b.step(problem.gradient(plain, k))
    assert_same_bits(ours, plain)


# ---- saga


def test_saga_converges_linearly_on_single_samples() -> None:
    """The mean stays that of the table, whose rows are the gradients at the last visits; the samples are drawn, and observed."""
    data = LeastSquares()
    n = len(data.y)
    opt, (w,), (g,) = made(f"saga(lr=0.02, n={n})", np.zeros(data.x.shape[1]))
    rng, far, table = np.random.default_rng(0), [], np.zeros((n, 5))
    for _ in range(6000):
        i = int(rng.integers(0, n))
        g[:] = table[i] = data.gradient(w, [i])
        opt.observe("sample", i)
        opt.step()
        far.append(np.linalg.norm(w - data.solution))
    rounds = np.array(far[::600])
    assert np.all(rounds[1:] < 0.7 * rounds[:-1] + 1e-14)
    assert far[-1] < 1e-7 * far[0]
    np.testing.assert_allclose(opt.state()["saga.mean"][0], table.mean(axis=0), rtol=0, atol=1e-15 * n)


@pytest.mark.parametrize("sample", [-1, 3, 0.5, 1e300, np.inf])
def test_saga_refuses_a_sample_that_is_none(sample: float) -> None:
    opt, (w,), _ = made("saga(lr=0.1, n=3)", np.ones(2))
    opt.step([np.ones(2)])
    before, there = snapshot(opt), w.copy()
    opt.observe("sample", sample)
    with pytest.raises(tw.RangeError, match="one of 0 to 2"):
        opt.step([np.ones(2)])
    np.testing.assert_array_equal(w, there)
    assert snapshot(opt) == before


def test_an_observed_sample_counts_for_one_step() -> None:
    opt, _, _ = made("saga(lr=0.1, n=3)", np.ones(2))
    opt.observe("sample", 2)
    for k in range(2):
        opt.step([np.full(2, k + 1.0)])
    tables = [opt.state()[f"saga.table_{i}"][0].tolist() for i in range(3)]
    assert tables == [[0, 0], [2, 2], [1, 1]]


# ---- xgd


def mixture(x: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and weights of the parts of F = -log sum exp(-|x - c|^2/2)."""
    f = 0.5 * np.sum((x - centres) ** 2, axis=1)
    w = np.exp(-(f - f.min()))
    return x - centres, w / w.sum()


def test_xgd_with_the_weights_of_the_point_is_gradient_descent() -> None:
    centres = np.array([[2.0, 0.0, 1.0], [-1.0, 0.5, 0.0], [0.0, -2.0, 0.5]])
    opt, (w,), (g,) = made("xgd(lr=0.2, q=[1, 1, 1])", [0.3, 0.1, -0.2])
    plain = w.copy()
    for _ in range(60):
        parts, weights = mixture(plain, centres)
        plain -= 0.2 * weights @ parts
        at = w.copy()
        for k, x in enumerate(mixture(w, centres)[1]):
            opt.observe(f"weight_{k}", x)
        for request in opt.requests():
            assert (request.kind, request.count) == ("task_gradient", 3)
            g[:] = mixture(at, centres)[0][request.index]
        np.testing.assert_allclose(w, plain, rtol=0, atol=1e-14)


def test_xgd_descends_to_its_reference() -> None:
    """With the weights of a minimiser of F it comes to that minimiser, whatever it starts from."""
    centres = np.array([[2.0, 0.0], [-1.0, 0.5]])
    least = np.array([1.9, 0.0])
    for _ in range(500):
        least = mixture(least, centres)[1] @ centres
    q = mixture(least, centres)[1]
    opt, (w,), (g,) = made(f"xgd(lr=0.5, q={q.tolist()})", [-3.0, 4.0])
    for _ in range(80):
        for request in opt.requests():
            g[:] = w - centres[request.index]
    np.testing.assert_allclose(w, least, rtol=0, atol=1e-12)


def test_xgd_weights_that_are_none() -> None:
    for q, match in (("[]", "1 to 1024"), ("[0, 0]", "sum above 0"), ("[1, -1]", "negative"), ([1.0] * 1025, "1 to 1024")):
        with pytest.raises(tw.RangeError, match=match):
            tw.Optimizer([np.ones(2)], f"xgd(lr=0.1, q={q})")
    opt, (w,), (g,) = made("xgd(lr=0.1, q=[1, 1])", np.ones(2))
    g[:] = 1
    opt.observe("weight_1", 1.0)
    with pytest.raises(tw.NeedsError, match="weight_0"):
        opt.step(lambda request: 0.0)
    opt.observe("weight_0", -1.0)
    opt.observe("weight_1", 1.0)
    with pytest.raises(tw.RangeError, match="negative"):
        opt.step(lambda request: 0.0)
    np.testing.assert_array_equal(w, 1)
    opt.step(lambda request: 0.0)  # what was observed counted for one step
    np.testing.assert_allclose(w, 0.9, rtol=0, atol=1e-15)


# ---- spider


def test_spider_asks_at_the_previous_point() -> None:
    opt, (w,), (g,) = made("spider(lr=0.1, period=3)", [1.0, 2.0])
    previous, kinds = w.copy(), []
    for t in range(5):
        start, tags, row = w.copy(), set(), []
        for request in opt.requests():
            row.append(request.kind)
            tags.add(request.tag)
            if request.kind == "previous_gradient":
                np.testing.assert_array_equal(w, previous)
            g[:] = 3 * w
        assert len(tags) == 1
        assert np.linalg.norm(w - start) == pytest.approx(0.1, rel=1e-12)
        previous = start
        kinds.append(row)
    two = ["gradient", "previous_gradient"]
    assert kinds == [["gradient"], two, two, ["gradient"], two]


def test_spider_reaches_the_solution_of_a_finite_sum() -> None:
    far = LeastSquares().train("spider(lr=0.02, period=20, normalize=false)", 20, 6000)
    assert far[-1] < 1e-7 * far[0]


def test_a_large_batch_resets_the_drift_of_spider() -> None:
    problem = LeastSquares()
    opt, (w,), (g,) = made("spider(lr=0.05, period=8)", np.ones(5))
    rng, drift = np.random.default_rng(1), []
    for t in range(17):
        one, full = rng.integers(0, 20, 1), problem.gradient(w)
        for _ in opt.requests():
            g[:] = problem.gradient(w, slice(None) if t % 8 == 0 else one)
        drift.append(np.linalg.norm(opt.state()["spider.estimate"][0] - full))
    assert max(drift[0], drift[8], drift[16]) < 1e-15
    assert min(drift[1:8] + drift[9:16]) > 1e-4


# ---- harpg


def test_harpg_carries_the_exact_gradient_of_a_quadratic() -> None:
    """d is the gradient at the point whatever the mixing rate; the product is asked for between the last two points, elsewhere."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 4))
    a = a.T @ a
    for sentence in ("harpg(lr=0.2)", "harpg(lr=0.1, eta_power=3, lr_power=0.5)", "harpg(lr=0.05, normalize=false)"):
        opt, (w,), (g,) = made(sentence, rng.standard_normal(4), seed=9)
        previous = w.copy()
        for t in range(12):
            start, exact, tags = w.copy(), a @ w, []
            for request in opt.requests():
                tags.append(request.tag)
                if request.kind == "gradient":
                    g[:] = a @ w
                    continue
                v = request.probe[0]
                np.testing.assert_array_equal(v, start - previous)
                q = fraction([tw.random_normal(9, 0, t, 0, 1)])
                assert 0 < q < 1
                np.testing.assert_allclose(w, q * start + (1 - q) * previous, rtol=1e-14, atol=1e-15)
                g[:] = a @ v
            assert len(set(tags)) == len(tags) == (1 if t == 0 else 2)
            np.testing.assert_allclose(opt.state()["harpg.estimate"][0], exact, rtol=1e-11, atol=1e-11)
            previous = start


# ---- o2nc


def test_o2nc_queries_lie_on_the_move() -> None:
    problem = Problem(SHAPES, seed=8)
    params = problem.start()
    opt = tw.Optimizer(params, "o2nc(radius=0.3, eta=0.02)", seed=5)
    x, shares = problem.start(), []
    for k in range(30):
        opt.step(problem.gradient(params, k))
        state = opt.state()
        delta = state["o2nc.delta"]
        assert norm(delta) <= 0.3 * (1 + 1e-14)
        s = fraction([tw.random_normal(5, 0, k, 0, 1)])
        shares.append(s)
        for p, at, d, now in zip(params, x, delta, state["o2nc.iterate"]):
            np.testing.assert_allclose(p, at + s * d, rtol=1e-14, atol=1e-15)
            np.testing.assert_allclose(now, at + d, rtol=1e-14, atol=1e-15)
        x = state["o2nc.iterate"]
    assert 0 < min(shares) < 0.2 and 0.8 < max(shares) < 1


def test_o2nc_reaches_the_kink_of_the_absolute_value() -> None:
    opt, (w,), _ = made("o2nc(radius=0.01, eta=0.002, epoch=10)", 1.0)
    for _ in range(2000):
        opt.step([np.asarray(np.sign(w))])
    with opt.averaged():
        assert abs(float(w)) <= 0.01 * 10


# ---- rolling_ball


def surface(w: np.ndarray) -> tuple[float, np.ndarray]:
    """A parabola with unequal curvatures."""
    a = np.array([1.0, 0.3, 2.0])
    return float(0.5 * w @ (a * w)), a * w


def roll(opt: tw.Optimizer, w: np.ndarray, of: Callable[[np.ndarray], tuple[float, np.ndarray]] = surface) -> list[Any]:
    rows = []
    for request in opt.requests():
        rows.append((request.kind, request.pass_, request.tag))
        request.loss, g = of(w)
        request.answer([g], request.loss)
    return rows


def test_rolling_ball_asks_for_one_and_k() -> None:
    for k in (0, 1, 4):
        opt, (w,), _ = made(f"rolling_ball(n_projection={k})", [1.0, 2.0, -1.0])
        before = w.copy()
        assert roll(opt, w) == [("loss_and_gradient", i, 0) for i in range(k + 1)]
        assert np.array_equal(w, before) == (k == 0)


def test_a_point_on_the_graph_is_projected_to_a_step_against_the_gradient() -> None:
    """Without a radius and with enough inner steps: -lr g, to first order in lr."""
    start = np.array([1.0, 2.0, -1.0])
    errors = []
    for lr in (1e-2, 1e-3):
        opt, (w,), _ = made(f"rolling_ball(lr={lr}, radius=0, projection_lr=0.05, n_projection=2000)", start)
        roll(opt, w)
        errors.append(np.linalg.norm(w - start + lr * surface(start)[1]))
    assert errors[1] < 0.02 * errors[0] and errors[0] < 5e-3


def test_a_resting_ball_touches_the_graph_where_it_stands() -> None:
    """With a vanishing lr the centre is at the distance `radius` of (theta, f), and theta is its projection."""
    start = np.array([1.0, 2.0, -1.0])
    f, g = surface(start)
    opt, (w,), _ = made("rolling_ball(lr=1e-15, radius=0.2)", start)
    roll(opt, w)
    np.testing.assert_allclose(w, start, atol=1e-12)
    height = opt.get("rolling_ball.height")
    centre = start - 0.2 / np.sqrt(1 + g @ g) * g
    assert np.hypot(np.linalg.norm(centre - start), height - f) == pytest.approx(0.2, rel=1e-12)


def test_rolling_ball_converges_on_a_parabola() -> None:
    opt, (w,), _ = made("rolling_ball", [1.0, 2.0, -1.0])
    for _ in range(2000):
        roll(opt, w)
    assert surface(w)[0] < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_puts_the_ball_back(bad: float) -> None:
    opt, (w,), _ = made("rolling_ball", [1.0, 2.0, -1.0])
    roll(opt, w)
    before = snapshot(opt)
    for at in (0, 1, 5):
        with pytest.raises(tw.Error):
            for request in opt.requests():
                loss, g = surface(w)
                request.answer([g], bad if request.pass_ == at else loss)
        assert snapshot(opt) == before
    roll(opt, w)
    assert opt.steps == 2


def test_rolling_ball_maximizes() -> None:
    start = [1.0, 2.0, -1.0]
    down, (w,), _ = made("rolling_ball", start)
    up, (v,), _ = made("rolling_ball", start, maximize=True)
    for _ in range(5):
        roll(down, w)
        roll(up, v, lambda x: (-surface(x)[0], -surface(x)[1]))
    assert_same_bits([w], [v])


def test_rolling_ball_keeps_moves_that_16_bits_cannot_show() -> None:
    """Each move is below half a unit in the last place of a float16; the master weights collect them."""
    sentence = "rolling_ball(lr=1e-3)"
    wide, (w,), _ = made(sentence, [1.0, 2.0, -1.0])
    narrow = np.array([1.0, 2.0, -1.0], np.float16)
    opt = tw.Optimizer([narrow], sentence, master="f32")
    opt.bind_gradients([np.zeros(3)])
    for _ in range(80):
        roll(wide, w)
        roll(opt, narrow, lambda x: surface(x.astype(np.float64)))
    assert np.min(np.abs(w - [1.0, 2.0, -1.0])) > 5e-3
    np.testing.assert_allclose(narrow.astype(np.float64), w, atol=2e-3)


# ---- sga_uap


def test_sga_uap_asks_on_fresh_samples_inside_its_bounds() -> None:
    opt, (w,), (g,) = made("sga_uap(inner_steps=4, eps=0.5, step=0.2)", np.zeros(6))
    rng = np.random.default_rng(0)
    for _ in range(5):
        tags, start, rows = [], w.copy(), []
        at = w.copy()
        for request in opt.requests():
            assert request.kind == "gradient"
            tags.append(request.tag)
            np.testing.assert_allclose(w, at, rtol=1e-15, atol=1e-16)
            rows.append(rng.standard_normal(6))
            g[:] = rows[-1]
            at = np.clip(w - 0.2 * np.sign(g), -0.5, 0.5)
        assert len(set(tags)) == len(tags) == 4
        np.testing.assert_allclose(w, np.clip(start - 0.2 * np.sign(np.sum(rows, axis=0)), -0.5, 0.5), rtol=1e-15, atol=1e-16)
        assert np.max(np.abs(w)) <= 0.5


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_sga_uap_saturates(momentum: float, maximize: bool) -> None:
    """A constant gradient drives every entry to the bound, downhill, or uphill with maximize; an entry without one stays."""
    opt, (w,), (g,) = made(f"sga_uap(inner_steps=2, momentum={momentum})", np.zeros(3), maximize=maximize)
    for k in range(12):
        for _ in opt.requests():
            g[:] = [2.0, 0.0, -1e-3]
        assert np.max(np.abs(w)) <= 10 / 255
    np.testing.assert_array_equal(w, np.array([1, 0, -1]) * (1 if maximize else -1) * (10 / 255))


def test_sga_uap_steps_by_a_tenth_of_eps() -> None:
    opt, (w,), _ = made("sga_uap(inner_steps=1, eps=0.3)", np.zeros(2))
    take_step(opt, Problem([(2,)]), 0, [w], opt.grads)
    np.testing.assert_allclose(np.abs(w), 0.03, rtol=1e-15)
