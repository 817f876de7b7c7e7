"""Second-order methods, line searches, tuners and norm balls: the laws of their cards, and their public peers."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference.adam import AdamW
from reference.estimated_steps import AdamSpectralEps
from reference.kronecker_layers import SINGD
from reference.matrix_family import SETS, NormLMO
from reference.quasi_newton import LBFGS
from support import Problem, stage
from test_fidelity import worst

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    a, b = x[:-1], x[1:]
    g = np.zeros_like(x)
    g[:-1] += -400 * a * (b - a**2) - 2 * (1 - a)
    g[1:] += 200 * (b - a**2)
    return float(np.sum(100 * (b - a**2) ** 2 + (1 - a) ** 2)), g


def minimise(sentence: str, f: Function, x: np.ndarray, steps: int, hessian: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    x, g = np.array(x, np.float64), np.zeros_like(x)
    with tw.Optimizer([x], sentence) as opt:
        opt.bind_gradients([g])
        for _ in range(steps):
            for request in opt.requests():
                if request.kind == "hessian_vector":
                    g[...] = hessian(x) @ request.probe[0]
                else:
                    request.loss, g[...] = f(x)
    return x


START = np.array([-1.2, 1.0, -0.5, 0.8, 1.1, -0.3])


# ---- L-BFGS


def test_lbfgs_reaches_the_minimum() -> None:
    x = minimise("lbfgs(line_search=strong_wolfe, tolerance_change=1e-18)", rosenbrock, START, 12)
    assert rosenbrock(x)[0] < 1e-14


@pytest.mark.parametrize("search", ["none", "strong_wolfe"])
@pytest.mark.parametrize("setting", [{}, {"max_iter": 7, "history_size": 3}, {"max_iter": 4, "max_eval": 3, "history_size": 5, "lr": 0.5}])
def test_lbfgs_beside_torch(search: str, setting: dict[str, Any]) -> None:
    """Both round every operation to 1.1e-16; some hundred steps in a curved valley, conditioned like 1e3, amplify that to 1e-11."""
    torch = pytest.importorskip("torch")
    # newer releases of torch give a search no more evaluations than the step has left: there are enough here
    setting = {"lr": 1e-2} | setting if search == "none" else setting | {"max_eval": 10_000}
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    other = torch.optim.LBFGS([p], line_search_fn=None if search == "none" else search, **setting)

    def closure() -> Any:
        other.zero_grad()
        f, g = rosenbrock(p.detach().numpy())
        p.grad = torch.tensor(g)
        return torch.tensor(f, dtype=torch.float64)

    for steps in range(1, 6):
        other.step(closure)
        mine = minimise(stage("lbfgs", setting | {"line_search": search}), rosenbrock, START, steps)
        np.testing.assert_allclose(mine, p.detach().numpy(), rtol=1e-9, atol=1e-9)


def test_lbfgs_two_loops_are_dense_bfgs() -> None:
    """The direction of the last step against the product form of the inverse, from H0 = gamma I."""
    rng = np.random.default_rng(2)
    ref = LBFGS(max_iter=1, lr=0.3, history_size=4)
    x = rng.standard_normal(6)
    ref.start([x])
    for _ in range(6):
        f, g = rosenbrock(x)
        ref.step([x], [g], gradient_at=lambda y: [rosenbrock(y[0])[1]], loss_at=lambda y: rosenbrock(y[0])[0])
    H = ref.gamma * np.eye(6)
    for s, y in ref.pairs:
        V = np.eye(6) - np.outer(y, s) / (y @ s)
        H = V.T @ H @ V + np.outer(s, s) / (y @ s)
    np.testing.assert_allclose(ref.d, -H @ ref.old, rtol=1e-10)


def test_lbfgs_does_not_move_at_a_minimum_and_a_loss_that_is_no_number_refuses_the_step() -> None:
    x = np.ones(4)
    assert np.array_equal(minimise("lbfgs", rosenbrock, x, 2), x)
    for sentence in ("lbfgs", "lbfgs(max_iter=4)"):  # without a search no evaluation is a trial that may fail
        w, g = np.array([2.0, -1.0]), np.zeros(2)
        opt = tw.Optimizer([w], sentence)
        opt.bind_gradients([g])
        before = opt.state_dict()["state"]
        with pytest.raises((tw.NonfiniteError, tw.NeedsError)):
            for request in opt.requests():
                request.loss = 2.5 if np.array_equal(w, [2.0, -1.0]) else np.nan
                g[...] = w if request.kind != "hessian_vector" else request.probe[0]
        assert np.array_equal(w, [2.0, -1.0]) and opt.state_dict()["state"] == before


# ---- conjugate gradients, truncated Newton


@pytest.mark.parametrize("beta", ["pr_plus", "fr", "hs_plus", "dy"])
def test_nonlinear_cg(beta: str) -> None:
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    a, b = q @ np.diag([1.0, 2, 5, 8, 20]) @ q.T, rng.standard_normal(5)
    x = minimise(f"nonlinear_cg(beta={beta}, c2=0.1)", lambda x: (0.5 * x @ a @ x - b @ x, a @ x - b), np.zeros(5), 40)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-7)
    y = minimise(f"nonlinear_cg(beta={beta}, c2=0.1)", rosenbrock, START[:3], 400)
    assert rosenbrock(y)[0] < 1e-12


def hessian(x: np.ndarray) -> np.ndarray:
    n, e = len(x), 1e-6
    return np.array([(rosenbrock(x + e * d)[1] - rosenbrock(x - e * d)[1]) / (2 * e) for d in np.eye(n)])


@pytest.mark.parametrize("mode", ["trust", "linesearch"])
def test_newton_cg(mode: str) -> None:
    x = minimise(f"newton_cg(mode={mode})", rosenbrock, START[:5], 80, hessian)
    assert np.linalg.norm(rosenbrock(x)[1]) < 1e-6
    a = np.diag([1.0, 3.0, 9.0])
    one = minimise(f"newton_cg(mode={mode}, radius=100)", lambda x: (0.5 * x @ a @ x, a @ x), np.array([1e-9, -1e-9, 1e-9]), 1, lambda x: a)
    assert np.linalg.norm(one) < 1e-13  # where the gradient is small the system is solved in full


def test_newton_cg_goes_to_the_border_along_negative_curvature() -> None:
    a = np.diag([1.0, -2.0])
    x = minimise("newton_cg(radius=0.5)", lambda x: (0.5 * x @ a @ x, a @ x), np.array([0.0, 0.1]), 1, lambda x: a)
    np.testing.assert_allclose(x, [0, 0.6], atol=1e-15)
    # a point where the loss is higher is refused, bit for bit, and the region shrinks
    start = np.array([0.3, 0.1])
    again = minimise("newton_cg(radius=0.5)", lambda x: (0.0 if np.array_equal(x, start) else 1.0, x), start, 1, lambda x: np.eye(2))
    assert again.tobytes() == start.tobytes()


def test_fosi_takes_newton_steps_along_the_largest_eigenvectors() -> None:
    """alpha = 1 and a base method that stands still: those components are at their optimum in one step."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    a = q @ np.diag([0.1, 0.2, 0.5, 1, 2, 10, 20, 50.0]) @ q.T
    x = minimise("fosi(base=sgd, lr=0, k=3, warmup=1, order=8, alpha=1)", lambda x: (0.5 * x @ a @ x, a @ x), rng.standard_normal(8), 1, lambda x: a)
    c = q.T @ x
    assert np.abs(c[5:]).max() < 1e-12 and np.abs(c[:5]).min() > 1e-3


# ---- layers


def answered(sentence: str, w: np.ndarray, g: np.ndarray, x: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The move of the first step of a layer."""
    before = w.copy()
    with tw.Optimizer([w], sentence) as opt:
        grads = [g.copy()]
        opt.bind_gradients(grads)
        for request in opt.requests():
            if request.kind == "activations":
                request.answer_matrix(x, d)
            else:
                grads[0][...] = g
    return before - w


def test_kfac_is_the_dense_solve_of_its_fisher_matrix() -> None:
    rng = np.random.default_rng(3)
    w, g, x, d = rng.standard_normal((3, 4)), rng.standard_normal((3, 4)), rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    move = answered("kfac(lr=1, damping=0.2, kl_clip=none, method=eigen, loss=sum)", w, g, x, d)
    F = np.kron(d.T @ d / 9, x.T @ x / 9) + 0.2 * np.eye(12)
    np.testing.assert_allclose(move.ravel(), np.linalg.solve(F, g.ravel()), rtol=1e-9)
    tiny = answered("kfac(lr=1, damping=1e-12, kl_clip=none, loss=sum)", w, g, x, d)
    np.testing.assert_allclose(tiny.ravel(), np.linalg.solve(F - 0.2 * np.eye(12), g.ravel()), rtol=1e-4)


def test_kfac_says_what_it_needs() -> None:
    w = np.ones((2, 3))
    for x, d in ((np.ones((4, 2)), np.ones((4, 2))), (np.ones((4, 3)), np.ones((4, 3))), (np.ones((4, 3)), np.ones((5, 2)))):
        with pytest.raises(tw.ShapeError):
            answered("kfac", w, w.copy(), x, d)
    for bad in ("kfac(damping=0)", "singd(lr_cov=0)"):
        with pytest.raises(tw.RangeError):
            tw.Optimizer([w], bad)


def test_ikfac_converges_to_the_inverse() -> None:
    """K K' -> (U + damping I)^-1 under a constant U."""
    x, d = np.random.default_rng(1).standard_normal((12, 3)), np.random.default_rng(2).standard_normal((12, 2))
    ref = SINGD(variant="ikfac", alpha1=0.0, lr_cov=0.2, damping=0.1)
    ref.statistics = lambda p: (x.T @ x / 12, d.T @ d / 12)  # type: ignore[method-assign]
    p = np.zeros((2, 3))
    ref.start([p])
    for _ in range(400):
        ref.step([p], [np.ones((2, 3))])
    K = ref.state[0]["K"]
    np.testing.assert_allclose(K @ K.T, np.linalg.inv(x.T @ x / 12 + 0.1 * np.eye(3)), rtol=1e-13)


# ---- Magma, Mechanic


class MagmaReference:
    """The card, on steps of AdamW."""

    def __init__(self, mask_prob: float = 0.5, tau: float = 2.0, momentum_beta: float = 0.9, alignment_ema: float = 0.9) -> None:
        self.prob, self.tau, self.beta, self.ema = mask_prob, tau, momentum_beta, alignment_ema
        self.state: dict[int, Any] = {}

    def factor(self, i: int, g: np.ndarray, k: int, stream: int) -> float:
        from math import erfc, sqrt

        m, a = self.state.get(i, (0 * g, 1.0))
        m = self.beta * m + (1 - self.beta) * g
        cos = np.sum(m * g) / (max(np.linalg.norm(m), 1e-8) * max(np.linalg.norm(g), 1e-8))
        a = self.ema * a + (1 - self.ema) / (1 + np.exp(-cos / self.tau))
        self.state[i] = m, a
        draw = 0.5 * erfc(-float(tw.random_normal(5, stream, k, i, 1)[0]) / sqrt(2))
        return a if draw < self.prob else 0.0


@pytest.mark.parametrize("setting", [{}, {"mask_prob": 1.0, "tau": 0.5}, {"mask_prob": 0.3, "momentum_beta": 0.5, "alignment_ema": 0.2}])
def test_magma(setting: dict[str, float]) -> None:
    shapes = [(7,), (5, 3), ()]
    problem, params = Problem(shapes, seed=2), Problem(shapes, seed=2).start()
    mine, grads = problem.start(), [np.zeros(s) for s in shapes]
    rule, mask = AdamW(lr=0.05, weight_decay=0.3), MagmaReference(**setting)
    rule.start(params)
    opt = tw.Optimizer(mine, f"adamw(lr=0.05, weight_decay=0.3) | {stage('magma', setting)}", seed=5)
    opt.bind_gradients(grads)
    for k in range(25):
        before, g = [p.copy() for p in params], problem.gradient(params, k)
        rule.step(params, g)
        for i, (p, b) in enumerate(zip(params, before)):
            p[...] = b + mask.factor(i, g[i], k, 1) * (p - b)
        for a, b in zip(grads, problem.gradient(mine, k)):
            a[...] = b
        opt.step()
    assert np.max(worst(mine, params)) < 1e-12


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("setting", [{}, {"s_init": 1e-3, "num_betas": 3, "weight_decay": 0.1}])
def test_mechanic_beside_optax(rule: str, setting: dict[str, Any]) -> None:
    """optax works in float64 here; the sums of both run in another order: 1e-13, and some ten after thirty steps."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    shapes = [(7,), (5, 3)]
    problem, grads = Problem(shapes, seed=3), [np.zeros(s) for s in shapes]
    mine = problem.start()
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        theirs = [jax.numpy.asarray(x) for x in problem.start()]
        other = optax.contrib.mechanize(optax.sgd(0.1) if rule == "sgd" else optax.adam(0.1), **setting)
        state = other.init(theirs)
        opt = tw.Optimizer(mine, f"{rule}(lr=0.1) | {stage('mechanic', setting)}")
        opt.bind_gradients(grads)
        for k in range(30):
            g = [jax.numpy.asarray(x) for x in problem.gradient([np.asarray(t) for t in theirs], k)]
            updates, state = other.update(g, state, theirs)
            theirs = optax.apply_updates(theirs, updates)
            for a, b in zip(grads, problem.gradient(mine, k)):
                a[...] = b
            opt.step()
        assert np.max(worst(mine, [np.asarray(t) for t in theirs])) < 1e-9
        moved = max(np.abs(m - s).max() for m, s in zip(mine, problem.start()))
    assert moved > 1e-6


# ---- clipping of samples


def test_automatic_clip_is_dp_sgd() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((5, 4)), rng.standard_normal((5, 2, 3))]
    samples[0][2], samples[1][2] = 0, 0

    def moved(sentence: str) -> list[np.ndarray]:
        params = [np.zeros(4), np.zeros((2, 3))]
        with tw.Optimizer(params, sentence, seed=3) as opt:
            for request in opt.requests():
                request.answer_samples(samples)
        return params

    common = "noise_multiplier=0.3, expected_batch_size=4, clip=2"
    for a, b in zip(moved(f"automatic_clip({common}, gamma=0.1) | sgd(lr=1)"), moved(f"dp_sgd({common}, mode=auto, gamma=0.1) | sgd(lr=1)")):
        assert np.array_equal(a, b)
    # AUTO-V: every sample has the length clip, one of zeros counts nothing
    norms = np.sqrt(np.sum(samples[0] ** 2, 1) + np.sum(samples[1] ** 2, (1, 2)))
    want = [-sum(2 / n * s for n, s in zip(norms, x) if n) / 4 for x in samples]
    got = moved("automatic_clip(noise_multiplier=0, expected_batch_size=4, clip=2, gamma=0) | sgd(lr=1)")
    assert np.max(worst(got, want)) < 1e-14


# ---- norms


@pytest.mark.parametrize("setting", NormLMO.settings, ids=[s["norm"] for s in NormLMO.settings])
def test_norm_balls(setting: dict[str, Any]) -> None:
    """<G, T> is the dual norm, T is on the border, and no point of the ball does better."""
    rng = np.random.default_rng(7)
    ref = NormLMO(**setting)
    g = rng.standard_normal((5, 3))
    t = tw.constraint(stage("norm_lmo", setting)).lmo(g)
    r = setting["radius"]
    assert np.sum(g * t) == pytest.approx(-r * ref.dual(g), rel=1e-12)
    assert ref.value(t) == pytest.approx(r, rel=1e-12)
    for _ in range(50):
        x = rng.standard_normal((5, 3))
        assert np.sum(g * x) / ref.value(x) * r >= np.sum(g * t) - 1e-9
    assert not np.any(tw.constraint(stage("norm_lmo", setting)).lmo(np.zeros((5, 3))))


def test_newton_schulz_sets() -> None:
    rng = np.random.default_rng(5)
    m = rng.standard_normal((6, 9))
    u, _, vt = np.linalg.svd(m, full_matrices=False)

    def factor(x: np.ndarray, text: str) -> np.ndarray:
        w = np.zeros_like(x)
        with tw.Optimizer([w], f"newton_schulz({text}) | sgd(lr=1)") as opt:
            opt.step([x])
        return -w

    np.testing.assert_allclose(factor(m, "ns_coefficients=cubic, ns_steps=60"), u @ vt, atol=1e-8)
    np.testing.assert_allclose(factor(m, "ns_coefficients=polar_express_8, ns_steps=8"), u @ vt, atol=1e-4)
    s = np.linalg.svd(factor(m, ""), compute_uv=False)
    assert 0.6 < s.min() and s.max() < 1.2
    for name in SETS:
        text = f"ns_coefficients={name}, scaling=frobenius"
        np.testing.assert_allclose(factor(m.T, text), factor(m, text).T, atol=1e-13)
        np.testing.assert_allclose(factor(m, text + ", form=gram"), factor(m, text), atol=1e-11)
        # what the set says it does to singular values is what it does
        sigma = np.linalg.svd(m, compute_uv=False) / np.linalg.norm(m)
        told = tw.solver(f"ns_coefficient_sets(ns_coefficients={name}, ns_steps=4)").run(sigma=sigma)["mapped"]
        np.testing.assert_allclose(np.sort(np.linalg.svd(factor(m, text + ", ns_steps=4, eps=1e-300"), compute_uv=False)), np.sort(np.abs(told)), atol=1e-12)
    assert not np.any(factor(np.zeros((2, 3)), ""))


# ---- solvers


def test_inverse_roots_agree() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((7, 7))
    a = a @ a.T + 0.1 * np.eye(7)
    for p in (1, 2, 4):
        x = tw.solver(f"inverse_root(p={p})").run(a=a)["root"]
        y = tw.solver(f"inverse_root(p={p}, method=coupled_newton, tol=1e-14)").run(a=a)["root"]
        np.testing.assert_allclose(np.linalg.matrix_power(x, p) @ a, np.eye(7), atol=1e-11)
        np.testing.assert_allclose(x, y, atol=1e-10)
    zero = tw.solver("inverse_root(p=2, eps=0.25)").run(a=np.zeros((3, 3)))["root"]
    np.testing.assert_allclose(zero, 2 * np.eye(3), rtol=1e-15)
    for method in ("eigh", "coupled_newton"):
        with pytest.raises(tw.NumericError):
            tw.solver(f"inverse_root(p=2, method={method})").run(a=np.zeros((3, 3)))


def test_mfac_static_gives_every_element() -> None:
    rng = np.random.default_rng(0)
    g = rng.standard_normal((6, 10))
    r = tw.solver("mfac_static(damp=0.05)").run(grads=g)
    inverse = np.linalg.inv(0.05 * np.eye(10) + g.T @ g / 6)
    element = np.eye(10) / 0.05 - np.einsum("ki,kj,k->ij", r["v"], r["v"], 1 / r["q"][0])
    np.testing.assert_allclose(element, inverse, atol=2e-12 * 20)


def test_dcdm_with_the_identity_is_cg() -> None:
    rng = np.random.default_rng(4)
    q, _ = np.linalg.qr(rng.standard_normal((30, 30)))
    a, b = q @ np.diag(np.linspace(1, 40, 30)) @ q.T, rng.standard_normal(30)
    for k in (1, 4, 10):
        cg = tw.solver(f"cg(max_iter={k}, rtol=1e-14)").run(b=b, product=lambda v: a @ v)
        mine = tw.solver(f"dcdm(max_iter={k})").run(b=b, product=lambda v: a @ v, predict=lambda r: r)
        np.testing.assert_allclose(mine["x"], cg["x"], rtol=1e-6)
    exact = tw.solver("dcdm").run(b=b, product=lambda v: a @ v, predict=lambda r: np.linalg.solve(a, r))
    assert exact["iterations"] == 1 and exact.outcome == "converged"


def test_hutchinson_diag_is_unbiased_and_exact_on_a_diagonal() -> None:
    d = np.array([3.0, -1.0, 0.5])
    assert np.array_equal(tw.solver("hutchinson_diag").run(like=d, product=lambda v: d * v)["diagonal"], d)
    a = np.diag(d) + 0.3
    got = tw.solver("hutchinson_diag(n_probes=40000, kind=gaussian)").run(like=d, product=lambda v: a @ v)["diagonal"]
    np.testing.assert_allclose(got, np.diag(a), atol=5 * np.sqrt((2 * 3.3**2 + 0.2) / 40000))


def test_slq_pair_makes_the_heavy_ball_converge_at_its_rate() -> None:
    d = np.linspace(1, 100, 12)
    r = tw.solver("slq_lr_momentum(steps=12)").run(like=d, product=lambda v: d * v)
    assert r["largest"] == pytest.approx(100, rel=1e-10) and r["smallest"] == pytest.approx(1, rel=1e-8)
    x, v = np.ones(12), np.zeros(12)
    for _ in range(200):
        v = r["momentum"] * v - r["lr"] * d * x
        x = x + v
    assert np.linalg.norm(x) < 200 * 4 * np.sqrt(r["momentum"]) ** 200  # a double root: linear times the rate


def test_completion_finds_a_matrix_of_rank_two() -> None:
    rng = np.random.default_rng(9)
    m = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 25))
    mask = (rng.uniform(size=m.shape) < 0.5).astype(float)
    for solver in ("exact", "sketched"):
        r = tw.solver(f"altmin_completion(rank=2, iters=80, solver={solver})").run(values=m * mask, mask=mask)
        assert np.abs(r["completed"] - m).max() < 1e-9


def test_low_rank_training_finds_the_rank() -> None:
    rng = np.random.default_rng(3)
    target = rng.standard_normal((9, 3)) @ rng.standard_normal((3, 8))
    r = tw.solver("dlrt(lr=0.3, tol=1e-3, r_max=8, max_iter=200)").run(w0=rng.standard_normal((9, 8)), gradient=lambda w: w - target)
    assert r["rank"] == 3 and np.abs(r["w"] - target).max() < 1e-6
    k = int(r["rank"])
    np.testing.assert_allclose(r["u"][:, :k].T @ r["u"][:, :k], np.eye(k), atol=1e-10)
    core = rng.standard_normal((2, 3, 2, 1))
    target = np.einsum("abcd,ia,jb,kc->ijkd", core, rng.standard_normal((7, 2)), rng.standard_normal((6, 3)), rng.standard_normal((5, 2)))
    r = tw.solver("tdlrt(lr=0.5, tol=1e-4, max_iter=200)").run(w0=rng.standard_normal(target.shape), gradient=lambda w: w - target)
    assert list(r["ranks"]) == [2, 3, 2, 1] and np.abs(r["w"] - target).max() < 1e-10


def test_greedy_network_finds_one_bond() -> None:
    rng = np.random.default_rng(2)
    t = np.einsum("ir,jr,k->ijk", rng.standard_normal((5, 3)), rng.standard_normal((4, 3)), rng.standard_normal(3))
    r = tw.solver("greedy_tn(target=1e-12, sweeps=30, probe_sweeps=3)").run(tensor=t)
    assert r.outcome == "converged" and r["steps"] == 2 and r["ranks"][0, 1] == 3


def test_lazy_newton_with_a_large_interval_still_converges() -> None:
    from reference.solvers_newton import Smooth, functions

    f = Smooth(np.random.default_rng(0))
    best = None
    for name in ("lazy_cubic_newton", "lazy_regularized_newton", "grad_norm_smooth"):
        for interval in (1, 5):
            text = f"{name}(gtol=1e-9)" if name == "grad_norm_smooth" else f"{name}(gtol=1e-9, m={interval})"
            asked = functions(f)
            needed = {a.name: asked[a.name] for a in tw.solver(text).asks}
            r = tw.solver(text).run(x0=np.zeros(5), **needed)
            assert r.outcome == "converged"
            best = r["x"] if best is None else best
            np.testing.assert_allclose(r["x"], best, atol=1e-7)


def test_polynomial_preconditioners_need_fewer_steps() -> None:
    d = np.array([100.0, 5, 4, 3.5, 3, 2, 1.5, 1])
    f = lambda x: (0.5 * np.sum(d * x * x), d * x)  # noqa: E731
    steps = []
    for tau in (0, 1, 2):
        r = tw.solver(f"poly_precond(mode=sympoly, tau={tau}, max_iter=10000, gtol=1e-6)").run(
            x0=np.ones(8), b=np.diag(d), value_gradient=f, value=lambda x: f(x)[0])
        steps.append(r["iterations"])
    assert steps[0] > 3 * steps[1] and steps[1] > steps[2]
    one = tw.solver("poly_precond(mode=sympoly, tau=7, gtol=1e-6)").run(x0=np.ones(8), b=np.diag(d), value_gradient=f, value=lambda x: f(x)[0])
    assert one["iterations"] == 1  # P is a multiple of the inverse


# ---- diagnostics


def test_operator_norms_bound_every_input() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 8))
    r = tw.diagnostic("operator_norms")(w=w)
    for _ in range(50):
        x = rng.standard_normal(8)
        y = w @ x
        rms = lambda v: np.sqrt(np.mean(v**2))  # noqa: E731
        assert rms(y) <= r["input_1_to_rms"] * np.abs(x).sum() + 1e-12
        assert rms(y) <= r["hidden_rms_to_rms"] * rms(x) + 1e-12
        assert np.abs(y).max() <= r["output_rms_to_inf"] * rms(x) + 1e-12


def test_qk_clip_scales_logits_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    wq, wk, x = rng.standard_normal((8, 6)), rng.standard_normal((8, 6)), rng.standard_normal((10, 6))
    heads = lambda m: (m @ x.T).reshape(4, 2, 10)  # noqa: E731
    logits = lambda q, k: np.einsum("hdi,hdj->hij", heads(q), heads(k))  # noqa: E731
    before = logits(wq, wk)
    top = before.max((1, 2))
    tau = float(np.sort(top)[1:3].mean())
    q, k = (tw.diagnostic(f"qk_clip(tau={tau}, alpha=0.3, role={role})")(w=w, logits=top)["clipped"] for role, w in (("query", wq), ("key", wk)))
    after = logits(q, k)
    for h in range(4):
        if top[h] <= tau:
            assert np.array_equal(q[2 * h : 2 * h + 2], wq[2 * h : 2 * h + 2])
        np.testing.assert_allclose(after[h], before[h] * min(1, tau / top[h]), rtol=1e-12, atol=1e-12)


# ---- estimated steps, spectral epsilons


def test_spectral_epsilons() -> None:
    """Beside the reference; the iteration finds the norms; orthogonal layers make it Adam."""
    shapes = [(6,), (5, 3), (2, 3, 2, 2)]
    problem, params = Problem(shapes, seed=1), Problem(shapes, seed=1).start()
    mine, ref = problem.start(), AdamSpectralEps(lr=0.01, eps=0.1, listed=(1, 2), n_power_iterations=40)
    ref.start(params)
    opt = tw.Optimizer(mine, "adam_spectral_eps(lr=0.01, eps=0.1, listed=[1, 2], n_power_iterations=40)")
    for k in range(15):
        norms = [np.linalg.norm(p.reshape(len(p), -1), 2) for p in params[1:]]
        ref.step(params, problem.gradient(params, k))
        opt.step(problem.gradient(mine, k))
        assert opt.get("adam_spectral_eps.product") == pytest.approx(np.prod(norms), rel=1e-3)
    assert np.max(worst(mine, params)) < 1e-12
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    a, b = q.copy(), q.copy()
    g = np.random.default_rng(1).standard_normal((4, 4))
    tw.Optimizer([a], "adam_spectral_eps(lr=0.1, listed=[0], eps=0.1)").step([g])
    tw.Optimizer([b], "adam(lr=0.1, eps=0.1)").step([g])
    np.testing.assert_allclose(a, b, atol=1e-14)
    with pytest.raises(tw.RangeError, match="listed"):
        tw.Optimizer([a], "adam_spectral_eps(listed=[3])").step([g])


def test_prodigy_schedule_free_does_not_feel_the_scale_of_the_gradients() -> None:
    problem = Problem([(7,), (5, 3)], seed=1)
    runs = []
    for scale in (1.0, 1000.0):
        w = problem.start()
        opt = tw.Optimizer(w, "prodigy_schedule_free(d0=0.01, slice=1, factored=false, eps=1e-30)")
        for k in range(30):
            opt.step([scale * g for g in problem.gradient(w, k)])
        assert opt.get("prodigy_schedule_free.d") > 0.01
        runs.append(w)
    assert np.max(worst(*runs)) < 1e-9
    still = [np.ones(3)]
    opt = tw.Optimizer(still, "prodigy_schedule_free")
    for _ in range(3):
        opt.step([np.zeros(3)])
    assert np.array_equal(still[0], np.ones(3))


def test_kfac_beyond_floats_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 6)).astype(np.float32)
    before = w.copy()
    with pytest.raises(tw.NumericError, match="raise `damping`"):
        answered("kfac(method=eigen, damping=1e-40)", w, np.full((4, 6), 0.1, np.float32), rng.standard_normal((3, 6)),
                 rng.standard_normal((3, 4)))
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("sentence", ["came(lr=0.01)", "adalomo(lr=0.05)"])
def test_squares_of_vectors_may_be_beyond_floats(sentence: str) -> None:
    w = np.ones(4, np.float32)
    with tw.Optimizer([w], sentence) as opt:
        opt.step([np.full(4, 1e20, np.float32)])
    assert np.all(w < 1) and np.all(w > 0.9)


@pytest.mark.parametrize("sentence", ["dion(weight_decay=0)", "soap(weight_decay=0, precondition_frequency=2)",
                                      "kl_soap(weight_decay=0, precondition_frequency=2)", "muon(weight_decay=0)", "shampoo",
                                      "galore(rank=4)", "coap(rank=4)"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_step_goes_where_no_gradient_has_been(sentence: str, shape: tuple[int, int], dtype: Any) -> None:
    """Gradients that are multiples of one matrix of rank one: the second singular value of the move is 0, up to what rounding leaves of
    the first one; Newton-Schulz triples it in each of five iterations, the inverse roots of eps = 1e-4 scale it by 20."""
    rng = np.random.default_rng(5)
    direction = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    w = np.zeros(shape, dtype)
    with tw.Optimizer([w], sentence) as opt:
        for k in range(6):
            opt.step([((1 + 0.1 * k) * direction).astype(dtype)])
    sizes = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    assert sizes[0] > 0
    assert sizes[1] < 1000 * np.finfo(dtype).eps * sizes[0]


# ---- what is refused or given up is counted


def asked(opt: tw.Optimizer, w: np.ndarray, f: Function, hessian: np.ndarray, steps: int = 1) -> None:
    g = np.zeros_like(w)
    opt.bind_gradients([g])
    for _ in range(steps):
        for request in opt.requests():
            if request.kind == "hessian_vector":
                g[...] = (hessian @ request.probe[0].ravel()).reshape(w.shape)
            else:
                request.loss, g[...] = f(w)


@pytest.mark.parametrize("sentence", ["lbfgs(line_search=strong_wolfe)", "nonlinear_cg", "newton_cg", "newton_cg(mode=linesearch)",
                                      "saddle_free_newton"])
def test_steps_that_nothing_was_good_enough_for_are_counted(sentence: str) -> None:
    """The loss is lowest where the step starts, whatever the gradient says: each step is refused, and a checkpoint knows it."""
    start = np.array([0.5, 1.0])
    w = start.copy()
    elsewhere = np.inf if sentence == "saddle_free_newton" else 2.0
    path = sentence.partition("(")[0] + ".refused"
    with tw.Optimizer([w], sentence) as opt, tw.Optimizer([w.copy()], sentence) as other:
        assert opt.get(path) == 0
        asked(opt, w, lambda x: (1.0 if np.array_equal(x, start) else elsewhere, np.array([1.0, -0.5])), np.eye(2), 3)
        assert np.array_equal(w, start)
        assert opt.get(path) == 3
        other.load_state_dict(opt.state_dict())
        assert other.get(path) == 3


@pytest.mark.parametrize("sentence, path", [("newton_cg", "newton_cg.negative_curvature"),
                                            ("newton_cg(mode=linesearch)", "newton_cg.negative_curvature"),
                                            ("lbfgs(lr=0.1, max_iter=3)", "lbfgs.skipped_pairs")])
def test_negative_curvature_is_counted(sentence: str, path: str) -> None:
    for a, curved in [(np.diag([1.0, 2.0]), False), (np.diag([-1.0, -2.0]), True)]:
        w = np.array([0.3, 0.1])
        with tw.Optimizer([w], sentence) as opt:
            asked(opt, w, lambda x: (0.5 * x @ a @ x, a @ x), a, 2)  # noqa: B023
            assert (opt.get(path) > 0) == curved


def test_directions_uphill_are_counted() -> None:
    """g = 1, then -10 behind d = -1: beta = 100, and the new direction, 10 - 100, goes up."""
    answers = [[1.0, 0.1], [-10.0, 1e-3]]  # each step is taken at its first trial, where little is left of the slope
    w, g = np.zeros(1), np.zeros(1)
    with tw.Optimizer([w], "nonlinear_cg(beta=fr, restart=9)") as opt:
        opt.bind_gradients([g])
        for step, slopes in enumerate(answers):
            assert opt.get("nonlinear_cg.uphill") == 0
            for n, request in enumerate(opt.requests()):
                request.loss, g[...] = -float(step + n), slopes[n]
        assert opt.get("nonlinear_cg.uphill") == 1


@pytest.mark.parametrize("name", ["psgd_lra", "psgd_xmat", "psgd_dense"])
def test_fits_that_are_left_out_are_counted(name: str) -> None:
    w = np.ones((2, 3))
    with tw.Optimizer([w], f"{name}(lr=0.1, fit=whiten, preconditioner_init_scale=1, grad_clip_max_norm=1)") as opt:
        opt.step([np.full((2, 3), 0.5)])
        assert opt.get(f"{name}.skipped_fits") == 0
        opt.step([np.linspace(1, 2, 6).reshape(2, 3) * 1e200])  # squares are beyond doubles
        assert opt.get(f"{name}.skipped_fits") == 1
        assert np.isfinite(w).all()


def test_layers_without_statistics_are_counted() -> None:
    rng = np.random.default_rng(0)
    with tw.Optimizer([np.ones((2, 3))], "kfac(lr=0.1, factor_update_steps=2)") as opt:
        def step(count: int) -> None:
            opt.bind_gradients([np.ones((2, 3))] * count)
            for request in opt.requests():
                if request.kind == "activations":
                    request.answer_matrix(rng.standard_normal((5, 3)), rng.standard_normal((5, 2)))
        step(1)
        assert opt.get("kfac.unknown") == 0
        late = np.ones((2, 3))
        opt.add_param_group({"params": [late]})
        step(2)
        assert opt.get("kfac.unknown") == 1
        np.testing.assert_allclose(late, 0.9)  # a plain step
        step(2)
        assert opt.get("kfac.unknown") == 1


def test_solvers_count_what_they_refuse() -> None:
    rosenbrock_residuals = lambda x: np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # noqa: E731
    jacobians = []
    x0 = np.array([-1.2, 1.0])
    run = tw.solver("levenberg_marquardt").run(
        x0=x0, r0=rosenbrock_residuals(x0), residual=rosenbrock_residuals,
        jacobian=lambda x: jacobians.append(0) or np.array([[-20 * x[0], 10.0], [-1.0, 0.0]]))
    assert run.refused == run.iterations - (len(jacobians) - 1) > 0  # every trial that was taken has a Jacobian
    # the damped matrix is singular to rounding until mu has grown
    run = tw.solver("levenberg_marquardt(tau=1e-30, scaling=identity)").run(
        x0=np.array([1.0, 1.0]), r0=np.array([2.0]), residual=lambda x: np.array([x[0] + x[1]]), jacobian=lambda x: np.ones((1, 2)))
    assert run.outcome == "converged" and run.refused > 0
    np.testing.assert_allclose(run.x.sum(), 0, atol=1e-9)


def test_filtered_newton_counts_the_hessians_that_needed_the_jitter() -> None:
    for h, count in [(np.diag([1.0, 2.0]), 0), (np.diag([1.0, 0.0]), 3)]:
        run = tw.solver("filtered_newton(max_iter=4, jitter=1e-3)").run(
            x0=np.ones(2), value_gradient=lambda x: (0.5 * x @ h @ x, h @ x), hessian=lambda x: h, value=lambda x: 0.5 * x @ h @ x)  # noqa: B023
        assert run.jittered == count  # the first batch is not inverted
