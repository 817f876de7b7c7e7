"""Limits, laws and cases by hand that methods promise, held against the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from support import Problem, assert_same_bits, run

SHAPES = [(), (7,), (5, 3), (2, 3, 2, 2)]


def moves(sentence: str, params: list[np.ndarray], *gradients: list[np.ndarray], **options: Any) -> list[np.ndarray]:
    """The last step's move of every parameter."""
    opt = tw.Optimizer(params, sentence, **options)
    for g in gradients:
        before = [p.copy() for p in params]
        opt.step(g)
    return [p - b for p, b in zip(params, before)]


# ---- split_sgd


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_split_sgd_signs_the_largest(dtype: Any) -> None:
    rule = "split_sgd(lr=1, sign_lr=0.5, momentum=0, dampening=0, fraction={})"
    g = np.array([1.0, -5.0, 5.0, 0.25, 0.125], dtype)
    assert np.array_equal(moves(rule.format(0.4), [np.zeros(5, dtype)], [g])[0], [-1.0, 0.5, -0.5, -0.25, -0.125])
    # of equal ones the first; a zero has no sign
    assert np.array_equal(moves(rule.format(0.25), [np.zeros(4, dtype)], [np.ones(4, dtype)])[0], [-0.5, -1, -1, -1])
    assert not moves(rule.format(0.9), [np.zeros(4, dtype)], [np.zeros(4, dtype)])[0].any()


def test_split_sgd_limits() -> None:
    """No hot coordinates: momentum SGD, bit for bit; all but one: signed steps."""
    plain = run("sgd(lr=0.1)", Problem(SHAPES, seed=1), 5)[0]
    assert_same_bits(run("split_sgd(lr=0.1, momentum=0, dampening=0, fraction=0)", Problem(SHAPES, seed=1), 5)[0], plain)
    g = np.linspace(1, 2, 1000) * np.resize([1, -1], 1000)
    step = moves("split_sgd(lr=0.125, sign_lr=0.5, fraction=0.999)", [np.zeros(1000)], [g])[0]
    assert np.array_equal(step[1:], -0.5 * np.sign(g[1:])) and abs(step[0]) < 0.5


@pytest.mark.parametrize("lr", ["0", "1e-310", "1e-60"])
def test_split_sgd_with_hardly_a_step_size_stays_finite(lr: str) -> None:
    for dtype in (np.float32, np.float64):
        w = [np.ones(9, dtype)]
        moves(f"split_sgd(lr={lr}, fraction=0.5)", w, [np.full(9, 2, dtype)], [np.full(9, 2, dtype)])
        # two signed steps of the four hot ones; the others go with lr
        np.testing.assert_allclose(w[0][:4], 0.998, rtol=1e-6)
        assert np.array_equal(w[0][4:], np.ones(5, dtype))


def test_split_sgd_takes_empty_tensors() -> None:
    assert moves("split_sgd(fraction=0.9)", [np.zeros((0, 3))], [np.zeros((0, 3))])[0].shape == (0, 3)


# ---- curl_descent


def signs(opt: tw.Optimizer) -> list[np.ndarray | None]:
    return opt.state()["curl_descent.sign"]


@pytest.mark.parametrize("axis", [0, 1])
def test_curl_descent_flips_whole_units_and_keeps_them(axis: int) -> None:
    problem = Problem([(6, 8), (4, 5, 2), (9,)], seed=2)
    params = problem.start(np.float32)
    opt = tw.Optimizer(params, f"curl_descent(axis={axis}, fraction=0.3, seed=5) | sgd(lr=1)")
    first: list[Any] = []
    for k in range(3):
        g = [x.astype(np.float32) for x in problem.gradient(params, k)]
        before = [p.copy() for p in params]
        opt.step(g)
        s = signs(opt)
        for i, shape in enumerate([(6, 8), (4, 5, 2)]):
            n = shape[axis]
            assert s[i].size == n and np.count_nonzero(s[i] == -1) == int(0.3 * n + 0.5)
            turned = g[i] * s[i].reshape([n if a == axis else 1 for a in range(len(shape))]).astype(np.float32)
            assert np.array_equal(params[i], before[i] - turned)
        assert np.array_equal(params[2], before[2] - g[2])
        first = first or [x for x in s if x is not None]
        assert all(np.array_equal(a, b) for a, b in zip(first, (x for x in s if x is not None)))


def test_curl_descent_twice_is_nothing() -> None:
    for rule in ("units=[0, 2]", "fraction=1"):
        twice = f"curl_descent({rule}) | curl_descent({rule}) | sgd(lr=0.1, momentum=0.5)"
        plain = run("sgd(lr=0.1, momentum=0.5)", Problem(SHAPES, seed=3), 6)[0]
        assert_same_bits(run(twice, Problem(SHAPES, seed=3), 6)[0], plain)
        assert_same_bits(run("curl_descent(fraction=0) | sgd(lr=0.1, momentum=0.5)", Problem(SHAPES, seed=3), 6)[0], plain)


def test_curl_descent_draws_by_its_own_seed_and_resumes() -> None:
    def drawn(seed: int, of_optimizer: int) -> np.ndarray:
        w = [np.zeros((3, 200))]
        opt = tw.Optimizer(w, f"curl_descent(fraction=0.5, seed={seed}) | sgd", seed=of_optimizer)
        opt.step([np.ones((3, 200))])
        state = opt.state_dict()
        other = tw.Optimizer([np.zeros((3, 200))], f"curl_descent(fraction=0.5, seed={seed}) | sgd", seed=of_optimizer)
        other.load_state_dict(state)
        assert np.array_equal(signs(other)[0], signs(opt)[0])
        return np.array(signs(opt)[0])

    assert np.array_equal(drawn(1, 0), drawn(1, 7)) and not np.array_equal(drawn(1, 0), drawn(2, 0))


def test_curl_descent_moves_stability_and_not_fixed_points() -> None:
    """Two linear layers fit y = x: the solution is at rest, and with flipped synapses small errors may grow."""
    def run_from(a: float, b: float, rule: str) -> tuple[float, float]:
        w = [np.full((1, 1), a), np.full((1, 1), b)]
        opt = tw.Optimizer(w, f'route("second"=({rule}sgd(lr=0.05)), other=(sgd(lr=0.05)))', names=["first", "second"])
        for _ in range(200):
            e = w[0] * w[1] - 1
            opt.step([e * w[1], e * w[0]])
        return float(w[0][0, 0]), float(w[1][0, 0])

    flipped = "curl_descent(units=[0]) | "
    for rule in ("", flipped):
        assert run_from(2.0, 0.5, rule) == (2.0, 0.5) and run_from(0.5, 2.0, rule) == (0.5, 2.0)
    assert run_from(2.01, 0.5, "") == pytest.approx((2, 0.5), abs=0.02)
    assert run_from(0.51, 2.0, "") == pytest.approx((0.5, 2), abs=0.02)
    # flipped, the error shrinks with b^2 - a^2: the one solution stays, the other is left for it
    assert run_from(0.51, 2.0, flipped) == pytest.approx((0.5, 2), abs=0.02)
    assert run_from(2.01, 0.5, flipped) == pytest.approx((0.5, 2), abs=0.1)


@pytest.mark.parametrize("bad", ["units=[-1]", "units=[0.5]", "units=[1e300]", "axis=2", "axis=-1", "fraction=1.5", "seed=-1"])
def test_curl_descent_refuses(bad: str) -> None:
    with pytest.raises(tw.RangeError):
        tw.Optimizer([np.ones((2, 3))], f"curl_descent({bad}) | sgd")


def test_curl_descent_refuses_units_that_are_not_there() -> None:
    with pytest.raises(tw.ShapeError, match="no unit 3"):
        tw.Optimizer([np.ones((4, 3))], "curl_descent(units=[0, 3]) | sgd")
    tw.Optimizer([np.ones((4, 3)), np.ones(2)], "curl_descent(units=[0, 3], axis=0) | sgd")


# ---- powerprop_precond


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_powerprop_is_descent_on_the_reparametrised_model_for_small_steps(alpha: float) -> None:
    """theta = phi |phi|^(alpha - 1): over a fixed time, the difference is proportional to the step size."""
    target, start = np.array([0.8, -1.2, 0.5]), np.array([0.4, -0.7, 1.5])

    def difference(steps: int) -> float:
        h = 0.5 / steps
        w = [start.copy()]
        opt = tw.Optimizer(w, f"powerprop_precond(alpha={alpha}) | sgd(lr={h!r})")
        phi = np.sign(start) * np.abs(start) ** (1 / alpha)
        for _ in range(steps):
            opt.step([w[0] - target])
            theta = phi * np.abs(phi) ** (alpha - 1)
            phi = phi - h * alpha * np.abs(phi) ** (alpha - 1) * (theta - target)
        return float(np.max(np.abs(w[0] - phi * np.abs(phi) ** (alpha - 1))))

    coarse, fine = difference(400), difference(1600)
    assert 0 < fine < 1e-3 and 3.5 < coarse / fine < 4.5


def test_powerprop_edges() -> None:
    problem = Problem(SHAPES, seed=4)
    assert_same_bits(run("powerprop_precond(alpha=1) | sgd(lr=0.1)", problem, 4)[0], run("sgd(lr=0.1)", problem, 4)[0])
    g = np.array([1.0, 2.0, -0.5, 1.0])
    w = np.array([0.0, -0.5, 2.0, -0.0])
    assert np.array_equal(moves("powerprop_precond | sgd(lr=1)", [w.copy()], [g])[0], [0, -4.0, 4.0, 0])
    assert moves("powerprop_precond(eps=0.25) | sgd(lr=1)", [w.copy()], [g])[0][0] == -1
    # an update is scaled by the parameters, too
    assert np.array_equal(moves("sgd(lr=1) | powerprop_precond", [w.copy()], [g])[0], [0, -4.0, 4.0, 0])
    huge = [np.array([1e300, 0.0, 1e300])]
    moves("powerprop_precond(alpha=1e200) | sgd(lr=0)", huge, [np.array([0.0, 1.0, 0.0])])
    assert np.array_equal(huge[0], [1e300, 0.0, 1e300])


def test_powerprop_reads_narrow_parameters() -> None:
    for master in (None, "f32"):
        w = [np.array([0.5, -2.0, 0.0], np.float16)]
        moves("powerprop_precond | sgd(lr=0.125)", w, [np.ones(3, np.float32)], master=master)
        assert np.array_equal(w[0], np.array([0.25, -3.0, 0.0], np.float16))


# ---- effective_lr


def test_effective_lr_keeps_the_product() -> None:
    lr = "cosine(lr=0.3, total=10, end=0.01)"
    decay = tw.schedule(f"effective_lr(lr=0.01, weight_decay=0.1, inner={lr})")
    back = tw.schedule("effective_lr(lr=0.01, weight_decay=0.1, inner=0.004, returns=lr)")
    rate = tw.schedule(lr)
    assert all(rate(k) * decay(k) == pytest.approx(1e-3, rel=1e-15) for k in range(12))
    assert back(0) * 0.004 == pytest.approx(1e-3, rel=1e-15)
    assert tw.schedule("effective_lr(lr=0.01, weight_decay=0.1, inner=1, returns=horizon)")(0) == pytest.approx(1000)


def test_effective_lr_drives_a_weight_decay_and_passes_observations_on() -> None:
    w = [np.ones(3)]
    opt = tw.Optimizer(w, "adamw(lr=0.02, weight_decay=effective_lr(lr=0.01, weight_decay=0.1, inner=0.02))")
    opt.step([np.zeros(3)])
    assert opt.get("weight_decay") == pytest.approx(0.05) and np.allclose(w[0], 1 - 0.001, rtol=1e-15)
    batches = tw.schedule("effective_lr(lr=1, weight_decay=1, inner=batch_lr_scaling(rule=linear, lr=1))")
    for size, want in ((8, 1.0), (32, 0.25)):
        batches.observe("batch_size", size)
        assert batches(0) == want


@pytest.mark.parametrize("bad", ["lr=0, weight_decay=1, inner=1", "lr=1, weight_decay=-1, inner=1", "lr=inf, weight_decay=1, inner=1"])
def test_effective_lr_refuses(bad: str) -> None:
    with pytest.raises(tw.RangeError):
        tw.schedule(f"effective_lr({bad})")


def scale_invariant_losses(lr: float, start: float, steps: int, decay: str) -> np.ndarray:
    """Losses of normalised updates on 0.5 <u, A u>, u = w/|w|, with noise that is the same in every run."""
    a, rng = np.linspace(0.1, 2.0, 40), np.random.default_rng(0)
    w = [start * np.random.default_rng(1).standard_normal(40)]
    opt = tw.Optimizer(w, f"lion(lr={lr!r}, weight_decay={decay})")
    losses = []
    for _ in range(steps):
        length = np.linalg.norm(w[0])
        u = w[0] / length
        losses.append(0.5 * float(u @ (a * u)))
        g = a * u + 0.5 * rng.standard_normal(40)
        opt.step([(g - u * (u @ g)) / length])
    return np.array(losses)


def test_effective_lr_is_what_a_scale_invariant_loss_sees() -> None:
    """Four times the step size on the line, from weights four times as large: the same losses, bit for bit. From the same weights the
    transient differs and the rest does not; off the line the rest differs."""
    known = scale_invariant_losses(2.0**-7, 1.0, 1500, "1")
    line = f"effective_lr(lr={2.0**-7!r}, weight_decay=1, inner={2.0**-5!r})"
    assert np.array_equal(scale_invariant_losses(2.0**-5, 4.0, 1500, line), known)
    moved = scale_invariant_losses(2.0**-5, 1.0, 1500, line)
    late = slice(1000, None)
    assert np.max(np.abs(moved - known)[:100]) > 0.05
    assert np.mean(moved[late]) == pytest.approx(np.mean(known[late]), rel=0.02)
    off = scale_invariant_losses(2.0**-5, 1.0, 1500, "1")
    assert abs(np.mean(off[late]) / np.mean(known[late]) - 1) > 0.1


# ---- visual_prompt


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_visual_prompt_moves_the_border_by_at_most_lr(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    g = rng.standard_normal((3, 12, 10)).astype(dtype)
    step = moves("visual_prompt(lr=2.5, pad=3)", [np.zeros((3, 12, 10), dtype)], [g])[0]
    assert not step[:, 3:9, 3:7].any() and np.all(step[:, :3] != 0) and np.all(step[:, :, 7:] != 0)
    assert np.linalg.norm(step) <= 2.5
    whole = moves("visual_prompt(lr=2.5)", [np.zeros((3, 12, 10), dtype)], [g])[0]
    assert np.linalg.norm(whole) == pytest.approx(2.5, rel=1e-6)
    # the norm is that of the whole gradient
    border = step != 0
    assert np.array_equal(step[border], whole[border])


def test_visual_prompt_edges() -> None:
    for eps in ("0", "1e-10"):
        assert not moves(f"visual_prompt(lr=1, eps={eps})", [np.ones((4, 5))], [np.zeros((4, 5))])[0].any()
    tiny = moves("visual_prompt(lr=1, eps=0)", [np.zeros((1, 1), np.float32)], [np.full((1, 1), 1e-42, np.float32)])[0]
    assert tiny[0, 0] == -1
    for pad in (0, 10**15):
        moved = moves(f"visual_prompt(lr=1, pad={pad})", [np.zeros((4, 5))], [np.ones((4, 5))])[0]
        assert np.all((moved != 0) == (pad > 0))
    assert moves("visual_prompt(lr=1)", [np.zeros((3, 0))], [np.zeros((3, 0))])[0].shape == (3, 0)
    with pytest.raises(tw.ShapeError, match="rank 2"):
        tw.Optimizer([np.ones(3)], "visual_prompt(lr=1)")


# ---- trajectory_moments


@pytest.mark.parametrize("order", [1, 2])
def test_trajectory_moments_recover_a_planted_spike(order: int) -> None:
    """A walk on the sphere that feels the spike, or its square, weakly: one point says little, the average nearly all."""
    spike = np.zeros(12)
    spike[3] = 1.0
    w = np.random.default_rng(0).standard_normal(12)
    w /= np.linalg.norm(w)
    opt = tw.Optimizer([w], f"spherical_langevin(dt=0.01) | trajectory_moments(order={order})", seed=1)
    points = []
    for _ in range(6000):
        opt.step([-6.0 * spike if order == 1 else -25.0 * w[3] * spike])
        points.append(w.copy())
    with opt.averaged():
        found = w.copy()
    np.testing.assert_array_equal(w, points[-1])
    assert np.isclose(np.linalg.norm(found), 1, rtol=0, atol=1e-14)
    assert abs(found[3]) > 0.97
    assert np.mean(np.abs([p[3] for p in points])) < 0.9
    if order == 2:
        top = np.linalg.eigh(np.mean([np.outer(p, p) for p in points], axis=0))[1][:, -1]
        assert abs(top @ found) > 1 - 1e-12 and found @ w > 0


def test_trajectory_moments_without_an_estimate() -> None:
    """A mean of 0 has no direction: the weights stay; and order 2 refuses what its moments would not fit."""
    w = np.array([1.0, 0.0])
    opt = tw.Optimizer([w], "sgd(lr=1) | trajectory_moments")
    opt.step([np.array([2.0, 0.0])])  # to -1: the mean of the points behind the steps is -1 so far
    opt.step([np.array([-2.0, 0.0])])
    with opt.averaged():
        np.testing.assert_array_equal(w, [1.0, 0.0])
    with pytest.raises(tw.ShapeError, match="2048"):
        tw.Optimizer([np.ones(2049)], "sgd(lr=1) | trajectory_moments(order=2)")
    for text in ("trajectory_moments(order=3)", "trajectory_moments(order=0)"):
        with pytest.raises(tw.RangeError, match="order"):
            tw.Optimizer([np.ones(2)], f"sgd(lr=1) | {text}")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_trajectory_moments_that_fail_change_nothing(dtype: Any) -> None:
    """Moments that are not finite have no eigenvector: the first tensor's weights are put back as well."""
    opt = tw.Optimizer([a := np.ones(3, dtype), b := np.ones(3, dtype)], "sgd(lr=1) | trajectory_moments(order=2)")
    opt.step([np.ones(3, dtype), np.full(3, np.inf, dtype)])
    before = [a.copy(), b.copy()]
    with pytest.raises(tw.NonfiniteError):
        opt.eval()
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])
