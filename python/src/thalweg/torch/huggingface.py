"""Hugging Face's Trainer for methods that ask for more than one gradient a step: SAM and its kin, line searches.

    from thalweg.torch.huggingface import Trainer
    trainer = Trainer(model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=(
        thalweg.torch.Optimizer, {"sentence": "sam(0.05) | adamw", "lr": 3e-4}))

The Trainer itself computes one gradient and calls optimizer.step() without a closure.  `Asking` goes in front of any
other trainer: class Mine(Asking, transformers.Seq2SeqTrainer): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .._errors import NeedsError, error
from .._peers import check as _check
from .._requests import Request
from ._optimizer import Optimizer

_check(__name__, "transformers", newer=lambda transformers: transformers.Trainer)

import transformers

KINDS = ("gradient", "loss_and_gradient", "previous_gradient", "loss")
# What comes before and behind in the order of methods.
_Base: Any = transformers.Trainer if TYPE_CHECKING else object

__all__ = ["Asking", "Trainer"]


class Asking(_Base):
    """What a transformers.Trainer needs to answer requests; it goes first among the bases of a class.

    The gradient that the Trainer has computed answers the first request of a step.  Every further one runs the training
    steps of the same minibatches again, all of them where gradients are accumulated (gradient_accumulation_steps), with
    the random numbers that they had: dropout is the same.  max_grad_norm clips every gradient of the step, as the
    Trainer clips the first.

    NeedsError where a method asks for something else than gradients and losses, or for another minibatch in the same
    step: gradient_accumulation_steps takes the place of gradient_accumulate(n) in the sentence.
    """

    # The minibatches since the last step, as training_step was called; their random states and losses.
    _since: list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor, torch.Tensor]]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As of the Trainer, which calls it; the minibatch is remembered until the step is taken."""
        opt = _inside(self.optimizer)
        if not isinstance(opt, Optimizer) or not any(method.requests for _, method in opt.engine._stages()):
            return super().training_step(*args, **kwargs)
        if self.__dict__.get("_asked_by") is not opt:
            self._asked_by, self._since = opt, []
            opt.register_step_pre_hook(self._hand_closure)
        state = torch.get_rng_state()
        loss = super().training_step(*args, **kwargs)
        self._since.append((args, kwargs, state, loss))
        return loss

    def _hand_closure(self, opt: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gives a step that was called without a closure one (torch hands `self` as the first argument)."""
        if self._asked_by is not opt or len(args) > 1 and args[1] is not None or kwargs.get("closure") is not None:
            return None
        batches, self._since = self._since, []
        there = [sum(loss for *_, loss in batches)] if batches else []
        tag: list[int] = []

        def closure(request: Request) -> Any:
            tag[:] = tag or [request.tag]
            if request.kind not in KINDS or request.tag != tag[0]:
                what = "another minibatch" if request.kind in KINDS else f"a {request.kind!r}"
                raise error(NeedsError, f"{opt.engine._text}: the method asks for {what}, and the Trainer has one "
                            "minibatch for a step, with gradients and losses: gradient_accumulation_steps=n stands for "
                            "gradient_accumulate(n); for other requests write the loop, with thalweg.torch.Answers")
            ready = there and request.kind in ("gradient", "loss_and_gradient")
            return there.pop() if ready else self._again(opt, batches)

        return (args[0], closure), {}

    def _again(self, opt: Optimizer, batches: list[Any]) -> Any:
        """The training steps of the same minibatches, at the parameters as they are now.  Returns the loss."""
        if not batches:
            raise error(NeedsError, f"{opt.engine._text}: the method asks for a gradient, and no training_step of the "
                        "Trainer came before this step")
        now = torch.get_rng_state()
        opt.zero_grad()
        losses = []
        try:
            for args, kwargs, state, _ in batches:
                torch.set_rng_state(state)
                losses.append(super().training_step(*args, **kwargs))
        finally:
            torch.set_rng_state(now)
        if self.args.max_grad_norm is not None and self.args.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        return sum(losses)


class Trainer(Asking, transformers.Trainer):
    """transformers.Trainer that answers what a method asks for; see Asking."""


def _inside(optimizer: Any) -> Any:
    """The optimizer in Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
