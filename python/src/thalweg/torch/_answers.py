"""Answers to every kind of request, from a torch model: gradients of tasks and of samples, products, layers."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .._errors import ArgumentError, CountError, NeedsError, UnsupportedError, error
from .._requests import Request
from ._optimizer import Optimizer


def task_gradients(losses: Sequence[torch.Tensor], params: Sequence[torch.Tensor]) -> list[list[torch.Tensor | None]]:
    """The gradient of each loss, all from one graph: one list a loss, None for a parameter that it does not reach."""
    wanted = [p for p in params if p.requires_grad]
    out: list[list[torch.Tensor | None]] = []
    for index, loss in enumerate(losses):
        found = iter(torch.autograd.grad(loss, wanted, retain_graph=index + 1 < len(losses), allow_unused=True))
        out.append([next(found) if p.requires_grad else None for p in params])
    return out


def with_zeros(
    grads: Sequence[Sequence[torch.Tensor | None]], params: Sequence[torch.Tensor]
) -> list[list[torch.Tensor | None]]:
    """`grads` (one list a task) with zeros where a task does not reach a parameter that another one does: the heads of
    several tasks.  None stays where no task does."""
    reached = [any(g is not None for g in column) for column in zip(*grads)]
    return [
        [torch.zeros_like(p) if g is None and some else g for g, p, some in zip(row, params, reached)]
        for row in grads
    ]


def hessian_product(
    loss: torch.Tensor, params: Sequence[torch.Tensor], vectors: Sequence[Any]
) -> list[torch.Tensor | None]:
    """The product of the Hessian of a loss with `vectors`, one of each parameter's shape (tensors or arrays), by
    differentiating twice.  None where a parameter does not take part."""
    tensors = [torch.as_tensor(np.array(v) if isinstance(v, np.ndarray) else v) for v in vectors]
    wanted = [(p, v.to(p)) for p, v in zip(params, tensors, strict=True) if p.requires_grad]
    slopes = torch.autograd.grad(loss, [p for p, _ in wanted], create_graph=True, allow_unused=True)
    along = [(g * v).sum() for g, (_, v) in zip(slopes, wanted) if g is not None and g.requires_grad]
    if not along:  # a linear loss
        return [torch.zeros_like(p) if p.requires_grad else None for p in params]
    found = iter(torch.autograd.grad(torch.stack(along).sum(), [p for p, _ in wanted], allow_unused=True))
    products = [next(found) if p.requires_grad else None for p in params]
    return [torch.zeros_like(p) if g is None and p.requires_grad else g for p, g in zip(params, products)]


def per_sample(
    model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor], inputs: torch.Tensor, targets: Any,
    params: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor | None]:
    """The gradients of every sample through torch.func: one tensor (samples, shape...) for each of `params` (all of the
    model's), None for one that is no parameter of the model or needs no gradient.

    loss_fn(output, target) is called on minibatches of one sample.  Batch normalisation in training mixes samples, and
    there are no such gradients: UnsupportedError.
    """
    return _per_sample(model, loss_fn, inputs, targets, params)[0]


def _per_sample(
    model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor], inputs: torch.Tensor, targets: Any,
    params: Sequence[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor | None], torch.Tensor | None]:
    """The gradients of every sample, and their losses; None where there are no samples."""
    _check_samples_apart(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {name: p.detach() for name, p in named.items()}
    fixed = {**{n: p.detach() for n, p in model.named_parameters() if n not in named}, **dict(model.named_buffers())}

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: Any) -> torch.Tensor:
        output = torch.func.functional_call(model, {**values, **fixed}, (x.unsqueeze(0),))
        return loss_fn(output, y.unsqueeze(0))

    losses = None
    if not len(inputs):
        found = {name: p.new_zeros((0, *p.shape)) for name, p in held.items()}
    else:
        both = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
        found, losses = both(held, inputs, targets)
        losses = losses.detach()
    place = {id(p): name for name, p in named.items()}
    wanted = model.parameters() if params is None else params
    return [found[place[id(p)]] if id(p) in place else None for p in wanted], losses


def _check_samples_apart(model: torch.nn.Module) -> None:
    """UnsupportedError where a layer normalises over the samples."""
    for name, m in model.named_modules():
        # (the base of BatchNorm1d, 2d, 3d and SyncBatchNorm)
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None):
            raise error(UnsupportedError, f"{type(m).__name__} ({name or 'the model'}) mixes the samples of a "
                        "minibatch, and there are no gradients per sample: put GroupNorm or LayerNorm in its place")


class Answers:
    """A closure for opt.step that answers whatever the method asks for.

        opt.step(Answers(opt, model, loss_fn, batches))

    model        called with the inputs of a minibatch
    loss_fn      loss_fn(output, target), a mean over the samples; a sequence of losses where the method has several
                 tasks
    batches      one minibatch (inputs, targets); a list of several, [(inputs, targets), ...], which are taken in turn,
                 over and over; or an iterator of them.  Every new tag of a step takes one: equal tags mean the same
                 minibatch, and the same dropout.  "gradient_accumulate(2) | sam(0.05) | adamw" takes two a step;
                 without a sam a call of opt.step takes one, and the second call is the step
    participant  for federated methods: participant(index, count) trains from the parameters as they stand, and returns
                 (or leaves in the parameters) those of that participant
    statistics_once  batch normalisation updates its running statistics with the first answer to a tag alone: in a step
                 of SAM at the weights, and not at the perturbed ones as well
    answered     how often each kind of request was answered, over all steps

    What it returns, and so opt.step, is the loss of the first answer: for dp_sgd the mean of the samples' losses (with
    micro_batches of the first part); None where there is none, as of participants, of layers (kfac), of an empty
    minibatch.  The loss of samples is yours alone: it has no noise, and no stage of the sentence is told.
    """

    def __init__(
        self, opt: Optimizer, model: torch.nn.Module, loss_fn: Callable[[Any, Any], Any], batches: Any, *,
        participant: Callable[[int, int], Any] | None = None, statistics_once: bool = False,
    ) -> None:
        _check_order(opt, model, loss_fn)
        self.opt, self.model, self.loss_fn, self.participant = opt, model, loss_fn, participant
        self.statistics_once = statistics_once
        self._batches = _in_turn(batches)
        self._by_tag: dict[int, tuple[Any, torch.Tensor]] = {}
        self._tasks: tuple[int, int, list[Any], list[Any]] | None = None
        self.answered: Counter[str] = Counter()

    # ---- minibatches

    def _minibatch(self, request: Request) -> Any:
        """The minibatch of a tag, with the random numbers where they stood when it was first used."""
        if request.pass_ == 0:
            self._by_tag = {}
        if request.tag not in self._by_tag:
            batch = next(self._batches, None)
            if batch is None:
                raise error(CountError, "the method asks for another minibatch, and the iterator of batches is at its "
                            "end: give one that goes on, a generator with `while True: yield from loader`, which draws "
                            "a new order in every round")
            self._by_tag[request.tag] = batch, torch.get_rng_state()
        batch, state = self._by_tag[request.tag]
        torch.set_rng_state(state)
        return batch

    def _loss(self, batch: Any) -> Any:
        return self.loss_fn(self.model(batch[0]), batch[1])

    def __call__(self, request: Request) -> Any:
        """Answers one request.  Returns the loss, where there is one."""
        answer = KINDS.get(request.kind)
        if answer is None:
            raise error(NeedsError, f"no answer to a request of kind {request.kind!r} is known")
        again = request.pass_ != 0 and request.tag in self._by_tag
        batch = None if request.kind == "participant" else self._minibatch(request)
        with _statistics_kept(self.model) if again and self.statistics_once else contextlib.nullcontext():
            loss = answer(self, request, batch)
        self.answered[request.kind] += 1
        return loss

    @property
    def _params(self) -> list[torch.Tensor]:
        return list(self.opt.engine.params)

    def _put(self, grads: Sequence[torch.Tensor | None]) -> None:
        for p, g in zip(self._params, grads, strict=True):
            p.grad = None if g is None else g.detach()

    # ---- the kinds

    def _gradient(self, request: Request, batch: Any) -> Any:
        self.opt.zero_grad()
        loss = _total(self._loss(batch))
        loss.backward()
        return loss.detach()

    def _loss_alone(self, request: Request, batch: Any) -> Any:
        with torch.no_grad():
            return _total(self._loss(batch))

    def _task_gradient(self, request: Request, batch: Any) -> Any:
        """All gradients at the first task: the others follow at the same parameters."""
        if request.index == 0 or self._tasks is None or self._tasks[:2] != (request.tag, request.index):
            losses = list(_sequence(self._loss(batch)))
            if len(losses) != request.count:
                raise error(CountError, f"the method has {request.count} tasks, and loss_fn returned {len(losses)} "
                            "losses")
            grads = with_zeros(task_gradients(losses, self._params), self._params)
            losses = [loss.detach() for loss in losses]
        else:
            _, _, grads, losses = self._tasks
        self._tasks = (request.tag, request.index + 1, grads, losses) if request.index + 1 < request.count else None
        self._put(grads[request.index])
        return losses[request.index]

    def _hessian_vector(self, request: Request, batch: Any) -> Any:
        loss = _total(self._loss(batch))
        self._put(hessian_product(loss, self._params, request.probe))
        return loss.detach()

    def _logit_derivatives(self, request: Request, batch: Any) -> None:
        """By forward-mode differentiation, without dropout and with fixed statistics."""
        place = {id(p): torch.as_tensor(v) for p, v in zip(self._params, request.probe)}
        values = {name: p.detach() for name, p in self.model.named_parameters()}
        along = {name: place[id(p)].to(p).reshape(p.shape) if id(p) in place else torch.zeros_like(p)
                 for name, p in self.model.named_parameters()}

        def logits(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(self.model, values, (batch[0],))

        with _evaluating(self.model):
            try:
                second, first = torch.func.jvp(logits, (values,), (along,))
            except NotImplementedError:  # a layer without forward mode: the library takes differences
                first, second = None, logits(values)
        rows = second.shape[0]
        first = None if first is None else first.detach().reshape(rows, -1)
        request.answer_matrix(first, second.detach().reshape(rows, -1))

    def _activations(self, request: Request, batch: Any) -> None:
        """Inputs of the layer and gradients at its pre-activations; a kernel counts as a matrix over patches."""
        weight = self._params[request.index]
        layer = next((m for m in self.model.modules() if getattr(m, "weight", None) is weight), None)
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            raise error(NeedsError, f"parameter {request.index} is the weight of no Linear or Conv2d layer of the "
                        "model, and the method asks for what goes into its layer and comes out")
        seen: dict[str, torch.Tensor] = {}

        def forward(module: Any, inputs: Any, output: torch.Tensor) -> None:
            seen["in"], seen["out"] = inputs[0].detach(), output
            output.retain_grad()

        handle = layer.register_forward_hook(forward)
        try:
            loss = _total(self._loss(batch))
            slope, = torch.autograd.grad(loss, [seen["out"]])
        finally:
            handle.remove()
        first = seen["in"]
        if isinstance(layer, torch.nn.Conv2d):
            if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
                raise error(NeedsError, "patches are known for Conv2d with groups=1 and numbers of zeros as padding")
            first = torch.nn.functional.unfold(first, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            first, slope = first.transpose(1, 2), slope.flatten(2).transpose(1, 2)
        request.answer_matrix(*(part.reshape(-1, part.shape[-1]).contiguous() for part in (first, slope)))

    def _sample_gradients(self, request: Request, batch: Any) -> Any:
        inputs, targets = (torch.tensor_split(part, request.count)[request.index] for part in batch)
        gradients, losses = _per_sample(
            self.model, lambda output, target: _total(self.loss_fn(output, target)), inputs, targets, self._params
        )
        request.answer_samples(gradients)
        return None if losses is None else losses.mean()

    def _participant(self, request: Request, batch: Any) -> None:
        if self.participant is None:
            raise error(NeedsError, "the method asks for the parameters of participants: give participant=, a function "
                        "that trains one of them")
        params = self._params
        before = [p.detach().clone() for p in params]
        try:
            with torch.enable_grad():
                found = self.participant(request.index, request.count)
            found = [p.detach().clone() for p in (params if found is None else found)]
        finally:
            with torch.no_grad():
                for p, value in zip(params, before):
                    p.copy_(value)
        request.answer(found)


KINDS: dict[str, Callable[[Answers, Request, Any], Any]] = {
    "gradient": Answers._gradient,
    "previous_gradient": Answers._gradient,
    "loss_and_gradient": Answers._gradient,
    "loss": Answers._loss_alone,
    "task_gradient": Answers._task_gradient,
    "hessian_vector": Answers._hessian_vector,
    "logit_derivatives": Answers._logit_derivatives,
    "activations": Answers._activations,
    "sample_gradients": Answers._sample_gradients,
    "participant": Answers._participant,
}


def _in_turn(batches: Any) -> Iterator[Any]:
    """The minibatches one after another.  A pair is one of them, a list of pairs several."""
    if hasattr(batches, "__next__"):
        return batches  # type: ignore[no-any-return]
    if isinstance(batches, list) and batches and all(map(_is_pair, batches)):
        return itertools.cycle(batches)
    if not _is_pair(batches):
        raise error(ArgumentError, "batches is (inputs, targets), a list of such pairs, or an iterator of them, not "
                    f"{_described(batches)}: give iter(loader) for a loader")
    return itertools.repeat(batches)


def _check_order(opt: Any, model: Any, loss_fn: Any) -> None:
    """TypeError for what was given in another order."""
    expected = (("opt", opt, "an optimizer of thalweg.torch", hasattr(opt, "engine")),
                ("model", model, "a torch.nn.Module", callable(model) and not hasattr(model, "param_groups")),
                ("loss_fn", loss_fn, "a function", callable(loss_fn)))
    for name, value, kind, right in expected:
        if not right:
            raise TypeError(f"Answers(opt, model, loss_fn, batches): {name} is {kind}, not a {type(value).__name__}")
    module = torch.nn.Module
    if isinstance(loss_fn, module) and not isinstance(model, module) and next(loss_fn.parameters(), None) is not None:
        raise TypeError("Answers(opt, model, loss_fn, batches): model and loss_fn are exchanged")


@contextlib.contextmanager
def _statistics_kept(model: torch.nn.Module) -> Iterator[None]:
    """Inside, batch normalisation normalises by the minibatch, and leaves its running statistics as they are."""
    layers = [m for m in model.modules()
              if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m.training]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _described(value: Any) -> str:
    if not isinstance(value, (tuple, list)):
        return f"a {type(value).__name__}"
    return f"a {type(value).__name__} of {len(value)} ({', '.join(sorted({type(item).__name__ for item in value}))})"


def _total(loss: Any) -> torch.Tensor:
    """A loss; the sum of several."""
    return sum(loss[1:], loss[0]) if isinstance(loss, (list, tuple)) else loss


def _sequence(losses: Any) -> Any:
    return losses if isinstance(losses, (list, tuple)) or losses.ndim else [losses]


class _evaluating:
    """Inside, the layers of the model are in evaluation mode."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.before = {m: m.training for m in model.modules()}
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.before.items():
            module.training = training
