"""Regularizers, sets, manifolds and the solvers around them, an objective, random numbers: beside the plain loop,
optax, NumPy, SciPy, scikit-learn, pyproximal, torch, geoopt and POT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import cases
from .cases import BEST, LOOP, OURS, Builders, Candidate, Case, loop, ours

N = 1_000_000


def task(**arguments: Any) -> dict[str, Any]:
    return cases.task(CASES, **arguments)


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    return cases.run("sets", threads, quick, repetitions, only)


def size(quick: bool) -> int:
    return N // 20 if quick else N


# ---- penalties, entry by entry

ELEMENT_WISE = [f"{name}(1e-4)" for name in (
    "l1", "l2", "elastic_net", "huber_penalty", "mcp", "scad", "l0", "log_cosh", "lp")]


def penalty(sentence: str, part: str, quick: bool) -> Builders:
    """The gradient added to an array, or the prox in place, on 8.4 M numbers."""
    shape = (512, 512) if quick else (2048, 4096)

    def build() -> Candidate:
        import thalweg

        rule, w = thalweg.regularizer(sentence), np.random.default_rng(1).standard_normal(shape, np.float32)
        if part == "prox":
            return Candidate(lambda: rule.prox(w, 1e-3))
        out = np.zeros_like(w)
        return Candidate(lambda: rule.gradient(w, out=out))

    return {OURS: build, LOOP: loop("scale" if part == "prox" else "walk", 0, [shape])}


# ---- projections


def drawn(n: int, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(2 * np.random.default_rng(2).standard_normal(n), dtype)


def projected(sentence: str, w: np.ndarray) -> Callable[[], Candidate]:
    """Ours, of a copy: the copy counts."""

    def build() -> Candidate:
        import thalweg

        rule, x = thalweg.constraint(sentence), w.copy()

        def step() -> None:
            np.copyto(x, w)
            rule.project(x)

        return Candidate(step, lambda: x)

    return build


def in_place(sentences: list[str], w: np.ndarray) -> Callable[[], Candidate]:
    """Ours, in place: each set is a little smaller than the one before, so that the point is outside again."""

    def build() -> Candidate:
        import thalweg

        rules, x, at = [thalweg.constraint(s) for s in sentences], w.copy(), 0

        def step() -> None:
            nonlocal at
            if at == len(rules):
                at = 0
                np.copyto(x, w)
            rules[at].project(x)
            at += 1

        return Candidate(step, lambda: x)

    return build


def jitted(name: str, w: np.ndarray, *arguments: float) -> Callable[[], Candidate]:
    """optax's projection, jitted, into a new array."""

    def build() -> Candidate:
        import jax
        import optax.projections

        function = jax.jit(lambda x: getattr(optax.projections, name)(x, *arguments))
        x, out = jax.numpy.array(w), [None]

        def step() -> None:
            out[0] = jax.block_until_ready(function(x))

        return Candidate(step, lambda: np.asarray(out[0]))

    return build


def of(function: Callable[[], Any], compared: bool = True) -> Callable[[], Candidate]:
    """A function without arguments; its value is the result."""

    def build() -> Candidate:
        out = [None]

        def step() -> None:
            out[0] = function()

        return Candidate(step, (lambda: out[0]) if compared else None)

    return build


def bounds(name: str, quick: bool) -> Builders:
    w = drawn(size(quick))
    mine = {"box": "box(-{0}, {0})", "linf_ball": "linf_ball({0})", "l2_ball": "l2_ball({0})"}[name]
    theirs = (-1.0, 1.0) if name == "box" else (1.0,)
    return {
        OURS: in_place([mine.format(0.999**k) for k in range(64)], w),
        LOOP: loop("scale", 0, [(1, len(w))]),
        "optax, jitted": jitted(f"projection_{name}", w, *theirs),
    }


def sorted_simplex(w: np.ndarray, radius: float) -> np.ndarray:
    """The simplex by sorting, as in Held, Wolfe, Crowder, 1974."""
    u = np.sort(w)[::-1]
    above = np.cumsum(u, dtype=np.float64) - radius
    k = np.arange(1, len(w) + 1)
    last = np.nonzero(u * k > above)[0][-1]
    return np.maximum(w - above[last] / (last + 1), 0)


def sorted_capped(w: np.ndarray, total: float, cap: float) -> np.ndarray:
    """theta with sum min(max(w - theta, 0), cap) = total: linear between its kinks, which are at each w and w - cap."""
    kinks = np.concatenate([w, w - cap]).astype(np.float64)
    slopes = np.concatenate([np.full(len(w), -1.0), np.full(len(w), 1.0)])
    order = np.argsort(kinks)[::-1]
    kinks, slope = kinks[order], np.cumsum(slopes[order])
    sums = np.concatenate([[0.0], np.cumsum(-slope[:-1] * (kinks[:-1] - kinks[1:]))])
    at = np.searchsorted(sums, total)
    theta = kinks[at - 1] + (total - sums[at - 1]) / slope[at - 1]
    return np.clip(w - theta, 0, cap)


def simplices(name: str, quick: bool) -> Builders:
    w = drawn(size(quick))
    scale = [(1, len(w))]
    if name == "capped_simplex":
        total, cap = len(w) / 1000, 0.01
        return {
            OURS: projected(f"capped_simplex({total}, {cap})", w), LOOP: loop("scale", 0, scale),
            "optax simplex, jitted": lambda: Candidate(jitted("projection_simplex", w, 1.0)().step),  # it has no caps
            "NumPy, sorted": of(lambda: sorted_capped(w, total, cap)),
        }  # fmt: skip
    simplex = name == "simplex"
    return {
        OURS: projected(f"{name}(1)", w), LOOP: loop("scale", 0, scale),
        "optax, jitted": jitted(f"projection_{name}", w, 1.0),
        "NumPy, sorted": of(lambda: sorted_simplex(w, 1.0) if simplex
                            else np.sign(w) * sorted_simplex(np.abs(w), 1.0)),
    }  # fmt: skip


def monotone(quick: bool) -> Builders:
    n = size(quick)
    y = drawn(n, np.float64) + np.linspace(0, 5, n)

    def scikit() -> Candidate:
        from sklearn.isotonic import isotonic_regression

        return of(lambda: isotonic_regression(y))()

    def scipy() -> Candidate:
        from scipy.optimize import isotonic_regression

        return of(lambda: isotonic_regression(y).x)()

    return {OURS: projected("monotone", y), "scikit-learn": scikit, "SciPy": scipy}


# ---- total variation, nuclear norm


def total_variation(u: np.ndarray) -> float:
    """Isotropic, in double: forward differences, 0 on the last slice."""
    u = u.astype(np.float64)
    squares = np.zeros_like(u)
    for axis in range(u.ndim):
        d = np.diff(u, axis=axis)
        squares[tuple(slice(0, n) for n in d.shape)] += d**2
    return float(np.sqrt(squares).sum())


def denoised(w: np.ndarray, weight: float, sentence: str) -> Callable[[], Candidate]:
    def build() -> Candidate:
        import thalweg

        rule, x = thalweg.regularizer(sentence), w.copy()

        def step() -> None:
            np.copyto(x, w)
            rule.prox(x, weight)

        return Candidate(step, lambda: x)

    return build


def proximal_tv(w: np.ndarray, weight: float) -> Callable[[], Candidate]:
    """Ten of pyproximal's iterations."""

    def build() -> Candidate:
        import pyproximal

        rule, flat = pyproximal.TV(dims=w.shape, sigma=1.0, niter=10, rtol=0.0), w.ravel()
        return of(lambda: rule.prox(flat, weight).reshape(w.shape))()

    return build


def higher(w: np.ndarray, weight: float, ours: Any, theirs: Any) -> float:
    """How much higher our objective is than theirs, relative; below 0 where our duality gap is smaller."""
    at = [0.5 * float(np.sum((u.astype(np.float64) - w) ** 2)) + weight * total_variation(u) for u in (ours, theirs)]
    return at[0] / at[1] - 1


def signal(shape: tuple[int, ...]) -> np.ndarray:
    """Steps with noise."""
    rng = np.random.default_rng(3)
    blocks = rng.standard_normal([-(-n // 50) for n in shape])
    for axis, n in enumerate(shape):
        blocks = np.repeat(blocks, 50, axis=axis).take(range(n), axis=axis)
    return (blocks + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def variation(sentence: str, shape: tuple[int, ...], quick: bool) -> Builders:
    w = signal(tuple(max(1, n // 10) for n in shape) if quick else shape)
    return {OURS: denoised(w, 0.5, sentence), "pyproximal, 10 iterations": proximal_tv(w, 0.5)}


def farther(*shape: int) -> Callable[[Any, Any], float]:
    """`higher` for the signal of this shape, or of the small one."""

    def distance(ours: Any, theirs: Any) -> float:
        return higher(signal(ours.shape), 0.5, ours, theirs)

    return distance


def nuclear(quick: bool) -> Builders:
    n = 128 if quick else 1024
    w = np.random.default_rng(4).standard_normal((n, n), np.float32)
    weight = float(np.sqrt(n))

    def shrunk(u: Any, s: Any, v: Any) -> Any:
        return (u * (s - weight).clip(0)) @ v

    def by_torch() -> Candidate:
        import torch

        t = torch.from_numpy(w)
        return of(lambda: shrunk(*torch.linalg.svd(t, full_matrices=False)).numpy())()

    def by_scipy() -> Candidate:
        import scipy.linalg

        return of(lambda: shrunk(*scipy.linalg.svd(w, full_matrices=False)))()

    return {
        OURS: denoised(w, weight, "nuclear_norm(1.0)"), "torch": by_torch, "SciPy": by_scipy,
        "NumPy": of(lambda: shrunk(*np.linalg.svd(w, full_matrices=False))),
    }  # fmt: skip


# ---- manifolds

# name -> (manifold here, there, tensors, shape)
MANIFOLDS: dict[str, tuple[str, str, int, tuple[int, int]]] = {
    "poincare": ("poincare_ball", "PoincareBallExact", 1, (4096, 64)),
    "sphere": ("oblique", "SphereExact", 1, (4096, 64)),  # rows of norm 1
    "lorentz": ("lorentz", "Lorentz", 1, (4096, 65)),
    "stiefel": ("stiefel", "EuclideanStiefel", 64, (64, 32)),
    "spd": ("spd", "SymmetricPositiveDefinite", 64, (16, 16)),
}


def manifold(name: str, quick: bool) -> Builders:
    """RiemannianAdam: one tensor of many points, or many tensors that geoopt takes as one batch."""
    mine, theirs, count, (rows, columns) = MANIFOLDS[name]
    if quick:
        count, rows = max(1, count // 8), rows if count > 1 else rows // 8
    rng = np.random.default_rng(6)
    draw = rng.standard_normal((count, rows, columns))
    if name == "spd":
        start = (draw @ draw.transpose(0, 2, 1) / columns + np.eye(rows)).astype(np.float32)
    else:
        import thalweg

        rule = thalweg.constraint(mine)
        start = np.stack([rule.project((0.05 * d).astype(np.float32)) for d in draw])
    grads = (1e-2 * rng.standard_normal(start.shape)).astype(np.float32)

    def build() -> Candidate:
        import thalweg

        points = [p.copy() for p in start]
        opt = thalweg.Optimizer(points, f"riemannian_adam(lr=1e-3, manifold={mine}, stabilize=none)")
        opt.bind_gradients(list(grads))
        return Candidate(opt.step, lambda: np.stack(points) - start)

    def by_geoopt() -> Candidate:
        import geoopt
        import torch

        at = start if count > 1 else start[0]
        point = geoopt.ManifoldParameter(torch.from_numpy(at.copy()), manifold=getattr(geoopt, theirs)())
        gradient = torch.from_numpy(grads if count > 1 else grads[0])
        opt = geoopt.optim.RiemannianAdam([point], lr=1e-3)

        def step() -> None:
            point.grad = gradient.clone()  # it works in it
            opt.step()

        return Candidate(step, lambda: point.detach().numpy().reshape(start.shape) - start)

    # the point, the gradient and the first moment; the second is one number a point
    return {OURS: build, LOOP: loop("walk", 1, [(rows, columns)] * count), "geoopt": by_geoopt}


# ---- solvers


def transport(logs: bool, quick: bool) -> Builders:
    n, reg, rounds = 200 if quick else 2000, 0.05, 20 if logs else 100
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, n, 2)).astype(np.float32)
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    cost /= cost.max()
    a = b = np.full(n, 1 / n, np.float32)

    def build() -> Candidate:
        import thalweg

        solver = thalweg.solver(f"ot_sinkhorn(reg={reg}, max_iter={rounds}, tol=0)")
        return of(lambda: solver.run(cost=cost, a=a, b=b).plan)()

    def by_pot() -> Candidate:
        import ot

        method = "sinkhorn_log" if logs else "sinkhorn"
        options = dict(method=method, numItermax=rounds, stopThr=0.0, warn=False)
        return of(lambda: ot.sinkhorn(a, b, cost, reg, **options))()

    return {OURS: build, LOOP: loop("read", 0, [(n, n)], 2 * rounds), "POT": by_pot}


def lasso(sentence: str, quick: bool) -> Builders:
    """Ours to the gap that scikit-learn's coordinate descent reaches; a design of 2000 rows and 1000 columns."""
    n, p = (400, 200) if quick else (2000, 1000)
    rng = np.random.default_rng(8)
    x = np.asfortranarray(rng.standard_normal((n, p)))
    truth = np.where(np.arange(p) % 20 == 0, rng.standard_normal(p), 0)
    y = x @ truth + 0.5 * rng.standard_normal(n)
    alpha = 0.05 * float(np.abs(x.T @ y).max()) / n

    def gap(w: np.ndarray) -> float:
        """Of duality, of |y - X w|^2/(2 n) + alpha |w|_1."""
        r = y - x @ w
        scale = min(1.0, alpha * n / float(np.abs(x.T @ r).max()))
        primal = r @ r / (2 * n) + alpha * np.abs(w).sum()
        return float(primal - (scale * r @ y / n - scale**2 * (r @ r) / (2 * n)))

    def build() -> Candidate:
        import thalweg

        solver = thalweg.solver(sentence.format(alpha=alpha))

        def value_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            r = x @ w - y
            return r @ r / (2 * n), x.T @ r / n

        def value(w: np.ndarray) -> float:
            r = x @ w - y
            return float(r @ r / (2 * n))

        def solve() -> np.ndarray:
            if sentence.startswith("lasso_cd"):
                return solver.run(design=x, targets=y).w
            return solver.run(x0=np.zeros(p), value_gradient=value_gradient, value=value).x

        return judged(solve)

    def judged(solve: Callable[[], np.ndarray]) -> Candidate:
        found = of(solve)()
        return Candidate(found.step, lambda: gap(found.result()))

    def scikit() -> Candidate:
        from sklearn.linear_model import Lasso

        model = Lasso(alpha=alpha, fit_intercept=False, tol=1e-6, max_iter=10000, copy_X=False)
        return judged(lambda: model.fit(x, y).coef_)

    return {OURS: build, "scikit-learn": scikit}


def larger(ours: Any, theirs: Any) -> float:
    """How much larger our gap is, relative."""
    return float(ours) / max(float(theirs), 1e-300) - 1


# ---- an objective


def contrasted(quick: bool) -> Builders:
    """InfoNCE of 4096 pairs of 256 numbers, with the gradients of both sides."""
    n, width = (256, 64) if quick else (4096, 256)
    rng = np.random.default_rng(13)
    q, k = rng.standard_normal((2, n, width), np.float32)

    def build() -> Candidate:
        import thalweg

        loss, found = thalweg.objective("info_nce(0.07)"), [{}]

        def step() -> None:
            found[0] = loss.value_and_grad(q=q, k=k)[1]

        return Candidate(step, lambda: [found[0]["q"], found[0]["k"]])

    def by_torch(compiled: bool) -> Candidate:
        import torch
        from torch.nn.functional import cross_entropy, normalize

        at, right = [torch.from_numpy(x).requires_grad_() for x in (q, k)], torch.arange(n)

        def forward(q: Any, k: Any) -> Any:
            return cross_entropy(normalize(q) @ normalize(k).T / 0.07, right)

        loss = torch.compile(forward) if compiled else forward

        def step() -> None:
            for x in at:
                x.grad = None
            loss(*at).backward()

        step()  # compiled here: the first step is timed like the others
        return Candidate(step, lambda: [x.grad.numpy() for x in at])

    return {OURS: build, "torch, compiled": partial(by_torch, True), "torch": partial(by_torch, False)}


# ---- random numbers


def noise(quick: bool) -> Builders:
    """A step of sgld draws a normal number an element; torch only draws."""
    shape = (1, size(quick))

    def by_torch() -> Candidate:
        import torch

        out = torch.empty(shape)
        return Candidate(lambda: torch.randn(shape, out=out))

    return {OURS: ours("sgld(lr=1e-3)", [shape]), "torch.randn": by_torch}


def signs(quick: bool) -> Builders:
    """A step of sophia as far as its product with random signs, where it is broken off; torch only draws."""
    n = size(quick)

    def build() -> Candidate:
        import thalweg

        opt = thalweg.Optimizer([np.zeros(n, np.float32)], "sophia(interval=1, probe=rademacher)")
        g, squares = np.ones(n, np.float32), np.zeros(n)

        def step(look: bool = False) -> None:
            loop = opt.requests()
            next(loop).answer([g], stay=True)
            request = next(loop)
            if look:
                squares[:] = request.probe[0] ** 2
            loop.close()

        step(look=True)
        return Candidate(step, lambda: squares)

    def by_torch() -> Candidate:
        import torch

        out = torch.empty(n)
        return Candidate(lambda: torch.randint(0, 2, (n,), out=out).mul_(2).sub_(1), lambda: out.numpy() ** 2)

    return {OURS: build, "torch": by_torch}


CASES: dict[str, Case] = {}
for _sentence in ELEMENT_WISE:
    for _part in ("gradient", "prox"):
        if (_sentence, _part) != ("l0(1e-4)", "gradient"):  # which does not exist
            CASES[f"{_sentence} {_part}"] = Case(
                f"`{_sentence}` {_part}, 8.4 M", partial(penalty, _sentence, _part), {LOOP: 1.15})
for _name in ("box", "linf_ball", "l2_ball"):
    CASES[_name] = Case(f"`{_name}`, 1 M, in place", partial(bounds, _name), {"optax, jitted": 1.0})
for _name in ("simplex", "l1_ball", "capped_simplex"):
    _optax = "optax simplex, jitted" if _name == "capped_simplex" else "optax, jitted"
    CASES[_name] = Case(
        f"`{_name}`, 1 M, with a copy", partial(simplices, _name), {_optax: 0.02, "NumPy, sorted": 0.06}, 1e-3)
CASES |= {
    "monotone": Case("`monotone`, 1 M, f64, with a copy", monotone, {"scikit-learn": 0.5}, 1e-9),
    "tv_1d": Case("prox of `tv_1d`, 1 M, exact", partial(variation, "tv_1d(1.0)", (N,)),
                  {"pyproximal, 10 iterations": 0.1}, 1e-9, farther(N)),
    "tv_nd": Case("prox of `tv_nd`, 1000 x 1000, smaller gap",
                  partial(variation, "tv_nd(1.0, max_iter=11)", (1000, 1000)),
                  {"pyproximal, 10 iterations": 0.5}, 0.0, farther(1000, 1000)),
    "nuclear_norm": Case("prox of `nuclear_norm`, 1024 x 1024", nuclear, {BEST: 1.0}, 1e-3),
    **{f"riemannian_adam {name}": Case(
        f"`riemannian_adam`, {MANIFOLDS[name][0]}, " + (f"{MANIFOLDS[name][2]} of " if MANIFOLDS[name][2] > 1 else "")
        + " x ".join(map(str, MANIFOLDS[name][3])), partial(manifold, name), {"geoopt": aim}, 1e-2)
       for name, aim in (("poincare", 0.3), ("sphere", 0.3), ("lorentz", 0.2), ("stiefel", 0.7), ("spd", 0.3))},
    "ot_sinkhorn": Case("`ot_sinkhorn`, 2000 x 2000, f32, 100 rounds", partial(transport, False), {"POT": 0.7}, 1e-2),
    "ot_sinkhorn, logs": Case("the same beside logarithms, 20 rounds", partial(transport, True), {"POT": 0.2}, 2e-1),
    "fista": Case("`fista` on the lasso, 2000 x 1000, f64, same gap",
                  partial(lasso, "fista(regularizer=l1({alpha}), tol=1e-7, max_iter=2000)"),
                  {"scikit-learn": 1.5}, 1e-3, larger),
    "lasso_cd": Case("`lasso_cd`, 2000 x 1000, f64, same gap", partial(lasso, "lasso_cd({alpha}, tol=1e-6)"),
                     {"scikit-learn": 1.0}, 1e-3, larger),
    "info_nce": Case("`info_nce`, 4096 x 256, f32, forward and back", contrasted, {BEST: 0.75}, 1e-3),
    "sgld": Case("`sgld`, 1 M", noise, {"torch.randn": 1.0}),
    "rademacher": Case("`sophia`, 1 M random signs, f32", signs, {"torch": 0.1}),
}
