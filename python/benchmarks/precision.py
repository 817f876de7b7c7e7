"""What storing the state in 16 or 8 bits costs in quality, f32 against bf16 against q8: two trainings, several seeds,
and gradients that drop.

digits   the task of examples/train_digits.py with a wider network
harder   the same digits made ill-conditioned: pixel j of the standardised image is scaled by 10^(-3 j / 63), so that
         the second moments within one row, and one block of 8-bit state, span six decades; a fifth of the training
         labels is wrong, the pixels are noisy, and the network is deeper
drop     4,096 normal gradients, 2,000 steps, and then 8,000 steps of a tenth or a hundredth of them: averages with slow
         rates must fall.  In "beside" one gradient of each block of 8-bit state stays as large as it was
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

# sentence, and the buffer that falls
DROPPING = {
    "adamw, beta2 0.999": ("adamw(lr=1e-3)", "exp_avg_sq"),
    "adamw, beta2 0.9999": ("adamw(lr=1e-3, beta2=0.9999)", "exp_avg_sq"),
    "adamax, beta2 0.999": ("adamax(lr=1e-3)", "exp_inf"),
    "rmsprop, alpha 0.999": ("rmsprop(lr=1e-3, alpha=0.999)", "square_avg"),
    "adadelta, rho 0.999": ("adadelta(lr=1, rho=0.999)", "square_avg"),
    "adagrad": ("adagrad(lr=1e-3)", "sum"),
    "sgd, momentum 0.99": ("sgd(lr=1e-3, momentum=0.99)", "momentum_buffer"),
    "sgd, momentum 0.999": ("sgd(lr=1e-3, momentum=0.999)", "momentum_buffer"),
    "ademamix, beta3 0.9999": ("ademamix(lr=1e-3, beta3=0.9999)", "exp_avg_slow"),
}
DROPS = {"tenfold": 0.1, "hundredfold": 0.01, "tenfold, beside": 0.1}
BLOCK = 256


def example() -> Any:
    """The module examples/common.py: the network and the data."""
    path = Path(__file__).resolve().parents[2] / "examples" / "common.py"
    spec = importlib.util.spec_from_file_location("examples_common", path)
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


def task(what: str, **arguments: Any) -> dict[str, Any]:
    """One measurement: "train" or "drop"."""
    return {"train": train, "drop": drop}[what](**arguments)


def train(name: str, method: str, state_dtype: str, seed: int, epochs: int) -> dict[str, Any]:
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


def drop(name: str, method: str, quick: bool) -> dict[str, Any]:
    """What bf16 and q8 make of gradients that drop, each beside the f32 run on the same gradients.

    `moved` is the mean distance that an element moves after the drop, over that of f32; `off` the root of the mean
    square of the difference of the two ways, over that of f32's way; `state` the median of the falling buffer over that
    of f32.
    """
    import numpy as np
    import thalweg

    sentence, buffer = DROPPING[method]
    small = np.arange(4096) % BLOCK > 0 if "beside" in name else np.full(4096, True)

    def way(state_dtype: str) -> tuple[Any, float]:
        rng, w = np.random.default_rng(0), np.zeros(4096, np.float32)
        g = np.zeros_like(w)
        opt = thalweg.Optimizer([w], sentence, state_dtype=state_dtype)
        opt.bind_gradients([g])
        for scale, steps in ((1.0, 2000), (DROPS[name], 8000)):
            start = w.copy()
            for _ in range(steps // 20 if quick else steps):
                g[:] = rng.standard_normal(w.size, np.float32)
                g[small] *= np.float32(scale)
                opt.step()
        state = next(v[0] for k, v in opt.state().items() if k.endswith("." + buffer))
        return (w - start)[small].astype(np.float64), float(np.median(np.abs(state[small])))

    right, exact = way("f32")
    result = {}
    for state_dtype in STORAGE[1:]:
        ours, state = way(state_dtype)
        result[state_dtype] = {
            "moved": float(np.abs(ours).mean() / np.abs(right).mean()),
            "off": float(np.sqrt(np.mean((ours - right) ** 2) / np.mean(right**2))),
            "state": state / exact,
        }
    return result


def run(threads: list[int], quick: bool, repetitions: int) -> tuple[str, Any]:
    """(Markdown, raw results).  The results do not depend on the number of threads."""
    seeds, epochs = (2, 4) if quick else (5, 30)
    keys = [(name, method, dtype) for name in TASKS for method in SENTENCES for dtype in STORAGE]
    print(f"precision: {len(keys) * seeds} trainings", flush=True)
    common = dict(what="train", epochs=epochs)
    tasks = [dict(name=n, method=m, state_dtype=d, seed=s, **common) for n, m, d in keys for s in range(seeds)]
    falls = [dict(what="drop", name=n, method=m, quick=quick) for n in DROPS for m in DROPPING]
    results = list(run_tasks("precision", tasks + falls, 1))
    fallen = [t | r for t, r in zip(falls, results[len(tasks) :])]
    raw = [t | r for t, r in zip(tasks, results)]
    parts = []
    for name in TASKS:
        rows = []
        for method in SENTENCES:
            for dtype in STORAGE:
                runs = [r for r in raw if (r["name"], r["method"], r["state_dtype"]) == (name, method, dtype)]
                rows.append([method if dtype == "f32" else "", dtype, *summary(runs)])
        header = ["method", "state", "test loss (nats)", "test accuracy (%)", "bytes of state"]
        parts.append(f"{heading(name, epochs, seeds)}\n\n{table(header, rows)}")
    header = ["method", "state", *(f"{n}: {what}" for n in DROPS for what in ("moved", "off", "state"))]
    rows = []
    for method in DROPPING:
        for dtype in STORAGE[1:]:
            cells = [f.get(dtype, {}) for f in fallen if f["method"] == method]
            numbers = [f"{c[what]:.2f}" if c else "failed" for c in cells for what in ("moved", "off", "state")]
            rows.append([method if dtype == "bf16" else "", dtype, *numbers])
    parts.append(f"#### drop: gradients that drop, each number over that of f32\n\n{table(header, rows)}")
    return "\n\n".join(parts), raw + fallen


def heading(name: str, epochs: int, seeds: int) -> str:
    """What a table of the trainings of one of TASKS shows."""
    layers = "-".join(map(str, TASKS[name]))
    return f"#### {name}: {layers}, {epochs} epochs, mean and standard deviation of {seeds} seeds"


def summary(runs: list[dict[str, Any]]) -> list[str]:
    failed = [r["error"] for r in runs if "error" in r]
    if failed:
        return ["failed", failed[0], ""]

    def spread(values: list[float], digits: int) -> str:
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    loss, accuracy = [r["loss"] for r in runs], [100 * r["accuracy"] for r in runs]
    return [spread(loss, 4), spread(accuracy, 2), f"{runs[0]['state']:,}"]
