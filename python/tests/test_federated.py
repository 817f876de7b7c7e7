"""Federated rounds: the mean of the participants, whoever of them is left out, and the outer optimizers behind it."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

Arrays = list[np.ndarray]


def play(opt: tw.Optimizer, grads: Arrays, clients: list[Arrays]) -> list[tuple[str, int, int]]:
    """One round: every request is answered with the parameters of that client."""
    seen = []
    for request in opt.requests():
        seen.append((request.kind, request.index, request.count))
        assert request.wants_gradient and not request.wants_loss
        for g, w in zip(grads, clients[request.index]):
            g[...] = w
    return seen


def start(sentence: str) -> tuple[tw.Optimizer, Arrays, Arrays]:
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(s) for s in ((5,), (3, 2))]
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence)
    opt.bind_gradients(grads)
    return opt, params, grads


def clients(count: int, params: Arrays) -> list[Arrays]:
    rng = np.random.default_rng(2)
    return [[rng.standard_normal(p.shape) for p in params] for _ in range(count)]


def test_two_clients_with_weights_one_and_three() -> None:
    opt, params, grads = start("fedavg(participants=2, weights=[1, 3]) | sgd(lr=1)")
    a, b = clients(2, params)
    assert play(opt, grads, [a, b]) == [("participant", 0, 2), ("participant", 1, 2)]
    for p, x, y in zip(params, a, b):
        np.testing.assert_allclose(p, (x + 3 * y) / 4, rtol=1e-14, atol=1e-15)


def test_server_lr_goes_a_part_of_the_way() -> None:
    opt, params, grads = start("fedavg(participants=3, server_lr=0.5) | sgd(lr=1)")
    before, all_ = [p.copy() for p in params], clients(3, params)
    play(opt, grads, all_)
    for p, old, *ws in zip(params, before, *all_):
        np.testing.assert_allclose(p, old + 0.5 * (np.mean(ws, axis=0) - old), rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", range(3))
def test_a_client_that_is_not_finite_is_left_out(bad: float, which: int) -> None:
    opt, params, grads = start("fedavg(participants=3, weights=[1, 2, 5]) | sgd(lr=1)")
    ws = clients(3, params)
    ws[which][1][2, 0] = bad
    play(opt, grads, ws)
    rest = [k for k in range(3) if k != which]
    p = np.array([1.0, 2.0, 5.0])[rest]
    for got, *parts in zip(params, *[ws[k] for k in rest]):
        np.testing.assert_allclose(got, np.tensordot(p / p.sum(), np.array(parts), 1), rtol=1e-13, atol=1e-15)


def test_nobody_is_left() -> None:
    opt, params, grads = start("fedavg(participants=2) | adamw(lr=1)")
    before = [p.tobytes() for p in params]
    play(opt, grads, [[np.full_like(p, np.nan) for p in params]] * 2)
    assert [p.tobytes() for p in params] == before


def test_the_outer_step_is_torchs_sgd_on_the_drift() -> None:
    torch = pytest.importorskip("torch")
    opt, params, grads = start("diloco_outer(workers=2)")
    theirs = [torch.tensor(p.copy(), requires_grad=True) for p in params]
    peer = torch.optim.SGD(theirs, lr=0.7, momentum=0.9, nesterov=True)
    rng = np.random.default_rng(3)
    for _ in range(8):
        ws = [[p + 0.1 * rng.standard_normal(p.shape) for p in params] for _ in range(2)]
        for t, x, y in zip(theirs, *ws):
            t.grad = t.detach() - torch.tensor((x + y) / 2)
        peer.step()
        play(opt, grads, ws)
    for p, t in zip(params, theirs):
        np.testing.assert_allclose(p, t.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wrong, words", [
    ("fedavg(participants=3, weights=[1, 2])", "one number for each of the 3 participants, got 2"),
    ("fedavg(participants=2, weights=[0, 0])", "one of them above"),
    ("fedavg(participants=2, weights=[1, -1])", "at least 0"),
    ("fedavg(participants=0)", "participants"),
])
def test_what_is_refused(wrong: str, words: str) -> None:
    with pytest.raises(tw.RangeError, match=words):
        tw.Optimizer([np.ones(2)], f"{wrong} | sgd(lr=1)")
