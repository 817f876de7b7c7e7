"""What objectives, penalties and diagnostics owe to their formulas at the edges of the numbers."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw


@pytest.mark.parametrize("sentence", ["mmd", "uniformity(normalize=false)", "icon_embedding", "triplet_batch_hard(squared=true)"])
def test_distances_do_not_feel_what_all_rows_have_in_common(sentence: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-64, 65, (2, 24, 5)) / 64  # sums with the offset are exact in float32
    p = np.full((24, 24), 1 / 23) * (1 - np.eye(24))
    others = {"mmd": {"y": y}, "icon_embedding": {"p": p}}.get(sentence, {})
    if "triplet" in sentence:
        others = {"y": np.arange(24) % 4}
    value, g = tw.objective(sentence).value_and_grad(x=x, **others)
    moved = {k: v if v.dtype.kind == "i" else (v + 1e4 * (k == "y")).astype(np.float32) for k, v in others.items()}
    far, h = tw.objective(sentence).value_and_grad(x=(x + 1e4).astype(np.float32), **moved)
    assert far == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(h["x"], g["x"], atol=1e-5 * np.abs(g["x"]).max())


def test_mmd_of_a_sample_and_itself_has_all_pairs() -> None:
    x, o = np.random.default_rng(6).standard_normal((6, 2)), tw.objective("mmd(unbiased=true)")
    assert o(x=x, y=x) == o(x=x, y=x.copy())


def test_fccov_of_one_row_is_nothing() -> None:
    value, g = tw.objective("fccov").value_and_grad(u=np.ones((1, 3)), distances=np.zeros((1, 1)))
    assert value == 0 and not g["u"].any()
