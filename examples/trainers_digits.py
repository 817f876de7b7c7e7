"""scikit-learn's digits through Accelerate, Lightning and Hugging Face's Trainer, with the same optimizer in each.

    python examples/trainers_digits.py
    python examples/trainers_digits.py --only lightning --epochs 4

Matrices are stepped by Muon, the rest by AdamW: two rates, which the schedulers and logs of all three see as one "lr".
Each saves a checkpoint after half of the epochs; a second run goes on from that file, in a model of its own, and has to
end with the weights of the first, bit for bit.  What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import thalweg.torch

SENTENCE = "clip_global_norm(1) | route(matrix=(muon(lr=0.02)), other=(adamw(lr=3e-3)))"
BATCH = 64
FLOOR = 0.9  # test accuracy that every run has to exceed


def load() -> tuple[TensorDataset, TensorDataset]:
    """The 1,797 digits, shuffled: 80 % to train on, 20 % to test with; pixels in 0 ... 1."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    images, digits = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    cut = int(0.8 * len(y))
    return TensorDataset(images[:cut], digits[:cut]), TensorDataset(images[cut:], digits[cut:])


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


def prepared(net: nn.Module, steps: int) -> tuple[thalweg.torch.Optimizer, Any]:
    """The optimizer, and a scheduler that takes its rates down to nothing."""
    opt = thalweg.torch.Optimizer(net.parameters(), SENTENCE)
    return opt, torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=steps)


def with_accelerate(data: TensorDataset, epochs: int, folder: Path, resume: bool) -> tuple[nn.Module, float]:
    """`accelerator.prepare`, `save_state` and `load_state`.  (The model, its rate at the end.)"""
    from accelerate import Accelerator

    accelerator, plain = Accelerator(cpu=True), perceptron()
    loader = DataLoader(data, BATCH)
    net, opt, scheduler, loader = accelerator.prepare(plain, *prepared(plain, epochs * len(loader)), loader)
    if resume:
        accelerator.load_state(str(folder))
    for epoch in range(epochs // 2 if resume else 0, epochs):
        for x, y in loader:
            opt.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            opt.step()
            scheduler.step()
        if epoch + 1 == epochs // 2:
            accelerator.save_state(str(folder))
    accelerator.free_memory()
    return plain, opt.param_groups[0]["lr"]


def with_lightning(data: TensorDataset, epochs: int, folder: Path, resume: bool) -> tuple[nn.Module, float]:
    """`configure_optimizers`; the checkpoint is that of a callback."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loader = DataLoader(data, BATCH)

    class Digits(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> dict[str, Any]:
            opt, scheduler = prepared(self.net, epochs * len(loader))
            return {"optimizer": opt, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, "half", every_n_epochs=epochs // 2, save_top_k=1)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder,
        callbacks=[] if resume else [saving], enable_checkpointing=not resume, enable_progress_bar=False,
        enable_model_summary=False)
    module = Digits()
    trainer.fit(module, loader, ckpt_path=str(folder / "half.ckpt") if resume else None)
    return module.net, trainer.optimizers[0].param_groups[0]["lr"]


def with_transformers(data: TensorDataset, epochs: int, folder: Path, resume: bool) -> tuple[nn.Module, float]:
    """`Trainer(optimizers=(opt, None))`: the scheduler is the Trainer's own."""
    import transformers

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Digits()
    opt, _ = prepared(model.net, 1)
    settings = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=BATCH, save_strategy="epoch",
        lr_scheduler_type="linear", max_grad_norm=0.0, use_cpu=True, report_to=[], disable_tqdm=True, seed=0,
        logging_strategy="no")
    rows = [{"x": x, "labels": y} for x, y in data]
    trainer = transformers.Trainer(model, settings, train_dataset=rows, optimizers=(opt, None))
    trainer.remove_callback(transformers.PrinterCallback)
    half = (epochs // 2) * -(-len(data) // BATCH)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{half}") if resume else None)
    return model.net, opt.param_groups[0]["lr"]


RUNS: dict[str, Callable[[TensorDataset, int, Path, bool], tuple[nn.Module, float]]] = {
    "accelerate": with_accelerate, "lightning": with_lightning, "transformers": with_transformers}
NEEDS = {"transformers": ("transformers", "accelerate")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images, an even number (8)")
    parser.add_argument("--only", action="append", choices=RUNS, help="one of them; may be repeated")
    arguments = parser.parse_args()
    if arguments.epochs < 2 or arguments.epochs % 2:
        parser.error(f"--epochs is an even number from 2 on, not {arguments.epochs}")
    torch.set_num_threads(1)  # the matrices are small: threads would wait for one another
    warnings.filterwarnings("ignore", module="lightning|transformers|torch.utils.data")
    data, test = load()
    images, digits = test.tensors
    failed = []
    print(f"{'':<14}{'accuracy':>10}{'rate at the end':>18}   resumed at half: the same weights", flush=True)
    for name in arguments.only or RUNS:
        missing = [package for package in NEEDS.get(name, (name,)) if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name:<14}{'not installed':>14}: {', '.join(missing)}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            net, rate = RUNS[name](data, arguments.epochs, Path(folder), False)
            again, _ = RUNS[name](data, arguments.epochs, Path(folder), True)
        same = all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
        with torch.no_grad():
            accuracy = float((net(images).argmax(1) == digits).float().mean())
        print(f"{name:<14}{accuracy:>10.2%}{rate:>18.3g}   {'yes' if same else 'NO'}", flush=True)
        if not (same and accuracy > FLOOR):
            failed.append(name)
    if failed:
        print(f"at or below {FLOOR:.0%}, or not the same after resuming: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
