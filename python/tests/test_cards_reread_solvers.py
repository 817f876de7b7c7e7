"""What the cards of the solvers and aggregators say, sentence by sentence, where it was once not so."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8])
def test_exact_al_sqp_measures_dependence_against_the_jacobian(size: float) -> None:
    def run(J: np.ndarray) -> tw.SolverResult:
        return tw.solver("exact_al_sqp(max_iter=1, sketch_steps=10)").run(
            x0=np.ones(3), multipliers0=np.zeros(2), problem=lambda x: (float(x @ x), 2 * x, J @ x, J),
            lagrangian_hessian=lambda x, l: 2 * np.eye(3))

    assert run(size * np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])).outcome != "nonfinite"
    with pytest.raises(tw.NumericError, match="not independent"):
        run(size * np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))
