"""Methods of distributed, zeroth-order, robust and constrained learning: the laws of their cards, and their peers."""

from __future__ import annotations

import itertools
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw
from reference.losses_solvers import DRRhoContrastive
from reference.solvers_clients import quadratics
from reference.solvers_populations import ellipsoid

ROTATION = np.array([[0.0, 1.0], [-1.0, 0.0]])


def descend(sentence: str, w: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray], steps: int,
            loss: Callable[[np.ndarray], float] = lambda x: 0.0, **options: Any) -> tw.Optimizer:
    """`steps` steps of one tensor, every request answered at where it is."""
    g = np.zeros_like(w)
    opt = tw.Optimizer([w], sentence, **options)
    opt.bind_gradients([g])
    for _ in range(steps):
        for request in opt.requests():
            if request.wants_loss:
                request.loss = loss(w)
            if request.wants_gradient:
                g[...] = gradient(w)
    return opt


# ---- games


@pytest.mark.parametrize("sentence", ["extragradient(lr=0.3)", "optimistic_gda(lr=0.2)"])
def test_a_bilinear_game_is_solved_where_plain_descent_goes_round(sentence: str) -> None:
    ends = {}
    for text in (sentence, "sgd(lr=0.2)", "optimistic_gda(lr=0.2, k=0)"):
        z = np.array([1.0, -0.5])
        descend(text, z, lambda z: ROTATION @ z, 800)
        ends[text] = np.linalg.norm(z)
    assert ends[sentence] < 1e-6 and ends["sgd(lr=0.2)"] > 1
    assert ends["optimistic_gda(lr=0.2, k=0)"] == ends["sgd(lr=0.2)"]


def test_optimistic_gda_is_optax() -> None:
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    peer = optax.optimistic_gradient_descent(0.1, alpha=1.0, beta=0.7)
    w, p = np.array([1.0, -2.0], np.float32), jnp.array([1.0, -2.0], jnp.float32)
    state = peer.init(p)
    a = np.array([[1.0, 0.3], [0.3, 2.0]], np.float32)
    opt = tw.Optimizer([w], "optimistic_gda(lr=0.1, k=0.7)")
    for _ in range(20):
        opt.step([a @ w])
        updates, state = peer.update(jnp.asarray(a) @ p, state)
        p = optax.apply_updates(p, updates)
    np.testing.assert_allclose(w, np.asarray(p), rtol=2e-5, atol=2e-6)  # float32 on both sides


def test_the_look_of_extragradient_stays_in_its_domain() -> None:
    seen, w = [], np.array([0.9, 0.0])
    descend("extragradient(lr=5, domain=l2_ball(1)) | project(l2_ball(1))", w, lambda z: seen.append(z.copy()) or ROTATION @ z, 20)
    assert max(np.linalg.norm(z) for z in seen) <= 1 + 1e-12 and np.linalg.norm(w) <= 1 + 1e-12


# ---- losses alone


def quadratic(n: int = 5) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], float]]:
    rng = np.random.default_rng(3)
    q = rng.standard_normal((n, n))
    a, b = q @ q.T / n + np.eye(n), rng.standard_normal(n)
    return b, lambda x: a @ (x - b), lambda x: float(0.5 * (x - b) @ a @ (x - b))


def estimate(stage: str, x: np.ndarray, loss: Callable[[np.ndarray], float], seed: int) -> np.ndarray:
    """The gradient that the rule behind the stage sees."""
    w = x.copy()
    opt = tw.Optimizer([w], f"{stage} | sgd(lr=1)", seed=seed)
    for request in opt.requests():
        request.loss = loss(w)
    return x - w


def test_coordinates_from_both_sides_are_exact_on_quadratics() -> None:
    _, gradient, loss = quadratic()
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(estimate("zo_gradient(mu=0.5, kind=coordinate, central=true)", x, loss, 0), gradient(x), rtol=1e-12)
    one_sided = estimate("zo_gradient(mu=1e-6, kind=coordinate)", x, loss, 0)
    np.testing.assert_allclose(one_sided, gradient(x), rtol=1e-4)


def test_coordinates_of_several_tensors() -> None:
    params = [np.ones(2), np.array(2.0), np.ones((1, 2))]
    opt = tw.Optimizer(params, "zo_gradient(mu=0.25, kind=coordinate) | sgd(lr=1)")
    asked = 0
    for request in opt.requests():
        asked += 1
        request.loss = float(3 * params[0][1] + 5 * params[1] - params[2][0, 0])
    assert asked == 6
    np.testing.assert_allclose(params[0], [1, -2], atol=1e-12)
    np.testing.assert_allclose(params[1], -3, atol=1e-12)
    np.testing.assert_allclose(params[2], [[2, 1]], atol=1e-12)


@pytest.mark.parametrize("stage", ["zo_gradient(q=8, mu=1e-4, kind=gaussian)", "zo_gradient(q=8, mu=1e-4, kind=sphere, central=true)",
                                   "zo_gradient(q=8, mu=1e-4, kind=rademacher)", "openai_es(shaping=none, sigma=1e-3)"])
def test_random_directions_average_to_the_gradient(stage: str) -> None:
    """800 batches of 8 directions: the deviation of the mean is some |g| sqrt(n/6400), 3 % here."""
    _, gradient, loss = quadratic()
    x = np.linspace(-1, 1, 5)
    found = np.mean([estimate(stage, x, loss, seed) for seed in range(800)], axis=0)
    assert np.linalg.norm(found - gradient(x)) < 0.1 * np.linalg.norm(gradient(x))


def test_centred_ranks_do_not_see_the_scale_of_the_losses() -> None:
    _, _, loss = quadratic()
    x = np.linspace(-1, 1, 5)
    np.testing.assert_array_equal(estimate("openai_es", x, loss, 1), estimate("openai_es", x, lambda y: np.exp(3 * loss(y)), 1))


def test_mezo_converges_and_brings_the_parameters_back() -> None:
    b, _, loss = quadratic()
    w = np.zeros(5)
    opt = tw.Optimizer([w], "mezo(lr=0.02, eps=1e-3)", seed=2)
    for _ in range(3000):
        for request in opt.requests():
            request.loss = loss(w)
    np.testing.assert_allclose(w, b, atol=1e-4)
    still = w.copy()
    opt.set("lr", 0.0)
    for request in opt.requests():
        request.loss = loss(w)
    assert w.tobytes() == still.tobytes()


@pytest.mark.parametrize("setting", ["", "active=false", "diagonal=true"])
def test_cma_es_on_an_ellipsoid(setting: str) -> None:
    f = ellipsoid(6)
    mine = tw.solver(f"cma_es(max_iter=2000, target=1e-8{', ' + setting if setting else ''})")
    result = mine.answer(mine.requests(x0=np.full(6, -0.4)), losses=lambda X: np.array([f(x) for x in X]))
    assert result.outcome == "converged" and result.value <= 1e-8


def test_cbo_finds_the_least_minimum_of_rastrigin() -> None:
    rng = np.random.default_rng(0)
    f = lambda X: np.sum(X**2 - 10 * np.cos(2 * np.pi * X) + 10, axis=1)  # noqa: E731
    mine = tw.solver("cbo(dt=0.05, sigma=1, alpha=1000, max_iter=400)")
    result = mine.answer(mine.requests(points0=rng.uniform(-3, 3, (100, 2))), losses=f)
    assert np.linalg.norm(result.x) < 0.1


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_nelder_mead_is_scipy(n: int, adaptive: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    f = lambda x: float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2) + np.sum((1 - x) ** 2))  # noqa: E731
    x0 = np.linspace(-1.2, 0.8, n) * np.arange(n)[::-1] if n > 1 else np.array([-1.2])
    theirs = optimize.minimize(f, x0, method="Nelder-Mead", options={"adaptive": adaptive, "maxiter": 200 * n, "maxfev": 10**6})
    mine = tw.solver(f"nelder_mead(adaptive={str(adaptive).lower()}, max_iter={200 * n})")
    result = mine.answer(mine.requests(x0=x0), point_value=f)
    assert (result.iterations, result.evaluations) == (theirs.nit, theirs.nfev)
    np.testing.assert_allclose(result.x, theirs.x, rtol=1e-9, atol=1e-12)
    for most in (1, 7, 30):  # a limit of steps is scipy's too
        theirs = optimize.minimize(f, x0, method="Nelder-Mead", options={"adaptive": adaptive, "maxiter": most, "maxfev": 10**6})
        mine = tw.solver(f"nelder_mead(adaptive={str(adaptive).lower()}, max_iter={most})")
        result = mine.answer(mine.requests(x0=x0), point_value=f)
        assert (result.iterations, result.evaluations) == (theirs.nit, theirs.nfev)
        np.testing.assert_allclose(result.x, theirs.x, rtol=1e-12)


# ---- weights


def weights(sentence: str, losses: np.ndarray, **more: np.ndarray) -> tuple[float, np.ndarray]:
    value, out = tw.weighting(sentence).value_and_grad(losses=losses, **more)
    return value, out["weights"]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 1.0])
def test_cvar_is_the_minimum_over_thresholds(alpha: float) -> None:
    losses = np.random.default_rng(1).exponential(size=11)
    least = min(t + np.mean(np.maximum(losses - t, 0)) / alpha for t in losses)
    assert weights(f"cvar_weights(alpha={alpha})", losses)[0] == pytest.approx(least, rel=1e-13)


def test_spectral_risk_by_hand() -> None:
    assert weights("spectral_risk(param=0.5, shift_cost=0)", np.array([1.0, 2.0, 3.0, 4.0]))[0] == 3.5
    np.testing.assert_allclose(weights("spectral_risk", np.full(5, 2.0))[1], 0.2)
    _, q = weights("spectral_risk(sigma=[0, 0.25, 0.75], shift_cost=0)", np.array([5.0, 1.0, 3.0]))
    np.testing.assert_array_equal(q, [0.75, 0, 0.25])


@pytest.mark.parametrize("setting", ["shift_cost=0.05", "penalty=kl, shift_cost=0.1", "kind=extremile, shift_cost=0.02",
                                     "kind=esrm, penalty=kl, shift_cost=0.2"])
def test_spectral_risk_is_the_gradient_of_its_value_and_majorised(setting: str) -> None:
    rng = np.random.default_rng(2)
    losses = rng.uniform(0, 2, 8)
    _, q = weights(f"spectral_risk({setting})", losses)
    _, sigma = weights(f"spectral_risk({setting.replace('penalty=kl', 'penalty=l2').split('shift_cost')[0]}shift_cost=0)", np.arange(8.0))
    assert q.sum() == pytest.approx(1, abs=1e-12) and q.min() >= -1e-15
    assert np.all(np.cumsum(np.sort(q)) >= np.cumsum(sigma) - 1e-12)
    d = rng.standard_normal(8)
    slope = (weights(f"spectral_risk({setting})", losses + 1e-6 * d)[0] - weights(f"spectral_risk({setting})", losses - 1e-6 * d)[0]) / 2e-6
    assert slope == pytest.approx(q @ d, rel=1e-6)


def test_a_ball_of_divergences_is_filled() -> None:
    rng = np.random.default_rng(3)
    losses, reference = rng.uniform(0, 2, 12), rng.uniform(0, 1, 12)
    value, q = weights("drrho_weights(form=ball, rho=0.4)", losses, reference=reference)
    assert np.sum(q * np.log(12 * q)) == pytest.approx(0.4, rel=1e-8)
    assert value == pytest.approx(q @ (losses - reference), rel=1e-8)
    penalised = tw.weighting("kl_dro_weights(tau=0.7)").value_and_grad(losses=losses)[1]
    up, down = (tw.weighting(f"kl_dro_weights(tau={t})").value_and_grad(losses=losses)[0] for t in (0.7 + 1e-6, 0.7 - 1e-6))
    assert float(penalised["dtau"]) == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_feasible_learning_reaches_every_bound() -> None:
    """Interpolable least squares; and the resilient fixed point alpha (loss - eps)."""
    rng = np.random.default_rng(4)
    A = rng.standard_normal((4, 6))
    y, w = rng.standard_normal(4), np.zeros(6)
    mine = tw.weighting("feasible_learning(samples=4, eps=1e-3, lr=1)")
    for _ in range(3000):
        r = A @ w - y
        w -= 0.02 * A.T @ (mine(losses=r * r / 2, indices=np.arange(4)) * r)
    assert np.all((A @ w - y) ** 2 / 2 < 1.1e-3)
    resilient = tw.weighting("feasible_learning(samples=2, eps=0.5, lr=0.3, resilient=2)")
    for _ in range(200):
        found = resilient(losses=np.array([0.8, 0.2]), indices=np.arange(2))
    np.testing.assert_allclose(found, [2 * 0.3, 0], atol=1e-12)


def test_feasible_learning_refuses_other_samples() -> None:
    with pytest.raises(tw.Error, match="from 0 to 2, got 3"):
        tw.weighting("feasible_learning(samples=3)")(losses=np.ones(2), indices=np.array([0, 3]))


def test_disparate_impact_applied_to_the_losses_is_the_surrogate() -> None:
    losses, groups = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0, 0, 1, 1])
    mine = tw.weighting("disparate_impact(baseline_all=0.5, tol=0, lr=1)")
    value, out = mine.value_and_grad(losses=losses, correct=np.array([1.0, 1, 0, 0]), groups=groups, baseline=np.array([0.5, 0.5]))
    np.testing.assert_allclose(out["violations"], [-0.5, 0.5])
    np.testing.assert_allclose(out["multipliers"], [0, 0.5])
    assert value == pytest.approx(0.5 * (3.5 - 2.5))


def test_focal_weight_without_a_power_is_cross_entropy() -> None:
    rng = np.random.default_rng(5)
    z, y = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    want, g = tw.objective("softmax_cross_entropy").value_and_grad(z=z, y=y)
    value, out = tw.weighting("focal_weight(gamma=0)").value_and_grad(z=z, y=y)
    assert value == pytest.approx(want, rel=1e-13)
    np.testing.assert_allclose(out["z"], g["z"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_weight_differences(gamma: float) -> None:
    rng = np.random.default_rng(6)
    z, y, d = rng.standard_normal((5, 3)), rng.integers(0, 3, 5), rng.standard_normal((5, 3))
    mine = lambda x: tw.weighting(f"focal_weight(gamma={gamma})").value_and_grad(z=x, y=y)  # noqa: E731
    assert (mine(z + 1e-6 * d)[0] - mine(z - 1e-6 * d)[0]) / 2e-6 == pytest.approx(np.sum(mine(z)[1]["z"] * d), rel=1e-7)
    sure = tw.weighting(f"focal_weight(gamma={gamma})").value_and_grad(z=np.array([[800.0, 0.0]]), y=np.array([0]))
    assert sure[0] == 0 and np.all(sure[1]["z"] == 0)


@pytest.mark.parametrize("setting", ["kp=0", "kp=2, ema_nu=0.5", "kp=1, ki=0.5, init=zeros", "kp=1, weight_decay=0.1"])
def test_nupi_is_cooper(setting: str) -> None:
    cooper, torch = pytest.importorskip("cooper"), pytest.importorskip("torch")
    h = dict(pair.split("=") for pair in setting.split(", "))
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    kind = cooper.optim.nuPIInitType.ZEROS if h.get("init") == "zeros" else cooper.optim.nuPIInitType.SGD
    peer = cooper.optim.nuPI([p], lr=0.1, Kp=float(h["kp"]), Ki=float(h.get("ki", 1)), ema_nu=float(h.get("ema_nu", 0)),
                             weight_decay=float(h.get("weight_decay", 0)), init_type=kind, maximize=True)
    w, rng = np.ones(3), np.random.default_rng(7)
    opt = tw.Optimizer([w], f"nupi(lr=0.1, {setting})", maximize=True)
    for _ in range(8):
        e = rng.standard_normal(3)
        p.grad = torch.tensor(e)
        peer.step()
        opt.step([e])
    np.testing.assert_allclose(w, p.detach().numpy(), atol=1e-7)  # its gains are float32


# ---- compression


@pytest.mark.parametrize("compressor", ["topk", "sign", "onebit", "randk", "qsgd"])
def test_what_was_sent_and_what_was_kept_is_what_came(compressor: str) -> None:
    rng, w = np.random.default_rng(8), np.zeros((6, 5))
    opt = tw.Optimizer([w], f"error_feedback(compressor={compressor}, ratio=0.2, unbiased=false) | sgd(lr=1)")
    total = np.zeros_like(w)
    for _ in range(40):
        g = rng.standard_normal(w.shape)
        total += g
        opt.step([g])
    error = opt.state()["error_feedback.error"][0].reshape(w.shape)
    np.testing.assert_allclose(-w + error, total, atol=1e-12 * max(1.0, float(np.abs(error).max())))


def sent(stage: str, g: np.ndarray, **options: Any) -> np.ndarray:
    w = np.zeros_like(g)
    tw.Optimizer([w], f"{stage} | sgd(lr=1)", **options).step([g.copy()])
    return -w


def test_topk_contracts_and_prefers_the_first() -> None:
    g = np.random.default_rng(9).standard_normal(50)
    for k in (1, 10, 49, 50, 90):
        left = g - sent(f"topk_compress(k={k})", g)
        assert np.sum(left**2) <= (1 - min(k, 50) / 50) * np.sum(g**2) + 1e-15
    np.testing.assert_array_equal(sent("topk_compress(k=2)", np.array([1.0, -1.0, 1.0, 0.5])), [1, -1, 0, 0])


@pytest.mark.parametrize("stage", ["randk_compress(k=5)", "qsgd_compress(levels=2)"])
def test_random_compression_has_no_bias(stage: str) -> None:
    g = np.random.default_rng(10).standard_normal(20)
    found = np.mean([sent(stage, g, seed=s) for s in range(2000)], axis=0)
    assert np.abs(found - g).max() < 0.25  # five deviations of the largest entry


@pytest.mark.parametrize("stage", ["topk_compress", "randk_compress", "sign_compress(scaled=false)", "onebit_compress", "qsgd_compress",
                                   "error_feedback(compressor=sign)"])
def test_zeros_stay_and_nan_counts_as_zero(stage: str) -> None:
    assert not sent(stage, np.zeros((3, 4))).any()
    g = np.random.default_rng(11).standard_normal((3, 4))
    bad, clean = g.copy(), g.copy()
    bad[1, 2], bad[0, 0], clean[1, 2], clean[0, 0] = np.nan, np.inf, 0, 0
    wanted = sent(stage, clean)
    if not stage.startswith("error_feedback"):  # where what was left of earlier gradients is sent
        wanted[1, 2] = wanted[0, 0] = 0
    np.testing.assert_array_equal(sent(stage, bad), wanted)


def same(a: Any) -> Any:
    return a


def test_powersgd_is_exact_once_q_spans_the_rows() -> None:
    rng = np.random.default_rng(12)
    M = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 15))
    mine = tw.solver("powersgd(rank=2)")
    ask = {"mean_left": same, "mean_right": same, "mean_whole": same}
    first = mine.answer(mine.requests(gradient=M), **ask)
    second = mine.answer(mine.requests(gradient=M, q0=first.q), **ask)
    np.testing.assert_allclose(second.output, M, atol=1e-6)  # eps is added to the norms
    np.testing.assert_allclose(first.output + first.error, M, atol=1e-14)
    assert not np.any(mine.answer(mine.requests(gradient=np.zeros((20, 15))), **ask).output)


def test_powersgd_is_torch() -> None:
    torch = pytest.importorskip("torch")
    hook = pytest.importorskip("torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook")
    rng = np.random.default_rng(13)
    M, Q = rng.standard_normal((12, 9)), rng.standard_normal((9, 3))
    q = torch.tensor(Q)[None]
    hook._orthogonalize(q, 1e-8)
    p = torch.tensor(M) @ q
    hook._orthogonalize(p, 1e-8)
    want = (p @ (torch.tensor(M).T @ p).transpose(1, 2))[0]
    mine = tw.solver("powersgd(rank=3)")
    result = mine.answer(mine.requests(gradient=M, q0=Q), mean_left=same, mean_right=same, mean_whole=same)
    np.testing.assert_allclose(result.output, want.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["cyclic", "fractional"])
def test_every_set_of_stragglers_is_decoded(kind: str) -> None:
    rng = np.random.default_rng(14)
    parts = rng.standard_normal((6, 4))
    mine = tw.solver(f"gradient_code(stragglers=2, kind={kind})")
    for dead in itertools.combinations(range(6), 2):
        alive = np.ones(6)
        alive[list(dead)] = 0
        result = mine.answer(mine.requests(alive=alive))
        assert result.outcome == "converged" and np.count_nonzero(result.encoding, axis=1).max() == 3
        np.testing.assert_allclose(result.weights @ (result.encoding @ parts), parts.sum(axis=0), atol=1e-9)
    assert mine.answer(mine.requests(alive=np.array([1.0, 0, 0, 0, 0, 0]))).outcome == "infeasible"


# ---- several clients


def optimum(functions: dict[str, Any], clients: int, n: int) -> np.ndarray:
    """The minimum of the mean of the quadratics, from their gradients at 0 and 1."""
    zero = sum(functions["client_gradient"](i, np.zeros(n)) for i in range(clients))
    return -zero / (sum(functions["client_gradient"](i, np.ones(n)) for i in range(clients)) - zero)


@pytest.mark.parametrize("sentence, limit", [
    ("scaffold(clients=3, steps=5, max_iter=300)", 1e-8), ("fedspeed(clients=3, steps=5, rho=0, max_iter=2000)", 1e-6),
    ("proxskip_vip(clients=3, p=0.2, max_iter=4000)", 1e-8)])
def test_clients_that_differ_agree_on_the_common_minimum(sentence: str, limit: float) -> None:
    functions = quadratics(np.random.default_rng(15), 3, 4)()
    mine = tw.solver(sentence)
    result = mine.answer(mine.requests(x0=np.zeros(4)), **functions)
    np.testing.assert_allclose(result.x, optimum(functions, 3, 4), atol=limit)
    if "scaffold" in sentence:
        np.testing.assert_allclose(result.controls.mean(axis=0), result.control, atol=1e-10)
    elif "fedspeed" in sentence:
        np.testing.assert_allclose(result.corrections.sum(axis=0), 0, atol=1e-5)
    else:
        np.testing.assert_allclose(result.controls.sum(axis=0), 0, atol=1e-10)


@pytest.mark.parametrize("topology", ["ring", "all", "single", "grid", "exponential"])
@pytest.mark.parametrize("n", [1, 2, 6, 9])
def test_mixing_is_doubly_stochastic(topology: str, n: int) -> None:
    start = np.random.default_rng(16).standard_normal((n, 3))
    mine = tw.solver(f"dsgd(clients={n}, topology={topology}, max_iter=1, lr=0.1)")
    result = mine.answer(mine.requests(points0=start), client_gradient=lambda i, x: np.zeros(3))
    np.testing.assert_allclose(result.mixing.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(result.mixing.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(result.points.mean(axis=0), start.mean(axis=0), atol=1e-14)


def test_dsgd_with_all_is_one_worker() -> None:
    functions = quadratics(np.random.default_rng(17), 3, 2)()
    mine = tw.solver("dsgd(clients=3, topology=all, max_iter=7)")
    x = np.ones(2)
    result = mine.answer(mine.requests(points0=np.ones((3, 2))), **functions)
    points = np.ones((3, 2))
    for _ in range(7):
        points = points.mean(axis=0) - 0.1 * np.array([functions["client_gradient"](i, points[i]) for i in range(3)])
    np.testing.assert_allclose(result.x, points.mean(axis=0), atol=1e-13)
    assert not np.allclose(result.x, x)


def test_fish_is_a_step_against_the_matched_gradients() -> None:
    """Two domains, step a inside: w - meta (a (g1 + g2) - a^2 H2 g1), exactly on quadratics."""
    rng, a = np.random.default_rng(18), 0.1
    H, b = rng.uniform(0.5, 2, (2, 3)), rng.standard_normal((2, 3))
    w, g = rng.standard_normal(3), np.zeros(3)
    start = w.copy()
    opt = tw.Optimizer([w], f"fish(meta_steps=2, inner_lr={a}, meta_lr=0.3)")
    opt.bind_gradients([g])
    for request in opt.requests():
        g[...] = H[request.index] * (w - b[request.index])
    g1, g2 = H * (start - b)
    np.testing.assert_allclose(w, start - 0.3 * (a * (g1 + g2) - a * a * H[1] * g1), rtol=1e-13)


def test_fedprox_takes_the_server_anew_each_round() -> None:
    w = np.zeros(2)
    opt = tw.Optimizer([w], "fedprox_grad(mu=1, round=2) | sgd(lr=0.5)")
    opt.step([np.array([1.0, 0.0])])
    np.testing.assert_array_equal(w, [-0.5, 0])
    opt.step([np.array([1.0, 0.0])])
    np.testing.assert_array_equal(w, [-0.75, 0])
    w[...] = 3  # the server's
    opt.step([np.zeros(2)])
    np.testing.assert_array_equal(w, 3)


# ---- estimates


def test_storm_with_a_of_one_is_descent_and_sarah_is_spider() -> None:
    ends = []
    for text in ("storm(eta=0.1, a=1)", "sgd(lr=0.1)", "sarah(lr=0.1, inner=4)", "spider(lr=0.1, period=4, normalize=false)"):
        w = np.ones(3)
        descend(text, w, lambda x: np.array([1.0, 2.0, 0.5]) * x + np.sin(x), 11)
        ends.append(w)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-14)
    assert ends[2].tobytes() == ends[3].tobytes()


def test_diff2_without_noise_and_clips_is_descent() -> None:
    b = np.random.default_rng(19).standard_normal((4, 3))
    mine = tw.solver("diff2(samples=4, sigma1=0, sigma2=0, clip1=1e9, clip2=1e9, max_iter=25)")
    result = mine.answer(mine.requests(x0=np.ones(3)), sample_gradients=lambda x: x - b)
    x = np.ones(3)
    for _ in range(25):
        x = x - 0.1 * (x - b.mean(axis=0))
    np.testing.assert_allclose(result.x, x, atol=1e-13)


def test_prospect_with_spectral_risk_solves_ridge_regression() -> None:
    rng = np.random.default_rng(20)
    A, b, mu = rng.standard_normal((12, 3)), rng.standard_normal(12), 0.5
    risk = tw.weighting("spectral_risk(shift_cost=0.5)")
    for reg in ("grad", "prox"):
        mine = tw.solver(f"prospect(samples=12, lr=0.005, mu={mu}, reg={reg}, max_iter=30000)")
        result = mine.answer(
            mine.requests(x0=np.zeros(3)), all=lambda x: ((A @ x - b) ** 2 / 2, (A @ x - b)[:, None] * A),
            risk_weights=lambda losses: risk(losses=losses),
            sample=lambda i, x: (float((A[int(i)] @ x - b[int(i)]) ** 2 / 2), (A[int(i)] @ x - b[int(i)]) * A[int(i)]))
        r = A @ result.x - b
        assert np.linalg.norm(A.T @ (risk(losses=r * r / 2) * r) + mu * result.x) < 1e-5


def test_proxy_prox_finds_the_true_minimum() -> None:
    a, b = np.array([1.0, 2.0, 0.5]), np.array([1.0, -1.0, 3.0])
    mine = tw.solver("proxy_prox(max_iter=60)")
    result = mine.answer(mine.requests(x0=np.zeros(3)), full_gradient=lambda x: a * (x - b), proxy_gradient=lambda x: 1.3 * a * (x + 5))
    np.testing.assert_allclose(result.x, b, atol=1e-6)


@pytest.mark.parametrize("schedule", ["any", "fixed", "strong, mu=0.2"])
def test_gradient_sliding_on_lasso_with_a_ridge(schedule: str) -> None:
    rng = np.random.default_rng(21)
    A, y = rng.standard_normal((20, 5)) / 3, rng.standard_normal(20)
    L, ridge = float(np.linalg.norm(A.T @ A, 2)), 0.2
    f = lambda x: 0.5 * np.sum((A @ x - y) ** 2) + 0.1 * np.sum(np.abs(x)) + ridge / 2 * x @ x  # noqa: E731
    ask = {"full_gradient": lambda x: A.T @ (A @ x - y), "subgradient": lambda x: 0.1 * np.sign(x), "prox": lambda v, s: s * v / (s + ridge)}
    x = np.zeros(5)
    for _ in range(20000):
        z = x - 0.1 * (A.T @ (A @ x - y) + ridge * x)
        x = np.sign(z) * np.maximum(np.abs(z) - 0.01, 0)
    mine = tw.solver(f"gradient_sliding(L={L}, M={0.2 * np.sqrt(5)}, schedule={schedule}, max_iter=30)")
    result = mine.answer(mine.requests(x0=np.zeros(5)), **ask)
    assert f(result.x) - f(x) < 0.01 * (f(np.zeros(5)) - f(x))


@pytest.mark.parametrize("kind", ["kwsa", "rdsa", "irdsa"])
def test_zo_frank_wolfe_stays_on_the_simplex(kind: str) -> None:
    b = np.array([0.5, 0.3, 0.2, 0.0])
    mine = tw.solver(f"zo_frank_wolfe(kind={kind}, max_iter=4000)")
    result = mine.answer(mine.requests(x0=np.full(4, 0.25)), point_value=lambda x: float(np.sum((x - b) ** 2)),
                         minimise_linear=lambda d: np.eye(4)[int(np.argmin(d))])
    assert result.x.min() >= 0 and result.x.sum() == pytest.approx(1, abs=1e-12)
    assert np.sum((result.x - b) ** 2) < 0.02


# ---- objectives that remember


def test_fishr_averages_the_variances() -> None:
    rng = np.random.default_rng(22)
    mine, average = tw.objective("fishr_penalty(domains=2, ema=0.8)"), np.zeros((2, 3))
    for _ in range(4):
        G, domain = rng.standard_normal((10, 3)), np.arange(10) % 2
        v = np.array([G[domain == e].var(axis=0) for e in (0, 1)])
        average = 0.8 * average + 0.2 * v
        u = average / 0.2
        assert mine(gradients=G, domain=domain) == pytest.approx(np.mean((u - u.mean(axis=0)) ** 2), rel=1e-12)


def test_dsp_reg_corrects_its_average() -> None:
    rng, s = np.random.default_rng(23), np.zeros(4)
    mine, w = tw.objective("dsp_reg(lam=1, ema=0.7)"), np.ones(4)
    for t in range(1, 5):
        G = rng.standard_normal((3, 4))
        s = 0.7 * s + 0.3 * G.var(axis=0, ddof=1)
        hat = s / (1 - 0.7**t)
        assert mine(w=w, gradients=G) == pytest.approx(0.5 * np.sum(hat) / (hat.max() + 1e-12), rel=1e-12)


def test_meco_remembers_the_normaliser() -> None:
    rng = np.random.default_rng(24)
    plain, follows, u, v, before = tw.objective("meco(beta=0.3)"), tw.objective("meco(beta=0.3, vr=true)"), None, None, np.zeros(6)
    for _ in range(4):
        a, data = rng.standard_normal(6), np.zeros(1)
        g, last = np.mean(np.exp(a)), np.mean(np.exp(before))
        u, v = (g, g) if u is None else (0.7 * u + 0.3 * g, max(0.7 * (v - last) + g, 1e-300))
        assert plain(data=data, noise=a) == pytest.approx(np.log(u), rel=1e-12)
        assert follows(data=data, noise=a, noise_before=before) == pytest.approx(np.log(v), rel=1e-10)
        before = a
    with pytest.raises(tw.NeedsError, match="noise_before"):
        follows(data=data, noise=a)


def test_meco_finds_the_normaliser_of_a_normal() -> None:
    z, c = np.random.default_rng(25).standard_normal(200_000), 0.8
    # p = exp(-c z^2/2), q standard normal
    _, out = tw.objective("meco(beta=1)").value_and_grad(data=np.zeros(1), noise=(1 - c) * z * z / 2 + 0.5 * np.log(2 * np.pi))
    assert out["noise"].sum() == pytest.approx(1, abs=1e-12)
    assert float(out["log_normaliser"]) == pytest.approx(0.5 * np.log(2 * np.pi / c), abs=0.005)


def test_drrho_contrastive_remembers_every_sample() -> None:
    rng, mine = np.random.default_rng(26), tw.objective("drrho_contrastive(samples=4, tau=0.3, gamma=0.6)")
    log_u: dict[str, np.ndarray] = {"rows": np.full(4, -np.inf), "columns": np.full(4, -np.inf)}
    for step in range(3):
        s, indices = rng.uniform(-1, 1, (3, 3)), np.array([0, 2, 3]) if step != 1 else np.array([1, 2, 0])
        total, ref = 0.0, DRRhoContrastive(samples=4, tau=0.3)
        for name, m in (("rows", s), ("columns", s.T)):
            D = (m - np.diag(m)[:, None]) / 0.3
            off = ~np.eye(3, dtype=bool)
            g = np.log(ref.eps + np.sum(np.exp(D) * off, axis=1) / 3)
            old = log_u[name][indices]
            log_u[name][indices] = np.where(np.isfinite(old), np.log(0.4 * np.exp(old) + 0.6 * np.exp(g)), g)
            W = np.exp(D - log_u[name][indices][:, None]) * off / 2
            total += 0.3 * np.sum(W * D) / 3
        assert mine(s=s, indices=indices) == pytest.approx(total, rel=1e-12)


def test_irm_is_the_derivative_by_a_scale() -> None:
    rng = np.random.default_rng(27)
    z, y = rng.standard_normal((7, 3)), rng.integers(0, 3, 7)
    loss = lambda scale: tw.objective("softmax_cross_entropy")(z=scale * z, y=y)  # noqa: E731
    slope = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
    assert tw.objective("irm_penalty")(z=z, y=y) == pytest.approx(slope**2, rel=1e-7)


def test_forward_gradient_of_the_gradient_is_it() -> None:
    g = np.random.default_rng(28).standard_normal((1, 5))
    _, out = tw.objective("forward_gradient").value_and_grad(guesses=g, slopes=np.array([np.sum(g * g)]))
    np.testing.assert_allclose(out["gradient"], g[0], rtol=1e-12)


def test_the_plain_layer_is_that_of_no_hyper_parameters() -> None:
    rng = np.random.default_rng(29)
    x, W, b = rng.standard_normal((4, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2)
    _, out = tw.objective("stn_hyper_linear").value_and_grad(
        x=x, weight=W, bias=b, response=W, response_bias=b, projection=rng.standard_normal((2, 2, 5)), hyper=np.zeros((4, 5)), scale=np.array(1.0))
    np.testing.assert_allclose(out["output"], x @ W.T + b, rtol=1e-13)


def test_tau_is_the_best_variance() -> None:
    rng = np.random.default_rng(30)
    w, sigma = rng.standard_normal(6), rng.uniform(0.5, 2, 6)
    value, out = tw.objective("de_elbo(num_data=6, kappa=1)").value_and_grad(w=w, sigma=sigma)
    kl = lambda tau: (np.sum(sigma**2 + w**2) / tau - 6 + 6 * np.log(tau) - np.sum(np.log(sigma**2))) / 2  # noqa: E731
    assert value * 6 == pytest.approx(kl(float(out["tau"])), rel=1e-12)
    assert all(kl(float(out["tau"]) * c) > kl(float(out["tau"])) for c in (0.9, 1.1))


def test_the_surrogate_is_least_one_step_down() -> None:
    rng = np.random.default_rng(31)
    z0, g = rng.standard_normal((2, 4, 3))
    _, out = tw.objective("sso_surrogate(eta=0.3)").value_and_grad(z=z0 - 0.3 * g, z0=z0, grad=g)
    assert np.abs(out["z"]).max() < 1e-15
    np.testing.assert_array_equal(tw.objective("sso_surrogate").value_and_grad(z=z0, z0=z0, grad=g)[1]["z"], g)


# ---- steering


def test_glad_takes_the_conflict_out() -> None:
    w, g = np.array([1.0, 0.5]), np.zeros(2)
    opt = tw.Optimizer([w], "glad | sgd(lr=1)")
    opt.bind_gradients([g])
    start = w.copy()
    for request, value in zip(opt.requests(), ([1.0, 0.0], [-1.0, 2.0])):
        g[...] = value
    np.testing.assert_allclose((start - w) @ np.array([-1.0, 2.0]), 0, atol=1e-15)


def test_a_sign_that_never_changes_freezes_and_one_that_does_not() -> None:
    w, g = np.zeros(2), np.zeros(2)
    opt = tw.Optimizer([w], "gaqat_freeze(window=4, threshold=0.5) | sgd(lr=1)")
    opt.bind_gradients([g])
    for k in range(6):
        before = w.copy()
        for n, request in enumerate(opt.requests()):
            g[...] = [1.0, (-1.0) ** k] if n == 0 else [0.25, 0.25]
        moved = before - w
        np.testing.assert_array_equal(moved, [1.25 if k < 4 else 0.25, (-1.0) ** k + 0.25])


# ---- schedules and bounds


def test_the_step_size_of_adagrad_falls_with_what_it_is_told() -> None:
    mine = tw.schedule("sso_stepsize(kind=adagrad, eta0=2)")
    for norm in (3.0, 4.0):
        mine.observe("gradient_norm", norm)
    assert mine(0) == pytest.approx(2 / 5)
    with pytest.raises(tw.Error, match="gradient_norm"):
        mine.observe("gradient_norm", -1.0)


def test_the_noise_of_noprop_keeps_its_moments() -> None:
    """z_t of a right prediction has the moments of the schedule when z_{t-1} has."""
    at = lambda what, t: tw.schedule(f"noprop_schedule(of={what}, total=6)")(t)  # noqa: E731
    for t in range(1, 7):
        before, now = at("alpha_bar", t - 1), at("alpha_bar", t)
        a, b, c = (at(what, t) for what in "abc")
        assert a + b * np.sqrt(before) == pytest.approx(np.sqrt(now), rel=1e-10)
        assert b * b * (1 - before) + c == pytest.approx(1 - now, rel=1e-9, abs=1e-12)


def test_weak_duality() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(32)
    A, c, low, high = rng.standard_normal((3, 5)), rng.standard_normal(5), -np.ones(5), np.ones(5)
    b = A @ rng.uniform(-0.5, 0.5, 5)
    best = optimize.linprog(c, A_ub=-A, b_ub=-b, bounds=list(zip(low, high)))
    y = -best.ineqlin.marginals
    loss = lambda y: tw.objective("dual_completion_bounds")(y=y, a=A, b=b, c=c, low=low, high=high)  # noqa: E731
    assert -loss(y) == pytest.approx(best.fun, rel=1e-9)
    assert all(-loss(rng.uniform(0, 2, 3)) <= best.fun + 1e-12 for _ in range(50))


def test_gaussian_processes_are_scikit_learn() -> None:
    gp = pytest.importorskip("sklearn.gaussian_process")
    rng = np.random.default_rng(33)
    X, y, Z = rng.standard_normal((7, 2)), rng.standard_normal(7), rng.standard_normal((5, 2))
    for name, kernel in (("rbf", gp.kernels.RBF(0.8)), ("matern52", gp.kernels.Matern(0.8, nu=2.5))):
        peer = gp.GaussianProcessRegressor(kernel, alpha=1e-3, optimizer=None).fit(X, y)
        mean, deviation = peer.predict(Z, return_std=True)
        mine = tw.solver(f"gp_posterior(kernel={name}, lengthscale=0.8, noise=1e-3)")
        result = mine.answer(mine.requests(points=X, values=y, queries=Z))
        np.testing.assert_allclose(result.mean, mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(result.deviation, deviation, rtol=1e-7, atol=1e-8)
