"""What objectives, penalties and diagnostics owe to their formulas at the edges of the numbers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


def test_mmd_of_a_sample_and_itself_has_all_pairs() -> None:
    x, o = np.random.default_rng(6).standard_normal((6, 2)), tw.objective("mmd(unbiased=true)")
    assert o(x=x, y=x) == o(x=x, y=x.copy())


def test_fccov_of_one_row_is_nothing() -> None:
    value, g = tw.objective("fccov").value_and_grad(u=np.ones((1, 3)), distances=np.zeros((1, 1)))
    assert value == 0 and not g["u"].any()
