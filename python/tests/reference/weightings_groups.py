"""Weights of samples, classes and tasks, from their cards."""

from __future__ import annotations

import numpy as np

import thalweg as tw

from .base import WeightingReference


class GroupAdvantage(WeightingReference):
    """Rewards relative to their group (Shao et al., 2024; arXiv 2402.03300)."""

    name = "group_advantage"
    defaults = {"use_std": True, "eps": 1e-6}
    settings = ({}, {"use_std": False}, {"eps": 0.1})
    refuses_nan = False

    def step(self, rewards, groups):
        out = np.zeros_like(rewards)
        for g in np.unique(groups):
            r = rewards[groups == g]
            mean, std = (r.mean(), r.std(ddof=1)) if len(r) > 1 else (0.0, 1.0)
            out[groups == g] = (r - mean) / ((1.0 if std == 0 else std) + self.eps if self.use_std else 1.0)
        return out

    def sequences(self, rng):
        return [[{"rewards": rng.standard_normal(n), "groups": rng.integers(-k, k, n)} for _ in range(2)] for n, k in ((1, 1), (9, 3), (64, 4))] + [
            [{"rewards": np.array([1.0, 1.0, 0.0, 2.0]), "groups": np.array([5, 5, 7, 7])}]]


def effective(counts, beta):
    w = np.zeros_like(counts)
    for c, n in enumerate(counts):
        if n > 0:
            w[c] = 1 / n if beta == 1 else (1 - beta) / (1 - beta**n)
    return w * np.sum(w > 0) / w.sum() if w.any() else w


COUNTS = ([5.0], [1.0, 10.0, 100.0], [0.0, 3.0, 40.0, 4.0], [0.0, 0.0])


class EffectiveNumberWeights(WeightingReference):
    """Cui et al., 2019; arXiv 1901.05555."""

    name = "effective_number_weights"
    defaults = {"beta": 0.9999}
    settings = ({"beta": 0.99}, {"beta": 0.0}, {"beta": 1.0})

    def step(self, counts):
        return effective(counts, self.beta)

    def sequences(self, rng):
        return [[{"counts": np.array(c)}] for c in COUNTS]


class DRWWeights(WeightingReference):
    """Cao et al., 2019; arXiv 1906.07413."""

    name = "drw_weights"
    defaults = {"beta": 0.9999, "defer_epoch": 160}
    settings = ({"beta": 0.9}, {"beta": 0.99, "defer_epoch": 2})

    def step(self, counts, epoch):
        return effective(counts, self.beta if epoch >= self.defer_epoch else 0.0)

    def sequences(self, rng):
        return [[{"counts": np.array(c), "epoch": np.array(e)} for e in (0, 1, 2, 160)] for c in COUNTS]


class GradNorm(WeightingReference):
    """Chen et al., 2018; arXiv 1711.02257."""

    name = "gradnorm"
    defaults = {"alpha": 1.5, "lr": 0.025, "floor": 1e-8}
    settings = ({}, {"alpha": 0.0, "lr": 0.5}, {"alpha": -1.0, "lr": 2.0, "floor": 0.1})

    def start(self):
        self.w = self.first = None

    def step(self, losses, norms):
        if self.w is None:
            self.w, self.first = np.ones_like(losses), np.maximum(losses, 1e-12)
        w, g = self.w, self.w * norms
        rate = losses / self.first
        target = g.mean() * (rate / rate.mean()) ** self.alpha
        new = np.maximum(w - self.lr * np.sign(g - target) * norms, self.floor)
        self.w = new * len(w) / new.sum()
        return w

    def sequences(self, rng):
        return [[{"losses": rng.uniform(0.3, 2, m), "norms": rng.uniform(0.1, 3, m)} for _ in range(5)] for m in (2, 3, 1)]


class FAMO(WeightingReference):
    """Liu et al., 2023; arXiv 2306.03792."""

    name = "famo"
    defaults = {"lr": 0.025, "weight_decay": 1e-3, "eps": 1e-8}
    settings = ({}, {"lr": 0.5, "weight_decay": 0.1, "eps": 0.01})

    def start(self):
        self.xi = None

    def step(self, losses, after=None, min_losses=0.0):
        if self.xi is None:
            self.xi, self.m, self.v, self.t = np.zeros((4, len(losses)))
        elif after is not None:
            z = self.shares()
            delta = np.log(self.before) - np.log(after - min_losses + self.eps)
            g = z * (delta - z @ delta) + self.weight_decay * self.xi
            self.t = self.t + 1
            self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
            self.xi = self.xi - self.lr * self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        self.before = losses - min_losses + self.eps
        w = self.shares() / self.before
        return w / w.sum()

    def shares(self):
        e = np.exp(self.xi - self.xi.max())
        return e / e.sum()

    def sequences(self, rng):
        draw = lambda m: rng.uniform(0.5, 2, m)  # noqa: E731
        runs = [[{"losses": draw(m)}, *({"losses": draw(m), "after": draw(m)} for _ in range(4)), {"losses": draw(m)}] for m in (1, 3, 5)]
        return [*runs, [{"losses": draw(3), "after": draw(3), "min_losses": np.array([0.0, 0.1, -1.0])} for _ in range(3)]]


class MixtureResponsibilities(WeightingReference):
    """Alberti et al., 2023; arXiv 2303.15244."""

    name = "mixture_responsibilities"
    defaults = {"floor": -25.0}
    settings = ({}, {"floor": -1.0})

    def step(self, negative_elbo, log_weights=None):
        k = negative_elbo.shape[1]
        a = np.zeros(k) if log_weights is None else log_weights
        j = negative_elbo - (a - np.log(np.sum(np.exp(a))))
        e = np.exp(np.maximum(j.min(1, keepdims=True) - j, self.floor))
        return e / e.sum(1, keepdims=True)

    def sequences(self, rng):
        return [[{"negative_elbo": 3 * rng.standard_normal((n, k)), **w}] for n, k in ((1, 1), (7, 3), (500, 4))
                for w in ({}, {"log_weights": rng.standard_normal(k)})]


class HybridPostTraining(WeightingReference):
    """Lv et al., 2025; arXiv 2509.04419."""

    name = "hybrid_post_training"
    defaults = {"gate": 0, "success": 1.0, "sft_coef": 1.0}
    settings = ({}, {"gate": 2, "success": 0.5, "sft_coef": 0.3})

    def step(self, rewards):
        solved = np.sum(rewards >= self.success, -1, keepdims=True)
        return np.broadcast_to(solved > self.gate, rewards.shape).astype(float)

    def sequences(self, rng):
        return [[{"rewards": rng.integers(0, 2, s).astype(float)} for _ in range(3)] for s in ((8,), (5, 4), (2, 3, 2))]


class Pruning(WeightingReference):
    """One epoch after the other; samples that were left out keep their scores."""

    required = ("num_epochs",)

    def start(self):
        self.epoch, self.scores, self.kept, self.windows = 0, None, None, 0

    def see(self, losses):
        self.epoch += 1
        self.scores = losses.copy() if self.scores is None else np.where(self.kept, losses, self.scores)

    def order(self, n):
        """The draws of (seed, 0, epoch, 0) make the order."""
        return np.argsort(tw.random_normal(self.seed, 0, self.epoch, 0, n=n), kind="stable")

    def sequences(self, rng):
        out = []
        for n in (1, 12, 41):
            out.append([{"losses": np.full(n, 3.0)}] + [{"losses": rng.exponential(1.0, n)} for _ in range(7)])
        return out


class InfoBatch(Pruning):
    """Qin et al., 2024; arXiv 2303.04947."""

    name = "infobatch"
    defaults = {"prune_ratio": 0.5, "delta": 0.875, "seed": 0}
    settings = ({"num_epochs": 8}, {"num_epochs": 6, "prune_ratio": 0.9, "delta": 0.5, "seed": 3}, {"num_epochs": 8, "prune_ratio": 0.0})

    def step(self, losses):
        self.see(losses)
        w = np.ones_like(losses)
        if self.epoch <= self.delta * self.num_epochs:
            keep = min(max(1 - self.prune_ratio, 0.1), 1)
            low = np.nonzero(self.scores < self.scores.mean())[0]
            order = [i for i in self.order(len(w)) if i in low]
            w[low] = 0
            w[order[: int(keep * len(low))]] = 1 / keep
        self.kept = w > 0
        return w


class SeTa(Pruning):
    """Zhou et al., 2025; arXiv 2503.13385."""

    name = "seta"
    defaults = {"prune_ratio": 0.1, "num_groups": 10, "window_scale": 0.5, "delta": 0.875, "seed": 0}
    settings = ({"num_epochs": 8}, {"num_epochs": 8, "num_groups": 3, "window_scale": 0.9, "prune_ratio": 0.4, "seed": 2},
                {"num_epochs": 4, "num_groups": 4, "window_scale": 0.1, "delta": 1.0, "prune_ratio": 0.0})

    def step(self, losses):
        self.see(losses)
        n = len(losses)
        order = self.order(n)
        subset = np.sort(order[: int(n * (1 - self.prune_ratio))])
        chosen = subset
        if self.epoch <= self.delta * self.num_epochs and len(subset):
            groups = min(self.num_groups, len(subset))
            size = min(groups, max(1, round(groups * self.window_scale)))
            if self.windows:
                start = self.windows % (groups - size + 1)
                g = self.groups(self.scores[subset], groups)
                chosen = subset[(g >= start) & (g < start + size)]
            self.windows += 1
        w = np.zeros(n)
        w[chosen if len(chosen) else [subset[0] if len(subset) else order[0]]] = 1
        self.kept = w > 0
        return w

    @staticmethod
    def groups(scores, count):
        if np.ptp(scores) == 0:
            return np.concatenate([np.full(len(part), k) for k, part in enumerate(np.array_split(scores, count))])
        centres = np.quantile(scores, (np.arange(count) + 0.5) / count)
        group = None
        for _ in range(100):
            new = np.argmin(np.abs(scores[:, None] - centres), 1)
            if group is not None and np.array_equal(new, group):
                break
            group = new
            centres = np.array([scores[group == k].mean() if np.any(group == k) else c for k, c in enumerate(centres)])
        return np.argsort(np.argsort(centres, kind="stable"), kind="stable")[group]


class KeepByScore(WeightingReference):
    """Paul et al., 2021; arXiv 2107.07075."""

    name = "keep_by_score"
    required = ("keep",)
    defaults = {"offset": 0.0}
    settings = ({"keep": 0.5}, {"keep": 0.3, "offset": 0.2}, {"keep": 1.0, "offset": 0.4})

    def step(self, scores):
        n, w = len(scores), np.zeros_like(scores)
        end = n - round(self.offset * n)
        w[np.argsort(scores, kind="stable")[max(0, end - round(self.keep * n)):end]] = 1
        return w

    def sequences(self, rng):
        return [[{"scores": rng.integers(0, 6, n).astype(float)} for _ in range(2)] for n in (1, 5, 10, 33)]


class USEFULUpsample(WeightingReference):
    """Nguyen et al., 2024; arXiv 2404.17768."""

    name = "useful_upsample"
    defaults = {"times": 2.0}
    settings = ({}, {"times": 3.5})

    def step(self, outputs, losses, y):
        w = np.ones(len(y))
        for c in np.unique(y):
            rows = np.nonzero(y == c)[0]
            x = outputs[rows]
            apart = lambda at: np.sum((x - at) ** 2, 1)  # noqa: E731
            first = x[np.argmax(apart(x.mean(0)))]
            centres = np.stack([first, x[np.argmax(apart(first))]])
            if np.array_equal(*centres):
                continue
            group = None
            for _ in range(100):
                new = (apart(centres[1]) < apart(centres[0])).astype(int)
                if group is not None and np.array_equal(new, group):
                    break
                group = new
                centres = np.stack([x[group == k].mean(0) if np.any(group == k) else centres[k] for k in (0, 1)])
            if len(set(group)) == 2:
                means = [losses[rows[group == k]].mean() for k in (0, 1)]
                w[rows[group == int(means[1] > means[0])]] = self.times
        return w

    def sequences(self, rng):
        out = [[{"outputs": np.ones((3, 2)), "losses": np.arange(3.0), "y": np.array([0, 0, 1])}]]
        for n, c in ((9, 2), (60, 4)):
            out.append([{"outputs": rng.standard_normal((n, c)), "losses": rng.exponential(1, n), "y": rng.integers(0, 3, n)} for _ in range(2)])
        return out


class CoresetAugmentation(WeightingReference):
    """Liu, Mirzasoleiman, 2022; arXiv 2210.08363: gradients as dense matrices."""

    name = "coreset_augmentation"
    required = ("k_per_class",)
    settings = ({"k_per_class": 2}, {"k_per_class": 50})

    def step(self, p, y, features=None):
        g = p - np.eye(p.shape[1])[y]
        if features is not None:
            g = (g[:, :, None] * features[:, None]).reshape(len(y), -1)
        w = np.zeros(len(y))
        for c in np.unique(y):
            rows = np.nonzero(y == c)[0]
            d = np.linalg.norm(g[rows][:, None] - g[rows], axis=2)
            s = d.max() - d
            taken = []
            for _ in range(min(self.k_per_class, len(rows))):
                best = s[:, taken].max(1) if taken else np.zeros(len(rows))
                gains = np.maximum(s - best[:, None], 0).sum(0)
                gains[taken] = -1
                taken.append(int(np.argmax(gains)))
            nearest = np.array(taken)[np.argmax(s[:, taken], 1)]
            for j in taken:
                w[rows[j]] = max(1, np.sum(nearest == j))
        return w * np.sum(w > 0) / w.sum()

    def sequences(self, rng):
        out = []
        for n, c in ((4, 2), (15, 3), (40, 2)):
            p = rng.dirichlet(np.ones(c), n)
            case = {"p": p, "y": rng.integers(0, c, n)}
            out += [[case], [{**case, "features": rng.standard_normal((n, 3))}]]
        return out
