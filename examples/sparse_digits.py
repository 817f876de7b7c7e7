"""Small networks for the digits, by six ways: l1, group lasso, N:M, RigL, AutoSparse and the nuclear norm.

    python examples/sparse_digits.py
    python examples/sparse_digits.py --only rigl --only "l1" --epochs 40

A 64-128-64-10 perceptron is trained with each method at several strengths.  Two are penalties whose prox sets weights
or whole rows to zero, one lowers the rank, one masks two or three of every four weights, and two find the pattern
while they train: RigL moves a fixed number of weights about, AutoSparse learns a threshold.  Counted are the zeros of
the three weight matrices, the ranks, and the bytes that hold them: as they are, as values and a bit an entry for the
pattern, or as two factors, whichever is least.  Ends with status 1 when no network of a quarter of the bytes is right
on 95 % of the test images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from common import MLP, canvas, load, minibatches, parser, progress, save, table, tidy, verdict

import numpy as np
import thalweg as tw

LAYERS = (64, 128, 64, 10)
BATCH = 64
FLOOR = 0.95  # test accuracy that a small network must have
SGD = "sgd(lr=cosine(lr=0.05, total={steps}), momentum=0.9)"


class Result(NamedTuple):
    method: str
    strength: str
    accuracy: float  # of the test images, 0 ... 1
    zeros: float  # share of the entries of the matrices
    ranks: list[int]
    size: int  # bytes of the matrices, in the least of three forms
    first: np.ndarray  # (128, 64): the matrix of the first layer


Gradients = Callable[[], None]  # fills model.grads from the next minibatch


def sentence(text: str) -> Callable[..., None]:
    """Training by a sentence alone, for the matrices; the rest has plain SGD."""

    def train(model: MLP, gradients: Gradients, steps: int, strength: str) -> None:
        whole = f"route(matrix=({text}), other=({SGD}))".replace("{strength}", strength).replace("{steps}", str(steps))
        opt = tw.Optimizer(model.params, whole, names=model.names)
        opt.bind_gradients(model.grads)
        for _ in range(steps):
            gradients()
            opt.step()

    return train


def rigl(model: MLP, gradients: Gradients, steps: int, strength: str) -> None:
    """A random pattern of that share of zeros in each matrix; RigL drops small weights and grows by large gradients."""
    opt = tw.Optimizer(model.params, SGD.replace("{steps}", str(steps)), names=model.names)
    move = tw.diagnostic(f"rigl(every=20, end_step={max(1, 3 * steps // 4)})")
    rng = np.random.default_rng(0)
    masks = {i: (rng.random(p.shape) >= float(strength)) for i, p in enumerate(model.params) if p.ndim == 2}
    for i, mask in masks.items():
        model.params[i] *= mask / np.sqrt(1 - float(strength), dtype=np.float32)  # outputs as large as the dense ones
    for step in range(steps):
        gradients()
        for i, mask in masks.items():  # the gradient of all weights, before what is masked loses its own
            w, g = model.params[i], model.grads[i]
            moved = move(w=w.ravel(), g=g.ravel(), mask=mask.ravel().astype(np.int32), step=step)
            w[...] = moved["weights"].reshape(w.shape)
            mask[...] = moved["active"].reshape(w.shape) != 0
            g *= mask
        opt.step(model.grads)
        for i, mask in masks.items():  # momentum moves what was dropped lately
            model.params[i] *= mask


def autosparse(model: MLP, gradients: Gradients, steps: int, strength: str) -> None:
    """The network has sign(w) max(|w| - T, 0) for w, with a trained threshold T = sigmoid(s) for each matrix."""
    which = [i for i, p in enumerate(model.params) if p.ndim == 2]
    shrink = [tw.objective(f"autosparse(total={steps}, alpha0=0.5)") for _ in which]
    dense = [p.copy() if i in which else p for i, p in enumerate(model.params)]
    logits = [np.array([-3], np.float32) for _ in which]  # thresholds of 0.05
    # Decay of s raises the thresholds, against the gradient; that is the strength.
    text = SGD.replace("momentum=0.9", "momentum=0.9, weight_decay=0").replace("{steps}", str(steps))
    groups = [{"params": dense, "name": "weights"}, {"params": logits, "name": "s", "weight_decay": float(strength)}]
    opt = tw.Optimizer(groups, text)

    def show() -> None:
        """Writes the effective weights into the network."""
        for i, s, method in zip(which, logits, shrink):
            cache = method.forward(w=dense[i], s=s.reshape(()), training=0)[1]
            model.params[i][...] = 0
            method.pullback(cache, effective=model.params[i])

    for _ in range(steps):
        show()
        gradients()
        grads, by_s = list(model.grads), []
        for i, s, method in zip(which, logits, shrink):
            found = method.value_and_grad(w=dense[i], s=s.reshape(()), g=model.grads[i])[1]
            grads[i] = found["w"]
            by_s.append(found["s"].reshape(1))
        opt.step(grads + by_s)
    show()


METHODS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {  # how to train, and the strengths
    "dense": (sentence(SGD), ("",)),
    "l1": (sentence(SGD + " | prox(l1({strength}))"), ("3e-3", "1e-2", "3e-2", "6e-2")),
    "group lasso": (sentence(SGD + " | prox(group_lasso({strength}, axis=row))"), ("3e-3", "1e-2", "2e-2", "3e-2")),
    "N:M": (sentence(SGD + " | nm_sparsity({strength})"), ("2, 4", "1, 4", "1, 8", "1, 16")),
    "RigL": (rigl, ("0.5", "0.75", "0.9", "0.95")),
    "AutoSparse": (autosparse, ("0.01", "0.03", "0.06", "0.1")),
    "nuclear norm": (sentence(SGD + " | prox(nuclear_norm({strength}))"), ("5e-2", "1e-1", "2e-1", "3e-1")),
}


def rank(w: np.ndarray) -> int:
    """Singular values above 1e-5 of the largest."""
    values = np.linalg.svd(w, compute_uv=False)
    return int((values > 1e-5 * values[0]).sum())


def stored(w: np.ndarray) -> int:
    """Bytes of a float32 matrix as it is, as values and a bit an entry, or as two factors of its rank: the least."""
    return min(4 * w.size, 4 * int((w != 0).sum()) + w.size // 8, 4 * rank(w) * sum(w.shape))


def run(method: str, strength: str, epochs: int, seed: int) -> Result:
    training, test = load(seed)
    rng = np.random.default_rng(seed + 1)
    model, batches = MLP(LAYERS, rng), minibatches(training, BATCH, rng)

    def gradients() -> None:
        model.loss(next(batches))

    METHODS[method][0](model, gradients, epochs * (len(training.y) // BATCH), strength)
    matrices = [p for p in model.params if p.ndim == 2]
    zeros = sum(int((m == 0).sum()) for m in matrices) / sum(m.size for m in matrices)
    ranks = [rank(m) for m in matrices]
    return Result(method, strength, model.accuracy(test), zeros, ranks, sum(map(stored, matrices)), matrices[0].copy())


def plot(results: list[Result], where: object) -> None:
    names = list(dict.fromkeys(r.method for r in results))
    shown = [n for n in names if n != "dense"]
    figure, _ = canvas(1, 1, (13, 8.6))
    figure.clear()
    grid = figure.add_gridspec(2, 1, height_ratios=(1.25, 1))
    above, below = grid[0].subgridspec(1, 2), grid[1].subgridspec(1, max(1, len(shown)))
    left, right = figure.add_subplot(above[0]), figure.add_subplot(above[1])
    for a, x in ((left, lambda r: 100 * r.zeros), (right, lambda r: r.size / 1000)):
        for i, name in enumerate(shown):
            own = sorted((r for r in results if r.method == name), key=x)
            a.plot([x(r) for r in own], [100 * r.accuracy for r in own], "o-", color=f"C{i}", linewidth=1.8, label=name)
        for r in results:
            if r.method == "dense":
                a.plot(x(r), 100 * r.accuracy, "k*", markersize=12, label="dense", zorder=3)
        a.set_ylabel("right on test images (%)")
    left.set(title="accuracy against zeros", xlabel="zeros in the weight matrices (%)")
    right.set(title="accuracy against bytes", xlabel="kilobytes of the weight matrices", xscale="log")
    ticks = [5, 10, 20, 50]
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.set_xlim(3, 80)
    right.minorticks_off()
    tidy(left, right)
    left.legend(frameon=False, loc="lower left")
    for i, name in enumerate(shown):
        own = [r for r in results if r.method == name]
        best = min([r for r in own if r.accuracy > FLOOR] or own, key=lambda r: r.size)
        a = figure.add_subplot(below[i])
        sizes = np.abs(best.first)
        top = np.quantile(sizes[sizes > 0], 0.98) if sizes.any() else 1
        a.imshow(sizes, cmap="magma_r", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        a.set_title(f"{name} ({best.strength})\n{best.size / 1000:.1f} kB, {best.accuracy:.1%}", fontsize=10)
        a.set_xticks([]), a.set_yticks([])
        a.set_xlabel("64 pixels")
        if not i:
            a.set_ylabel("128 units of the first layer")
    figure.suptitle(f"Digits, {'-'.join(map(str, LAYERS))} perceptron: small networks by six ways "
                    f"(below: the smallest above {FLOOR:.0%})")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "sparse_digits.png")
    made.add_argument("--only", action="append", choices=list(METHODS), help="train with this method; may be repeated")
    made.add_argument("--epochs", type=int, default=30, help="passes over the training images (default 30)")
    args = made.parse_args()
    if args.epochs < 1:
        made.error("--epochs is at least 1")
    epochs = 6 if args.quick else args.epochs
    runs = [(m, s) for m in args.only or METHODS for s in METHODS[m][1]]
    if args.quick:  # the third strength of each
        runs = [(m, s) for m, s in runs if s in (*METHODS[m][1][2:3], "")]
    results = [run(m, s, epochs, args.seed) for m, s in progress(runs)]
    rows = [(f"{r.accuracy:.2%}", f"{r.zeros:.1%}", "-".join(map(str, r.ranks)), f"{r.size:,}", r.strength, r.method)
            for r in results]
    print(table(("accuracy", "zeros", "ranks", "bytes", "strength", "method"), rows))
    plot(results, args.out)
    dense = 4 * sum(a * b for a, b in zip(LAYERS, LAYERS[1:]))
    small = any(r.accuracy > FLOOR and r.size < dense / 4 for r in results)
    return verdict([] if small else [f"no network of {dense // 4:,} bytes or less is right on {FLOOR:.0%}"])


if __name__ == "__main__":
    sys.exit(main())
