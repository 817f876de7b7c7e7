"""Penalties that look at more than the weights: anchors, gradients, graphs of samples, solver stages, nets."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference


class L2Init(ObjectiveReference):
    """weight/2 sum p (w - a)^2."""

    name = "l2_init"
    kind = "regularizer"
    defaults = {"weight": 1e-4}
    settings = ({}, {"weight": 0.7}, {"weight": 0.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for shape in ((1,), (5, 3), (40, 300)):
            w, a = rng.standard_normal((2, *shape))
            cases += [{"w": w, "anchor": a}, {"w": w, "anchor": a, "precision": rng.uniform(0, 3, shape)}]
        return cases

    def value(self, w: np.ndarray, anchor: np.ndarray, precision: np.ndarray | float = 1.0) -> float:
        return float(self.weight / 2 * np.sum(precision * (w - anchor) ** 2))

    def gradients(self, w: np.ndarray, anchor: np.ndarray, precision: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
        return {"w": self.weight * precision * (w - anchor)}


class WassersteinInit(ObjectiveReference):
    """The squared Wasserstein distance to the initial weights, as distributions on the line."""

    name = "wasserstein_init"
    kind = "regularizer"
    defaults = {"weight": 1e-4, "reduction": "sum", "every": 1}
    settings = ({}, {"weight": 0.7}, {"weight": 0.7, "reduction": "mean"})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [{"w": w, "initial": a} for w, a in (rng.standard_normal((2, *s)) for s in ((1,), (5, 3), (20, 4, 3)))]

    def _move(self, w: np.ndarray, initial: np.ndarray) -> tuple[float, np.ndarray]:
        match = np.empty(w.size)
        match[np.argsort(w.ravel(), kind="stable")] = np.sort(initial.ravel())
        return self.weight / (w.size if self.reduction == "mean" else 1), w - match.reshape(w.shape)

    def value(self, w: np.ndarray, initial: np.ndarray) -> float:
        c, d = self._move(w, initial)
        return float(c * np.sum(d * d))

    def gradients(self, w: np.ndarray, initial: np.ndarray) -> dict[str, np.ndarray]:
        c, d = self._move(w, initial)
        return {"w": 2 * c * d}


class RelevanceReg(ObjectiveReference):
    """gamma sum exp(-|g|/alpha) w^2 (Bonetta, Ribero, Cancelliere, 2022; arXiv 2204.04977)."""

    name = "relevance_reg"
    kind = "regularizer"
    defaults = {"gamma": 1e-5, "alpha": 1.0}
    settings = ({}, {"gamma": 0.7}, {"gamma": 0.7, "alpha": 0.1})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [{"w": w, "grad": g} for w, g in (rng.standard_normal((2, *s)) for s in ((1,), (5, 3), (40, 300)))]

    def value(self, w: np.ndarray, grad: np.ndarray) -> float:
        return float(self.gamma * np.sum(np.exp(-np.abs(grad) / self.alpha) * w**2))

    def gradients(self, w: np.ndarray, grad: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": 2 * self.gamma * np.exp(-np.abs(grad) / self.alpha) * w}


class LaplacianSmoothness(ObjectiveReference):
    """tr(F' L F) of the weighted graph of samples (Cervino et al., 2023; arXiv 2210.00301)."""

    name = "laplacian_smoothness"
    kind = "regularizer"

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for n, c in ((1, 2), (6, 3), (50, 4)):
            x, f = rng.standard_normal((n, 2)), rng.standard_normal((n, c))
            w = np.exp(-np.sum((x[:, None] - x[None]) ** 2, -1) / 4)
            cases += [{"w": f, "similarity": w}, {"w": f, "similarity": w, "lam": rng.uniform(0, 2, n)}]
        return cases

    def _laplacian(self, similarity: np.ndarray, lam: np.ndarray | None) -> np.ndarray:
        l = np.ones(len(similarity)) if lam is None else lam
        w = similarity * (l[:, None] + l[None]) / 2
        return np.diag(w.sum(1)) - w

    def value(self, w: np.ndarray, similarity: np.ndarray, lam: np.ndarray | None = None) -> float:
        return float(np.trace(w.T @ self._laplacian((similarity + similarity.T) / 2, lam) @ w))

    def gradients(self, w: np.ndarray, similarity: np.ndarray, lam: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"w": 2 * self._laplacian((similarity + similarity.T) / 2, lam) @ w}


A6 = np.array([5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383, 0, 0])
A7 = np.array([0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0])
E = np.array([-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629, 0.5823571654525552,
              -0.45808210592918697, 1 / 66])


def solver_stages(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"k": rng.standard_normal((s, 7, n)), "u0": rng.standard_normal((s, n)), "dt": rng.uniform(0.05, 0.5, s)} for s, n in ((1, 1), (3, 4), (5, 60))]


class ODEErrorReg(ObjectiveReference):
    """weight mean (or max) of rms(err/sc) dt over the steps of Tsit5 (Pal et al., 2021; arXiv 2105.03918)."""

    name = "ode_error_reg"
    required = ("atol", "rtol")
    defaults = {"weight": 100.0, "aggregate": "mean"}
    settings = ({"atol": 0.3, "rtol": 0.2, "weight": 1.0}, {"atol": 0.3, "rtol": 0.2, "weight": 0.5, "aggregate": "max"}, {"atol": 1.0, "rtol": 1.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return solver_stages(rng)

    def _steps(self, k: np.ndarray, u0: np.ndarray, dt: np.ndarray):
        h = dt[:, None]
        u1 = u0 + h * np.einsum("j,sjn->sn", A7, k)
        sc = self.atol + self.rtol * np.maximum(np.abs(u0), np.abs(u1))
        q = h * np.einsum("j,sjn->sn", E, k) / sc
        e = np.sqrt(np.mean(q * q, axis=1))
        share = np.full(len(k), 1 / len(k)) if self.aggregate == "mean" else np.eye(len(k))[np.argmax(e * dt)]
        return u1, sc, q, e, share

    def value(self, k: np.ndarray, u0: np.ndarray, dt: np.ndarray) -> float:
        *_, e, share = self._steps(k, u0, dt)
        return float(self.weight * np.sum(share * e * dt))

    def gradients(self, k: np.ndarray, u0: np.ndarray, dt: np.ndarray) -> dict[str, np.ndarray]:
        u1, sc, q, e, share = self._steps(k, u0, dt)
        h, n = dt[:, None], u0.shape[1]
        dq = (self.weight * share * dt)[:, None] * q / (n * np.where(e > 0, e, 1.0)[:, None])
        through = -dq * q / sc * self.rtol
        first = np.abs(u0) >= np.abs(u1)
        du = through * np.where(first, np.sign(u0), np.sign(u1))
        gk = np.einsum("j,sn->sjn", E, dq / sc * h) + np.einsum("j,sn->sjn", A7, np.where(first, 0, du) * h)
        return {"k": gk, "u0": du}


class ODEStiffnessReg(ObjectiveReference):
    """weight max (or mean) of rms(k7 - k6)/(rms(g7 - g6) stability) over the steps of Tsit5 (same paper)."""

    name = "ode_stiffness_reg"
    defaults = {"weight": 0.1, "aggregate": "max", "stability": 3.5068}
    settings = ({}, {"weight": 2.0, "aggregate": "mean"}, {"weight": 2.0, "stability": 1.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = solver_stages(rng)
        still = {name: x.copy() for name, x in cases[1].items()}
        still["dt"][1] = 0  # the stages coincide
        return [*cases, still]

    def _steps(self, k: np.ndarray, dt: np.ndarray):
        a, b = k[:, 6] - k[:, 5], dt[:, None] * np.einsum("j,sjn->sn", A7 - A6, k)
        aa, bb = np.sum(a * a, axis=1), np.sum(b * b, axis=1)
        s = np.where(bb > 0, np.sqrt(aa / np.where(bb > 0, bb, 1.0)) / self.stability, 0.0)
        share = np.full(len(k), 1 / len(k)) if self.aggregate == "mean" else np.eye(len(k))[np.argmax(s)]
        return a, b, aa, bb, s, share

    def value(self, k: np.ndarray, u0: np.ndarray, dt: np.ndarray) -> float:
        *_, s, share = self._steps(k, dt)
        return float(self.weight * np.sum(share * s))

    def gradients(self, k: np.ndarray, u0: np.ndarray, dt: np.ndarray) -> dict[str, np.ndarray]:
        a, b, aa, bb, s, share = self._steps(k, dt)
        c = (self.weight * share * s)[:, None]
        live = (s > 0)[:, None]
        da = np.where(live, c * a / np.where(aa > 0, aa, 1.0)[:, None], 0.0)
        db = np.where(live, -c * b / np.where(bb > 0, bb, 1.0)[:, None] * dt[:, None], 0.0)
        gk = np.einsum("j,sn->sjn", A7 - A6, db)
        gk[:, 6] += da
        gk[:, 5] -= da
        return {"k": gk, "u0": np.zeros_like(u0)}


class PathNorm(ObjectiveReference):
    """weight (sum over the paths of prod |w|^q)^(1/q) (Neyshabur et al., 2015; arXiv 1503.00036)."""

    name = "path_norm"
    defaults = {"q": 1.0, "weight": 1e-6}
    settings = ({"weight": 1.0}, {"q": 2.0, "weight": 0.3}, {"q": 1.5, "weight": 0.3}, {})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        def net(sizes: list[int], biases: bool) -> dict[str, np.ndarray]:
            out = {}
            for l, (n, m) in enumerate(zip(sizes, sizes[1:]), 1):
                out[f"w{l}"] = rng.standard_normal((m, n))
                if biases and l != 2:
                    out[f"b{l}"] = rng.standard_normal(m)
            return out

        dead = net([2, 3, 2], True)
        dead["w1"][:] = 0
        dead["b1"][:] = 0
        gone = net([2, 3, 2], False)
        gone["w2"][:] = 0
        return [net([3, 2], False), net([3, 4, 2], True), net([2, 5, 4, 3, 1], True), {n: 0.3 * w for n, w in net([4] * 17, False).items()}, dead, gone]

    def _layers(self, inputs: dict[str, np.ndarray]):
        q, h = self.q, [np.ones(inputs["w1"].shape[1])]
        depth = sum(name[0] == "w" for name in inputs)
        for l in range(1, depth + 1):
            h.append(np.abs(inputs[f"w{l}"]) ** q @ h[-1] + np.abs(inputs.get(f"b{l}", np.zeros(1))) ** q)
        return depth, h, h[-1].sum()

    def value(self, **inputs: np.ndarray) -> float:
        return float(self.weight * self._layers(inputs)[2] ** (1 / self.q))

    def gradients(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        depth, h, s = self._layers(inputs)
        q, out = self.q, {name: np.zeros_like(x) for name, x in inputs.items()}
        if s == 0:
            return out
        slope = lambda w: q * np.where(w == 0, 1.0, np.abs(w)) ** (q - 1) * np.sign(w)  # noqa: E731
        d = np.full(len(h[-1]), self.weight / q * s ** (1 / q - 1))
        for l in range(depth, 0, -1):
            out[f"w{l}"] = np.outer(d, h[l - 1]) * slope(inputs[f"w{l}"])
            if f"b{l}" in inputs:
                out[f"b{l}"] = d * slope(inputs[f"b{l}"])
            d = (np.abs(inputs[f"w{l}"]) ** q).T @ d
        return out
