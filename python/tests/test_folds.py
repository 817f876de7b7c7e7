"""What the kernel of a rule does beside it is to the last bit what the stages of their own do."""

from collections.abc import Callable

import numpy as np
import pytest

import thalweg as tw

F = np.float32
Change = Callable[[np.ndarray], np.ndarray]


def gradients(n: int, steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.standard_normal(n).astype(F) for _ in range(steps)]


def run(sentence: str, start: np.ndarray, steps: list[np.ndarray], before: Change | None = None, behind: Change | None = None) -> np.ndarray:
    """The parameters behind some steps; `before` changes the gradient by hand, `behind` the parameters."""
    p, g = start.copy(), np.empty_like(start)
    opt = tw.Optimizer([p], sentence)
    opt.bind_gradients([g])
    for now in steps:
        g[...] = before(now) if before else now
        opt.step()
        if behind:
            p[...] = behind(p)
    return p


def apart(name: str) -> Change:
    def prox(p: np.ndarray) -> np.ndarray:
        q = p.copy()
        tw.regularizer(name).prox(q, 0.01)
        return q
    return prox


BEHIND = [("prox(l1(0.3))", apart("l1(0.3)")), ("prox(l2(0.3))", apart("l2(0.3)")), ("prox(elastic_net(0.3, l1_ratio=0.4))", apart("elastic_net(0.3, l1_ratio=0.4)")),
          ("prox(l1(0))", lambda p: p), ("project(box(lo=-0.2, hi=0.3))", lambda p: np.clip(p, F(-0.2), F(0.3))),
          ("project(non_negative)", lambda p: np.maximum(p, F(0))), ("project(linf_ball(0.1))", lambda p: np.clip(p, F(-0.1), F(0.1))),
          ("prox(l1(0.3)) | project(box(lo=-0.2, hi=0.3))", lambda p: np.clip(apart("l1(0.3)")(p), F(-0.2), F(0.3)))]


@pytest.mark.parametrize("rule", ["adamw(lr=0.01)", "sgd(lr=0.01, momentum=0.9)", "sgd(lr=0.01)"])
@pytest.mark.parametrize("stage, change", BEHIND)
@pytest.mark.parametrize("n", [1, 16, 17, 5003])
def test_behind_the_rule(rule: str, stage: str, change: Change, n: int) -> None:
    start = np.linspace(-1, 1, n, dtype=F)
    steps = gradients(n, 5)
    np.testing.assert_array_equal(run(f"{rule} | {stage}", start, steps), run(rule, start, steps, behind=change))


BEFORE = [("clip_value(0.5)", lambda g: np.clip(g, F(-0.5), F(0.5))), ("coordinate_clip(threshold=0.5)", lambda g: np.clip(g, F(-0.5), F(0.5))),
          ("clip_value(0.5) | gradient_noise(eta=0)", lambda g: np.clip(g, F(-0.5), F(0.5)))]


@pytest.mark.parametrize("rule", ["adamw(lr=0.01)", "adam(lr=0.01, weight_decay=0.1)"])
@pytest.mark.parametrize("stage, change", BEFORE)
@pytest.mark.parametrize("n", [3, 64, 5003])
def test_before_the_rule(rule: str, stage: str, change: Change, n: int) -> None:
    start = np.linspace(-1, 1, n, dtype=F)
    steps = gradients(n, 5)
    np.testing.assert_array_equal(run(f"{stage} | {rule}", start, steps), run(rule, start, steps, before=change))


def test_loss_scale_comes_before_what_is_folded() -> None:
    n = 100
    start, steps = np.linspace(-1, 1, n, dtype=F), gradients(n, 5)
    p, g = start.copy(), np.empty_like(start)
    opt = tw.Optimizer([p], "clip_value(0.5) | penalty(l1(0.1)) | adamw(lr=0.01)", gradient_scale=1 / 8)
    opt.bind_gradients([g])
    q, h = start.copy(), np.empty_like(start)
    plain = tw.Optimizer([q], "adamw(lr=0.01)")
    plain.bind_gradients([h])
    for now in steps:
        g[...] = now * F(8)
        opt.step()
        h[...] = np.clip(now, F(-0.5), F(0.5)) + F(0.1) * np.sign(q)
        plain.step()
    np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("average, share", [
    ("ema(0.9)", lambda k: 1.0 if k == 0 else 1 - 0.9), ("swa", lambda k: 1 / (k + 1)), ("swa(freq=2)", lambda k: 0 if k % 2 else 1 / (k // 2 + 1)),
    ("poly_decay_average(gamma=3)", lambda k: 4 / (4 + k))])
@pytest.mark.parametrize("stages", ["", "prox(l1(0.3)) | "])
@pytest.mark.parametrize("n", [1, 31, 5003])
def test_averages(average: str, share: Callable[[int], float], stages: str, n: int) -> None:
    """a ← a + share·(θ − a) in float32, over parameters to the bit those of the sentence without it."""
    start, steps = np.linspace(-1, 1, n, dtype=F), gradients(n, 6)
    p, g = start.copy(), np.empty_like(start)
    opt = tw.Optimizer([p], f"adamw(lr=0.01) | {stages}{average}")
    opt.bind_gradients([g])
    a = np.zeros(n, F)
    for k, now in enumerate(steps):
        g[...] = now
        opt.step()
        a = a + F(share(k)) * (p - a)
    alone = run(f"adamw(lr=0.01) | {stages}".rstrip(" |"), start, steps)
    np.testing.assert_array_equal(p, alone)
    opt.eval()
    np.testing.assert_array_equal(p, a)
    opt.train()
    np.testing.assert_array_equal(p, alone)


def test_two_averages_and_sixteen_folds() -> None:
    """The second average, and what is beyond the room for folds, are walks of their own."""
    n = 777
    start, steps = np.linspace(-1, 1, n, dtype=F), gradients(n, 4)
    many = " | ".join(["prox(elastic_net(0.01))"] * 12)

    def behind(p: np.ndarray) -> np.ndarray:
        for _ in range(12):
            p = apart("elastic_net(0.01)")(p)
        return p
    np.testing.assert_array_equal(run(f"adamw(lr=0.01) | {many} | ema(0.9) | lookahead(k=9)", start, steps),
                                  run("adamw(lr=0.01)", start, steps, behind=behind))


def test_memory_with_gaps() -> None:
    """Memory with gaps goes through rows: the same sentence, the same numbers."""
    n = 1000
    start, steps = np.linspace(-1, 1, n, dtype=F), gradients(n, 5)
    sentence = "clip_value(0.5) | penalty(l2(0.1)) | adamw(lr=0.01) | prox(l1(0.3)) | ema(0.9)"
    dense = run(sentence, start, steps)
    room = np.zeros(2 * n, F)
    p, g = room[::2], np.zeros(3 * n, F)[::3]
    p[...] = start
    opt = tw.Optimizer([p], sentence)
    opt.bind_gradients([g])
    for now in steps:
        g[...] = now
        opt.step()
    np.testing.assert_array_equal(p, dense)
    assert not room[1::2].any()
