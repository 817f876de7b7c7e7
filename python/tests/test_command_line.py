"""The command line: what it lists, shows, races, sweeps and draws, and what it refuses, in words."""

from __future__ import annotations

import json
import re
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import thalweg as tw
from thalweg.command import catalogue, check, console, examples, main, problems, race, sweep
from thalweg.command.console import Refusal

from support import Arrays


def run(*arguments: Any) -> int:
    return main([str(a) for a in arguments])


def outcome(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    """Standard output and error of a command that succeeds."""
    assert run(*arguments) == 0
    return capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a command that refuses says; it says it on standard error alone."""
    assert run(*arguments) == 1
    out, error = capsys.readouterr()
    assert not out
    return error


# ---- methods, show, info


def names_in(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


def test_methods_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert names_in(outcome(capsys, "methods")[0]) == [m.name for m in tw.methods()]
    curvature = names_in(outcome(capsys, "methods", "--kind", "optimizer", "--need", "hessian_vector")[0])
    assert curvature == [m.name for m in tw.methods("optimizer") if "hessian_vector" in m.requests]
    both = names_in(outcome(capsys, "methods", "--need", "hessian_vector", "--need", "loss")[0])
    assert both and all({"hessian_vector", "loss"} <= set(tw.method(n).requests) for n in both)
    none = names_in(outcome(capsys, "methods", "--need", "none", "--kind", "solver")[0])
    assert none and all(not tw.method(n).asks for n in none)
    assert "galore" in names_in(outcome(capsys, "methods", "leading", "singular", "--kind", "optimizer")[0])
    assert "signum" in names_in(outcome(capsys, "methods", "arXiv:1802.04434")[0])


@pytest.mark.parametrize("text, finds", [
    ("multi task", "pcgrad"), ("multi-task", "pcgrad"), ("multitask", "dwa"), ("Multi-Task", "cagrad"),
    ("differential privacy", "dp_sgd"), ("differential-privacy", "rdp_accountant"), ("quasi-newton", "lbfgs"),
    ("quasi newton", "lbfgs"), ("Quasi-Newton", "lbfgs"), ("parameter-free", "prodigy"), ("parameter free", "dowg"),
    ("low memory", "adafactor"), ("memory-efficient", "galore"), ("stochastic weight averaging", "swa"),
    ("early stopping", "reduce_on_plateau"), ("8-bit", "quant_noise"), ("8 bit", "quant_noise"),
    ("limited memory bfgs", "lbfgs"), ("schedule-free", "schedule_free"), ("multitask surgery", "pcgrad"),
    ("zeroth-order", "spsa"), ("newton-schulz", "muon"), ("low-rank", "psgd_lra"),
])
def test_methods_are_found_by_the_words_that_people_use(text: str, finds: str) -> None:
    for words in (text.split(), [text]):  # with quotes around it or without
        found = [m.name for m in catalogue.select(text=words)]
        assert finds in found
    assert len(found) < 80


def test_the_table_of_words_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    known = {m.name for m in tw.methods()} | {*tw.kinds()}
    assert {name for names in catalogue.CALLED.values() for name in names} <= known
    assert catalogue.ELSEWHERE.keys() <= catalogue.CALLED.keys()
    assert all(word.isalnum() and word == word.lower() for word in catalogue.CALLED)
    out, err = outcome(capsys, "methods", "8-bit")
    assert 'state_dtype="q8"' in err and "q8" not in out


def test_methods_by_state(capsys: pytest.CaptureFixture[str]) -> None:
    free = names_in(outcome(capsys, "methods", "--kind", "optimizer", "--state", "=0")[0])
    light = names_in(outcome(capsys, "methods", "--kind", "optimizer", "--state", "4")[0])
    heavy = names_in(outcome(capsys, "methods", "--kind", "optimizer", "--state", ">4")[0])
    assert "sgd" in free and "lion" in light and "adamw" in heavy and set(free) <= set(light)
    assert len(light) + len(heavy) == len(tw.methods("optimizer"))
    assert examples.state_bytes(tw.method("adamw")) == 8 and examples.state_bytes(tw.method("cg")) is None


def test_sizes_say_what_they_are_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = outcome(capsys, "methods", "--kind", "optimizer", "--state", "<=4")
    assert all(" bytes  " in line for line in out.splitlines())


def test_show_of_several_and_of_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = outcome(capsys, "show", "adamw", "mezo")
    assert out.startswith("adamw (optimizer)") and "\nmezo (optimizer)" in out
    assert "show adamw" in refused(capsys, "show", "adamw(lr=1)")
    assert "show clip_global_norm adamw" in refused(capsys, "show", "clip_global_norm(1.0) | adamw")
    assert "did you mean" in refused(capsys, "show", "adamv")


def test_bounds_are_written_out() -> None:
    ranges = [p.range for m in tw.methods() for p in m.parameters]
    assert "[1, 1048576]" in ranges and not [r for r in ranges if re.search(r"\d{2,}e\+", r)]
    assert "(0, inf)" in ranges and "(0, 1]" in ranges


def test_methods_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kinds: aggregator" in refused(capsys, "methods", "--kind", "nothing")
    assert "needs: none" in refused(capsys, "methods", "--need", "hessians")
    assert "'much'" in refused(capsys, "methods", "--state", "much")
    assert "no method is like that" in refused(capsys, "methods", "zzzz")


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = outcome(capsys, "show", "adamw")
    for part in ("Rule", "Hyper-parameters", "State", "8 bytes", "In Python", "tw.AdamW([w]", "In C", "tw_optimizer_create", "Neighbours", "arXiv"):
        assert part in text
    assert {"adam", "amsgrad"} & {n.name for n in catalogue.neighbours(tw.method("adamw"), 12)}
    assert all(n.kind == "solver" for n in catalogue.neighbours(tw.method("cg")))
    assert "did you mean `adamw`" in refused(capsys, "show", "adamww")


def test_show_says_what_a_method_watches(capsys: pytest.CaptureFixture[str]) -> None:
    """And every method of which the library takes a number by observe has one."""
    text, _ = outcome(capsys, "show", "reduce_on_plateau")
    assert '\nWatches\n    opt.observe("metric", value)\n' in text and 'schedule.observe("metric", 0.5)' in text
    assert 'tw_schedule_observe(schedule, "metric", 0.5);' in text
    assert 'opt.observe("loss", value) before a step, or a closure' in outcome(capsys, "show", "polyak_sgd")[0]
    assert "Watches" not in outcome(capsys, "show", "adamw")[0]
    watched = {m.name: examples.watched(m) for m in tw.methods() if examples.watched(m)}
    assert watched["xgd"] == ("weight_0", "weight_1") and watched["saga"] == ("sample",)
    assert watched["timestep_curriculum"] == ("metric", "loss") and watched["tram"] == ("divergence",)
    for name, numbers in watched.items():
        m = tw.method(name)
        assert examples.python_example(m)[1]
        with tw.Optimizer([np.zeros(examples.shape(m), np.float32)], examples.sentence(m)) as opt:
            for what in numbers:
                opt.observe(what, 1.0)


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    def no_constant(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    every = json.loads(outcome(capsys, "methods", "--json")[0], parse_constant=no_constant)
    assert [m["name"] for m in every] == [m.name for m in tw.methods()]
    adamw = next(m for m in every if m["name"] == "adamw")
    assert set(adamw) == set(tw.Method._fields) and adamw["requests"] == []
    assert adamw["parameters"][0] == {**tw.method("adamw").parameters[0]._asdict(), "max": None, "choices": []}
    assert adamw["state"][0] == {"name": "exp_avg", "meaning": "first moment m"}
    cg = next(m for m in every if m["name"] == "cg")
    assert cg["asks"][0]["name"] == "product" and cg["asks"][0]["given"][0]["shape"]
    sized = json.loads(outcome(capsys, "methods", "adamw", "--state", "=8", "--json")[0])
    assert {m["state_bytes"] for m in sized} == {8} and "adamw" in [m["name"] for m in sized]
    assert "no method is like that" in refused(capsys, "methods", "zzzz", "--json")


# ---- check


def test_check_says_all_that_a_sentence_does(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "sam(0.1) | adamw(lr=cosine(1e-3, 100)) | ema(0.9)"
    text, _ = outcome(capsys, "check", sentence)
    known = tw.Optimizer([np.zeros(3)], sentence).sentence  # with schedules as they were written
    assert text.splitlines()[0].replace("lr=0.001, total=100, end=0", "0.001, 100") == known
    assert "adamw(lr=cosine(lr=0.001, total=100, end=0), beta1=0.9" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["adamw.beta1", "[0,", "1)", "rate", "of", "the", "first", "moment"] in rows
    assert ["sam", "gradient"] in rows and ["sam.norm", "l2|linf", "of", "the", "ball"] in rows
    assert ["adamw.exp_avg", "f32", "4", "first", "moment", "m"] in rows
    assert ["ema.average", "f32", "4", "the", "average", "a"] in rows
    sentence = "sgd(lr=join([constant(0.1), cosine(0.1, 9)], [5])) | prox(l1(linear(1, 9))) | project(box)"
    held, _ = outcome(capsys, "check", sentence)
    assert "join(schedules=[constant(lr=0.1), cosine(lr=0.1, total=9, end=0)], boundaries=[5])" in held
    assert "| prox(of=l1(weight=linear(lr=1, total=9, end=0, begin=0))) | project(onto=box(lo=-1, hi=1))\n" in held
    plain, _ = outcome(capsys, "check", "sgd")
    assert "\nall   nothing\n" in plain and plain.rstrip().endswith("none")
    routed, _ = outcome(capsys, "check", "route(matrix=(muon), other=(adamw))")
    assert "muon.momentum_buffer  f32     4" in routed and "adamw.exp_avg_sq      f32     4" in routed


@pytest.mark.parametrize("written, full, also", [
    ("cg(1e-3)", "cg(rtol=1e-3, atol=0, ", "product"), ("box(0, 1)", "box(lo=0, hi=1)", "lower bound"),
    ("fista(regularizer=l1)", "fista(", "regularizer=l1(weight=0.0001)"), ("info_nce", "info_nce(temperature=0.07, ", "tau"),
    ("cosine(1, 10)", "cosine(lr=1, total=10, end=0)", "length"), ("dwa", "dwa(", "temperature")])
def test_check_of_what_stands_alone(written: str, full: str, also: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = outcome(capsys, "check", written)
    assert text.startswith(full) and also in text and "\nState" not in text


@pytest.mark.parametrize("sentence", [
    "adamw | emaa", "adamw(lr=-1)", "adamw(", "", "clip_value(1)", "cosine(1, 10) | sgd", "l1(lr=2)", "cg(", "@",
    "nuclear_norm(-1)"])
def test_check_refuses_with_a_caret(sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "check", sentence).splitlines()
    assert len(lines) == 3 and lines[1].strip() == sentence.strip() and lines[2].strip() == "^"


@pytest.mark.parametrize("kind", tw.kinds())
def test_check_takes_every_method(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it requires, alone or where it stands in a sentence."""
    for m in tw.methods(kind):
        text = examples.sentence(m) if kind not in check.ALONE else examples.stage(m)
        full, stages = check.read(text)
        assert stages and all("()" not in part for part in full.split("|")), text
        assert check.read(full)[0] == full
        if kind not in check.ALONE and stages:
            assert all(len(row) == 4 for row in check.state(text, stages))


def test_a_terminal_gets_tables_and_a_pipe_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rich = pytest.importorskip("rich.console")
    import io

    screen = io.StringIO()
    monkeypatch.setattr(console, "rich_terminal", lambda: rich.Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(catalogue, "rich_terminal", console.rich_terminal)
    assert run("methods", "--kind", "average") == 0 and run("show", "ema") == 0
    assert "\x1b[" in screen.getvalue() and "averag" in screen.getvalue()
    assert "\x1b[" not in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = outcome(capsys, "info")
    for word in (tw.version, "instruction set", "libthalweg", "threads", "matrix products", np.__version__):
        assert word in text
    before = tw.get_num_threads()
    try:
        tw.set_num_threads(1)
        from thalweg.command import info

        advice = info._advice("x86-64", "x86-64-v3", None, 1, 4)
        assert len(advice) == 3 and "set_num_threads(4)" in advice[1] and "OpenBLAS" in advice[2]
        assert info._advice("x86-64-v3", "x86-64-v3", "OpenBLAS Haswell", 4, 4) == []
    finally:
        tw.set_num_threads(before)


# ---- examples

SHOWN = [m for kind in tw.kinds() for m in tw.methods(kind)[::9]]


@pytest.mark.parametrize("m", SHOWN, ids=lambda m: m.name)
def test_python_examples_run(m: tw.Method) -> None:
    program, whole = examples.python_example(m)
    compile(program, m.name, "exec")
    assert whole == (examples.runs(program) is None)
    if m.kind not in ("solver", "objective", "diagnostic", "regularizer"):  # (these may want arrays that nobody can guess)
        assert whole, examples.runs(program)


def test_c_examples_compile(tmp_path: Path) -> None:
    header = Path(__file__).parents[2] / "include"
    if not header.is_dir():
        pytest.skip("the header is not beside the tests")
    body = "".join(f"static void f{i}(void) {{\n{examples.c_example(m)}\n}}\n" for i, m in enumerate(tw.methods()))
    calls = "".join(f"f{i}();\n" for i in range(len(tw.methods())))
    (tmp_path / "all.c").write_text(
        f"#include <thalweg/thalweg.h>\nstatic tw_tensor w, g, inputs[64], gradients[64];\n{body}int main(void) {{\n(void)w; (void)g; (void)inputs; (void)gradients;\n{calls}return 0;\n}}\n")
    done = subprocess.run(["gcc", "-std=c99", "-Wall", "-Wno-unused-but-set-variable", "-Werror", "-fsyntax-only", "-I", header, "all.c"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


# ---- problems


@pytest.mark.parametrize("name", list(problems.MAKERS))
def test_gradients_are_those_of_the_loss(name: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    on, rng = problems.problem(name), np.random.default_rng(0)
    params = [p.astype(np.float64) for p in on.start(rng)]
    batch = on.batch(rng)
    _, grads = on.gradient(params, batch)
    along = [rng.standard_normal(p.shape) for p in params]
    h = 1e-6

    def at(t: float) -> Arrays:
        return [p + t * v for p, v in zip(params, along)]

    slope = (on.gradient(at(h), batch)[0] - on.gradient(at(-h), batch)[0]) / (2 * h)
    assert slope == pytest.approx(sum(float((g * v).sum()) for g, v in zip(grads, along)), rel=1e-4, abs=1e-6)
    for samples, g in zip(on.samples(params, batch), grads):
        np.testing.assert_allclose(samples.mean(0), g, rtol=1e-4, atol=1e-6)
    product = on.product(params, batch, along)
    ahead, behind = (on.gradient(at(t), batch)[1] for t in (1e-5, -1e-5))
    for p, a, b in zip(product, ahead, behind):
        np.testing.assert_allclose(p, (a - b) / 2e-5, rtol=1e-2, atol=1e-2 * max(1, np.abs(p).max()))


def test_minima_of_the_planes() -> None:
    for plane in problems.PLANES.values():
        for x, y in plane.minima:
            assert plane.f(x, y) - plane.least == pytest.approx(0, abs=1e-8)
            np.testing.assert_allclose(plane.slope(x, y), 0, atol=1e-3)


@pytest.mark.parametrize("sentence", [
    "sgd(lr=0.1)", "sam(0.05) | adamw(lr=0.01)", "gradient_accumulate(2) | sgd(lr=0.1)", "pcgrad(tasks=2) | sgd(lr=0.1)", "adahessian(lr=0.01)",
    "dp_sgd(noise_multiplier=0.1, expected_batch_size=32) | sgd(lr=0.1)", "kfac(lr=0.01)", "sgd(lr=0.1) | ghost_step", "spsa",
    "fedavg(participants=2) | sgd(lr=1)", "svrg(lr=0.1, inner=3)", "sgd(lr=reduce_on_plateau(lr=0.1, patience=1))", "prodigy", "adamw | ema(0.9)"])
def test_every_kind_of_request_is_answered(sentence: str) -> None:
    found = race.run(sentence, problems.problem("logreg"), 0, 12)
    assert np.all(np.isfinite(found.losses)) and found.error <= 1


# ---- race and sweep


def test_race(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    picture, numbers = tmp_path / "race.png", tmp_path / "race.json"
    out, err = outcome(capsys, "race", "sgd(lr=0.05, momentum=0.9)", "adamw(lr=cosine(lr=0.1, total={steps}))", "sgd(lr=1e30)",
                       "--problem", "logreg", "--seeds", "3", "--steps", "40", "--plot", picture, "--json", numbers)
    assert [line for line in out.splitlines() if "sgd(lr=1e30)" in line][0].endswith("3 of 3")
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000
    assert len(err.splitlines()) == 3 and "\r" not in err and "\x1b" not in err  # a line for each sentence, no bars
    read = json.loads(numbers.read_text())
    first, _, lost = read["entries"]
    assert lost["runs"][0]["losses"][-1] is None and first["runs"][0]["losses"][-1] < 0.7
    assert [r["at"][-1] for r in first["runs"]] == [40] * 3


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars that move, with the loss behind them, where standard error is a terminal."""
    rich = pytest.importorskip("rich.console")
    import io

    screen, made = io.StringIO(), rich.Console
    monkeypatch.setattr(rich, "Console", lambda **_: made(file=screen, force_terminal=True, width=110))
    entries = race.collect(["sgd(lr=0.05)", "adamw(lr=0.1)"], problems.problem("logreg"), 2, 30, "f32", "race")
    text = screen.getvalue()
    assert [len(entry.runs) for entry in entries] == [2, 2]
    assert "60/60" in text and "sgd(lr=0.05)" in text and "loss 0." in text and "\x1b[" in text


def test_a_race_is_the_same_again() -> None:
    a, b = (race.run("sam(0.05) | adamw(lr=0.01)", problems.problem("noisy-quadratic"), 3, 20) for _ in range(2))
    assert np.array_equal(a.losses, b.losses)
    other = race.run("sam(0.05) | adamw(lr=0.01)", problems.problem("noisy-quadratic"), 4, 20)
    assert not np.array_equal(a.losses, other.losses)


def test_averages_are_looked_at() -> None:
    """With an average the loss is that of the averaged weights: below the noise of the others at the end."""
    on = problems.problem("noisy-quadratic")
    plain, averaged = (race.run(s, on, 0, 200) for s in ("sgd(lr=0.5)", "sgd(lr=0.5) | ema(0.95)"))
    assert averaged.losses[-1] < 0.5 * plain.losses[-1]


@pytest.mark.parametrize("values, want", [
    ([5.0], (5.0, 5.0, 5.0)), ([4.0, 2.0], (2.5, 3.0, 3.5)), ([1.0, 3.0, 2.0], (1.5, 2.0, 2.5)),
    ([4.0, 1.0, 2.0, 3.0], (1.75, 2.5, 3.25)), ([1.0, math.inf], (math.inf,) * 3),
    ([1.0, math.nan, 2.0], (1.5, 2.0, math.inf)), ([math.nan] * 2, (math.nan,) * 3)])
def test_medians_and_quartiles_of_few_seeds(values: list[float], want: tuple[float, ...]) -> None:
    np.testing.assert_array_equal(race.spread(np.array(values)), want)


def test_one_seed_is_no_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = outcome(capsys, "race", "sgd(lr=0.1)", "--steps", "5", "--seeds", "1", "--problem", "noisy-quadratic")
    assert "medians of 1 seed\n" in out


def test_race_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert "did you mean `adamw`" in refused(capsys, "race", "AdamW")
    assert "rank 2" in refused(capsys, "race", "muon(lr=0.1)", "--problem", "rosenbrock")
    assert "--seeds" in refused(capsys, "race", "sgd", "--seeds", "0")
    assert "--steps" in refused(capsys, "race", "sgd", "--steps", "0")
    assert "no folder" in refused(capsys, "race", "sgd", "--plot", tmp_path / "none" / "x.png")
    assert ".png" in refused(capsys, "race", "sgd", "--plot", tmp_path / "x.gif")
    assert run("race", "kfac(lr=0.1)", "--problem", "matrix", "--steps", "5", "--seeds", "1") == 1
    assert "digits" in capsys.readouterr().err


def test_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    curve, field = tmp_path / "curve.svg", tmp_path / "field.png"
    out, _ = outcome(capsys, "sweep", "sgd", "--over", "sgd.lr=1e-3:1e3:log:5", "--problem", "ravine", "--seeds", "2", "--steps", "40", "--plot", curve)
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [float(r[0]) for r in rows] == pytest.approx([1e-3, 0.03162, 1, 31.62, 1000])
    assert rows[1][-1] == "*" and "best: sgd.lr=0.03162" in out and "diverged" in out
    assert "<svg" in curve.read_text()
    out, _ = outcome(capsys, "sweep", "sgd", "--over", "lr=0.001,0.03", "--over", "momentum=0,0.9", "--problem", "ravine", "--seeds", "1",
                     "--steps", "30", "--plot", field)
    assert "edge" in out and field.stat().st_size > 10_000


def test_what_diverged_is_not_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    few = ("--problem", "ravine", "--seeds", "2", "--steps", "20", "--plot", tmp_path / "x.png")
    out, _ = outcome(capsys, "race", "sgd(lr=1e30)", "sgd(lr=1e20)", *few)
    assert "there is no best" in out and not any(line.endswith("*") for line in out.splitlines())
    out, _ = outcome(capsys, "race", "sgd(lr=1e30)", "sgd(lr=1e-3)", *few)
    assert [line.split("(")[0] for line in out.splitlines() if line.endswith("*")] == ["sgd"] and "no best" not in out
    for axes in (["--over", "lr=1e20,1e30"], ["--over", "lr=1e20,1e30", "--over", "momentum=0,0.9"]):
        out, _ = outcome(capsys, "sweep", "sgd", *axes, *few)
        assert "there is no best" in out and "\nbest" not in out and "edge" not in out
        assert not any(line.endswith("*") for line in out.splitlines())


def test_a_map_shows_what_the_best_is_chosen_by() -> None:
    plots = pytest.importorskip("thalweg.command.plots")

    def entry(loss: float, error: float) -> race.Entry:
        return race.Entry("sgd", [race.Run(np.arange(2), np.array([1.0, loss]), error, 1.0, 0)])

    entries = [entry(0.1, 0.5), entry(0.2, 0.25), entry(np.inf, np.nan)]
    assert race.best_of(entries) == 1  # by the score, though the loss of another one is less
    with_score, without = problems.problem("logreg"), problems.problem("ravine")
    assert with_score.score and not without.score
    name, values = plots.measured(entries, with_score)
    assert with_score.score in name and values[:2].tolist() == [50, 25] and not np.isfinite(values[2])
    name, values = plots.measured(entries, without)
    assert "loss" in name and values.tolist() == [0.1, 0.2, np.inf]


def test_values_are_put_into_sentences() -> None:
    text = "clip_global_norm(max_norm=1.0) | adamw(lr=cosine(lr=0.1, total=10), beta1=0.9) | route(matrix=(adamw(lr=0.2, beta1=0.8)), other=(sgd(lr=0.3)))"
    assert "clip_global_norm(max_norm=2)" in sweep.with_value(text, "max_norm", 2)
    assert "adamw(lr=0.5, beta1=0.9)" in sweep.with_value(text, "adamw.lr", 0.5)
    by_place = "adamw(lr=warmup_cosine(0.1,10, 100), beta1=0.9) | prox(l1(0.5))"
    assert "warmup_cosine(0.25,10, 100)" in sweep.with_value(by_place, "warmup_cosine.peak", 0.25)
    assert "warmup_cosine(0.1,10, 200)" in sweep.with_value(by_place, "total", 200)
    assert "prox(l1(0.25))" in sweep.with_value(by_place, "l1.weight", 0.25)
    assert "adamw(lr=0.5, beta1=0.8)" in sweep.with_value(text, "adamw#1.lr", 0.5)
    assert "cosine(lr=0.1, total=20)" in sweep.with_value(text, "cosine.total", 20)
    assert "sgd(lr=1e-05)" in sweep.with_value(text, "sgd.lr", 1e-5)
    with pytest.raises(Refusal, match="adamw.lr, .*sgd.lr"):
        sweep.with_value(text, "lr", 1)
    with pytest.raises(Refusal, match="clip_global_norm.max_norm, adamw.lr"):
        sweep.with_value(text, "adamw.rate", 1)


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1:0", "lr=0:1:log", "lr=1:2:log:1", "lr=a,b", "lr=1:2:cubic"])
def test_axes_that_are_none(text: str) -> None:
    with pytest.raises(Refusal, match="--over"):
        sweep.read_axis(text)


def test_axes() -> None:
    assert sweep.read_axis("adamw.lr=1e-4:1e-1:log:4").values == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1))
    assert sweep.read_axis("beta1=0:1:3") == sweep.Axis("beta1", (0.0, 0.5, 1.0), False)
    assert sweep.read_axis("lr=1e-3,1e-2,1").log


# ---- landscape


def test_landscape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "l.png"
    out, _ = outcome(capsys, "landscape", "adam(lr=0.1)", "sam(0.01) | sgd(lr=1e-3)", "sgd(lr=1)", "--function", "beale", "--steps", "150", "--plot", picture)
    assert picture.stat().st_size > 50_000
    rows = out.splitlines()
    assert "adam" in rows[2] and float(rows[2].split()[-4]) < 1 and "diverged" in rows[4]
    assert "two numbers" in refused(capsys, "landscape", "sgd", "--start=1", "--plot", picture)


# ---- what is missing


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'thalweg[command]'" in refused(capsys, "race", "sgd(lr=0.1)", "--steps", "5")
    assert "matplotlib" in refused(capsys, "landscape", "sgd(lr=1e-3)", "--plot", tmp_path / "x.png")
    assert "adamw" in outcome(capsys, "methods")[0]  # needs nothing


def test_the_package_does_not_import_the_commands() -> None:
    code = "import sys, thalweg; print([m for m in sys.modules if m.startswith(('thalweg.command', 'rich', 'matplotlib', 'sklearn'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    code = "import sys, thalweg.command as c; c.main(['methods']); print([m for m in sys.modules if m.startswith(('matplotlib', 'sklearn'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.rstrip().endswith("[]")


# ---- names from elsewhere


@pytest.mark.parametrize(("written", "meant"), [
    ("adamw(learning_rate=1e-3)", "lr"), ("adamw(epsilon=1e-8)", "eps"), ("adamw(b1=0.9)", "beta1"), ("adamw(b2=0.9)", "beta2"), ("adamw(nu=0.9)", "beta2"),
    ("sgd(wd=0.1)", "weight_decay"), ("sgd(mu=0.9)", "momentum"), ("sgd(lr=cosine(learning_rate=1, total=2))", "lr"), ("AdamW(lr=1)", "adamw"),
    ("ScheduleFreeAdamW", "schedule_free_adamw")])
def test_hints_know_names_from_elsewhere(written: str, meant: str) -> None:
    with pytest.raises(tw.Error, match=f"did you mean `{meant}`"):
        tw.Optimizer([np.zeros(3)], written)


def test_hints_in_groups_and_classes() -> None:
    w = np.zeros(3)
    for call in (lambda: tw.AdamW([w], learning_rate=1), lambda: tw.AdamW([{"params": [w], "learning_rate": 1}]),
                 lambda: tw.AdamW([w]).set("learning_rate", 1)):
        with pytest.raises(tw.UnknownNameError, match="did you mean `lr`"):
            call()


@pytest.mark.parametrize("arguments, says", [
    ("bench sgd --size 8 --threads 99999", "--threads 99999: the number of threads must be"),
    ("bench sgd --size 99999999999999999", "--size 99999999999999999: "),
    ("race sgd --steps 1 --seeds 1 --json nowhere/x.json", "--json: there is no folder nowhere"),
    ("race sgd --steps 1 --seeds 1 --json .", "--json: . is a folder"),
    ("sweep adamw --over lr=nan,1", "--over is PATH"),
    ("sweep adamw --over lr=0:inf", "--over 'lr=0:inf': LOW"),
    ("sweep adamw --over lr=1,2 --over lr=1,2", "'lr' is given twice"),
    ("landscape sgd --start=nan,1", "--start is two numbers"),
    ("landscape sgd --noise nan", "--noise is at least 0"),
    ("landscape sgd --noise=-1", "--noise is at least 0"),
    ("landscape sgd --seed=-1", "--seed is in 0"),
])
def test_what_no_command_takes(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *arguments.split())
