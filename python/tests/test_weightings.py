"""Weightings and diagnostics: beside their references, resumed at every pass, and badly used."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import reference  # noqa: F401  (imports every module)
import thalweg as tw
from reference import base
from support import cast, stage, widened

WEIGHTINGS = [pytest.param(c, s, id=f"{c.name}-{i}") for c in base.every(base.WeightingReference) for i, s in enumerate(c.settings)]
DIAGNOSTICS = [pytest.param(c, s, id=f"{c.name}-{i}") for c in base.every(base.DiagnosticReference) for i, s in enumerate(c.settings)]
# float64: some hundred roundings of 1.1e-16, times exponentials and divisions of numbers of order one; float32 likewise.
LIMIT = {np.float64: 1e-12, np.float32: 2e-5}


def test_every_one_has_a_reference() -> None:
    assert {m.name for m in tw.methods("weighting")} == {c.name for c in base.every(base.WeightingReference)}
    assert {m.name for m in tw.methods("diagnostic")} == {c.name for c in base.every(base.DiagnosticReference)}


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("cls, setting", WEIGHTINGS)
def test_weights(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    """Pass after pass; the value is the weighted loss, and its gradient by the losses the weights."""
    for run in cls(**setting).sequences(np.random.default_rng(3)):
        ref, mine = cls(**setting), tw.weighting(stage(cls.name, setting))
        ref.start()
        for inputs in run:
            inputs = cast(inputs, dtype)
            want = ref.step(**widened(inputs))
            value, out = mine.value_and_grad(**inputs)
            scale = np.maximum(1.0, np.abs(want))
            assert out["weights"].dtype == dtype
            assert np.all(np.abs(out["weights"] - want) <= LIMIT[dtype] * scale)
            if "losses" in out:
                assert out["losses"].tobytes() == out["weights"].tobytes()
            if hasattr(ref, "value"):  # a cost of the weights beside their losses, or no losses at all
                total = ref.value(want, **widened(inputs))
                assert abs(value - total) <= LIMIT[dtype] * max(1.0, abs(total))
            elif "losses" in out:
                total = float(np.sum(want * inputs["losses"].astype(np.float64)))
                assert abs(value - total) <= LIMIT[dtype] * max(1.0, np.sum(np.abs(want * inputs["losses"])))


@pytest.mark.parametrize("cls, setting", WEIGHTINGS)
def test_resumed_at_every_pass(cls: type, setting: dict[str, Any]) -> None:
    for run in cls(**setting).sequences(np.random.default_rng(4)):
        whole, parts = tw.weighting(stage(cls.name, setting)), tw.weighting(stage(cls.name, setting))
        for inputs in run:
            other = tw.weighting(stage(cls.name, setting))
            other.load_state_dict(parts.state_dict())
            parts = pickle.loads(pickle.dumps(other))
            assert parts(**inputs).tobytes() == whole(**inputs).tobytes()
        assert parts.state_dict() == whole.state_dict()


@pytest.mark.parametrize("cls, setting", WEIGHTINGS)
def test_a_refused_pass_is_none(cls: type, setting: dict[str, Any]) -> None:
    run = cls(**setting).sequences(np.random.default_rng(5))[1]
    if not getattr(cls, "refuses_nan", True) or not any(v.dtype.kind == "f" for v in run[0].values()):
        pytest.skip("its card lets NaN through")
    mine = tw.weighting(stage(cls.name, setting))
    for inputs in run:
        before = mine.state_dict()
        bad = {k: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for k, v in inputs.items()}
        with pytest.raises(tw.Error, match="must be finite, got nan"):
            mine(**bad)
        assert mine.state_dict() == before
        mine(**inputs)
    if any(v.ndim > 1 for v in inputs.values()):
        return  # matrices do not grow by being joined
    longer = {k: np.concatenate([v, v]) if v.ndim else v for k, v in inputs.items()}
    before = mine.state_dict()
    try:
        mine(**longer)
    except tw.ShapeError as e:
        assert ("it began with" in str(e) or "axis" in str(e)) and mine.state_dict() == before


def test_bad_memories() -> None:
    mine = tw.weighting("dwa")
    mine(losses=np.ones(3))
    good = mine.state_dict()["state"]
    for cut in range(len(good)):
        with pytest.raises(tw.Error):
            mine._load(good[:cut])
    for k in range(0, len(good), 3):
        with pytest.raises(tw.Error):
            mine._load(good[:k] + bytes([good[k] ^ 64]) + good[k + 1:])
    with pytest.raises(tw.MismatchError, match=r"of `dwa\(temperature=2\)`, this weighting is `dwa\(temperature=3\)`"):
        tw.weighting("dwa(temperature=3)").load_state_dict(mine.state_dict())
    assert mine.state_dict()["state"] == good


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("cls, setting", DIAGNOSTICS)
def test_diagnostics(cls: type, setting: dict[str, Any], dtype: Any) -> None:
    ref = cls(**setting)
    ref.dtype = dtype
    for example in ref.examples(np.random.default_rng(7)):
        inputs = cast(example, dtype)
        got = tw.diagnostic(stage(cls.name, setting))(**inputs)
        want = ref.results(**widened(inputs))
        got = got if isinstance(got, dict) else {"value": got}
        assert set(got) == set(want)
        for name, x in want.items():
            a, b = np.asarray(got[name], np.float64), np.asarray(x, np.float64)
            assert a.shape == b.shape, name
            with np.errstate(invalid="ignore"):
                error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))  # infinities, NaN
            assert np.all(error <= LIMIT[dtype] * cls.limit * np.fmax(1.0, np.abs(b))), name


def test_effective_rank_spreads_nan() -> None:
    found = tw.diagnostic("effective_rank")(x=np.array([[1.0, np.nan]]))
    assert all(np.isnan(v) for v in found.values())


def test_kinds_are_kept_apart() -> None:
    with pytest.raises(tw.Error, match="a schedule"):
        tw.diagnostic("cosine(lr=1, total=3)")
    with pytest.raises(tw.Error):
        tw.Optimizer([np.zeros(2)], "dwa | sgd(lr=1)")
