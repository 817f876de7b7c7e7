"""The machinery of the suites with aims: who is compared, who is timed, what is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import cases, common, growth, matrix, sets, stages, surgery  # noqa: E402
from benchmarks.cases import BEST, LOOP, OURS, PRODUCT, Candidate, Case  # noqa: E402


def sleeping(seconds: float, result: float = 1.0) -> Callable[[], Candidate]:
    return lambda: Candidate(lambda: time.sleep(seconds), lambda: np.array([result]), 1e9 * seconds)


def missing() -> Candidate:
    raise ModuleNotFoundError("No module named 'elsewhere'")


def measured(aims: dict[str, float], **others: Callable[[], Candidate]) -> tuple[Case, dict[str, Any]]:
    case = Case("`mine`, tiny", lambda quick: {OURS: sleeping(0.002), **others}, aims)
    return case, cases.task({"mine": case}, "mine", True, 1)


def test_what_is_missing_or_computes_something_else_is_skipped_and_the_rest_is_timed() -> None:
    case, result = measured({"slow": 0.9, "gone": 1.0, "wrong": 1.0}, slow=sleeping(0.006), gone=missing,
                            wrong=sleeping(0.001, 1.5))
    assert 0.002 <= result["times"][OURS] < result["times"]["slow"]
    assert result["times"]["gone"] == {"error": "ModuleNotFoundError: No module named 'elsewhere'"}
    assert "computes something else: 3.3e-01 apart" in result["times"]["wrong"]["error"]
    assert list(cases.verdicts(case, result)) == ["slow"]
    line = cases.verdict_line(case, result)
    assert "of slow (aim 0.9, met)" in line and "gone skipped: ModuleNotFoundError" in line
    text = cases.section({"mine": case}, {"mine": {1: result}}, [1])
    assert "1 of 1 aims met." in text and "mine, wrong, 1 thread: computes something else" in text
    assert result["gflops"]["slow"] <= 1


def test_the_best_peer_is_neither_the_loop_nor_a_product() -> None:
    times = {OURS: 2.0, LOOP: 0.1, f"{PRODUCT}, 4": 0.1, "a": 4.0, "b": 2.5, "c": {"error": "not there"}}
    case = Case("mine", lambda quick: {}, {BEST: 0.5, LOOP: 30})
    assert cases.verdicts(case, {"times": times}) == {"b": (0.8, 0.5), LOOP: (20, 30)}
    text = cases.section({"mine": case}, {"mine": {1: {"times": times, "gflops": {}}}}, [1])
    assert "1 of 2 aims met. Missed, the farthest first: mine 0.8 of b (aim 0.5, 1 thread)." in text
    assert cases.verdicts(case, {"error": "died"}) == {}


def test_results_are_apart_in_lengths_of_the_second() -> None:
    ours, theirs = [[np.array([3.0]), np.array([x])] for x in (4.0, 5.0)]
    assert cases.apart(ours, theirs) == pytest.approx(34**-0.5)
    assert cases.apart(np.array([np.nan]), np.array([1.0])) != cases.apart(np.array([1.0]), np.array([1.0])) == 0


def test_sentences_of_the_suites_are_the_engines() -> None:
    """One case of each kind, with small sizes: ours runs."""
    for suite, names in (
        (sets, ["l1(1e-4) prox", "l2_ball", "l1_ball", "monotone", "riemannian_adam lorentz", "lasso_cd", "info_nce",
                "sgld", "rademacher"]),
        (surgery, ["upgrad 4 x 10 M", "sam, AdamW, 1", "dp_sgd, noise 0, 10"]),
        (matrix, ["muon, f32", "kfac", "sophia", "came", "shampoo, 512 of 64"]),
    ):
        for name in names:
            candidate = suite.CASES[name].candidates(True)[OURS]()
            candidate.step()
            if candidate.result is not None:
                result = candidate.result()
                every = result if isinstance(result, list) else [result]
                assert all(np.isfinite(a).all() and np.any(a) for a in every)


@pytest.mark.parametrize("case", stages.CASES)
def test_stages_run(case: str) -> None:
    result = stages.task(case, True, 1)
    assert result["bare"] > 0 and result["over"] == pytest.approx(result["time"] / result["bare"])
    line = stages.said(stages.CASES[case], result)
    assert ("ns an element more (aim 0.1, " if stages.CASES[case].cached else "of adamw (aim ") in line


def test_tables_of_stages() -> None:
    large, cached = "clip_global_norm(1) | adamw", "adamw | ema(0.999), cached"
    raw = {large: {"bare": 0.05, "time": 0.08, "over": 1.6, "adds": 1.0}, "cautious_adamw": {"error": "died"},
           cached: {"bare": 1e-5, "time": 1.5e-5, "over": 1.5, "adds": 0.07}}
    text = stages.section(raw)
    assert "| `clip_global_norm(1) \\| adamw` |     50.00 |        80.00 | 1.60 MISSED | 1.4 |" in text
    assert "| `adamw \\| ema(0.999)` |     10.00 |        15.00 |           0.070 met | 0.1 |" in text
    assert "1 of 2 aims met." in text and "Failed: cautious_adamw: died." in text


def test_pairs_count_the_time_of_the_cpu() -> None:
    """Sleep is none; and what is short is repeated to 10 ms."""
    calls = [0]

    def spin() -> None:
        calls[0] += 1
        end = time.process_time() + 1e-3
        while time.process_time() < end:
            pass

    both = stages.pairs(spin, lambda: (time.sleep(5e-3), spin()), 2)
    assert len(both) == 2 and calls[0] >= 1 + 2 * 2 * 5
    assert all(b < 3e-3 for _, b in both)


def test_a_bar_in_a_cell_is_no_border() -> None:
    assert common.table(["a", "b"], [["x | y", "1"]]).splitlines()[-1] == r"| x \| y | 1 |"


def test_growth_counts_the_code_that_names_a_method() -> None:
    known = {t.name: t for t in (growth.Type("ThalwegMethods.AdamW", "element rule", 40), growth.Type(
        "ThalwegMethods.SGD", "element rule", 20), growth.Type("ThalwegSolvers.CG", "solver", 9))}
    size = growth.code("\n".join([
        "0000000000000010 t ThalwegMethods.AdamW.init(ThalwegCore.Hyper) -> ThalwegMethods.AdamW",
        "0000000000000100 T generic specialization <ThalwegMethods.AdamW, Swift.Float> of ThalwegCore.kernel",
        "0000000000000020 W witness for ThalwegCore.Rule in conformance ThalwegMethods.SGD",
        "0000000000001000 d data of ThalwegMethods.SGD", "0000000000001000 t ThalwegMethods.AdamWide.step()",
    ]), known)
    assert size == {"ThalwegMethods.AdamW": 0x110, "ThalwegMethods.SGD": 0x20}
    cells = [cell.strip() for cell in growth.growth(known, size).splitlines()[2].split("|")]
    assert cells == ["", "element rule", "2", "152", "304", "AdamW 272", "30", ""]


def test_growth_finds_the_types_of_methods() -> None:
    if not growth.SOURCES.is_dir():
        pytest.skip("the library's sources are not here")
    known = growth.types()
    assert len(known) > 500 and set(t.kind for t in known.values()) == {growth.SUMS, *growth.KINDS.values()}
    assert known["ThalwegMethods.AdamW"].kind == "element rule"
    assert known["ThalwegMethods.AdaGradNorm"].kind == growth.SUMS
    assert known["ThalwegMatrix.Muon"].kind == "whole rule" and known["ThalwegSolvers.HutchPP"].kind == "solver"
    assert 20 < known["ThalwegMethods.SGLD"].lines < 50


def test_capped_and_sorted_simplices_of_numpy_are_the_nearest_points() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(50)
    for p, total, cap in ((sets.sorted_capped(w, 2.0, 0.1), 2.0, 0.1), (sets.sorted_simplex(w, 2.0), 2.0, np.inf)):
        assert p.sum() == pytest.approx(total) and p.min() >= 0 and p.max() <= cap
        for _ in range(20):
            z = np.minimum(rng.dirichlet(np.ones(50)) * total, cap)
            z += (total - z.sum()) / 50
            if z.min() >= 0 and z.max() <= cap:
                assert (w - p) @ (z - p) <= 1e-12
