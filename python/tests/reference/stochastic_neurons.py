"""Layers of binary, noisy and relaxed units; shaped probabilities; posterior means: from their cards."""

from __future__ import annotations

import numpy as np

from .base import ObjectiveReference
from .sample_scores import softmax

sigma = lambda u: 0.5 * (1 + np.tanh(u / 2))  # noqa: E731


class Unit(ObjectiveReference):
    """`layer` gives the outputs and their derivatives, element by element."""

    extra: tuple[str, ...] = ()
    variable, result, upstream = "a", "h", "dh"

    def draw(self, rng, shape):
        return rng.random(shape)

    def examples(self, rng):
        out = []
        for shape in ((1,), (4, 3), (2, 3, 500)):
            case = {self.variable: 2 * rng.standard_normal(shape), **{name: self.draw(rng, shape) for name in self.extra}}
            out += [case, {**case, self.upstream: rng.standard_normal(shape)}]
        return out

    def layer(self, **inputs):
        raise NotImplementedError

    def value(self, **inputs):
        d = inputs.pop(self.upstream, None)
        return 0.0 if d is None else float(np.sum(d * self.layer(**inputs)[0]))

    def gradients(self, **inputs):
        d = inputs.pop(self.upstream, None)
        out, slope = self.layer(**inputs)
        return {self.variable: (0.0 if d is None else d) * slope, self.result: out}


class StraightThrough(Unit):
    """Bengio, Leonard, Courville, 2013; arXiv 1308.3432."""

    name = "straight_through"
    defaults = {"backward": "identity", "slope": 1.0, "threshold": 0.5}
    settings = ({}, {"backward": "sigmoid", "slope": 2.0}, {"backward": "hardtanh", "threshold": 0.3})
    extra = ("u",)

    def examples(self, rng):
        cases = super().examples(rng)
        return [*cases, {k: v for k, v in cases[3].items() if k != "u"}, {"a": np.array([0.0, 1.0, -1.0, 40.0]), "dh": np.ones(4)}]

    def smooth(self, **inputs):
        return False

    def layer(self, a, u=None):
        p = sigma(self.slope * a)
        slope = {"identity": np.ones_like(a), "sigmoid": self.slope * p * sigma(-self.slope * a), "hardtanh": (np.abs(a) <= 1).astype(float)}
        return (p > (self.threshold if u is None else u)).astype(float), slope[self.backward]


class StochasticTimesSmooth(Unit):
    name = "stochastic_times_smooth"
    extra = ("u",)

    def smooth(self, **inputs):
        return False

    def layer(self, a, u):
        root = np.sqrt(sigma(a))
        b = root > u
        return b * root, b * root * sigma(-a) / 2


class NoisyRectifier(Unit):
    name = "noisy_rectifier"
    extra = ("noise",)

    def draw(self, rng, shape):
        return rng.standard_normal(shape)

    def examples(self, rng):
        return [*super().examples(rng), {"a": np.array([1.0, -1.0]), "noise": np.array([-1.0, 2.0]), "dh": np.ones(2)}]

    def smooth(self, a, noise, dh=None):
        return bool(np.all(np.abs(a + noise) > 1e-3))

    def layer(self, a, noise):
        return np.maximum(0, a + noise), (a + noise > 0).astype(float)


class StochasticNeuronREINFORCE(ObjectiveReference):
    """The first pass, without a baseline; `visit` goes on."""

    name = "stochastic_neuron_reinforce"
    defaults = {"decay": 0.9, "baseline": True}
    settings = ({}, {"baseline": False})

    def examples(self, rng):
        return [{"a": rng.standard_normal((n, d)), "h": rng.integers(0, 2, (n, d)).astype(float), "losses": rng.standard_normal(n)}
                for n, d in ((1, 1), (5, 3), (400, 2))]

    def smooth(self, **inputs):
        return False

    def start(self):
        self.averages = None

    def visit(self, a, h, losses):
        error = h - sigma(a)
        b = np.zeros(a.shape[1])
        if self.averages is not None and self.baseline:
            b = np.divide(*self.averages, out=b, where=self.averages[1] != 0)
        new = np.stack([np.mean(error**2 * losses[:, None], 0), np.mean(error**2, 0)])
        self.averages = new if self.averages is None else self.decay * self.averages + (1 - self.decay) * new
        return {"a": error * (losses[:, None] - b), "baselines": b}

    def value(self, a, h, losses):
        return float(np.sum(losses))

    def gradients(self, **inputs):
        self.start()
        return self.visit(**inputs)


class GumbelSoftmax(ObjectiveReference):
    """Jang, Gu, Poole, 2017; Maddison, Mnih, Teh, 2017."""

    name = "gumbel_softmax"
    defaults = {"temperature": 1.0, "hard": False}
    settings = ({}, {"temperature": 0.4}, {"hard": True, "temperature": 2.0})

    def examples(self, rng):
        out = []
        for shape in ((3,), (4, 2), (2, 90, 5)):
            case = {"z": rng.standard_normal(shape), "noise": -np.log(-np.log(rng.uniform(0.01, 0.99, shape)))}
            out += [case, {**case, "dy": rng.standard_normal(shape)}]
        return [*out, {"z": np.zeros((1, 3)), "noise": np.zeros((1, 3)), "dy": np.array([[1.0, 2.0, 3.0]])}]

    def smooth(self, **inputs):
        return not self.hard

    def outputs(self, z, noise):
        s = softmax((z + noise) / self.temperature)
        return s, np.eye(z.shape[-1])[np.argmax(z + noise, -1)] if self.hard else s

    def value(self, z, noise, dy=None):
        return 0.0 if dy is None else float(np.sum(dy * self.outputs(z, noise)[1]))

    def gradients(self, z, noise, dy=None):
        s, y = self.outputs(z, noise)
        dy = np.zeros_like(z) if dy is None else dy
        return {"z": s * (dy - np.sum(dy * s, -1, keepdims=True)) / self.temperature, "y": y}


class OffPolicyShaping(ObjectiveReference):
    name = "off_policy_shaping"
    defaults = {"gamma": 0.1, "reduction": "mean"}
    settings = ({}, {"gamma": 2.0, "reduction": "sum"})

    def examples(self, rng):
        out = [{"logp": np.array([-1e4, 0.0, -800.0])}]
        for shape in ((1,), (4, 6), (900,)):
            case = {"logp": -rng.exponential(2.0, shape)}
            out += [case, {**case, "advantages": rng.standard_normal(shape)}]
        return out

    def smooth(self, logp, advantages=None):
        return bool(np.all(logp > -500))

    def value(self, logp, advantages=1.0):
        pi = np.exp(logp)
        total = -np.sum(advantages * pi / (pi + self.gamma))
        return float(total / (logp.size if self.reduction == "mean" else 1))

    def gradients(self, logp, advantages=1.0):
        pi = np.exp(logp)
        return {"logp": -advantages * self.gamma * pi / (pi + self.gamma) ** 2 / (logp.size if self.reduction == "mean" else 1),
                "f": pi / (pi + self.gamma)}


class Tweedie(Unit):
    """Kim, Ye, 2021; arXiv 2106.07009."""

    name = "tweedie"
    defaults = {"noise": "gaussian", "sigma": 1.0, "zeta": 1.0, "alpha": 2.0, "beta": 2.0}
    settings = ({}, {"sigma": 0.3}, {"noise": "poisson", "zeta": 0.5}, {"noise": "gamma", "alpha": 4.0, "beta": 3.0})
    variable, result, upstream = "score", "x", "dx"

    def examples(self, rng):
        out = []
        for shape in ((1,), (4, 3), (2000,)):
            case = {"y": rng.uniform(0, 3, shape), "score": rng.uniform(-2, 0.5, shape)}
            out += [case, {**case, "dx": rng.standard_normal(shape)}]
        return out

    def layer(self, y, score):
        if self.noise == "gaussian":
            return y + self.sigma**2 * score, np.full_like(y, self.sigma**2)
        if self.noise == "poisson":
            x = (y + self.zeta / 2) * np.exp(score)
            return x, x
        rest = self.alpha - 1 - y * score
        return self.beta * y / rest, self.beta * y**2 / rest**2
