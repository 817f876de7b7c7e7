"""Diagnostics of spectra, landscapes, stability, class means and masks, from their cards."""

from __future__ import annotations

import numpy as np

from .base import DiagnosticReference

unit = lambda m: m / np.linalg.norm(m)  # noqa: E731


class NeuralCollapse(DiagnosticReference):
    """NC1 to NC4 from dense covariances (Papyan et al., 2020; Tirer et al., 2023; Kini et al., 2023)."""

    name = "neural_collapse"
    defaults = {"rcond": 1e-10}
    settings = ({}, {"rcond": 0.2})
    limit = 10.0

    def examples(self, rng):
        out = []
        for n, d, k in ((4, 3, 2), (30, 6, 3), (50, 2, 4)):
            y = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
            h = 3 * rng.standard_normal((k, d))[y] + rng.standard_normal((n, d))
            out += [{"h": h, "y": y}, {"h": h, "y": y, "w": rng.standard_normal((k, d)), "b": rng.standard_normal(k)}]
        return [*out, {"h": h, "y": y, "w": rng.standard_normal((k, d))}]

    def results(self, h, y, w=None, b=None):
        k = int(y.max()) + 1 if w is None else len(w)
        mu = np.stack([h[y == c].mean(0) for c in range(k)])
        m = mu - mu.mean(0)
        sw = sum(np.cov(h[y == c], rowvar=False, bias=True) for c in range(k)) / k
        sb = m.T @ m / k
        simplex = (np.eye(k) - 1 / k) / np.sqrt(k - 1)
        lengths = np.linalg.norm(m, axis=1)
        cosines = (m @ m.T / np.outer(lengths, lengths))[np.triu_indices(k, 1)]
        out = {"nc1": np.trace(sw @ np.linalg.pinv(sb, rcond=self.rcond, hermitian=True)) / k, "nc1_ratio": np.trace(sw) / np.trace(sb),
               "nc2_equinorm": lengths.std() / lengths.mean(), "nc2_equiangle": cosines.std(),
               "nc2_max_angle": np.mean(np.abs(cosines + 1 / (k - 1))), "nc2_etf": np.linalg.norm(unit(m @ m.T) - simplex),
               "nc2_of": np.linalg.norm(unit(mu @ mu.T) - np.eye(k) / np.sqrt(k)),
               "nc2_etf_weights": np.nan, "nc3": np.nan, "nc4": np.nan}
        if w is not None:
            out["nc2_etf_weights"] = np.linalg.norm(unit(w @ w.T) - simplex)
            out["nc3"] = np.linalg.norm(unit(w) - unit(m)) ** 2
            nearest = np.argmin(np.sum((h[:, None] - mu) ** 2, 2), 1)
            out["nc4"] = np.mean(np.argmax(h @ w.T + (0 if b is None else b), 1) != nearest)
        return out


class LandscapeDirection(DiagnosticReference):
    """Filter normalisation (Li et al., 2018; arXiv 1712.09913)."""

    name = "landscape_direction"
    defaults = {"norm": "filter", "ignore": "biasbn", "eps": 1e-10}
    settings = ({}, {"norm": "layer", "ignore": "keep"}, {"norm": "weight"}, {"norm": "dfilter", "eps": 0.1}, {"norm": "dlayer"})

    def examples(self, rng):
        zero = rng.standard_normal((3, 4))
        zero[1] = 0
        return [{"w": rng.standard_normal(s), "d": rng.standard_normal(s)} for s in ((), (5,), (4, 3), (3, 2, 3, 3), (5, 1))] + [
            {"w": zero, "d": rng.standard_normal((3, 4))}]

    def results(self, w, d):
        if w.ndim < 2:
            return {"direction": w if self.ignore == "keep" else 0 * w}
        if self.norm == "weight":
            return {"direction": w * d}
        whole = self.norm in ("layer", "dlayer")
        length = lambda v: np.linalg.norm(v) if whole else np.linalg.norm(v.reshape(len(v), -1), axis=1).reshape(-1, *[1] * (v.ndim - 1))  # noqa: E731
        return {"direction": d * ((1 if self.norm[0] == "d" else length(w)) / (length(d) + self.eps))}


class LandscapePoint(DiagnosticReference):
    name = "landscape_point"

    def examples(self, rng):
        line = {"w": rng.standard_normal((3, 2)), "d1": rng.standard_normal((3, 2)), "a": np.array(-0.3)}
        return [line, {**line, "d2": rng.standard_normal((3, 2)), "b": np.array(2.0)}, {k: np.array(v) for k, v in (("w", 1.0), ("d1", 2.0), ("a", 0.0))}]

    def results(self, w, d1, a, d2=0.0, b=0.0):
        return {"point": w + a * d1 + b * d2}


class LandscapePCA(DiagnosticReference):
    name = "landscape_pca"
    limit = 100.0  # squared singular values: half the digits of the second direction

    def examples(self, rng):
        line = np.outer(np.arange(4.0), [1.0, -2.0, 2.0])
        return [{"trajectory": np.cumsum(rng.standard_normal(s), 0)} for s in ((3, 2), (8, 20), (12, 5))] + [
            {"trajectory": line}, {"trajectory": np.ones((3, 4))}]

    def results(self, trajectory):
        rows = trajectory - trajectory[-1]
        u, s, vt = np.linalg.svd(rows, full_matrices=False)
        directions, coordinates, explained = np.zeros((2, rows.shape[1])), np.zeros((len(rows), 2)), np.zeros(2)
        for k in range(2):
            if s[k] > 1e-7 * max(s[0], 1e-300):
                sign = np.sign(u[np.argmax(np.abs(u[:, k])), k])
                directions[k], coordinates[:, k], explained[k] = sign * vt[k], sign * u[:, k] * s[k], s[k] ** 2 / np.sum(s**2)
        return {"directions": directions, "coordinates": coordinates, "explained": explained}


class StabilityLimits(DiagnosticReference):
    name = "stability_limits"
    required = ("lr",)
    defaults = {"batch_size": 1, "alignment": 1.0}
    settings = ({"lr": 0.1}, {"lr": 0.5, "batch_size": 16, "alignment": 0.3})

    def examples(self, rng):
        every = {"lambda_max": np.array(21.0), "trace": np.array(3.0), "frobenius": np.array(7.0)}
        return [every, {"trace": np.array(50.0)}, {"lambda_max": np.array(2.0), "frobenius": np.array(1.0)}]

    def results(self, lambda_max=np.nan, trace=np.nan, frobenius=np.nan):
        return {"gd": 2 / self.lr - lambda_max, "sgd": 2 / self.lr - trace,
                "noise": np.sqrt(self.batch_size / self.alignment) / self.lr - frobenius}


def spiked(lam, sigma, dimension, batch):
    t = np.sqrt(dimension / batch) * sigma
    return lam + dimension * sigma**2 / (batch * lam) if lam > t else 2 * t


class BatchHessianTop(DiagnosticReference):
    name = "batch_hessian_top"
    required = ("dimension", "batch_size")
    settings = ({"dimension": 400, "batch_size": 16}, {"dimension": 1e6, "batch_size": 128})

    def examples(self, rng):
        return [{"lam": np.array(a), "sigma": np.array(b)} for a, b in ((7.0, 1.0), (1.0, 1.0), (-2.0, 0.5), (100.0, 0.01))]

    def results(self, lam, sigma):
        top = spiked(lam, sigma, self.dimension, self.batch_size)
        return {"top": top, "edge": 2 * np.sqrt(self.dimension / self.batch_size) * sigma, "max_lr": 2 / top}


class LRForBatch(DiagnosticReference):
    name = "lr_for_batch"
    required = ("lr", "from", "batch_size", "dimension")
    defaults = {"optimizer": "sgd"}
    settings = ({"lr": 0.1, "from": 16, "batch_size": 64, "dimension": 400},
                {"lr": 0.1, "from": 16, "batch_size": 1024, "dimension": 400, "optimizer": "adaptive"})

    def examples(self, rng):
        return [{"lam": np.array(a), "sigma": np.array(b)} for a, b in ((7.0, 1.0), (1.0, 1.0), (100.0, 0.01))]

    def results(self, lam, sigma):
        ratio = spiked(lam, sigma, self.dimension, self.h["from"]) / spiked(lam, sigma, self.dimension, self.batch_size)
        return {"value": self.lr * (ratio if self.optimizer == "sgd" else np.sqrt(ratio))}


class HessianBulkOutliers(DiagnosticReference):
    name = "hessian_bulk_outliers"
    defaults = {"rule": "gap", "edge": None, "num_expected": None}
    settings = ({}, {"rule": "edge", "edge": 1.5}, {"num_expected": 3})

    def examples(self, rng):
        planted = np.concatenate([[90.0, -70.0, 60.0], rng.standard_normal(40)])
        return [{"lam": v} for v in (planted, np.array([2.0]), np.zeros(5), np.array([3.0, 0.0]), np.array([5.0, 4.0, 0.0, 0.0]))]

    def results(self, lam):
        s = np.sort(np.abs(lam))[::-1]
        if self.rule == "edge":
            outliers = int(np.sum(s > self.edge))
        elif len(s) == 1:
            outliers = 1
        else:
            upper = range(min(len(s) - 1, max(1, len(s) // 2)))
            with np.errstate(divide="ignore"):
                outliers = 1 + int(np.argmax([s[k] / s[k + 1] if s[k] else 0.0 for k in upper]))
        return {"outliers": outliers, "degeneracy": np.mean(s <= 1e-3 * s[0]),
                "excess": np.nan if self.num_expected is None else outliers - self.num_expected}


class MarchenkoPastur(DiagnosticReference):
    name = "marchenko_pastur"
    required = ("ratio",)
    defaults = {"sigma": 1.0}
    settings = ({"ratio": 0.25}, {"ratio": 3.0, "sigma": 0.5})

    def examples(self, rng):
        return [{"points": np.linspace(-1, 5, 61)}, {"points": np.array([0.0])}]

    def results(self, points):
        a, b = (self.sigma**2 * (1 + s * np.sqrt(self.ratio)) ** 2 for s in (-1, 1))
        inside = (points > a) & (points < b)
        x = np.where(inside, points, 1.0)
        density = np.where(inside, np.sqrt(np.abs((b - x) * (x - a))) / (2 * np.pi * self.ratio * self.sigma**2 * x), 0.0)
        return {"density": density, "lower": a, "upper": b}


class Semicircle(DiagnosticReference):
    name = "semicircle"
    defaults = {"sigma": 1.0}
    settings = ({}, {"sigma": 0.3})

    def examples(self, rng):
        return [{"points": np.linspace(-3, 3, 41)}]

    def results(self, points):
        return {"density": np.sqrt(np.maximum(4 * self.sigma**2 - points**2, 0)) / (2 * np.pi * self.sigma**2)}


class MaskedInput(DiagnosticReference):
    """Xu et al., 2026; arXiv 2606.06888."""

    name = "masked_input"
    required = ("mask_token",)
    defaults = {"ratio_min": 0.0, "ratio_max": 0.5, "first": 1, "aux_weight": 0.4, "ntp_weight": 1.0, "full_sequence": True,
                "ignore_index": -100}
    settings = ({"mask_token": 50}, {"mask_token": 50, "ratio_min": 0.3, "ratio_max": 0.9, "full_sequence": False},
                {"mask_token": 50, "first": 0, "ratio_min": 1.0, "ratio_max": 1.0, "ntp_weight": 0.5, "full_sequence": False},
                {"mask_token": 7, "ratio_max": 0.0, "full_sequence": False})

    def examples(self, rng):
        out = []
        for b, t in ((1, 1), (3, 8), (40, 5)):
            tokens = rng.integers(0, 50, (b, t))
            targets = np.hstack([tokens[:, 1:], np.full((b, 1), -100)])
            targets[rng.random((b, t)) < 0.2] = -100
            out.append({"tokens": tokens, "targets": targets, "u": rng.random(b), "v": rng.random((b, t))})
        return out

    def results(self, tokens, targets, u, v):
        rate = self.ratio_min + (self.ratio_max - self.ratio_min) * u
        mask = (v < rate[:, None]) & (np.arange(tokens.shape[1]) >= self.first)
        rows = targets != self.ignore_index
        predicts = rows if self.full_sequence else rows & np.hstack([mask[:, 1:], np.zeros((len(mask), 1), bool)])
        return {"masked": np.where(mask, self.mask_token, tokens), "mask": mask, "clean_weights": self.ntp_weight * rows / max(1, rows.sum()),
                "masked_weights": self.aux_weight * predicts / max(1, predicts.sum())}
