"""What a further reading of the cards found in matrix methods, their solvers, aggregators and refusals."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from reference.muon import orthogonalize
from reference.solvers_matrix import DLRT


@pytest.mark.parametrize("rule", ["scion(norm=spectral_max, momentum=1, unconstrained=true, lr=1)",
                                  "norm_descent(norm=spectral, ortho=newton_schulz, scale=unit, lr=1)",
                                  "norm_trust_region(norm=spectral, ortho=newton_schulz, radius=1)"])
def test_the_iteration_adds_eps_to_the_norm(rule: str) -> None:
    g = np.random.default_rng(0).standard_normal((3, 5)) * 1e-6
    w = np.zeros((3, 5))
    tw.Optimizer([w], rule).step([g])
    np.testing.assert_allclose(-w, orthogonalize(g, eps=1e-7, eps_mode="add"), rtol=1e-9)


def test_the_minimiser_over_a_spectral_ball_adds_eps_to_the_norm() -> None:
    g = np.random.default_rng(0).standard_normal((3, 5)) * 1e-6
    s = tw.constraint("norm_lmo(norm=spectral, ortho=newton_schulz)").lmo(g)
    np.testing.assert_allclose(-s, orthogonalize(g, eps=1e-7, eps_mode="add"), rtol=1e-9)
