"""A scheduler of torch for optimizers whose sentence has the schedule itself."""

from __future__ import annotations

import torch

from ._in_backward import InBackward
from ._optimizer import Optimizer


class SentenceLR(torch.optim.lr_scheduler.LRScheduler):
    """Leaves the rates to the schedules of the sentence, and shows them: for tools that want a scheduler beside the
    optimizer, and would make one of their own that takes the rates over.

        opt = thalweg.torch.Optimizer(model.parameters(), "adamw(lr=warmup_cosine(peak=3e-4, warmup=100, total=1000))")
        trainer = transformers.Trainer(model, arguments, optimizers=(opt, thalweg.torch.SentenceLR(opt)), ...)

    `step` changes nothing; call it behind opt.step(), as every scheduler.  After it `get_last_lr()` has the rates of
    the next step, one a group.  TypeError for an optimizer that is none of thalweg.torch.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        if not isinstance(inner, (Optimizer, InBackward)):
            raise TypeError(f"SentenceLR is for optimizers of thalweg.torch, not for {type(optimizer).__name__}")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates that the next step uses, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]
