"""Closures that answer every kind of request: aggregators, samples, products with the Hessian, layers, participants."""

from __future__ import annotations

from typing import Any

import pytest
from support import sentence_of
from torch_support import assert_equal, parameter, torch

import thalweg as tw
import thalweg.torch as twt
from thalweg.torch import Answers, Optimizer

cross_entropy = torch.nn.functional.cross_entropy


def network(bias: bool = True) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4, bias), torch.nn.Tanh(), torch.nn.Linear(4, 2, bias))


def batch(count: int = 8) -> Any:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, generator=generator)
    return x, (x.sum(1) > 0).long()


MATRICES_ALONE = "needs a tensor of rank 2"
# One row of a table after another, or a step that is nothing at first: these need not move in two steps.
SLOW = ("sara", "schedule_free_radam")


def test_a_step_of_every_optimizer() -> None:
    """What a method asks for, the same closure answers; it tells what that was."""
    kinds: set[str] = set()
    for method in tw.methods("optimizer"):
        net = network()
        try:
            opt = Optimizer(net.named_parameters(), sentence_of(method))
        except tw.ShapeError as problem:
            assert MATRICES_ALONE in str(problem)
            net = network(bias=False)
            opt = Optimizer(net.named_parameters(), sentence_of(method))

        def participant(index: int, count: int) -> list[Any]:
            return [p.detach() - 0.1 for p in net.parameters()]

        def both(output: Any, target: Any) -> Any:
            return [cross_entropy(output, target), output.square().mean()]

        several = "task_gradient" in method.requests
        answers = Answers(opt, net, both if several else cross_entropy, batch(), participant=participant)
        before = [p.detach().clone() for p in net.parameters()]
        opt.step(answers)
        opt.step(answers)
        assert answers.answered, method.name
        assert all(torch.isfinite(p).all() for p in net.parameters()), method.name
        moved = any(not torch.equal(p, q) for p, q in zip(net.parameters(), before))
        assert moved or method.name in SLOW, method.name
        kinds |= set(answers.answered)
    assert {"gradient", "loss", "loss_and_gradient", "hessian_vector", "activations", "participant"} <= kinds


PIPELINES = {
    "sam(0.05) | sgd(lr=0.1)": {"gradient": 2},
    "gradient_accumulate(2) | sam(0.05) | adamw": {"gradient": 4},
    "pcgrad(tasks=2) | sgd(lr=0.1)": {"task_gradient": 2},
    "pcgrad(tasks=2) | sam(0.05) | sgd(lr=0.1)": {"task_gradient": 4},
    "dp_sgd(noise_multiplier=0.0, expected_batch_size=8) | sgd(lr=0.1)": {"sample_gradients": 1},
}


@pytest.mark.parametrize("sentence", PIPELINES)
def test_sources_in_front_of_a_rule(sentence: str) -> None:
    net = network()
    opt = Optimizer(net.parameters(), sentence)
    tasks = "tasks" in sentence
    answers = Answers(opt, net, (lambda o, t: [cross_entropy(o, t), o.square().mean()]) if tasks else cross_entropy,
                      iter([batch(), batch(9)] * 2))
    opt.step(answers)
    assert answers.answered == PIPELINES[sentence]


def test_backward_of_several_losses_in_a_plain_closure() -> None:
    """upgrad and pcgrad of two losses: as with the gradients given one by one; the closure runs once for both tasks."""
    for sentence in ("pcgrad(tasks=2) | sgd(lr=0.5)", "pcgrad(tasks=2) | sam(0.1) | sgd(lr=0.5)"):
        runs = []
        for one_by_one in (False, True):
            p = parameter(1.0, -2.0)
            opt, calls = Optimizer([p], sentence), []

            def losses() -> list[Any]:
                calls.append(1)
                return [(p * p).sum(), (p[0] - 3 * p[1]) ** 2]

            def closure() -> Any:
                opt.zero_grad()
                found = losses()
                opt.backward(found)
                return sum(found)

            def by_request(request: Any) -> Any:
                opt.zero_grad()
                found = losses()[request.index]
                found.backward()
                return found

            opt.step(by_request if one_by_one else closure)
            runs.append((p, len(calls)))
        assert_equal([runs[0][0]], [runs[1][0]])
        assert 2 * runs[0][1] == runs[1][1]
    p = parameter(1.0)
    opt = Optimizer([p], "sgd(lr=0.5)")

    def sum_of_both() -> Any:
        opt.zero_grad()
        opt.backward([p.sum(), 3 * p.sum()])

    opt.step(sum_of_both)
    assert p.item() == -1.0
    opt = Optimizer([p], "pcgrad(tasks=2) | sgd(lr=0.5)")
    with pytest.raises(tw.CountError, match="2 tasks"):
        opt.step(lambda: opt.backward([p.sum()]))
    with pytest.raises(tw.NeedsError, match=r"opt.backward\(losses\)"):
        opt.step(lambda: None)
    assert p.item() == -1.0


def test_gradients_of_samples_are_those_of_a_loop() -> None:
    net, (x, y) = network(), batch(5)
    net[0].bias.requires_grad_(False)
    found = twt.per_sample(net, cross_entropy, x, y)
    assert found[1] is None
    for k in range(5):
        net.zero_grad()
        cross_entropy(net(x[k : k + 1]), y[k : k + 1]).backward()
        for g, p in zip(found, net.parameters()):
            if g is not None:
                torch.testing.assert_close(g[k], p.grad)
    assert [g.shape[0] for g in twt.per_sample(net, cross_entropy, x[:0], y[:0]) if g is not None] == [0, 0, 0]


def test_private_steps_clip_every_sample() -> None:
    """Without noise dp_sgd is the mean of the clipped gradients of the samples."""
    net, (x, y) = network().double(), batch(6)
    x = x.double()
    grads = twt.per_sample(net, cross_entropy, x, y)
    norms = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
    want = [p.detach() - torch.einsum("s,s...->...", (0.1 / norms).clamp(max=1), g) / 6 for p, g in zip(net.parameters(), grads)]
    opt = Optimizer(net.parameters(), "dp_sgd(noise_multiplier=0.0, clip=0.1, expected_batch_size=6) | sgd(lr=1.0)")
    opt.step(Answers(opt, net, cross_entropy, (x, y)))
    for p, q in zip(net.parameters(), want):
        torch.testing.assert_close(p.detach(), q)


@pytest.mark.parametrize("parts", [1, 2])
def test_private_steps_return_the_loss_of_the_samples(parts: int) -> None:
    net, (x, y) = network(), batch(6)
    private = f"dp_sgd(noise_multiplier=1.0, expected_batch_size=6, micro_batches={parts}) | sgd(lr=0.1)"
    opt = Optimizer(net.parameters(), private)
    want = cross_entropy(net(x[: 6 // parts]), y[: 6 // parts])
    told = []
    answers = Answers(opt, net, cross_entropy, (x, y))
    loss = opt.step(lambda request: (answers(request), told.append(request.loss))[0])
    torch.testing.assert_close(loss, want.detach())
    assert told == [None] * parts and not loss.requires_grad
    assert opt.step(Answers(opt, net, cross_entropy, (x[:0], y[:0]))) is None


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4, track_running_stats=False),
                                   torch.nn.SyncBatchNorm(4)])
def test_batch_normalisation_has_no_gradients_of_samples(layer: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    opt = Optimizer(net.parameters(), "dp_sgd(noise_multiplier=1.0, expected_batch_size=6) | sgd(lr=0.1)")
    for ask in (lambda: opt.step(Answers(opt, net, cross_entropy, (x, y))),
                lambda: twt.per_sample(net, cross_entropy, x, y)):
        with pytest.raises(tw.UnsupportedError, match=r"BatchNorm\w* \(1\) mixes the samples.*GroupNorm"):
            ask()
    if layer.running_mean is not None and isinstance(layer, torch.nn.BatchNorm1d):
        net.eval()  # its statistics are fixed
        assert opt.step(Answers(opt, net, cross_entropy, (x, y))) is not None


def test_products_with_the_hessian() -> None:
    p, q = parameter(1.0, 2.0), parameter(3.0)
    vectors = [torch.tensor([1.0, -1.0]), torch.tensor([2.0])]
    loss = (p[0] ** 2 * p[1] + p[1] * q[0] ** 3).sum()
    hessian = torch.tensor([[4.0, 2.0, 0.0], [2.0, 0.0, 27.0], [0.0, 27.0, 36.0]], dtype=torch.float64)
    got = torch.cat(twt.hessian_product(loss, [p, q], vectors))
    torch.testing.assert_close(got, hessian @ torch.cat(vectors).double())
    assert twt.hessian_product(p.sum(), [p], vectors[:1])[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 1)])
def test_layers_answer_with_patches_and_slopes(stride: int, padding: int) -> None:
    """The gradient of a layer's weight is the product of what a request for activations is given."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, stride, padding), torch.nn.Tanh(), torch.nn.Flatten(1),
                              torch.nn.LazyLinear(2))
    x, y = torch.randn(4, 2, 5, 5), torch.tensor([0, 1, 1, 0])
    net(x)
    opt = Optimizer(net.parameters(), "sgd(lr=0.1)")
    answers = Answers(opt, net, cross_entropy, (x, y))
    cross_entropy(net(x), y).backward()

    class Asked:
        kind, pass_, tag, count = "activations", 0, 0, 1

        def __init__(self, index: int) -> None:
            self.index = index

        def answer_matrix(self, first: Any, second: Any) -> None:
            grad = opt.engine.params[self.index].grad
            torch.testing.assert_close(second.T @ first, grad.flatten(1))

    for index in (0, 2):
        answers(Asked(index))
    with pytest.raises(tw.NeedsError, match="Linear or Conv2d"):
        answers(Asked(1))
    assert answers.answered == {"activations": 2}


def test_equal_tags_mean_the_same_minibatch_and_the_same_dropout() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.Dropout(0.5), torch.nn.Linear(50, 2))
    opt = Optimizer(net.parameters(), "gradient_accumulate(2) | sam(0.0) | sgd(lr=0.0)")
    seen: list[Any] = []

    def loss(output: Any, target: Any) -> Any:
        seen.append((len(target), output.detach().clone()))
        return cross_entropy(output, target)

    opt.step(Answers(opt, net, loss, iter([batch(8), batch(9)])))
    assert sorted(count for count, _ in seen) == [8, 8, 9, 9]
    for size in (8, 9):
        one, other = (output for count, output in seen if count == size)
        torch.testing.assert_close(one, other)


def test_running_statistics_of_the_first_answer_alone() -> None:
    def counted(once: bool, sentence: str) -> tuple[int, Any, Any]:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        opt = Optimizer(net.parameters(), sentence)
        opt.step(Answers(opt, net, cross_entropy, [batch(6), batch(6)], statistics_once=once))
        assert net[1].track_running_stats
        return int(net[1].num_batches_tracked), net[1].running_mean, net[0].weight.detach()

    assert counted(False, "sam(0.5) | sgd(lr=0.1)")[0] == 2
    count, mean, weight = counted(True, "sam(0.5) | sgd(lr=0.1)")
    _, plain, _ = counted(False, "sgd(lr=0.1)")
    assert count == 1 and torch.equal(mean, plain)
    assert torch.equal(weight, counted(False, "sam(0.5) | sgd(lr=0.1)")[2])  # gradients are as they were
    assert counted(True, "gradient_accumulate(2) | sam(0.5) | sgd(lr=0.1)")[0] == 2  # each of two minibatches, once


def test_arguments_in_another_order() -> None:
    net = network()
    opt = Optimizer(net.parameters(), "sgd(lr=0.1)")
    for wrong, says in [((net, opt, cross_entropy), "opt is an optimizer of thalweg.torch, not a "),
                        ((opt, opt, cross_entropy), "model is a torch.nn.Module"),
                        ((opt, net, batch()), "loss_fn is a function"),
                        ((torch.optim.SGD(net.parameters()), net, cross_entropy), "opt is .* not a SGD")]:
        with pytest.raises(TypeError, match=says):
            Answers(*wrong, batch())
    with pytest.raises(TypeError, match="exchanged"):
        Answers(opt, cross_entropy, net, batch())


@pytest.mark.parametrize("sentence, calls", [("gradient_accumulate(2) | adamw(lr=0.1)", 4),
                                             ("gradient_accumulate(2) | sam(0.05) | adamw(lr=0.1)", 2)])
def test_several_minibatches_are_taken_in_turn(sentence: str, calls: int) -> None:
    """A list is what an iterator of the same minibatches, over and over, is."""
    pair, ends = [batch(8), batch(9)], []
    for batches in (pair, iter(pair * 2), [list(pair[0]), pair[1]]):
        net = network()
        opt = Optimizer(net.parameters(), sentence)
        answers = Answers(opt, net, cross_entropy, batches)
        for _ in range(calls):
            opt.step(answers)
        assert opt.engine.steps == 2
        ends.append([p.detach().clone() for p in net.parameters()])
    for other in ends[1:]:
        assert all(torch.equal(p, q) for p, q in zip(ends[0], other))
    alone = network()
    first = Optimizer(alone.parameters(), sentence)
    for _ in range(calls):
        first.step(Answers(first, alone, cross_entropy, pair[0]))
    assert not any(torch.equal(p, q) for p, q in zip(ends[0], alone.parameters()))


def test_minibatches_that_make_no_sense() -> None:
    net = network()
    opt = Optimizer(net.parameters(), "gradient_accumulate(2) | sam(0.05) | sgd")
    for bad, says in (([], "a list of 0"), ([lambda: 0] * 3, r"3 \(function\)"), ((batch(),) * 3, "a tuple of 3"),
                      ([batch(), batch(), 3], r"a list of 3 \(int, tuple\)")):
        with pytest.raises(tw.ArgumentError, match=says):
            Answers(opt, net, cross_entropy, bad)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(tw.CountError, match="iterator of batches is at its end.*while True: yield from loader"):
        opt.step(Answers(opt, net, cross_entropy, iter([batch()])))
    with pytest.raises(tw.ArgumentError, match="the closure of a step is a function, not a list"):
        opt.step([lambda: 0.0, lambda: 0.0])
    assert all(torch.equal(p, q) for p, q in zip(before, net.parameters())) and opt.engine.steps == 0


def test_what_cannot_be_answered_says_so() -> None:
    net = network()
    with pytest.raises(tw.ArgumentError, match="iterator"):
        Answers(Optimizer(net.parameters(), "sgd"), net, cross_entropy, batch()[0])
    opt = Optimizer(net.parameters(), "diloco_outer")
    with pytest.raises(tw.NeedsError, match="participant="):
        opt.step(Answers(opt, net, cross_entropy, batch()))
    opt = Optimizer(net.parameters(), "pcgrad(tasks=3) | sgd")
    with pytest.raises(tw.CountError, match="3 tasks"):
        opt.step(Answers(opt, net, lambda o, t: [cross_entropy(o, t)] * 2, batch()))


# ---- tensors that not every backward pass reaches


AGGREGATORS = ["pcgrad(tasks=2) | sgd(lr=0.1)", "mgda(tasks=2) | sgd(lr=0.1)",
               "gradient_accumulate(2) | pcgrad(tasks=2) | adamw"]


@pytest.mark.parametrize("answers", [False, True], ids=["backward", "Answers"])
@pytest.mark.parametrize("sentence", AGGREGATORS)
def test_heads_of_several_tasks(sentence: str, answers: bool) -> None:
    """The head of one task has the gradient 0 of the other; what no task reaches is left alone."""
    torch.manual_seed(0)
    body, unused = torch.nn.Linear(3, 3), torch.nn.Linear(1, 1)
    heads = torch.nn.ModuleList([torch.nn.Linear(3, 1) for _ in range(2)])
    x = torch.randn(5, 3)

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return [head(body(x)) for head in heads]

    model = Model()
    params = [*body.parameters(), *heads.parameters(), *unused.parameters()]
    opt = twt.Optimizer(params, sentence)
    before = [p.detach().clone() for p in params]

    def closure() -> Any:
        opt.zero_grad()
        losses = [out.square().mean() for out in model(x)]
        opt.backward(losses)
        return sum(losses)

    calls = iter([(x, x)] * 4)
    for _ in range(2):
        by_itself = twt.Answers(opt, model, lambda outs, y: [out.square().mean() for out in outs], calls)
        opt.step(by_itself if answers else closure)
    moved = [not torch.equal(p, q) for p, q in zip(before, params)]
    assert moved == [True] * 6 + [False] * 2


def test_the_first_task_says_which_tensors_there_are() -> None:
    """A closure of one's own, which leaves no zeros: refused, where the head would not be trained."""
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = twt.Optimizer([a, b], "pcgrad(tasks=2) | sgd(lr=0.1)")

    def closure(request: Any) -> None:
        opt.zero_grad()
        a.grad = torch.ones(2)
        if request.index:
            b.grad = torch.ones(2)

    with pytest.raises(tw.ArgumentError, match="task 1 of 2 has a gradient of parameter 1.*leave zeros"):
        opt.step(closure)
    assert a.tolist() == b.tolist() == [1, 1]
