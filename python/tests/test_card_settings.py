"""Settings of the cards of matrix and second-order methods that the generic tests cannot run: pairs of tensors, all parameters at once,
tensors that are absent, schedules, and defaults that go by another setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from reference.ema_nesterov import EMANesterov
from reference.kronecker_layers import SINGD
from reference.low_rank_recovery import MFAC, ScaledGD
from reference.saddle_free_newton import SaddleFreeNewton
from support import Problem


def run(sentence: str, problem: Problem, steps: int) -> list[np.ndarray]:
    params = problem.start()
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence)
    opt.bind_gradients(grads)
    for k in range(steps):
        for request in opt.requests():
            problem.answer(request, params, grads, k)
    return params


def reference(ref: Any, problem: Problem, steps: int) -> list[np.ndarray]:
    params = problem.start()
    ref.start(params)
    for k in range(steps):
        ref.step(params, problem.gradient(params, k), hvp=lambda point, v: problem.product(v), loss_at=lambda point, k=k: problem.loss(point, k),
                 gradient_at=lambda point, k=k: problem.gradient(point, k))
    return params


def close(left: list[np.ndarray], right: list[np.ndarray], limit: float = 1e-12) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1.0, float(np.max(np.abs(b), initial=0))))


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_the_exact_saddle_free_step_is_that_of_the_dense_hessian(damping: float) -> None:
    problem = Problem([(4,), (2, 3), ()], seed=1)
    problem.a = [a * np.where(np.arange(a.size).reshape(a.shape) % 2, -1, 1) for a in problem.a]
    setting = {"mode": "exact", "order": 11, "lr": 0.3, "damping": damping}
    # every eigenvalue of a diagonal Hessian is found by Lanczos steps in floating point to some digits less
    close(run(f"saddle_free_newton(mode=exact, order=11, lr=0.3, damping={damping})", problem, 4),
          reference(SaddleFreeNewton(**setting), problem, 4), 1e-9)


def test_the_exact_saddle_free_step_says_what_it_lacks() -> None:
    problem = Problem([(4,)], seed=1)
    with pytest.raises(tw.RangeError, match="order.* 4, the number of parameters"):
        run("saddle_free_newton(mode=exact, order=3)", problem, 1)
    flat = Problem([(3,)], seed=2)
    flat.a = [np.array([1.0, 0.0, 2.0])]
    with pytest.raises(tw.NumericError, match="damping"):
        run("saddle_free_newton(mode=exact)", flat, 1)


def test_a_trial_without_finite_loss_is_passed_over() -> None:
    """With dampings 1 and 0.1 and H = 1, from 1: moves of 1/2 and 1/1.1; only the second has a finite loss."""
    for finite, end in ((0.2, 1 - 1 / 1.1), (-1.0, 1.0)):  # without any nothing moves
        params, grads = [np.ones(3)], [np.zeros(3)]
        opt = tw.Optimizer(params, "saddle_free_newton(dampings=[1, 0.1])")
        opt.bind_gradients(grads)
        for request in opt.requests():
            if request.kind == "loss":
                request.loss = 1.0 if params[0][0] < finite else np.inf
            else:
                grads[0][...] = request.probe[0] if request.kind == "hessian_vector" else params[0]
        np.testing.assert_allclose(params[0], np.full(3, end), rtol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_scaled_gd_of_pairs_takes_the_gram_matrix_of_the_other_factor(lam: float) -> None:
    problem = Problem([(6, 2), (5, 2), (4, 3), (7, 3)], seed=3)
    text = f"scaled_gd(lr=0.05, lam={lam}, pairs=consecutive)"
    close(run(text, problem, 8), reference(ScaledGD(lr=0.05, lam=lam, pairs="consecutive"), problem, 8), 1e-10)


@pytest.mark.parametrize("shapes", [[(6, 2), (5, 3)], [(6, 2), (5, 2), (4, 2)]])
def test_scaled_gd_refuses_factors_without_a_partner(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(tw.ShapeError, match="partner"):
        run("scaled_gd(lr=0.05, pairs=consecutive)", Problem(shapes, seed=3), 1)


def test_scaled_gd_of_a_pair_does_not_feel_the_condition_number() -> None:
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((12, 2)))[0], np.linalg.qr(rng.standard_normal((9, 2)))[0]
    target = left @ np.diag([20.0, 1.0]) @ right.T
    params = [left @ np.diag([20.0, 1.0]) ** 0.5 + 0.05 * rng.standard_normal((12, 2)), right @ np.diag([20.0, 1.0]) ** 0.5 + 0.05 * rng.standard_normal((9, 2))]
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, "scaled_gd(lr=0.5, pairs=consecutive)")
    opt.bind_gradients(grads)
    for _ in range(80):
        error = params[0] @ params[1].T - target
        grads[0][...], grads[1][...] = error @ params[1], error.T @ params[0]
        opt.step()
    assert np.linalg.norm(params[0] @ params[1].T - target) < 1e-10 * np.linalg.norm(target)


def test_mfac_is_one_matrix_for_the_model() -> None:
    """Two tensors and their concatenation take the same steps, past the end of the window."""
    rng = np.random.default_rng(5)
    gradients = rng.standard_normal((9, 7))
    ends = []
    for sizes in ((7,), (3, 4)):
        cuts = np.cumsum(sizes)[:-1]
        params = [np.zeros(n) for n in sizes]
        grads = [np.zeros(n) for n in sizes]
        opt = tw.Optimizer(params, "mfac(lr=0.1, ngrads=4, damp=0.05)")
        opt.bind_gradients(grads)
        for row in gradients:
            for g, part in zip(grads, np.split(row, cuts)):
                g[...] = part
            opt.step()
        ends.append(np.concatenate(params))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-11, atol=1e-13)


def test_mfac_counts_the_gradients_of_absent_tensors_as_zero() -> None:
    rng = np.random.default_rng(6)
    gradients = rng.standard_normal((8, 5))
    absent = {2, 3, 5}
    params, m, damp = [np.zeros(2), np.zeros(3)], 3, 0.2
    ref = [p.copy() for p in params]
    G, v = np.zeros((m, 5)), [np.zeros(2), np.zeros(3)]
    grads = [np.zeros(2), np.zeros(3)]
    opt = tw.Optimizer(params, f"mfac(lr=0.1, ngrads={m}, damp={damp}, momentum=0.5)")
    for k, row in enumerate(gradients):
        grads[0][...], grads[1][...] = row[:2], row[2:]
        here = slice(0, 2) if k in absent else slice(0, 5)
        opt.bind_gradients([grads[0], None if k in absent else grads[1]])
        opt.step()
        G[k % m] = row
        G[k % m, here.stop :] = 0
        sub = G[:, here]
        u = np.linalg.solve(damp * np.eye(sub.shape[1]) + sub.T @ sub / m, row[here])
        for i, part in enumerate([u[:2]] if k in absent else [u[:2], u[2:]]):
            v[i] = 0.5 * v[i] + 0.5 * part
            ref[i] -= 0.1 * v[i]
        close(params, ref, 1e-11)


def test_mfac_keeps_1024_gradients_unless_told() -> None:
    problem = Problem([(3,), (2, 2)], seed=2)
    close(run("mfac(damp=0.1)", problem, 5), reference(MFAC(damp=0.1), problem, 5), 1e-11)


@pytest.mark.parametrize("name", ["psgd_lra", "psgd_xmat"])
def test_psgd_of_vectors_is_one_preconditioner_for_the_model(name: str) -> None:
    """On a quadratic whose curvatures differ between two tensors, P H is flat over both: its entries lie within a factor of 3."""
    scales = [np.array([100.0, 50.0]), np.array([1.0, 2.0])]
    params, grads = [np.ones(2), np.ones(2)], [np.zeros(2), np.zeros(2)]
    opt = tw.Optimizer(params, f"{name}(lr=0, precond_lr=0.3)", seed=3)
    opt.bind_gradients(grads)
    for _ in range(1500):
        for request in opt.requests():
            for g, h, x in zip(grads, scales, request.probe if request.kind == "hessian_vector" else params):
                g[...] = h * x
    opt.set("lr", 1.0)
    before = [p.copy() for p in params]
    for request in opt.requests():
        for g, h, x in zip(grads, scales, request.probe if request.kind == "hessian_vector" else params):
            g[...] = h * x
    moves = np.concatenate([a - b for a, b in zip(before, params)])  # P H 1
    assert np.max(moves) < 3 * np.min(moves)


def test_norm_trust_region_steps_from_where_it_was() -> None:
    """The gradient comes from the point ahead, the step of length `radius` from the parameters."""
    params, grads, seen = [np.array([3.0, -4.0])], [np.zeros(2)], []
    opt = tw.Optimizer(params, "norm_trust_region(radius=0.1, alpha=0.25, extrapolate=true)")
    opt.bind_gradients(grads)
    points = [params[0].copy()]
    for _ in range(4):
        for request in opt.requests():
            seen.append(params[0].copy())
            grads[0][...] = 2 * params[0]
        points.append(params[0].copy())
    for k in range(4):
        ahead = points[k] + 3 * (points[k] - points[k - 1]) if k else points[0]
        np.testing.assert_allclose(seen[k], ahead, rtol=1e-14)
        assert abs(np.linalg.norm(points[k + 1] - points[k]) - 0.1) < 1e-14


@pytest.mark.parametrize("scheduled", [True, False])
def test_ema_nesterov_follows_the_rate(scheduled: bool) -> None:
    rates = [0.1 * (1 - k / 10) for k in range(10)]
    params, grads = [np.array([1.0, -2.0, 0.5])], [np.zeros(3)]
    opt = tw.Optimizer(params, f"ema_nesterov(0.9, ema=0.5, scheduled={str(scheduled).lower()}) | sgd(lr=linear(lr=0.1, end=0, total=10))")
    opt.bind_gradients(grads)
    x, last, b = params[0].copy(), params[0].copy(), np.zeros(3)
    for k in range(8):
        for _ in opt.requests():
            grads[0][...] = np.sin(params[0] + k)
        lr = rates[k]
        x = x + 0.9 * (lr / rates[0] if scheduled else 1.0) * b
        x = x - lr * np.sin(x + k)
        b, last = 0.5 * b + 0.5 * (x - last), x.copy()
        np.testing.assert_allclose(params[0], x, rtol=1e-12)
    assert EMANesterov.defaults["scheduled"]


def test_defaults_that_go_by_another_setting() -> None:
    problem = Problem([(6,), (3, 4)], seed=8)
    same = [("sophia(lr=0.1, estimator=gnb, batch_size=99)", "sophia(lr=0.1, estimator=gnb, batch_size=99, gamma=0.05)"),
            ("sophia", "sophia(gamma=0.01)"),
            ("fosi(interval=2)", "fosi(interval=2, lr_clip=1)"), ("fosi(base=sgd, interval=2)", "fosi(base=sgd, interval=2, lr_clip=3)"),
            ("singd(variant=ikfac, lr_cov=0.2)", "singd(variant=ikfac, lr_cov=0.2, alpha1=0)"), ("singd(lr_cov=0.2)", "singd(lr_cov=0.2, alpha1=0.5)")]
    other = [("sophia(lr=0.1, estimator=gnb, batch_size=99)", "sophia(lr=0.1, estimator=gnb, batch_size=99, gamma=0.01)"), ("fosi(interval=2)", "fosi(interval=2, lr_clip=3)"),
             ("singd(variant=ikfac, lr_cov=0.2)", "singd(variant=ikfac, lr_cov=0.2, alpha1=0.5)")]
    for left, right in same:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(run(left, problem, 5), run(right, problem, 5))), left
    for left, right in other:
        assert any(a.tobytes() != b.tobytes() for a, b in zip(run(left, problem, 5), run(right, problem, 5))), left
    assert SINGD.defaults["alpha1"] is None and tw.method("sgdp").parameter("lr").default == "0.1"


def test_grouped_keys_take_the_largest_factor_of_their_group() -> None:
    """So no factor of the queries is above 1, and the logits of every head scale by its gamma."""
    rng = np.random.default_rng(0)
    q, k, logits = rng.standard_normal((8, 3)), rng.standard_normal((4, 3)), np.array([50.0, 200.0, 160.0, 400.0])
    gamma = 100 / np.maximum(logits, 100)
    keys = tw.diagnostic("qk_clip(role=key, key_heads=2, alpha=0.3)")(w=k, logits=logits)["clipped"]
    queries = tw.diagnostic("qk_clip(role=query, key_heads=2, alpha=0.3)")(w=q, logits=logits)["clipped"]
    kappa = (gamma**0.7).reshape(2, 2).max(axis=1)
    np.testing.assert_allclose(keys, k * np.repeat(kappa, 2)[:, None], rtol=1e-14)
    np.testing.assert_allclose(queries, q * np.repeat(gamma / np.repeat(kappa, 2), 2)[:, None], rtol=1e-14)
    assert np.max(np.abs(queries / q)) <= 1 + 1e-15


def test_a_fixed_rank_above_half_the_side_is_kept() -> None:
    rng = np.random.default_rng(1)
    w, target = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    r = tw.solver("dlrt(adaptive=false, rank=4, max_iter=2)").run(w0=w, gradient=lambda x: x - target)
    assert np.linalg.matrix_rank(r["w"]) == 4 and r["rank"] == 4


@pytest.mark.parametrize("sentence", ["scaled_gd", "scaled_gd(pairs=consecutive)"])
def test_scaled_gd_refuses_a_factor_that_lies_on_its_side(sentence: str) -> None:
    """(8, 65536): the Gram matrix of r = 65536 columns would take 32 GiB."""
    with pytest.raises(tw.ShapeError, match=r"\(n, r\), and r at most 30000, got \(8, 65536\); bind its transpose"):
        tw.Optimizer([np.zeros((8, 65536), np.float32)], sentence)
