"""The 8-bit maps of the benchmarks: the NumPy companded map is the engine's, bit for bit; the dynamic map is its published definition."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import maps  # noqa: E402

SIZES = [4096, 5000, 64 * 256 + 1, 100]  # whole blocks, a short last block, one number in it, too small for 8 bits


def test_companded_is_the_engines() -> None:
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(np.float32) for n in SIZES]
    ours = maps.AdamW([p.copy() for p in params], "companded")
    opt = tw.AdamW(params, lr=1e-2, weight_decay=maps.DECAY, state_dtype="q8")
    for _ in range(12):
        # many decades within a block, zeros, and whole blocks of zeros
        grads = [(rng.standard_normal(n) * 10 ** rng.uniform(-6, 0, n) * (rng.random(n) > 0.1)).astype(np.float32) for n in SIZES]
        grads[0][256:512] = 0
        opt.step(grads)
        ours.step(grads, 1e-2)
        for engine, numpy in ((opt.state()["adamw.exp_avg"], ours.m), (opt.state()["adamw.exp_avg_sq"], ours.v)):
            for a, b in zip(engine, numpy):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(params, ours.params):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_is_the_published_map(signed: bool) -> None:
    values = maps.dynamic_values(signed)
    assert len(set(values.tolist())) == 256 and {0.0, 1.0} <= set(values.tolist())
    positive = values[(values > 0) & (values < 1)]
    decades = np.floor(np.log10(positive.astype(np.float64)) + 1e-9).astype(int) + 7
    assert np.bincount(decades).tolist() == [2**i if signed else 2 ** (i + 1) for i in range(7)]
    assert (values < 0).sum() == (127 if signed else 0)


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_takes_the_nearest_value(signed: bool) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((40, maps.BLOCK)) * 10 ** rng.uniform(-8, 0, (40, maps.BLOCK))).astype(np.float32)
    x = x if signed else np.abs(x)
    coded = maps.dynamic_encode(x, signed)
    y = x.astype(np.float64) / coded.scales
    distance = np.abs(y[..., None] - maps.dynamic_values(signed).astype(np.float64))
    chosen = np.take_along_axis(distance, coded.codes[..., None].astype(int), -1)[..., 0]
    np.testing.assert_array_less(chosen, distance.min(-1) * (1 + 1e-5) + 1e-9)
