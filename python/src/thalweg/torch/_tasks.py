"""Several tasks from one graph: what thalweg.torch.Optimizer does for aggregators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from .. import _requests
from .._errors import ArgumentError, CountError, NeedsError, ShapeError, ValueTypeError, error
from ._saved import Saved


class Tasks(Saved):
    """The tasks of thalweg.torch.Optimizer."""

    # Within a step of an aggregator: the gradients and losses of all tasks, by the tag of their minibatch; and the
    # request that a closure is called for.
    _tasks: dict[int, tuple[list[list[torch.Tensor | None]], list[torch.Tensor]]]
    _asking: _requests.Request | None

    def _parameters(self) -> list[torch.Tensor]:
        raise NotImplementedError

    def backward(self, losses: Sequence[torch.Tensor]) -> None:
        """In a closure without arguments, in place of loss.backward(): the gradients of several tasks from one graph.

            def closure():
                opt.zero_grad()
                losses = [criterion(head(features), y) for head, y in zip(heads, targets)]
                opt.backward(losses)
                return sum(losses)

            opt.step(closure)             # with "pcgrad(tasks=2) | adamw", and every other aggregator

        The method is given the gradient of each loss; where it asks for one gradient alone, that of their sum.  Behind
        gradient_accumulate(n) the closure is called for n minibatches, and the gradients of all tasks of all of them
        are kept until the step ends.
        CountError where the method has another number of tasks, ValueTypeError for losses that are no tensors,
        ShapeError for those that are no single numbers; where the gradient of each is wanted, ArgumentError for one
        without a graph.
        """
        if isinstance(losses, (str, Mapping)) or not isinstance(losses, Iterable):
            kind = type(losses).__name__
            raise error(ValueTypeError, f"backward: losses are a list of tensors, one a task, not a {kind}")
        losses = [losses] if isinstance(losses, torch.Tensor) and not losses.ndim else list(losses)
        for index, loss in enumerate(losses):
            if not isinstance(loss, torch.Tensor):
                raise error(ValueTypeError, f"backward: losses are tensors, one a task, got a {type(loss).__name__}")
            if loss.numel() != 1:
                raise error(ShapeError, f"backward: the loss of task {index} has the shape {tuple(loss.shape)}, and is "
                            "to be one number, as its mean")
            if self._asking is not None and not loss.requires_grad:
                raise error(ArgumentError, f"backward: the loss of task {index} has no graph (requires_grad is False): "
                            "it was computed without the parameters, or under no_grad")
        wanted = self._asking.count if self._asking is not None else self._tasks_of_sentence()
        if not losses or len(losses) != (wanted or len(losses)):
            raise error(CountError, f"{self.engine._text}: the method has {wanted or 'one or more'} tasks, and "
                        f"backward was given {len(losses)} loss{'es' * (len(losses) != 1)}")
        if self._asking is None:
            torch.autograd.backward(torch.stack([loss.reshape(()) for loss in losses]).sum())
            return
        from ._answers import task_gradients, with_zeros

        parameters = self._parameters()
        grads = with_zeros(task_gradients(losses, parameters), parameters)
        self._tasks[self._asking.tag] = grads, [loss.detach() for loss in losses]

    def _tasks_of_sentence(self) -> int | None:
        """How many tasks a stage of the sentence says that there are."""
        paths = [f"{s}.tasks" for s, m in self.engine._stages() if m.kind == "aggregator" and m.parameter("tasks")]
        return self.engine.get(paths[0], "") if paths else None

    def _ask_tasks(
        self, closure: Callable[[], Any], request: _requests.Request, parameters: list[torch.Tensor]
    ) -> Any:
        """Calls a closure without arguments at the first task of each minibatch; what it gave to `backward` answers for
        the others."""
        if request.index == 0 or request.tag not in self._tasks:
            self._let_go(parameters)
            self._tasks.pop(request.tag, None)
            self._asking = request
            closure()
            self._asking = None
        if request.tag not in self._tasks:
            raise error(
                NeedsError,
                f"the method asks for {_requests.asked_for(request)}, which a closure without arguments cannot know: "
                "call opt.backward(losses) in it, give one that takes the Request, or answer every request in "
                "opt.requests()",
            )
        grads, losses = self._tasks[request.tag]
        for p, g in zip(parameters, grads[request.index]):
            p.grad = g
        return losses[request.index]

    def _let_go(self, parameters: list[torch.Tensor]) -> None:
        """Takes the gradients of a task out of `.grad`: a closure may zero in place what lies there."""
        for p in parameters if self._tasks else ():
            p.grad = None

    def _forget_tasks(self) -> None:
        self._tasks, self._asking = {}, None
