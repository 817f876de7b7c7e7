"""What storing the state in 16 or 8 bits costs in quality: two trainings, several seeds, f32 against bf16 against q8.

digits   the task of examples/train_digits.py with a wider network
harder   the same digits made ill-conditioned: pixel j of the standardised image is scaled by 10^(-3 j / 63), so that the second
         moments within one row, and one block of 8-bit state, span six decades; a fifth of the training labels is wrong, the
         pixels are noisy, and the network is deeper
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .common import run_tasks, table

SENTENCES = {
    "sgd": "sgd(lr={rate}, momentum=0.9)",
    "adamw": "adamw(lr={rate}, weight_decay=0.01)",
    "lion": "lion(lr={rate}, weight_decay=0.1)",
    "ademamix": "ademamix(lr={rate}, weight_decay=0.01)",
    "adan": "adan(lr={rate}, weight_decay=0.01)",
    "adopt": "adopt(lr={rate})",
}
RATES = {"sgd": 0.05, "adamw": 2e-3, "lion": 3e-4, "ademamix": 1e-3, "adan": 3e-3, "adopt": 2e-3}
STORAGE = ("f32", "bf16", "q8")
TASKS = {"digits": (64, 256, 256, 10), "harder": (64, 256, 256, 256, 10)}
BATCH = 64


def example() -> Any:
    """The module examples/train_digits.py: the network and the data."""
    path = Path(__file__).resolve().parents[2] / "examples" / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Training(NamedTuple):
    """A network, what measures it, and the gradients of its steps."""

    model: Any
    test: Any
    steps: int
    gradients: Iterator[None]  # every item: the gradient of a new minibatch is in model.grads


def training(name: str, seed: int, epochs: int) -> Training:
    """The start of one training of TASKS; the same minibatches and the same noise for the same seed."""
    import numpy as np

    digits = example()
    train, test = digits.load(seed)
    rng = np.random.default_rng(seed + 1)
    noise = 0.0
    if name == "harder":
        scale = (10.0 ** (-3 * np.arange(64) / 63)).astype(np.float32)
        wrong = rng.random(len(train.y)) < 0.2
        labels = np.where(wrong, rng.integers(0, 10, len(wrong)), train.y)
        train, test, noise = digits.Data(train.x * scale, labels), digits.Data(test.x * scale, test.y), 0.3
    model = digits.MLP(TASKS[name], rng)

    def gradients() -> Iterator[None]:
        for batch in digits.minibatches(train, BATCH, rng):
            if noise:
                jitter = rng.standard_normal(batch.x.shape, np.float32) * np.float32(noise) * scale
                batch = digits.Data(batch.x + jitter, batch.y)
            model.loss(batch)
            yield

    return Training(model, test, epochs * (len(train.y) // BATCH), gradients())


def task(name: str, method: str, state_dtype: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training; the test loss in nats, the test accuracy and the bytes of state at its end."""
    import thalweg

    model, test, steps, gradients = training(name, seed, epochs)
    rate = f"warmup_cosine(peak={RATES[method]}, warmup={steps // 20}, total={steps})"
    opt = thalweg.Optimizer(model.params, SENTENCES[method].format(rate=rate), state_dtype=state_dtype, seed=seed)
    opt.bind_gradients(model.grads)
    for _ in range(steps):
        next(gradients)
        opt.step()
    accuracy = model.accuracy(test)
    return {"loss": model.loss(test), "accuracy": accuracy, "state": opt.memory_report().total}


def run(threads: list[int], quick: bool, repetitions: int) -> tuple[str, Any]:
    """(Markdown, raw results).  The results do not depend on the number of threads."""
    seeds, epochs = (2, 4) if quick else (5, 30)
    keys = [(name, method, dtype) for name in TASKS for method in SENTENCES for dtype in STORAGE]
    print(f"precision: {len(keys) * seeds} trainings", flush=True)
    tasks = [dict(name=n, method=m, state_dtype=d, seed=s, epochs=epochs) for n, m, d in keys for s in range(seeds)]
    results = list(run_tasks("precision", tasks, 1))
    raw = [t | r for t, r in zip(tasks, results)]
    parts = []
    for name, layers in TASKS.items():
        rows = []
        for method in SENTENCES:
            for dtype in STORAGE:
                runs = [r for r in raw if (r["name"], r["method"], r["state_dtype"]) == (name, method, dtype)]
                rows.append([method if dtype == "f32" else "", dtype, *summary(runs)])
        header = ["method", "state", "test loss (nats)", "test accuracy (%)", "bytes of state"]
        title = f"#### {name}: {'-'.join(map(str, layers))}, {epochs} epochs, mean and standard deviation of {seeds} seeds"
        parts.append(f"{title}\n\n{table(header, rows)}")
    return "\n\n".join(parts), raw


def summary(runs: list[dict[str, Any]]) -> list[str]:
    failed = [r["error"] for r in runs if "error" in r]
    if failed:
        return ["failed", failed[0], ""]

    def spread(values: list[float], digits: int) -> str:
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    loss, accuracy = [r["loss"] for r in runs], [100 * r["accuracy"] for r in runs]
    return [spread(loss, 4), spread(accuracy, 2), f"{runs[0]['state']:,}"]
