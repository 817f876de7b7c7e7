"""What people write first and what they are told: wrong kinds, and functions and arguments that would do nothing."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import thalweg as tw

A, B = np.diag([1.0, 2.0, 3.0]), np.ones(3)


def half_square(v: np.ndarray) -> tuple[float, np.ndarray]:
    return 0.5 * float(v @ v), v


# ---- solvers


def test_functions_that_are_never_asked_for() -> None:
    def run(sentence: str, **more: Any) -> tw.SolverResult:
        return tw.solver(sentence).run(x0=B, value_gradient=half_square, value=lambda v: half_square(v)[0], **more)

    prox = lambda v, step: v / 2  # noqa: E731
    with pytest.raises(tw.ArgumentError, match=r"fista.*never asked for 'prox'.*fista\(ask_prox=true\)"):
        run("fista", prox=prox)
    assert run("fista(ask_prox=true)", prox=prox).converged and run("fista").converged
    arguments = dict(x0=B, like=np.zeros((3, 1)), jacobian=lambda v: (v[:, None], np.eye(3)[:, None]))
    with pytest.raises(tw.ArgumentError, match=r"never asked for 'output_hessian'.*egn\(curvature=asked\)"):
        tw.solver("egn").run(output_hessian=lambda v: np.ones((3, 1, 1)), **arguments)
    tw.solver("egn(curvature=asked)").run(output_hessian=lambda v: np.ones((3, 1, 1)), **arguments)


def test_a_run_that_ends_where_it_starts_has_no_idle_functions() -> None:
    result = tw.solver("fista(ask_prox=true)").run(
        x0=np.zeros(3), value_gradient=half_square, value=lambda v: half_square(v)[0], prox=lambda v, step: v)
    assert result.outcome == "converged"


@pytest.mark.parametrize("call, text", [
    (lambda s: s.run(B, product=lambda v: A @ v), r"argument without a name is the result of an earlier run, not an object "
     r"of type ndarray: give inputs by name, as b=\.\.\.; inputs: b \(.*\), x0 \(.*\); functions: product$"),
    (lambda s: s.run(b=B, products=lambda v: A @ v), r"no input 'products'; inputs: b \(.*\), x0 \(.*\); functions: product$"),
    (lambda s: tw.solver("cma_es").run(x0=B, value=lambda v: 1.0), r"'value' is a result.*functions: losses$"),
])
def test_arguments_that_solvers_do_not_have(call: Any, text: str) -> None:
    with pytest.raises(tw.Error, match=text):
        call(tw.solver("cg"))


def test_runs_of_lists_are_taken_up_with_like() -> None:
    s, parts = tw.solver("cg"), [np.ones(2), np.ones((1, 1))]
    run = s.requests(b=parts)
    next(run)
    assert [p.shape for p in s.resume(run.save(), like=parts).result.x] == [(2,), (1, 1)]
    assert [p.shape for p in pickle.loads(pickle.dumps(run)).result.x] == [(2,), (1, 1)]
    assert s.resume(run.save()).result.x.shape == (3,)
    assert "like" in tw.SolverRun.save.__doc__ and "flat" in tw.Solver.resume.__doc__


# ---- objects


@pytest.mark.parametrize("make, name, kind", [
    (tw.weighting, "info_nce", "weighting"), (tw.diagnostic, "info_nce", "diagnostic"), (tw.objective, "dwa", "objective"),
    (tw.diagnostic, "dwa", "diagnostic"), (tw.weighting, "effective_rank", "weighting"),
])
def test_kinds_are_checked(make: Any, name: str, kind: str) -> None:
    its = tw.method(name).kind
    text = rf"`{name}` is an? {its}; an? {kind} is wanted here.*thalweg\.{its}\('{name}'\)"
    with pytest.raises(tw.MethodError, match=text):
        make(name)


@pytest.mark.parametrize("thing", [tw.objective("info_nce"), tw.weighting("dwa"), tw.regularizer("l1(1)"), tw.solver("cg"),
                                   tw.constraint("simplex(1)"), tw.schedule("cosine(lr=1, total=9)")], ids=str)
def test_attributes_are_not_made(thing: Any) -> None:
    text = rf"{re.escape(repr(thing))} has no attribute 'temperature'.*in the sentence"
    with pytest.raises(AttributeError, match=text):
        thing.temperature = 0.1
    for twin in (copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
        assert repr(twin) == repr(thing)


def test_classes_of_ones_own_have_attributes() -> None:
    class Mine(tw.Objective):
        """With a note."""

    mine = Mine("info_nce")
    mine.note = 1
    assert mine.note == 1


@pytest.mark.parametrize("thing", [tw.solver("cg(rtol=1e-3)"), tw.objective("info_nce"), tw.weighting("dwa"),
                                   tw.diagnostic("effective_rank"), tw.regularizer("l1(1)")], ids=str)
def test_cards(thing: Any) -> None:
    card = str(tw.method(thing.sentence.partition("(")[0]))
    shown = subprocess.run([sys.executable, "-m", "thalweg", "show", card.split()[0]], capture_output=True, text=True)
    assert thing.__doc__ == card and shown.stdout.startswith(card + "\n\n")  # (examples follow)
    assert type(thing).__doc__ not in (None, card)


# ---- numbers and small integers


def test_numbers_for_inputs_without_axes() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    loss = tw.objective("info_nce")
    assert any(i.name == "log_scale" and i.shape == "()" for i in loss.inputs)
    names = [i.name for i in loss.inputs if not i.result and not i.optional][:2]
    for dtype in (np.float64, np.float32):
        given = dict(zip(names, (x.astype(dtype), y.astype(dtype))))
        want = loss(**given, log_scale=np.array(2.0, dtype))
        assert loss(**given, log_scale=2) == want and loss(**given, log_scale=2.0) == want
    value, grads = loss.value_and_grad(**given, log_scale=2.0)
    assert value == want and grads["log_scale"].shape == ()


def test_small_integers_are_whole_numbers() -> None:
    """Labels, in whatever integers they lie."""
    shapes = [(False, "(B, C)"), (True, "(B,)")]
    loss = next(tw.objective(m.name) for m in tw.methods("objective")
                if [(i.integer, i.shape) for i in m.inputs if not i.optional and not i.result] == shapes)
    z, y = (i.name for i in loss.inputs if not i.optional and not i.result)
    scores, labels = np.random.default_rng(0).standard_normal((4, 2)), np.array([0, 1, 1, 0])
    want = loss(**{z: scores, y: labels})
    kinds = [labels.astype(t) for t in (bool, np.int8, np.uint8, np.int16, np.uint16, np.uint32)]
    torch = sys.modules.get("torch")
    kinds += [torch.tensor(labels).to(t) for t in (torch.bool, torch.int8, torch.uint8)] if torch else []
    for given in kinds:
        assert loss(**{z: scores, y: given}) == want


# ---- names


@pytest.mark.parametrize("given, text", [
    ({"learning_rate": 0.3}, r"adamw has no hyper-parameter `learning_rate` \(did you mean `lr`\?\); it has: lr, beta1.*"
     r"adamw\(learning_rate=0\.3\)"),
    ({"lrr": 0.25}, r"`lrr` \(did you mean `lr`\?\).*adamw\(lrr=0\.25\)"),
    ({"state_dtyp": "bf16"}, r"`state_dtyp` \(did you mean `state_dtype`\?\).*adamw\(state_dtyp=bf16\)"),
    ({"lrs": object()}, r"adamw\(lrs=\.\.\.\)"),
])
def test_unknown_arguments_of_classes(given: dict[str, Any], text: str) -> None:
    with pytest.raises(tw.UnknownNameError, match=f"(?s){text}"):
        tw.AdamW([np.ones(2)], **given)


@pytest.mark.parametrize("name, text", [
    ("Adamm", "did you mean 'Adam'"), ("adamw", "did you mean 'AdamW'"), ("solverr", "did you mean 'solver'"),
    ("info_nce", r"an objective: thalweg\.objective\('info_nce'\)"), ("sam", r"a perturbation: a stage of a sentence"),
    ("zzzzzzzz", "no attribute 'zzzzzzzz'$"), ("_adamw", "no attribute '_adamw'$"),
])
def test_unknown_attributes_of_the_package(name: str, text: str) -> None:
    with pytest.raises(AttributeError, match=text):
        getattr(tw, name)


def test_a_method_is_named_once() -> None:
    with pytest.raises(tw.ShapeError, match="^qk_clip: 3 heads"):
        tw.diagnostic("qk_clip")(w=np.ones((4, 6)), logits=np.ones(3))


@pytest.mark.parametrize("arguments, text", [(["--threads", "0"], "--threads is at least 1, not 0")])
def test_bench_refuses_in_one_line(arguments: list[str], text: str) -> None:
    command = [sys.executable, "-m", "thalweg", "bench", "--size", "8", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, text)


def test_what_a_checkpoint_holds_is_said() -> None:
    texts = [tw.Optimizer.save.__doc__, tw.Optimizer.state_dict.__doc__]
    if "torch" in sys.modules:
        from thalweg.torch import Optimizer

        texts.append(Optimizer.state_dict.__doc__)
    assert all("does not hold the parameters" in text for text in texts)


def test_schedules_that_are_set_count_from_the_first_step() -> None:
    """As the docstring of Optimizer.set says."""
    opt = tw.Optimizer([np.ones(2)], "sgd(lr=1)")
    for _ in range(5):
        opt.step([np.ones(2)])
    opt.set("lr", "cosine(lr=1, total=10)")
    assert opt.get("lr") == tw.schedule("cosine(lr=1, total=10)")(5)


def test_hyper_parameters_are_no_attributes() -> None:
    optimizer = tw.SGD([np.ones(3)], lr=0.1)
    with pytest.raises(AttributeError, match="set"):
        optimizer.lr = 5
    assert optimizer.get("lr") == 0.1
    group = optimizer.param_groups[0]
    for name in ("role", "name", "lr"):
        with pytest.raises(AttributeError, match=name):
            setattr(group, name, "norm")

    class Mine(tw.SGD):
        pass

    mine = Mine([np.ones(3)], lr=0.1)
    mine.epoch = 3  # one's own class may have attributes of its own
    assert mine.epoch == 3


@pytest.mark.parametrize("answer", [None, "0.5", 1j, [None]])
def test_answers_that_are_no_real_numbers_are_refused(answer: object) -> None:
    with pytest.raises(tw.Error, match="real numbers|shape"):
        tw.solver("golden_section").run(low=0.0, high=1.0, value=lambda alpha: answer)


# ---- answers and hyper-parameters


@pytest.mark.parametrize("answer, text", [
    (lambda r, g: r.answer(1.0, g), r"^request\.answer takes \(grads, loss\), and was given \(loss, grads\)$"),
    (lambda r, g: r.answer(np.float32(1.0), g), r"^request\.answer takes \(grads, loss\), and was given \(loss, grads\)$"),
    (lambda r, g: r.answer(g, [1.0]), r"^the loss of an answer is one number, not \[1\.0\]$"),
    (lambda r, g: r.answer(g, "1.0 nats"), "^the loss of an answer is one number, not '1.0 nats'$"),
    (lambda r, g: (r.answer(g), setattr(r, "loss", [1.0])), r"^request\.loss is one number, not \[1\.0\]$"),
    (lambda r, g: r.answer(1.0), "^gradients are given as a list, one array for each parameter, not as <class 'float'>$"),
])
def test_what_is_no_answer_is_said_and_changes_nothing(answer: Any, text: str) -> None:
    w = np.ones(3)
    opt = tw.Optimizer([w], "sam(0.5) | sgd(lr=0.1)")
    with pytest.raises(TypeError, match=text):
        for request in opt.requests():
            answer(request, [np.ones(3)])
    assert opt.steps == 0 and (w == 1).all()


def test_a_number_is_no_list_of_gradients() -> None:
    opt = tw.Optimizer([np.ones(3)], "sgd(lr=0.1)")
    for call in (opt.step, opt.bind_gradients):
        with pytest.raises(TypeError, match="gradients are given as a list, .* not as <class 'int'>"):
            call(3)


def test_hyper_parameters_are_no_attributes() -> None:
    opt = tw.AdamW([np.ones(3)], lr=0.5)
    with pytest.raises(AttributeError, match=r"'lr' is a hyper-parameter: optimizer\.get\('lr'\) or optimizer\.param_groups"):
        opt.lr  # noqa: B018
    assert opt.get("lr") == opt.param_groups[0]["lr"] == 0.5 and not hasattr(opt, "lr")
    with pytest.raises(AttributeError, match=r"^'AdamW' object has no attribute 'colour'$"):
        opt.colour  # noqa: B018
    closed = tw.AdamW([np.ones(3)])
    closed.close()
    assert not hasattr(closed, "lr")
    assert copy.deepcopy(tw.AdamW([np.ones(3)], lr=0.5)).get("lr") == 0.5
