"""What monitors of Lightning and Hugging Face log of a schedule in the sentence: the rate that each step used; and
thalweg.torch.huggingface, for methods that ask for more than one gradient."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch_support import parameter, step, torch

import thalweg as tw
import thalweg.torch as twt

SENTENCE = "sgd(lr=linear(lr=1.0, end=0, total=8))"
RATES = [1 - k / 8 for k in range(8)]


def rows(count: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, generator=generator)
    return [{"x": row, "labels": (row.sum() > 0).long()} for row in x]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: Any, labels: Any = None) -> Any:
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Dropping(Net):
    def __init__(self, like: Any = None) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        if like is not None:
            self.load_state_dict(like)


def test_values_before_and_behind_a_step_are_those_of_torchs_scheduler() -> None:
    """torch's own scheduler beside torch's SGD, read at the same moments; both the rate of the next step."""
    p, q = parameter(0.0), parameter(0.0)
    ours, theirs = twt.Optimizer([p], SENTENCE), torch.optim.SGD([q], lr=1.0)
    scheduler, other = twt.SentenceLR(ours), torch.optim.lr_scheduler.LambdaLR(theirs, lambda k: 1 - k / 8)
    for _ in range(5):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        assert scheduler.get_last_lr() == other.get_last_lr()
        step(ours)
        step(theirs)
        assert scheduler.get_last_lr() == other.get_last_lr()
        scheduler.step()
        other.step()
        assert p.item() == q.item() and ours.param_groups[0]["lr"] == ours.engine.get("lr")
    again = twt.SentenceLR(ours)
    again.load_state_dict(scheduler.state_dict())
    assert again.get_last_lr() == scheduler.get_last_lr() and again.last_epoch == 5
    with pytest.raises(TypeError, match="SentenceLR is for optimizers of thalweg.torch, not for SGD"):
        twt.SentenceLR(theirs)


@pytest.mark.parametrize("scheduled", [False, True], ids=["alone", "SentenceLR"])
def test_the_monitor_of_lightning(scheduled: bool, tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers.logger import DummyLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            opt = twt.Optimizer(self.parameters(), SENTENCE)
            schedule = {"scheduler": twt.SentenceLR(opt), "interval": "step"}
            return {"optimizer": opt, "lr_scheduler": schedule} if scheduled else opt

    monitor = LearningRateMonitor("step")
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[monitor],
                                logger=DummyLogger(), log_every_n_steps=1, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, and of a short loader
        trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=2))
    assert monitor.lrs == {"lr-Optimizer": RATES}


def trainer_of(tmp_path: Any, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    kind = more.pop("kind", None) or transformers.Trainer
    own = {key: more.pop(key) for key in ("gradient_accumulation_steps", "max_grad_norm") if key in more}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, save_strategy="no", use_cpu=True,
        report_to=[], logging_steps=1, disable_tqdm=True, seed=0, lr_scheduler_type="constant", **{"max_grad_norm": 0.0, **own})
    return kind(more.pop("net"), arguments, train_dataset=rows(), **more)


def logged(trainer: Any, what: str = "learning_rate") -> list[float]:
    return [row[what] for row in trainer.state.log_history if what in row]


def test_the_logs_of_hugging_face(tmp_path: Any) -> None:
    net = Net()
    opt = twt.Optimizer(net.parameters(), SENTENCE)
    trainer = trainer_of(tmp_path, net=net, optimizers=(opt, twt.SentenceLR(opt)))
    trainer.train()
    assert logged(trainer) == RATES and opt.engine.steps == 8


def test_hugging_face_makes_the_optimizer_and_logs_its_rate(tmp_path: Any) -> None:
    """optimizer_cls_and_kwargs with a rate: it is the one that is used, and the state is seen afterwards."""
    trainer = trainer_of(tmp_path, net=Net(), optimizer_cls_and_kwargs=(twt.AdamW, dict(lr=0.03125)))
    trainer.train()
    assert logged(trainer) == [0.03125] * 8
    opt = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(opt, twt.AdamW) and opt.engine.steps == 8
    for p in trainer.model.parameters():
        assert {*opt.state[p]} >= {"step", "exp_avg", "exp_avg_sq"} and opt.state[p]["exp_avg"].abs().sum() > 0
    generic = trainer_of(tmp_path, net=Net(), optimizer_cls_and_kwargs=(
        twt.Optimizer, dict(sentence="clip_global_norm(1.0) | adamw", lr=0.03125)))
    generic.train()
    assert logged(generic) == [0.03125] * 8


def test_steps_within_the_backward_pass_of_hugging_face(tmp_path: Any) -> None:
    whole, parts = [trainer_of(tmp_path, net=Net(), optimizer_cls_and_kwargs=which) for which in (
        (twt.AdamW, dict(lr=0.03125)), (twt.InBackward, dict(make=twt.AdamW, lr=0.03125)))]
    parts.model.load_state_dict(whole.model.state_dict())
    whole.train()
    parts.train()
    opt = getattr(parts.optimizer, "optimizer", parts.optimizer)
    assert isinstance(opt, twt.InBackward) and {one.engine.steps for one in opt.optimizers} == {8}
    for p, q in zip(whole.model.parameters(), parts.model.parameters()):
        assert torch.equal(p, q) and q.grad is None


@pytest.mark.parametrize("clip, accumulated", [(0.0, 1), (0.25, 1), (0.0, 2)])
def test_sam_in_the_trainer_of_hugging_face(tmp_path: Any, clip: float, accumulated: int) -> None:
    """The weights and losses are those of a plain loop with a closure over the same minibatches, with the same dropout."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from thalweg.torch.huggingface import Asking

    sentence = "sam(0.5) | sgd(lr=0.5, momentum=0.5)"
    batches: list[Any] = []

    class Recording(transformers.Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *more: Any) -> Any:
            batches.append((inputs, torch.get_rng_state()))
            return super().training_step(model, inputs, *more)

    class Both(Asking, Recording):
        pass

    start = Dropping().state_dict()
    trainer = trainer_of(tmp_path, net=Dropping(start), kind=Both, gradient_accumulation_steps=accumulated,
                         max_grad_norm=clip, optimizer_cls_and_kwargs=(twt.Optimizer, dict(sentence=sentence)))
    trainer.train()
    net = Dropping(start)
    opt = twt.Optimizer(net.parameters(), sentence)
    losses = []
    # Each is seen twice, in the order of the step: all minibatches of the first gradient, then those of the second.
    assert len(batches) == 8 * accumulated * 2
    for k in range(0, len(batches), 2 * accumulated):
        first, second = batches[k : k + accumulated], batches[k + accumulated : k + 2 * accumulated]
        assert all(a is b and torch.equal(s, r) for (a, s), (b, r) in zip(first, second, strict=True))

        def closure() -> Any:
            opt.zero_grad()
            total = 0.0
            for batch, state in first:
                torch.set_rng_state(state)
                loss = net(**batch)["loss"] / accumulated
                loss.backward()
                total += loss.item()
            if clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            return total

        losses.append(opt.step(closure))
    assert opt.engine.steps == 8 and logged(trainer, "loss") == pytest.approx(losses, rel=1e-4)
    for p, q in zip(trainer.model.parameters(), net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("sentence, what", [
    ("gradient_accumulate(2) | sam(0.05) | sgd", "another minibatch"), ("adahessian", "'hessian_vector'")])
def test_what_the_trainer_of_hugging_face_cannot_answer(tmp_path: Any, sentence: str, what: str) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from thalweg.torch.huggingface import Trainer

    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    trainer = trainer_of(tmp_path, net=net, kind=Trainer, optimizer_cls_and_kwargs=(
        twt.Optimizer, dict(sentence=sentence)))
    with pytest.raises(tw.NeedsError, match=f"asks for (a )?{what}, and the Trainer has one minibatch"):
        trainer.train()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_the_trainer_leaves_methods_alone_that_ask_once(tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from thalweg.torch.huggingface import Trainer

    trainers = [trainer_of(tmp_path, net=Net(), kind=kind, optimizer_cls_and_kwargs=(
        twt.Optimizer, dict(sentence="adamw", lr=0.03125))) for kind in (Trainer, None)]
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    for trainer in trainers:
        trainer.train()
        assert logged(trainer) == [0.03125] * 8
    for p, q in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(p, q)


def test_averages_in_the_trainer_of_hugging_face(tmp_path: Any) -> None:
    """It calls eval() and train() of an optimizer that has them: evaluation sees the averages, training goes on."""
    net, twin = Net(), Net()
    opt = twt.Optimizer(net.parameters(), "sgd(lr=0.5) | ema(0.5)")
    trainer = trainer_of(tmp_path, net=net, optimizers=(opt, None), eval_dataset=rows(4))
    trainer.train()
    trained = [p.detach().clone() for p in net.parameters()]
    trainer.evaluate()
    assert not opt.engine.training and not torch.equal(net.layer.weight, trained[0])
    opt.train()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), trained, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
