"""What differential privacy costs, as a function of the steps: the divergences by quadrature of their definition."""

from __future__ import annotations

import math

import numpy as np

from .base import ScheduleReference

ORDERS = [a / 10 for a in range(11, 110)] + [float(a) for a in range(12, 64)]


def divergence(sigma: float, q: float, a: float) -> float:
    """log E[(1 - q + q exp((2z - 1)/(2 sigma^2)))^a]/(a - 1), z ~ N(0, sigma^2), by the trapezoidal rule, which converges
    exponentially for such integrands; the mass lies between 0 and a."""
    if q == 0 or sigma == 0:
        return math.inf if q else 0.0
    z = np.linspace(-14 * sigma, a + 14 * sigma, 60_001)
    ratio = np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + (2 * z - 1) / (2 * sigma**2))
    logs = a * ratio - z**2 / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    top = logs.max()
    return float(top + np.log(np.exp(logs - top).sum() * (z[1] - z[0]))) / (a - 1)


class RDPAccountant(ScheduleReference):
    """Mironov et al., 2019 (arXiv 1908.10530)."""

    name = "rdp_accountant"
    required = ("sigma", "rate", "delta")
    defaults = {"orders": None}
    settings = ()  # sums of series beside quadrature: test_sharpness.py has the limit
    examples = (
        {"sigma": 1.1, "rate": 0.01, "delta": 1e-5},
        {"sigma": 0.7, "rate": 0.2, "delta": 1e-6, "orders": [1.5, 2.0, 3.3, 8.0]},
        {"sigma": 4.0, "rate": 1.0, "delta": 1e-5},
        {"sigma": 2.0, "rate": 0.001, "delta": 1e-3, "orders": [1.25, 40.5, 256.0]},
        {"sigma": 1.0, "rate": 0.0, "delta": 1e-5},
        {"sigma": 0.0, "rate": 0.5, "delta": 1e-5},
        {"sigma": 0.5, "rate": 0.01, "delta": 1e-5, "orders": [1.1, 1.9]},
        {"sigma": 30.0, "rate": 0.6, "delta": 1e-5, "orders": [2.5, 20.1, 300.0]},
    )

    def value(self, k: int) -> float:
        if k <= 0:
            return 0.0
        orders = ORDERS if self.orders is None else self.orders
        if not hasattr(self, "spent"):
            self.spent = [divergence(self.sigma, self.rate, a) for a in orders]
        return max(0.0, min(k * s - (math.log(self.delta) + math.log(a)) / (a - 1) + math.log((a - 1) / a)
                            for a, s in zip(orders, self.spent)))


class DPNoise(ScheduleReference):
    """The noise multiplier for a target."""

    name = "dp_noise_for_epsilon"
    required = ("epsilon", "rate", "delta")
    defaults = {"tol": 0.01}
    settings = ()  # any value within the slack will do: test_sharpness.py
