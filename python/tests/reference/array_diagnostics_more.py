"""Similarities, symmetries, saliency, privacy and shrinkage, from their cards."""

from __future__ import annotations

import math

import numpy as np

from .base import DiagnosticReference, ObjectiveReference


class LinearCKA(DiagnosticReference):
    name = "linear_cka"

    def examples(self, rng):
        return [{"x": rng.standard_normal((n, p)), "y": rng.standard_normal((n, q))} for n, p, q in ((2, 1, 1), (9, 3, 4), (5, 20, 3))] + [
            {"x": np.full((4, 2), 0.1), "y": rng.standard_normal((4, 2))}]

    def results(self, x, y):
        if np.ptp(x) == 0:
            return {"value": 0.0}
        x, y = x - x.mean(0), y - y.mean(0)
        return {"value": np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))}


class NTKGram(DiagnosticReference):
    name = "ntk_gram"

    def examples(self, rng):
        return [{"j": rng.standard_normal(s)} for s in ((1, 1, 1), (4, 3, 5), (30, 1, 8))]

    def results(self, j):
        return {"kernel": np.einsum("icp,jcp->ij", j, j)}


class KernelAlignment(DiagnosticReference):
    name = "kernel_alignment"
    defaults = {"center": False}
    settings = ({}, {"center": True})

    def examples(self, rng):
        a = rng.standard_normal((6, 4))
        return [{"kernel": a @ a.T, "y": rng.standard_normal(6)}, {"kernel": np.zeros((2, 2)), "y": np.ones(2)}]

    def results(self, kernel, y):
        h = np.eye(len(y)) - 1 / len(y) * self.center
        k, yy = h @ kernel @ h, np.outer(h @ y, h @ y)
        norms = np.linalg.norm(k) * np.linalg.norm(yy)
        return {"value": np.sum(k * yy) / norms if norms > 0 else 0.0}


class NTKDynamics(DiagnosticReference):
    name = "ntk_dynamics"
    required = ("t",)
    defaults = {"lr": 1.0}
    settings = ({"t": 3.0}, {"t": 0.0}, {"t": 10, "lr": 0.1})
    limit = 10.0

    def examples(self, rng):
        a = rng.standard_normal((6, 4))
        return [{"kernel": a @ a.T, "residual": rng.standard_normal(6)}, {"kernel": np.array([[2.0]]), "residual": np.ones(1)}]

    def results(self, kernel, residual):
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        rates = self.lr * values / len(residual)
        return {"after": vectors @ (np.exp(-rates * self.t) * (vectors.T @ residual)), "rates": rates[::-1]}


class NTKReLU(DiagnosticReference):
    name = "ntk_relu"
    defaults = {"depth": 1, "w_var": 2.0, "b_var": 0.0}
    settings = ({}, {"depth": 3, "w_var": 1.5, "b_var": 0.2}, {"depth": 0})
    limit = 1e3  # the arc cosine near 1 loses half the digits: of two rows that are nearly parallel

    def examples(self, rng):
        zero = rng.standard_normal((3, 2))
        zero[1] = 0
        return [{"x": rng.standard_normal((1, 1))}, {"x": rng.standard_normal((6, 4))}, {"x": zero}]

    def results(self, x):
        s = self.w_var * x @ x.T / x.shape[1] + self.b_var
        t = s
        for _ in range(self.depth):
            scale = np.sqrt(np.outer(np.diag(s), np.diag(s)))
            c = np.clip(np.divide(s, scale, out=np.zeros_like(s), where=scale > 0), -1, 1)
            np.fill_diagonal(c, np.where(np.diag(s) > 0, 1.0, 0.0))
            theta = np.arccos(c)
            s = self.w_var * scale * (np.sin(theta) + (np.pi - theta) * c) / (2 * np.pi) + self.b_var
            t = s + t * self.w_var * (np.pi - theta) / (2 * np.pi)
        return {"nngp": s, "ntk": t}


class RepresenterPoints(DiagnosticReference):
    """Tsai et al., 2023; arXiv 2305.20002."""

    name = "representer_points"
    required = ("lam",)
    defaults = {"kind": "l2"}
    settings = ({"lam": 0.3}, {"lam": 0.1, "kind": "l1"}, {"lam": 2.0, "kind": "nuclear"})
    limit = 10.0

    def examples(self, rng):
        shapes = ((3, 4), (2, 2)) if self.h["kind"] == "nuclear" else ((4,), (3, 2))
        return [{"x": rng.standard_normal((n, *s)), "slopes": rng.standard_normal(n), "theta": rng.standard_normal(s), "test": rng.standard_normal(s)}
                for s in shapes for n in (1, 7)]

    def results(self, x, slopes, theta, test):
        alpha = -slopes / (self.lam * len(slopes))
        if self.h["kind"] == "nuclear":
            u, s, _ = np.linalg.svd(theta, full_matrices=False)
            inner = [np.sum((u * s @ u.T @ xi) * test) for xi in x]
        else:
            inner = [np.sum((np.abs(theta) if self.h["kind"] == "l1" else 1) * xi * test) for xi in x]
        values = alpha * np.array(inner)
        return {"values": values, "residual": np.sum(theta * test) - values.sum()}


class WeightingVector(DiagnosticReference):
    """Bunch et al., 2021; arXiv 2106.00827."""

    name = "weighting_vector"
    defaults = {"scale": 1.0, "ridge": 0.0, "k": None}
    settings = ({}, {"scale": 3.0, "ridge": 0.1}, {"k": 3})
    limit = 1e3  # of a system with a condition of some hundreds

    def examples(self, rng):
        out = []
        for n in (1, 4, 20):
            x = rng.standard_normal((n, 2))
            out.append({"distances": np.linalg.norm(x[:, None] - x, axis=2)})
        return out

    def results(self, distances):
        n = len(distances)
        z = np.exp(-self.scale * distances) + self.ridge * np.eye(n)
        if self.k is None:
            return {"weights": np.linalg.solve(z, np.ones(n))}
        w = []
        for i in range(n):
            d = distances[i].copy()
            d[i] = -1
            near = np.argsort(d, kind="stable")[: self.k + 1]
            w.append(np.linalg.solve(z[np.ix_(near, near)], np.ones(len(near)))[0])
        return {"weights": np.array(w)}


class NoetherCharges(DiagnosticReference):
    name = "noether_charges"

    def examples(self, rng):
        full = {"w": rng.standard_normal((4, 3)), "g": rng.standard_normal((4, 3)), "w2": rng.standard_normal((2, 4)), "g2": rng.standard_normal((2, 4))}
        return [full, {"w": full["w"]}, {"w": full["w"], "g": full["g"]}, {k: full[k] for k in ("w", "w2")}]

    def results(self, w, g=None, w2=None, g2=None):
        none = np.nan * w
        h = none if g is None else g
        lacks = w2 is None
        w2 = np.full((1, len(w)), np.nan) if lacks else w2
        g2 = np.nan * w2 if g2 is None else g2
        return {"translation": w.sum(0), "scale": np.sum(w * w), "rescale": np.sum(w * w, 1) - np.sum(w2 * w2, 0),
                "translation_residual": h.sum(0), "scale_residual": np.sum(w * h), "rescale_residual": np.sum(w * h, 1) - np.sum(w2 * g2, 0)}


class ScaleNormDynamics(DiagnosticReference):
    name = "scale_norm_dynamics"
    required = ("lr",)
    defaults = {"weight_decay": 0.0}
    settings = ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.01})

    def examples(self, rng):
        return [{"w": rng.standard_normal(s), "g": rng.standard_normal(s)} for s in ((3,), (4, 2))]

    def results(self, w, g):
        keep, w2, g2 = (1 - self.lr * self.weight_decay) ** 2, np.sum(w * w), np.sum(g * g)
        return {"next": keep * w2 + self.lr**2 * g2, "angular_lr": self.lr / w2,
                "equilibrium": np.sqrt(self.lr**2 * g2 * w2 / (1 - keep)) if self.weight_decay else np.inf}


class NormGrad(DiagnosticReference):
    """Rebuffi et al., 2020; arXiv 2004.02866."""

    name = "normgrad"
    defaults = {"virtual": "conv1x1", "kernel": 3}
    settings = ({}, {"virtual": "bias"}, {"virtual": "scaling"}, {"virtual": "conv"}, {"virtual": "conv", "kernel": 7})

    def examples(self, rng):
        return [{"x": rng.standard_normal(s), "g": rng.standard_normal(s)} for s in ((1, 1, 1), (3, 4, 5), (2, 7, 2))]

    def results(self, x, g):
        norm = lambda v: np.sqrt(np.sum(v * v, 0))  # noqa: E731
        if self.virtual == "conv":
            r = self.kernel // 2
            padded = np.pad(x, ((0, 0), (r, r), (r, r)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (self.kernel, self.kernel), (1, 2))
            return {"saliency": norm(g) * np.sqrt(np.sum(windows**2, (0, 3, 4)))}
        return {"saliency": {"conv1x1": lambda: norm(g) * norm(x), "bias": lambda: norm(g), "scaling": lambda: norm(g * x)}[self.virtual]()}


class CombineSaliency(DiagnosticReference):
    name = "combine_saliency"
    defaults = {"mode": "product"}
    settings = ({}, {"mode": "sum"})

    def examples(self, rng):
        maps = rng.random((3, 4, 5))
        return [{"maps": maps}, {"maps": maps, "weights": np.array([1.0, 0.0, 3.0])}, {"maps": np.concatenate([maps, np.ones((1, 4, 5))])}]

    def results(self, maps, weights=None):
        w = np.ones(len(maps)) if weights is None else weights
        w = (w / w.sum())[:, None, None]
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        m = np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), 0.0)
        return {"saliency": np.prod(m**w, 0) if self.mode == "product" else np.sum(w * m, 0)}


class SpectralTruncation(DiagnosticReference):
    """Wang, 2026; arXiv 2603.02293."""

    name = "spectral_truncation"
    defaults = {"d": None, "energy": 0.9, "center": True}
    settings = ({}, {"d": 2}, {"energy": 1.0, "center": False}, {"d": 90})
    limit = 10.0

    def examples(self, rng):
        out = []
        for n, d in ((1, 2), (12, 4), (5, 8)):
            case = {"h": rng.standard_normal((n, d)) + 1}
            out += [case, {**case, "w": rng.standard_normal((3, d)), "b": rng.standard_normal(3)}]
        return [*out, {"h": case["h"], "w": rng.standard_normal((2, d))}]

    def results(self, h, w=None, b=0.0):
        mean = h.mean(0) if self.center else np.zeros(h.shape[1])
        _, s, vt = np.linalg.svd(h - mean, full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2) if np.any(s) else np.ones(len(s))
        rank = np.linalg.matrix_rank(h - mean)
        d = self.d or (int(np.argmax(share >= min(self.energy, share[-1] * (1 - 1e-13)))) + 1)
        d = h.shape[1] if d >= h.shape[1] else min(d, rank)
        p = np.eye(h.shape[1]) if d == h.shape[1] else vt[:d].T @ vt[:d]
        out = {"projected": mean + (h - mean) @ p, "kept": d, "explained": 1.0 if d >= rank else share[d - 1]}
        if w is not None:
            out |= {"weight": w @ p, "bias": b + w @ (mean - p @ mean)}
        return out


class GaussianMechanism(DiagnosticReference):
    """Dwork, Roth, 2014; Balle, Wang, 2018: the root by another search."""

    name = "gaussian_mechanism"
    required = ("epsilon", "delta")
    defaults = {"mode": "analytic"}
    settings = ({"epsilon": 1.0, "delta": 1e-5}, {"epsilon": 0.5, "delta": 1e-6, "mode": "classic"}, {"epsilon": 8.0, "delta": 1e-3})
    limit = 1e3  # the bisection ends at 1e-12, and the distribution function is some 1e-16/delta off

    def examples(self, rng):
        return [{"sensitivity": np.array(s)} for s in (1.0, 0.25, 0.0)]

    def spent(self, sigma):
        phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
        return phi(1 / (2 * sigma) - self.epsilon * sigma) - math.exp(self.epsilon) * phi(-1 / (2 * sigma) - self.epsilon * sigma)

    def results(self, sensitivity):
        if self.mode == "classic":
            return {"value": sensitivity * np.sqrt(2 * np.log(1.25 / self.delta)) / self.epsilon}
        low, high = -20.0, 20.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.spent(math.exp(middle)) > self.delta else (low, middle)
        return {"value": sensitivity * math.exp(high)}


class PACBayesGradNorm(DiagnosticReference):
    name = "pac_bayes_grad_norm"

    def examples(self, rng):
        return [{"g": rng.standard_normal(s)} for s in ((1, 1), (5, 3), (4, 2, 6))]

    def results(self, g):
        return {"value": np.sum(g * g) / len(g)}


class DPClipNormBound(DiagnosticReference):
    name = "dp_clip_norm_bound"
    defaults = {"bias": False, "quantile": 0.0}
    settings = ({}, {"bias": True, "quantile": 0.3}, {"quantile": 1.0})

    def examples(self, rng):
        return [{"x": rng.standard_normal(s)} for s in ((1, 2), (9, 3))]

    def results(self, x):
        constants = np.sqrt(2 * (np.sum(x * x, 1) + self.bias))
        return {"constants": constants, "bound": np.quantile(constants, self.quantile)}


class CompoundBinomial(DiagnosticReference):
    """2025; arXiv 2512.25042."""

    name = "compound_binomial"
    defaults = {"rule": "trials", "grid": None}
    settings = ({}, {"rule": "common"}, {"grid": [0.5, 3.0, 40.0]}, {"grid": [0.0]})

    def examples(self, rng):
        out = []
        for count in (1, 6, 80):
            n = rng.integers(1, 30, count).astype(float)
            n[0] = 5
            case = {"x": np.floor(n * rng.beta(2, 5, count)), "n": n}
            out += [case, {**case, "m": rng.random(count)}]
        return out

    def results(self, x, n, m=None):
        p, m = x / n, np.full(len(x), x.sum() / n.sum()) if m is None else m
        ok = n >= 2
        v = np.where(ok, p * (1 - p) / np.maximum(n - 1, 1), 0)
        risk = lambda w: np.mean((w**2 * v + (1 - w) ** 2 * ((p - m) ** 2 - v))[ok])  # noqa: E731
        if self.rule == "common":
            spread = np.sum((p - m)[ok] ** 2)
            lam, w = np.nan, np.full(len(x), np.clip(1 - v[ok].sum() / spread, 0, 1) if spread > 0 else 0.0)
        else:
            grid = np.concatenate([[0.0], np.logspace(-2, 6, 400)]) if self.grid is None else np.array(self.grid)
            lam = grid[np.argmin([risk(n / (n + g)) for g in grid])]
            w = n / (n + lam)
        return {"estimate": w * p + (1 - w) * m, "weights": w, "lam": lam, "risk": risk(w)}


class CoarseToFineBlur(ObjectiveReference):
    """A dense matrix for each axis; arXiv 2402.13252."""

    name = "coarse_to_fine_blur"
    required = ("sigma",)
    defaults = {"size": 65, "axes": 2}
    settings = ({"sigma": 1.5}, {"sigma": 0.0, "size": 5}, {"sigma": 3.0, "size": 9, "axes": 1})

    def examples(self, rng):
        out = []
        for shape in ((1, 1), (4, 6), (2, 3, 5, 40)):
            case = {"x": rng.standard_normal(shape)}
            out += [case, {**case, "dy": rng.standard_normal(shape)}]
        return out

    def matrix(self, n):
        s, half = max(self.sigma, 1e-4), self.size // 2
        m = np.zeros((n, n))
        for i in range(n):
            for k in range(-half, half + 1):
                m[i, min(max(i + k, 0), n - 1)] += min(1.0, np.exp(-(k**2) / (2 * s * s)) / (s * np.sqrt(2 * np.pi)))
        return m

    def both(self, x, transposed=False):
        a, b = (self.matrix(n) for n in x.shape[-2:])
        if self.axes == 1:
            a = np.eye(len(a))
        return a.T @ x @ b if transposed else a @ x @ b.T

    def value(self, x, dy=None):
        return 0.0 if dy is None else float(np.sum(dy * self.both(x)))

    def gradients(self, x, dy=None):
        return {"x": np.zeros_like(x) if dy is None else self.both(dy, True), "y": self.both(x)}


class EdgeMask(DiagnosticReference):
    """Sobel's magnitude against its mean; arXiv 2402.13252."""

    name = "edge_mask"
    defaults = {"thresh": 1.25, "soft": False}
    settings = ({}, {"thresh": 0.5}, {"soft": True})

    def examples(self, rng):
        step = np.zeros((5, 6, 3))
        step[:, 3:] = 1
        return [{"image": step}, {"image": np.ones((3, 4, 1))}, {"image": rng.random((7, 5, 2))}, {"image": np.ones((1, 1, 1))}]

    def results(self, image):
        p = np.pad(image.sum(-1), 1, mode="edge")
        h, w = image.shape[:2]
        at = lambda i, j: p[1 + i : 1 + i + h, 1 + j : 1 + j + w]  # noqa: E731
        across = sum(c * (at(i, 1) - at(i, -1)) for i, c in ((-1, 1), (0, 2), (1, 1)))
        down = sum(c * (at(1, j) - at(-1, j)) for j, c in ((-1, 1), (0, 2), (1, 1)))
        m = np.hypot(across, down)
        if self.soft:
            return {"mask": m / m.max() if m.max() > 0 else m}
        return {"mask": 1.0 * (m > self.thresh * m.mean())}
