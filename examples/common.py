"""What the example programs share: the digits, a perceptron in NumPy, command lines, tables and pictures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are too small for more

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUT = Path(__file__).parent / "out"


class Data(NamedTuple):
    x: np.ndarray  # (images, 64), standardised, float32
    y: np.ndarray  # (images,), 0 ... 9


def load(seed: int) -> tuple[Data, Data]:
    """The 1,797 digits, shuffled: 80 % to train on, 20 % to test with, standardised by the training images."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order]
    cut = int(0.8 * len(y))
    mean, std = x[:cut].mean(0), x[:cut].std(0)
    x = (x - mean) / np.where(std > 0, std, 1)
    return Data(x[:cut], y[:cut]), Data(x[cut:], y[cut:])


def minibatches(data: Data, size: int, rng: np.random.Generator) -> Iterator[Data]:
    """Minibatches without end, shuffled anew in every epoch."""
    while True:
        order = rng.permutation(len(data.y))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield Data(data.x[rows], data.y[rows])


def cross_entropy(z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean cross-entropy of the logits z (rows, classes) in nats, and its gradient by them."""
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(y))
    loss = -float(np.log(np.maximum(p[rows, y], 1e-30)).mean())
    p[rows, y] -= 1
    return loss, p / len(y)


class MLP:
    """A multilayer perceptron: ReLU between the layers; with `norm`, layer normalisation before each ReLU.

    `params` are W (out, in) and b (out) of every layer, and of hidden layers with `norm` the scale and the shift (out)
    behind it; `names` are their names, `grads` buffers of the same shapes that `backward` fills.
    """

    EPS = 1e-5  # added to the variance of a layer's outputs

    def __init__(self, layers: tuple[int, ...], rng: np.random.Generator, norm: bool = False) -> None:
        self.params: list[np.ndarray] = []
        self.names: list[str] = []
        self.starts: list[int] = []  # where the parameters of each layer begin
        self.norm, self.layers = norm, layers
        for i, (fan_in, fan_out) in enumerate(zip(layers, layers[1:])):
            self.starts.append(len(self.params))
            weight = rng.standard_normal((fan_out, fan_in)) * np.sqrt(2 / fan_in)
            self.params += [weight.astype(np.float32), np.zeros(fan_out, np.float32)]
            self.names += [f"layer{i}.weight", f"layer{i}.bias"]
            if norm and i < len(layers) - 2:
                self.params += [np.ones(fan_out, np.float32), np.zeros(fan_out, np.float32)]
                self.names += [f"layer{i}.scale", f"layer{i}.shift"]
        self.grads = [np.zeros_like(p) for p in self.params]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The outputs (rows, out) of the last layer; what `backward` needs is kept until the next call."""
        self._values, self._normal = [x], []  # inputs of the layers; normalised outputs and their deviations
        for i in self.starts:
            z = self._values[-1] @ self.params[i].T + self.params[i + 1]
            if i == self.starts[-1]:
                return z
            if self.norm:
                z = z - z.mean(1, keepdims=True)
                deviation = np.sqrt((z * z).mean(1, keepdims=True) + np.float32(self.EPS))
                z /= deviation
                self._normal.append((z, deviation))
                z = z * self.params[i + 2] + self.params[i + 3]
            self._values.append(np.maximum(z, 0))
        raise AssertionError("a perceptron has a layer")

    def backward(self, d: np.ndarray) -> None:
        """Fills `grads` from the gradient d (rows, out) of a loss by the outputs of the last `forward`."""
        for k, i in reversed(list(enumerate(self.starts))):
            if i != self.starts[-1]:
                d = d * (self._values[k + 1] > 0)
                if self.norm:
                    z, deviation = self._normal[k]
                    (d * z).sum(0, out=self.grads[i + 2])
                    d.sum(0, out=self.grads[i + 3])
                    d = d * self.params[i + 2]
                    d = (d - d.mean(1, keepdims=True) - z * (d * z).mean(1, keepdims=True)) / deviation
            np.matmul(d.T, self._values[k], out=self.grads[i])
            d.sum(0, out=self.grads[i + 1])
            d = d @ self.params[i]

    def loss(self, data: Data) -> float:
        """The mean cross-entropy in nats; its gradient goes into `grads`."""
        loss, d = cross_entropy(self.forward(data.x), data.y)
        self.backward(d)
        return loss

    def accuracy(self, data: Data) -> float:
        """The share of images that are classified right, 0 ... 1."""
        return float((self.forward(data.x).argmax(1) == data.y).mean())


def parser(text: str, picture: str) -> argparse.ArgumentParser:
    """A command line with --seed, --quick and --out; `text` is the program's docstring."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seed", type=int, default=0, help="of every random draw (default 0)")
    made.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    made.add_argument("--out", type=Path, default=OUT / picture, help="where the picture goes")
    return made


def progress(things: Iterable[Any]) -> Iterable[Any]:
    """The things, with a bar that says how many are done; none where it would fill a log."""
    return tqdm(things, leave=False, disable=None)


def verdict(problems: Sequence[str]) -> int:
    """The status with which a program ends: 1, and what is wrong on standard error, when its claims do not hold."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows of text under their heads; the last column is on the left, the others on the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join([c.rjust(w) for c, w in zip(row[:-1], widths)] + [row[-1]]) for row in cells]
    return "\n".join(lines)


def canvas(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure of that size in inches and its axes, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def tidy(*axes: Axes) -> None:
    """A light grid, and no frame on the right and above."""
    for a in axes:
        a.set_axisbelow(True)
        a.grid(alpha=0.3)
        a.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes the picture and says where it is."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"\npicture: {path}")
