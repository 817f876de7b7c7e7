"""Sparsity along a run, and the choices that sparse training makes from arrays."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .base import Arrays, AverageReference, DiagnosticReference, ObjectiveReference, Reference, TransformReference
from .masks import NMSparsity


def best(scores: np.ndarray, keep: int) -> np.ndarray:
    """1 for the `keep` largest of a vector, the lower index first in a tie."""
    mask = np.zeros(scores.size)
    mask[np.argsort(-scores, kind="stable")[:keep]] = 1
    return mask


class MagnitudePruning(AverageReference):
    """The smallest entries, of all tensors or of each, are zero after each step (Han et al., 2015; arXiv 1506.02626)."""

    name = "magnitude_pruning"
    required = ("sparsity",)
    defaults = {"regrow": False, "min_keep": 1, "scope": "global"}
    settings = ({"sparsity": 0.5}, {"sparsity": 0.9}, {"sparsity": 0.0}, {"sparsity": 0.8, "regrow": True},
                {"sparsity": 0.99, "min_keep": 3}, {"sparsity": 0.9, "min_keep": 0, "regrow": True},
                {"sparsity": 0.5, "scope": "local"}, {"sparsity": 0.8, "regrow": True, "scope": "local"},
                {"sparsity": 0.99, "min_keep": 3, "scope": "local"})

    def start(self, params: Arrays) -> None:
        self.pruned: Arrays = [np.zeros(w.shape, bool) for w in params]

    def update(self, params: Arrays) -> None:
        scores = [np.abs(w).ravel() if self.regrow else np.where(gone.ravel(), -np.inf, np.abs(w).ravel())
                  for w, gone in zip(params, self.pruned)]
        scopes = [range(len(params))] if self.scope == "global" else [[k] for k in range(len(params))]
        for tensors in scopes:
            # the best of each tensor first, then the best of all; Python rounds half to even
            first = {k: np.where(best(scores[k], min(self.min_keep, scores[k].size)) > 0, scores[k], -np.inf) for k in tensors}
            size = sum(scores[k].size for k in tensors)
            stay = max(size - round(self.sparsity * size), sum(int(np.sum(first[k] > -np.inf)) for k in tensors))
            all_scores = np.concatenate([np.where(first[k] > -np.inf, np.inf, scores[k]) for k in tensors])
            mask = best(all_scores, stay) * (all_scores > -np.inf)
            ends = np.cumsum([scores[k].size for k in tensors])[:-1]
            for k, part in zip(tensors, np.split(mask, ends)):
                self.pruned[k][...] = (part == 0).reshape(params[k].shape)
                params[k][self.pruned[k]] = 0
        self.params = params

    def value(self) -> Arrays:
        return self.params


class StructuredPruning(Reference):
    """Slices of least norm along an axis are zero, of each tensor or of all (Li et al., 2016; arXiv 1608.08710)."""

    name = "structured_pruning"
    kind = "average"
    required = ("sparsity",)
    defaults = {"axis": 0, "regrow": False, "min_keep": 1, "scope": "local"}
    settings = ({"sparsity": 0.5}, {"sparsity": 0.34, "axis": 1}, {"sparsity": 0.99}, {"sparsity": 0.5, "axis": -1, "regrow": True},
                {"sparsity": 0.9, "min_keep": 2}, {"sparsity": 0.5, "scope": "global"}, {"sparsity": 0.8, "axis": 1, "scope": "global", "regrow": True},
                {"sparsity": 0.95, "min_keep": 3, "scope": "global"})

    def start(self, params: Arrays) -> None:
        self.pruned = [np.zeros(w.shape[self.axis], bool) for w in params]

    def update(self, params: Arrays) -> None:
        norms = [np.sqrt(np.sum(np.moveaxis(w, self.axis, 0).reshape(len(gone), -1) ** 2, axis=1)) for w, gone in zip(params, self.pruned)]
        if not self.regrow:
            norms = [np.where(gone, -1.0, n) for n, gone in zip(norms, self.pruned)]
        for tensors in [range(len(params))] if self.scope == "global" else [[k] for k in range(len(params))]:
            order = sorted(((k, i) for k in tensors for i in range(len(norms[k]))), key=lambda s: (-norms[s[0]][s[1]], s))
            stay = len(order) - round(self.sparsity * len(order))
            kept = [s for k in tensors for s in [s for s in order if s[0] == k][: self.min_keep]]
            kept += [s for s in order if s not in kept][: max(0, stay - len(kept))]
            for k in tensors:
                self.pruned[k] |= ~np.isin(np.arange(len(norms[k])), [i for t, i in kept if t == k])
                if self.regrow:
                    self.pruned[k][[i for t, i in kept if t == k]] = False
                np.moveaxis(params[k], self.axis, 0)[self.pruned[k]] = 0


class SRSTE(TransformReference):
    """g + decay (1 - mask(w)) w (Zhou et al., 2021; arXiv 2102.04010)."""

    name = "sr_ste"
    shapes = "matrix"
    defaults = {"n": 2, "m": 4, "axis": None, "tail": "error", "decay": 2e-4}
    settings = ({"tail": "dense"}, {"n": 1, "m": 2, "tail": "dense", "decay": 0.3}, {"n": 1, "m": 3, "axis": 0, "tail": "dense", "decay": 0.1})

    def transform(self, grads: Arrays, *, params: Arrays, update: Arrays | None = None,
                  normal: Callable[[int], Arrays] | None = None) -> Arrays:
        mask = NMSparsity(n=self.n, m=self.m, axis=self.axis, tail=self.tail).mask
        return [g + self.decay * (1 - mask(w)) * w for g, w in zip(grads, params)]


class PruningScore(DiagnosticReference):
    """Scores, and the masks that a share leaves (Han et al., 2015; Molchanov et al., 2016; Sun et al., 2023)."""

    name = "pruning_score"
    defaults = {"sparsity": 0.5, "score": "magnitude", "scope": "global", "min_keep": 1}
    settings = ({}, {"scope": "local", "sparsity": 0.3}, {"score": "taylor"}, {"score": "fisher", "sparsity": 0.7},
                {"score": "wanda"}, {"score": "wanda", "sparsity": 0.95, "min_keep": 2}, {"score": "row_norm", "sparsity": 0.4}, {"sparsity": 0.95, "min_keep": 0}, {"sparsity": 0.95, "min_keep": 2})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        def part(k: int, r: int, c: int, scale: float) -> dict[str, np.ndarray]:
            return {f"w{k}": scale * rng.standard_normal((r, c)), f"g{k}": rng.standard_normal((r, c)), f"x{k}": rng.uniform(0.1, 2, c)}

        ties = {"w1": np.array([[1.0, -1.0, 2.0, 1.0], [0.0, 1.0, -2.0, 1.0]]), "g1": np.ones((2, 4)), "x1": np.ones(4)}
        return [part(1, 3, 5, 1.0), part(1, 4, 6, 1.0) | part(2, 1, 9, 0.01) | part(3, 5, 2, 3.0), ties]

    def results(self, **x: np.ndarray) -> dict[str, Any]:
        out: dict[str, Any] = {}
        names = [k for k in range(1, 9) if f"w{k}" in x]
        for k in names:
            w = x[f"w{k}"]
            out[f"score{k}"] = {
                "magnitude": lambda: np.abs(w), "taylor": lambda: np.abs(x[f"g{k}"] * w), "fisher": lambda: (x[f"g{k}"] * w) ** 2 / 2,
                "wanda": lambda: np.abs(w) * x[f"x{k}"], "row_norm": lambda: np.repeat(np.linalg.norm(w, axis=1)[:, None], w.shape[1], 1),
            }[self.score]()
        groups = [[(k, i) for i in range(out[f"score{k}"].size)] for k in names]
        if self.scope == "global" and self.score != "wanda":
            groups = [[p for g in groups for p in g]]
        for k in names:
            out[f"mask{k}"] = np.zeros(out[f"score{k}"].size)
        for group in groups:
            order = sorted(group, key=lambda p: -out[f"score{p[0]}"].flat[p[1]])  # stable
            stay = len(group) - round(self.sparsity * len(group))
            kept = [p for k in names for p in [q for q in order if q[0] == k][: self.min_keep]]
            if self.score == "wanda":  # its rows first, then the best of the tensor
                k, columns = group[0][0], x[f"w{group[0][0]}"].shape[1]
                of_row = columns - round(self.sparsity * columns)
                kept = [p for i in range(len(group) // columns) for p in [q for q in order if q[1] // columns == i][:of_row]]
                stay = self.min_keep
            kept += [p for p in order if p not in kept][: max(0, stay - len(kept))]
            for k, i in kept:
                out[f"mask{k}"][i] = 1
        for k in names:
            out[f"mask{k}"] = out[f"mask{k}"].reshape(x[f"w{k}"].shape)
        return out


class ERKDensity(DiagnosticReference):
    """Layer densities of sparse training (Evci et al., 2020; arXiv 1911.11134)."""

    name = "erk_density"
    defaults = {"density": 0.1, "distribution": "erk"}
    settings = ({}, {"density": 0.5}, {"density": 1.0}, {"density": 0.3, "distribution": "uniform"})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        shapes = ([[64, 3, 3, 3], [128, 64, 3, 3], [10, 128, 0, 0], [128, 0, 0, 0]], [[30, 20]], [[2, 2], [3, 1], [500, 400]])
        return [{"shapes": np.array(s, float)} for s in shapes]

    def results(self, shapes: np.ndarray) -> dict[str, Any]:
        sides = [row[row > 0] for row in shapes]
        sums, sizes = np.array([s.sum() for s in sides]), np.array([np.prod(s) for s in sides])
        if self.distribution == "uniform":
            return {"densities": np.full(len(sides), self.density)}
        dense = np.zeros(len(sides), bool)
        while True:
            eps = max(0.0, self.density * sizes.sum() - sizes[dense].sum()) / max(sums[~dense].sum(), 1e-300)
            density = np.where(dense, 1.0, eps * sums / sizes)
            full = ~dense & (density >= 1)
            if dense.all() or not full.any():
                return {"densities": density}
            dense |= full


class MovementPruning(DiagnosticReference):
    """Scores that fall where a weight moves toward zero (Sanh, Wolf, Rush, 2020; arXiv 2005.07683)."""

    name = "movement_pruning"
    defaults = {"sparsity": 0.5, "mode": "topk", "lr_score": 1.0, "tau": 0.5, "penalty": 0.0}
    settings = ({}, {"sparsity": 0.8, "lr_score": 0.1}, {"mode": "threshold", "penalty": 0.3}, {"mode": "threshold", "tau": 0.6, "lr_score": 0.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        return [{"w": rng.standard_normal(n), "g": rng.standard_normal(n), "scores": s * rng.standard_normal(n)} for n, s in ((1, 1.0), (7, 0.0), (50, 1.0))]

    def results(self, w: np.ndarray, g: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        sigmoid = lambda s: 1 / (1 + np.exp(-s))  # noqa: E731

        def mask(s: np.ndarray) -> np.ndarray:
            if self.mode == "threshold":
                return (sigmoid(s) > self.tau).astype(float)
            return best(s, s.size - round(self.sparsity * s.size))

        p = sigmoid(scores)
        pull = self.penalty * p * (1 - p) / w.size if self.mode == "threshold" else 0.0
        updated = scores - self.lr_score * (g * w + pull)
        return {"updated": updated, "mask": mask(updated), "gradient": g * mask(scores)}


class RigL(DiagnosticReference):
    """Drop the smallest, grow where the gradient is largest (Evci et al., 2020; arXiv 1911.11134)."""

    name = "rigl"
    required = ("end_step",)
    defaults = {"every": 100, "alpha": 0.3}
    settings = ({"end_step": 1000}, {"end_step": 50, "every": 10, "alpha": 1.0})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for n, density in ((40, 0.5), (9, 0.3), (20, 1.0), (6, 0.0)):
            mask = (rng.random(n) < density).astype(np.int64)
            for step in (0, 7, 10, 100, 50):
                cases.append({"w": rng.standard_normal(n) * mask, "g": rng.standard_normal(n), "mask": mask, "step": np.array(step)})
        return [*cases, {"w": np.ones(6), "g": np.ones(6), "mask": np.array([1, 1, 1, 0, 0, 0]), "step": np.array(10)}]

    def results(self, w: np.ndarray, g: np.ndarray, mask: np.ndarray, step: np.ndarray) -> dict[str, Any]:
        t, nnz, mask = int(step), int(mask.sum()), mask.astype(float)
        k = 0
        if t and t % self.every == 0 and t < self.end_step:
            k = int(np.floor(self.alpha / 2 * (1 + np.cos(np.pi * t / self.end_step)) * nnz))
        kept = best(np.where(mask == 1, np.abs(w), -1.0), nnz - k)
        grown = best(np.where(kept == 1, -1.0, np.abs(g)), k)
        active = np.maximum(kept, grown)
        return {"weights": active * mask * w, "active": active, "grown": grown * (1 - mask)}


class ProgressiveNM(ObjectiveReference):
    """Fading masks and patterns that grow sparse (Bambhaniya et al., 2024; arXiv 2402.04744)."""

    name = "progressive_nm"
    required = ("total",)
    defaults = {"n": 1, "m": 16, "decay": "linear", "decay_coef": 1e-3, "structure": "none", "dense": 0, "fine_tune": 0}
    settings = ({"total": 10}, {"total": 20, "n": 2, "m": 8, "decay": "exp", "decay_coef": 0.1, "dense": 4, "fine_tune": 4},
                {"total": 23, "structure": "sparsify", "dense": 2, "fine_tune": 1}, {"total": 20, "n": 1, "m": 4, "structure": "densify", "decay": "step"},
                {"total": 20, "n": 1, "m": 4, "structure": "fine", "decay_coef": 0.02, "dense": 3}, {"total": 5, "n": 4, "m": 4})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for epoch, step in ((0, 0), (3, 5), (7, 40), (12, 90), (17, 600), (21, 2000)):
            w = rng.standard_normal((3, 32))
            w[0, :8] = 0.5
            cases.append({"w": w, "g": rng.standard_normal(w.shape), "step": np.array(step), "epoch": np.array(epoch)})
        return [*cases, {k: v for k, v in cases[2].items() if k != "g"}]

    def smooth(self, w: np.ndarray, g: np.ndarray | None = None, **clock: np.ndarray) -> bool:
        return False  # the gradient passes through the mask as it is

    def pattern(self, epoch: int) -> tuple[int, int]:
        if self.structure == "none":
            return self.n, self.m
        frames = {"sparsify": [(self.m - 1, self.m)] + [(self.m // 2**i, self.m) for i in range(1, int(np.log2(self.m // self.n)) + 1)],
                  "densify": [(self.n, self.m * 2 ** (3 - i)) for i in range(4)],
                  "fine": [(self.n * 2 ** (3 - i), self.m * 2 ** (3 - i)) for i in range(4)]}[self.structure]
        length = (self.total - self.dense - self.fine_tune) / len(frames)
        begun = [f for i, f in enumerate(frames) if self.dense + int(i * length) <= epoch]
        return begun[-1]

    def parts(self, w: np.ndarray, step: np.ndarray, epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if epoch < self.dense:
            return w, np.ones_like(w)
        n, m = self.pattern(int(epoch))
        mask = np.concatenate([best(g, n) for g in np.abs(w).reshape(-1, m)]).reshape(w.shape)
        beta = {"step": 0.0, "linear": max(0.0, 1 - self.decay_coef * step), "exp": np.exp(-self.decay_coef * step)}[self.decay]
        beta = 0.0 if epoch > self.total - self.fine_tune else beta
        return w * (mask + (1 - mask) * beta), mask

    def value(self, w: np.ndarray, step: np.ndarray, epoch: np.ndarray, g: np.ndarray | None = None) -> float:
        return 0.0 if g is None else float(np.sum(g * self.parts(w, step, epoch)[0]))

    def gradients(self, w: np.ndarray, step: np.ndarray, epoch: np.ndarray, g: np.ndarray | None = None) -> dict[str, np.ndarray]:
        effective, mask = self.parts(w, step, epoch)
        return {"w": np.zeros_like(w) if g is None else g, "effective": effective, "mask": mask}


class FTWTMask(ObjectiveReference):
    """Which filters a sample needs, and the loss of their forecast (Elkerdawy et al., 2022; arXiv 2110.08232)."""

    name = "ftwt_mask"
    defaults = {"mass": 1.0, "variant": "mass", "delta": 1e-5, "ratio": 0.5, "cooldown": 1.0}
    settings = ({}, {"mass": 0.8}, {"mass": 0.3, "delta": 0.0}, {"variant": "uniform"}, {"variant": "uniform", "ratio": 0.9, "delta": 0.5}, {"mass": -1.0}, {"cooldown": 0.4})

    def examples(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        cases = []
        for n, c, h, w in ((1, 1, 1, 1), (3, 6, 4, 5), (2, 9, 1, 3)):
            cases.append({"act": np.maximum(rng.standard_normal((n, c, h, w)), 0), "logits": 3 * rng.standard_normal((n, c))})
        broken = {k: v.copy() for k, v in cases[1].items()}
        broken["act"][0] = 0
        return [*cases, broken, *({**cases[1], "progress": np.array(p)} for p in (0.0, 0.4, 0.39, 1.0))]

    def target(self, act: np.ndarray) -> np.ndarray:
        out = []
        for r in np.abs(act).max(axis=(2, 3)):
            p = r / r.sum() if r.sum() > 0 else 0 * r
            order = np.argsort(-r, kind="stable")
            if self.variant == "uniform":
                keep = best(r, r.size - int(np.floor(self.ratio * r.size))) * (r > self.delta)
            elif self.mass <= 0:
                keep = np.ones(r.size)
            elif self.mass == 1:
                keep = (p > self.delta).astype(float)
            else:
                keep = np.zeros(r.size)
                keep[order[np.cumsum(p[order]) <= self.mass + self.delta]] = 1
            keep[order[0]] = 1
            out.append(keep)
        return np.array(out, float)

    def value(self, act: np.ndarray, logits: np.ndarray, progress: float = 0.0) -> float:
        return 0.0 if progress >= self.cooldown else float(np.mean(np.logaddexp(0, logits) - self.target(act) * logits))

    def gradients(self, act: np.ndarray, logits: np.ndarray, progress: float = 0.0) -> dict[str, np.ndarray]:
        t, size = self.target(act), np.inf if progress >= self.cooldown else logits.size
        return {"logits": (1 / (1 + np.exp(-logits)) - t) / size, "target": t}
