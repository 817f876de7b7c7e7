"""Accelerate, Lightning and Hugging Face's Trainer: a tiny model trains, is saved, and goes on as if nothing had happened."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
from torch_support import torch

import thalweg.torch as twt

# The recipe of the day: two rules with a rate each, which schedulers see as one "lr".
SENTENCE = "route(matrix=(muon(lr=0.02)), other=(adamw(lr=0.01)))"


def data(count: int = 32) -> Any:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, generator=generator)
    return torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())


def model() -> Any:
    torch.manual_seed(4)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def optimizers(net: Any) -> list[Any]:
    return [twt.AdamW(net.parameters(), lr=0.05), twt.Optimizer(net.named_parameters(), SENTENCE)]


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("which", [0, 1], ids=["AdamW", "route"])
def test_accelerate(which: int, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)

    def made() -> Any:
        net = model()
        opt = optimizers(net)[which]
        scheduler = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=8)
        return accelerator.prepare(net, opt, torch.utils.data.DataLoader(data(), batch_size=8), scheduler)

    def epoch(net: Any, opt: Any, loader: Any, scheduler: Any) -> float:
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(net(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            scheduler.step()
            opt.zero_grad()
        return loss.item()

    net, opt, loader, scheduler = made()
    epoch(net, opt, loader, scheduler)
    accelerator.save_state(str(tmp_path / "saved"))
    rate = opt.param_groups[0]["lr"]
    epoch(net, opt, loader, scheduler)
    after = copy.deepcopy(net)
    accelerator.load_state(str(tmp_path / "saved"))
    assert opt.optimizer.engine.steps == 4 and opt.param_groups[0]["lr"] == rate and not equal(net, after)
    epoch(net, opt, loader, scheduler)
    assert equal(net, after)
    accelerator.free_memory()


@pytest.mark.parametrize("which", [0, 1], ids=["AdamW", "route"])
def test_lightning(which: int, tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()
            self.rates: list[float] = []

        def training_step(self, batch: Any, index: int) -> Any:
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            opt = optimizers(self.net)[which]
            scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
            return {"optimizer": opt, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trained(epochs: int, ckpt: Any = None) -> Any:
        module = Module()
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, gradient_clip_val=1.0,
                                    **quiet)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of workers, and of a short loader
            trainer.fit(module, torch.utils.data.DataLoader(data(), batch_size=8), ckpt_path=ckpt)
        return trainer, module

    straight = trained(2)[1]
    assert straight.rates == pytest.approx([straight.rates[0] * 0.9**k for k in range(8)])
    trainer, _ = trained(1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    trainer, again = trained(2, tmp_path / "saved.ckpt")
    assert trainer.optimizers[0].engine.steps == 8 and equal(straight, again)


@pytest.mark.parametrize("which", [0, 1], ids=["AdamW", "route"])
def test_hugging_face_trainer(which: int, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Any, labels: Any = None) -> Any:
            logits = self.net(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": x, "labels": y} for x, y in data()]

    def trained(steps: int, resume: Any = None) -> Any:
        net = Net()
        opt = optimizers(net)[which]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=steps, per_device_train_batch_size=8, save_steps=4, use_cpu=True,
            report_to=[], logging_steps=1, disable_tqdm=True, seed=0, lr_scheduler_type="constant")
        trainer = transformers.Trainer(net, arguments, train_dataset=rows, optimizers=(opt, None))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, net, opt

    trainer, straight, opt = trained(8)
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert opt.engine.steps == 8 and rates == [opt.param_groups[0]["lr"]] * 8
    _, again, opt = trained(8, str(tmp_path / "out" / "checkpoint-4"))
    assert opt.engine.steps == 8 and equal(straight, again)


def test_hugging_face_makes_the_optimizer(tmp_path: Any) -> None:
    """optimizer_cls_and_kwargs, with weight decay by group as the Trainer sets it."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    net = model()
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], weight_decay=0.1)
    trainer = transformers.Trainer(net, arguments, optimizer_cls_and_kwargs=(twt.AdamW, dict(lr=0.01, betas=(0.9, 0.95))))
    opt = trainer.create_optimizer()
    opt = getattr(opt, "optimizer", opt)
    assert isinstance(opt, twt.AdamW) and [g["weight_decay"] for g in opt.param_groups] == [0.1, 0.0]
