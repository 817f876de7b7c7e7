"""Laws of matrix and second-order methods: rotations, secants, descent, line searches, quadratics, lazy Hessians."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import thalweg as tw
from reference.solvers_newton import Saddle, Smooth, functions
from test_matrix_family import START, hessian, rosenbrock

Array = np.ndarray
Function = Callable[[Array], tuple[float, Array]]

laws = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def orthogonal(n: int, rng: np.random.Generator) -> Array:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def trail(sentence: str, start: Array, gradients: list[Array]) -> list[Array]:
    """The parameters after every step."""
    w, out = start.copy(), []
    with tw.Optimizer([w], sentence) as opt:
        for g in gradients:
            opt.step([g])
            out.append(w.copy())
    return out


# ---- rotations

# Rounding reaches the steps through what a method decomposes.  Products, roots and polar factors: 1e-16 times a
# condition of up to 1e3.  Bases of eigenvectors turn by 1e-16 over the gap of two eigenvalues, in every step again.
SQUARE = [(4, 4), (6, 6)]
ANY = [(5, 5), (7, 4), (3, 6)]
TURNED = [
    ("muon(lr=1, weight_decay=0)", ANY, 1e-12),
    ("muon(lr=1, weight_decay=0, momentum_form=ema, adjust_lr=spectral, ns_coefficients=cubic, ns_steps=9)",
     ANY, 1e-12),
    ("polargrad(lr=1, weight_decay=0, momentum=0.8, nesterov=true)", ANY, 1e-12),
    ("polargrad(lr=1, weight_decay=0, form=exact, momentum=0.5)", ANY, 1e-12),
    ("shampoo(lr=1, eps=0.01)", ANY, 1e-12),
    ("shampoo(lr=1, eps=0.01, beta1=0.9, beta2=0.9, momentum=0.5, grafting=sgd, precondition_frequency=2)", ANY, 1e-12),
    # the first gradient of a longer side leaves a null space that has no basis of its own
    ("soap(lr=1, weight_decay=0, precondition_frequency=2)", SQUARE, 1e-11),
    ("soap(lr=1, weight_decay=0, precondition_frequency=1, normalize_grads=true)", SQUARE, 1e-11),
    ("kl_shampoo(lr=1, weight_decay=0, precondition_frequency=2)", SQUARE, 1e-11),
    ("kl_soap(lr=1, weight_decay=0, precondition_frequency=2)", SQUARE, 1e-11),
]


def turns(sentence: str, shape: tuple[int, int], seed: int, left: bool, right: bool) -> tuple[Array, Array]:
    """The moves in a turned space, and the turned moves."""
    rng = np.random.default_rng(seed)
    gradients = [rng.standard_normal(shape) for _ in range(6)]
    u = orthogonal(shape[0], rng) if left else np.eye(shape[0])
    v = orthogonal(shape[1], rng) if right else np.eye(shape[1])
    start = np.zeros(shape)
    plain = trail(sentence, start, gradients)
    turned = trail(sentence, start, [u @ g @ v for g in gradients])
    return np.array(turned), np.array([u @ x @ v for x in plain])


@pytest.mark.parametrize("sentence, shapes, limit", TURNED)
def test_steps_turn_with_the_gradient(sentence: str, shapes: list[tuple[int, int]], limit: float) -> None:
    for shape in shapes:
        for seed, (left, right) in enumerate([(True, False), (False, True), (True, True)]):
            got, want = turns(sentence, shape, seed, left, right)
            assert np.abs(want[-1]).max() > 1e-2
            np.testing.assert_allclose(got, want, rtol=0, atol=limit * np.abs(want).max())


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_dion_turns_on_its_longer_side(fraction: float) -> None:
    """Its subspace begins with a draw of the shorter side, which does not turn along: there the law does not hold."""
    sentence = f"dion(lr=1, weight_decay=0, rank_fraction={fraction})"
    for shape, (left, right) in (((7, 4), (True, False)), ((5, 5), (True, False)), ((4, 7), (False, True))):
        got, want = turns(sentence, shape, 3, left, right)
        # columns of R are divided by their norms: 1e-16 times a condition of some 1e3
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())
        got, want = turns(sentence, shape, 3, not left, not right)
        assert np.abs(got - want).max() > 1e-3


def test_adam_does_not_turn() -> None:
    """What the law tells apart: a rule of coordinates."""
    got, want = turns("adam(lr=1)", (4, 4), 0, True, False)
    assert np.abs(got - want).max() > 0.1


@pytest.mark.parametrize("sentence, power", [
    ("muon(lr=1, weight_decay=0, eps=1e-300)", 0), ("dion(lr=1, weight_decay=0, eps=1e-300)", 0),
    ("polargrad(lr=1, weight_decay=0, ns_eps=1e-300)", 1),
    ("polargrad(lr=1, weight_decay=0, form=exact, alpha=0.5)", 0.5),
    ("soap(lr=1, weight_decay=0, eps=0)", 0), ("shampoo(lr=1, eps=1e-300, eps_at=root)", 0),
    ("kl_soap(lr=1, weight_decay=0, eps=0)", 0),
])
def test_steps_scale_with_the_gradient_by_a_power(sentence: str, power: float) -> None:
    """A factor of 8 is exact in floats; fourth roots and exponents of 1/2 are not: some ulp, times the condition."""
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal((4, 4)) for _ in range(5)]
    plain = np.array(trail(sentence, np.zeros((4, 4)), gradients))
    scaled = np.array(trail(sentence, np.zeros((4, 4)), [8 * g for g in gradients]))
    np.testing.assert_allclose(scaled, 8**power * plain, rtol=0, atol=1e-10 * np.abs(scaled).max())


@pytest.mark.parametrize("scale", [0.03, 1.0, 30.0])
@pytest.mark.parametrize("factors", ["balance_prob=0", "memory_save_mode=all_diag, precond_init_scale=none"])
def test_psgd_whitens(factors: str, scale: float) -> None:
    """Directions have one size in every coordinate, whatever scales gradients have there (up to 250 apart).
    The spread of 300 draws is good to 4 %, and fits with steps of 0.1 wander by some 20 % about their mean."""
    rng = np.random.default_rng(3)
    a, b = scale * np.array([5.0, 1, 0.2, 1])[:, None], np.array([1, 3.0, 0.3])
    w, before, moves = np.zeros((4, 3)), np.zeros((4, 3)), []
    with tw.Optimizer([w], f"psgd_kron(lr=1, b1=0, clip_rms=1e6, {factors})", seed=1) as opt:
        for k in range(800):
            opt.step([a * rng.standard_normal((4, 3)) * b])
            if k >= 500:
                moves.append(w - before)
            before = w.copy()
    spread = np.std(moves, axis=0)
    assert spread.max() / spread.min() < 2 and 0.7 < spread.mean() < 1.4


# ---- l-bfgs


class Single:
    """One iteration of a step, with whatever gradient and loss the test answers."""

    def __init__(self, start: Array, sentence: str) -> None:
        self.x, self.g = start.copy(), np.zeros_like(start)
        self.opt = tw.Optimizer([self.x], sentence)
        self.opt.bind_gradients([self.g])

    def step(self, gradient: Array, loss: float = 1.0) -> Array:
        """The move."""
        before = self.x.copy()
        for request in self.opt.requests():
            request.loss, self.g[...] = loss, gradient
        return self.x - before


@laws
@given(seed=seeds, n=st.integers(2, 12), memory=st.integers(1, 8), steps=st.integers(1, 10))
def test_lbfgs_steps_to_the_root_of_the_last_secant(seed: int, n: int, memory: int, steps: int) -> None:
    """H y = s: where the gradient turns into -b times the last one, y = (1 + b)/b g, and the step is -b/(1 + b) s."""
    rng = np.random.default_rng(seed)
    q = orthogonal(n, rng)
    a = q @ np.diag(rng.uniform(0.5, 5, n)) @ q.T
    host = Single(rng.standard_normal(n), f"lbfgs(max_iter=1, history_size={memory}, tolerance_change=0, lr=0.3)")
    for _ in range(steps):
        g = a @ host.x
        s = host.step(g)
    b = rng.uniform(0.5, 2)
    # the two loops cancel a few terms as large as the step; the move is a difference of numbers of order one
    limit = 1e-10 * np.abs(s).max() + 1e-14 * np.abs(host.x).max()
    np.testing.assert_allclose(host.step(-b * g), -0.3 * b / (1 + b) * s, rtol=0, atol=limit)


@laws
@given(seed=seeds, n=st.integers(2, 20), memory=st.integers(1, 12))
def test_every_direction_of_lbfgs_descends(seed: int, n: int, memory: int) -> None:
    """Whatever the gradients are: pairs with y.s <= 1e-10 are left out, so H stays positive definite."""
    rng = np.random.default_rng(seed)
    host = Single(np.zeros(n), f"lbfgs(max_iter=1, history_size={memory}, tolerance_change=0, tolerance_grad=0)")
    for _ in range(25):
        g = rng.standard_normal(n) * 10 ** rng.uniform(-1, 1)
        host.x[...] = 0  # the move is read without rounding
        move = host.step(g)
        assert move @ g < 0


@pytest.mark.parametrize("sentence, c1, c2", [
    ("lbfgs(line_search=strong_wolfe, max_iter=1, max_eval=26, tolerance_change=0)", 1e-4, 0.9),
    ("lbfgs(line_search=strong_wolfe, max_iter=1, max_eval=26, tolerance_change=0, history_size=3, lr=7)", 1e-4, 0.9),
    ("nonlinear_cg(beta=pr_plus)", 1e-4, 0.4), ("nonlinear_cg(beta=dy, c2=0.1)", 1e-4, 0.1),
    ("nonlinear_cg(beta=fr, c1=0.05, c2=0.1)", 0.05, 0.1),
])
def test_accepted_steps_are_strong_wolfe_points(sentence: str, c1: float, c2: float) -> None:
    for n in (2, 4, 6):
        x, g = START[:n].copy(), np.zeros(n)
        moved = 0
        with tw.Optimizer([x], sentence) as opt:
            opt.bind_gradients([g])
            for _ in range(40):
                before, (f0, g0) = x.copy(), rosenbrock(x)
                if np.linalg.norm(g0) < 1e-5:
                    break  # differences of losses are rounding
                for request in opt.requests():
                    request.loss, g[...] = rosenbrock(x)
                s, (f1, g1) = x - before, rosenbrock(x)
                slope, far = g0 @ s, g1 @ s
                moved += np.any(s != 0)
                # the slope at the end is taken at a point that is rounded to 1e-16, where the curvature is 1e3
                assert slope < 0 and f1 <= f0 + c1 * slope + 1e-14 * f0 and abs(far) <= -c2 * slope * (1 + 1e-9)
        assert moved > 5


@pytest.mark.parametrize("n", [1, 3, 8])
def test_lbfgs_with_exact_searches_ends_a_quadratic_in_n_steps(n: int) -> None:
    """Each step is taken twice: once to see the direction, and again from the state before with the best length."""
    rng = np.random.default_rng(n)
    q = orthogonal(n, rng)
    a, goal = q @ np.diag(np.linspace(1, 20, n)) @ q.T, rng.standard_normal(n)
    host = Single(np.zeros(n), "lbfgs(max_iter=1, history_size=20, tolerance_change=0, tolerance_grad=0, lr=1)")
    errors = []
    for _ in range(n):
        g, state, before = a @ (host.x - goal), host.opt.state_dict(), host.x.copy()
        s = host.step(g)
        host.x[...] = before
        host.opt.load_state_dict(state)
        host.opt.set("lr", -(g @ s) / (s @ a @ s))
        host.step(g)
        assert abs((a @ (host.x - goal)) @ s) <= 1e-12 * np.linalg.norm(g) * np.linalg.norm(s)  # exact
        host.opt.set("lr", 1)
        errors.append(np.linalg.norm(a @ (host.x - goal)))
    # directions are conjugate up to 1e-16, which the condition of 20 raises at each of n steps
    assert errors[-1] < 1e-10 * 20 and (n == 1 or errors[-2] > 1e-4)


# ---- truncated Newton


@pytest.mark.parametrize("mode", ["trust", "linesearch"])
@pytest.mark.parametrize("values", [[1.0, 2, 3, 4, 5, 6], [2.0, 2, 2, 7, 7, 7, 7], [3.0]])
def test_newton_cg_ends_a_quadratic_in_one_step_with_a_product_for_each_value(mode: str, values: list[float]) -> None:
    """The residual may stay sqrt(|g|) |g|: with |g| = 1e-20 that is 1e-10 |g|, which no fewer products reach."""
    rng = np.random.default_rng(0)
    n = len(values)
    q = orthogonal(n, rng)
    a = q @ np.diag(values) @ q.T
    x, g = 1e-20 * (q @ np.ones(n)), np.zeros(n)
    start, products = np.linalg.norm(x), 0
    with tw.Optimizer([x], f"newton_cg(mode={mode})") as opt:
        opt.bind_gradients([g])
        for request in opt.requests():
            if request.kind == "hessian_vector":
                products, g[...] = products + 1, a @ request.probe[0]
            else:
                request.loss, g[...] = 0.5 * x @ a @ x, a @ x
    assert products == len(set(values)) and np.linalg.norm(x) < 1e-9 * start


def newton(mode: str, start: Array, steps: int, **values: Any) -> list[Array]:
    x, g, out = start.copy(), np.zeros_like(start), []
    text = ", ".join([f"mode={mode}", *(f"{k}={v}" for k, v in values.items())])
    with tw.Optimizer([x], f"newton_cg({text})") as opt:
        opt.bind_gradients([g])
        for _ in range(steps):
            for request in opt.requests():
                if request.kind == "hessian_vector":
                    g[...] = exact_hessian(x) @ request.probe[0]
                else:
                    request.loss, g[...] = rosenbrock(x)
            out.append(x.copy())
    return out


def exact_hessian(x: Array) -> Array:
    h = np.diag(np.append(1200 * x[:-1] ** 2 - 400 * x[1:] + 2, 0) + np.append(0, np.full(len(x) - 1, 200.0)))
    i = np.arange(len(x) - 1)
    h[i, i + 1] = h[i + 1, i] = -400 * x[:-1]
    return h


@pytest.mark.parametrize("radius", [1.0, 0.1])
def test_newton_cg_takes_the_steps_of_scipys_trust_ncg(radius: float) -> None:
    """One rule: both round 1e-16 an operation.  Along the curved valley two neighbours part by a factor of about two a
    step: 1e-16 may become 1e-7 after fifty of them."""
    optimize = pytest.importorskip("scipy.optimize")
    start = START[:5]
    np.testing.assert_allclose(exact_hessian(start), hessian(start), atol=1e-5)
    theirs: list[Array] = []
    options = {"gtol": 1e-4, "initial_trust_radius": radius}
    optimize.minimize(rosenbrock, start, jac=True, hess=exact_hessian, method="trust-ncg", options=options,
                      callback=lambda x: theirs.append(x.copy()))
    assert len(theirs) > 10
    mine = newton("trust", start, len(theirs), radius=radius)
    np.testing.assert_allclose(mine[:20], theirs[:20], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method, mode, n", [("Newton-CG", "linesearch", 5), ("trust-krylov", "trust", 3)])
def test_newton_cg_ends_where_scipys_do(method: str, mode: str, n: int) -> None:
    """Other searches and inner solvers, one end: to a gradient of 1e-7 over the least curvature of about 0.4."""
    optimize = pytest.importorskip("scipy.optimize")
    options = {"xtol": 1e-10} if method == "Newton-CG" else {"gtol": 1e-8}
    theirs = optimize.minimize(rosenbrock, START[:n], jac=True, hess=exact_hessian, method=method, options=options)
    assert np.linalg.norm(rosenbrock(theirs.x)[1]) < 1e-7
    np.testing.assert_allclose(newton(mode, START[:n], 80)[-1], theirs.x, rtol=0, atol=1e-6)


# ---- lazy Hessians


@pytest.mark.parametrize("M", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("at", ["convex", "saddle"])
def test_a_lazy_cubic_newton_that_is_never_lazy_is_the_cubic_newton(at: str, M: float) -> None:
    """Iterates one by one, each from `cubic_subproblem` with the Hessian at hand: its root is found to 1e-12 of its
    length, in every step anew."""
    rng = np.random.default_rng(2)
    f, x = (Smooth(rng), rng.standard_normal(5)) if at == "convex" else (Saddle(), np.array([0.1, 0.05]))
    exact, lazy, start = tw.solver(f"cubic_subproblem(M={M})"), [], x
    for k in range(1, 9):
        step = exact.run(g=f.gradient(x), hessian=f.hessian(x))["step"]
        x = x + step
        asked = {name: functions(f)[name] for name in ("gradient", "hessian")}
        got = tw.solver(f"lazy_cubic_newton(M={M}, m=1, max_iter={k}, gtol=0)").run(x0=start, **asked)["x"]
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-10)
        lazy.append(tw.solver(f"lazy_cubic_newton(M={M}, m=3, max_iter={k}, gtol=0)").run(x0=start, **asked)["x"])
        assert k == 1 or k > 3 or np.abs(lazy[-1] - x).max() > 1e-6  # a Hessian of one step before is another one


@pytest.mark.parametrize("M", [0.1, 1.0, 4.0])
def test_a_lazy_regularized_newton_that_is_never_lazy_solves_with_every_hessian(M: float) -> None:
    rng = np.random.default_rng(4)
    f, x = Smooth(rng), 2 * rng.standard_normal(5)
    start, asked = x, {name: functions(f)[name] for name in ("gradient", "hessian")}
    for k in range(1, 9):
        g = f.gradient(x)
        x = x - np.linalg.solve(f.hessian(x) + np.sqrt(M * np.linalg.norm(g)) * np.eye(5), g)
        got = tw.solver(f"lazy_regularized_newton(M={M}, m=1, max_iter={k}, gtol=0)").run(x0=start, **asked)["x"]
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        lazy = tw.solver(f"lazy_regularized_newton(M={M}, m=2, max_iter={k}, gtol=0)").run(x0=start, **asked)["x"]
        assert k != 2 or np.abs(lazy - x).max() > 1e-6
