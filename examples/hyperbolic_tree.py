"""Python's exceptions, a tree of 68 classes, in the Poincare disc: Riemannian Adam on `poincare_ball`.

    python examples/hyperbolic_tree.py
    python examples/hyperbolic_tree.py --edge 3 --steps 3000

Every class is a point, and the loss is the mean of (distance / (edge * distance in the tree) - 1)^2 over all pairs.
The points start at random near the origin; the wanted length of an edge grows while they spread.  The same loss in
the plane, with Adam, shows what the curvature is worth: the disc has room for all the children of one class, the
plane has not.  Distortion is the mean of |ratio - 1| over pairs, for ratio = distance / (its mean ratio * distance in
the tree), and the largest ratio over the smallest.  Ends with status 1 when the plane is as good as the disc.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from common import canvas, parser, save, table, verdict

import numpy as np
import thalweg as tw
from tqdm import trange

EPS = 1e-9  # the points stay so far inside the disc


class Embedding(NamedTuple):
    name: str
    points: np.ndarray  # (classes, 2)
    distances: np.ndarray  # (classes, classes)
    mean: float  # mean distortion
    worst: float  # largest ratio over the smallest
    sentence: str


def exceptions() -> tuple[list[str], list[int]]:
    """Names of the built-in exceptions, parents before children, and the index of each one's parent; -1 at the root."""
    names, parents = [], []

    def walk(cls: type, parent: int) -> None:
        names.append(cls.__name__)
        parents.append(parent)
        here = len(names) - 1
        for child in sorted(cls.__subclasses__(), key=lambda c: c.__name__):
            if child.__module__ == "builtins" and parents[here] == parent:
                walk(child, here)

    walk(BaseException, -1)
    return names, parents


def tree_distances(parents: list[int]) -> np.ndarray:
    """Edges between any two nodes, (nodes, nodes); parents come before children."""
    d = np.zeros((len(parents), len(parents)))
    for i, parent in enumerate(parents):
        if parent >= 0:
            d[i, :i] = d[:i, i] = d[parent, :i] + 1
    return d


def in_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, n) of points in the plane, and their gradients (n, n, 2) by the first point of each pair."""
    away = x[:, None] - x[None]
    d = np.sqrt((away**2).sum(2))
    return d, away / np.maximum(d, 1e-12)[:, :, None]


def in_disc(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in the Poincare disc: cosh d = 1 + 2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2)); gradients are Euclidean."""
    away, room = x[:, None] - x[None], 1 - (x * x).sum(1)
    u = 2 * (away**2).sum(2) / (room[:, None] * room)  # cosh d - 1
    slope = 1 / np.sqrt(np.maximum(u * (u + 2), 1e-24))  # of d by u
    by_x = 4 * away / (room[:, None] * room)[:, :, None] + (2 * u / room[:, None])[:, :, None] * x[:, None]
    return np.log1p(u + np.sqrt(u * (u + 2))), slope[:, :, None] * by_x


def embed(name: str, rule: str, measure: object, tree: np.ndarray, edge: float, steps: int, seed: int) -> Embedding:
    """One embedding by the rule of that name; `edge` is the length that an edge shall have at the end."""
    n = len(tree)
    x = np.random.default_rng(seed).uniform(-0.1, 0.1, (n, 2))
    sentence = rule.format(steps=steps)
    opt, pairs = tw.Optimizer([x], sentence), n * (n - 1)
    for k in trange(steps, desc=name.ljust(22), leave=False, mininterval=0.5, disable=None):
        wanted = min(edge, 0.3 + (edge - 0.3) * k / (0.7 * steps)) * tree + np.eye(n)
        d, by_x = measure(x)
        off = d / wanted - 1
        np.fill_diagonal(off, 0)
        opt.step([4 / pairs * ((off / wanted)[:, :, None] * by_x).sum(1)])
    d = measure(x)[0]
    ratio = (d / (tree + np.eye(n)))[np.triu_indices(n, 1)]
    ratio /= ratio.mean()
    return Embedding(name, x, d, float(np.abs(ratio - 1).mean()), float(ratio.max() / ratio.min()), sentence)


def geodesic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Points (25, 2) of the shortest way from a to b in the disc: b is moved to where a is the origin, and back."""
    x, y = complex(*a), complex(*b)
    w = (y - x) / (1 - x.conjugate() * y)
    z = np.tanh(np.linspace(0, 1, 25) * np.arctanh(min(abs(w), 1 - 1e-15))) * w / abs(w)
    z = (z + x) / (1 + x.conjugate() * z)
    return np.stack([z.real, z.imag], 1)


def plot(disc: Embedding, plane: Embedding, names: list[str], parents: list[int], where: object) -> None:
    figure, axes = canvas(1, 2, (13, 7.4))
    inner = {i for i in range(len(names)) if parents.count(i) >= 1}
    branch = list(range(len(names)))  # the ancestor below Exception, or below BaseException, that gives the colour
    for i, parent in enumerate(parents):
        branch[i] = i if parent < 0 or names[parent] in ("BaseException", "Exception") else branch[parent]
    big = [b for b in dict.fromkeys(branch) if branch.count(b) > 1]
    colours = [f"C{big.index(b)}" if b in big else "0.45" for b in branch]
    for a, e in zip(axes, (disc, plane)):
        for i, parent in enumerate(parents):
            if parent >= 0:
                line = geodesic(e.points[parent], e.points[i]) if e is disc else e.points[[parent, i]]
                a.plot(*line.T, color=colours[i], linewidth=1.1, alpha=0.8, zorder=1)
        a.scatter(*e.points.T, c=colours, s=[60 if i in inner else 18 for i in range(len(names))], zorder=2)
        low, high = e.points.min(0), e.points.max(0)
        middle, half = (low + high) / 2, 0.54 * (high - low).max()
        if e is disc:
            middle, half = np.zeros(2), 1.04
        for i in inner:
            x, y = e.points[i]
            beside = np.abs(e.points[i] - e.points[parents[i]]) / half
            near = parents[i] >= 0 and beside[0] < 0.15 and beside[1] < 0.06  # the label of the parent is above
            side = "left" if x - middle[0] < -0.75 * half else "right" if x - middle[0] > 0.75 * half else "center"
            a.annotate(names[i], (x, y), xytext=(0, -15 if near else 7), textcoords="offset points", fontsize=8,
                       ha=side, zorder=3,
                       bbox=dict(boxstyle="round,pad=0.15", facecolor="white", alpha=0.75, linewidth=0))
        a.set(aspect="equal", xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
        a.set_title(f"{e.name}\nmean distortion {e.mean:.1%}, worst ratio {e.worst:.1f}")
        a.axis("off")
    import matplotlib.patches as shapes

    axes[0].add_patch(shapes.Circle((0, 0), 1, fill=False, color="black", linewidth=1))
    figure.suptitle(f"The tree of Python's {len(names)} built-in exceptions; lines are shortest ways")
    save(figure, where)


def main() -> int:
    made = parser(__doc__, "hyperbolic_tree.png")
    made.add_argument("--edge", type=float, default=2.0, help="length of an edge in the disc that is drawn (default 2)")
    made.add_argument("--steps", type=int, default=2000, help="steps of an embedding (default 2000)")
    args = made.parse_args()
    if args.steps < 1 or not 0 < args.edge <= 5:
        made.error("--steps is at least 1, --edge is in (0, 5]")
    steps = 200 if args.quick else args.steps
    names, parents = exceptions()
    tree = tree_distances(parents)
    disc = f"poincare_ball(eps={EPS:g})"
    riemannian = "riemannian_adam(lr=cosine(lr=0.4, end=0.004, total={steps}), " + f"manifold={disc})"
    plane = embed("plane", "adam(lr=cosine(lr=0.1, end=0.001, total={steps}))", in_plane, tree, 1.0, steps, args.seed)
    edges = sorted({args.edge} if args.quick else {1.0, 3.0, args.edge})
    discs = {e: embed(f"disc, edges of {e:g}", riemannian, in_disc, tree, e, steps, args.seed) for e in edges}
    rows = [(f"{e.mean:.1%}", f"{e.worst:.2f}", f"{np.sqrt((e.points**2).sum(1)).max():.5f}", e.name, e.sentence)
            for e in (plane, *discs.values())]
    print(f"{len(names)} classes, {len(names) * (len(names) - 1) // 2} pairs, {int(tree.max())} edges at most\n")
    print(table(("distortion", "worst", "largest norm", "space", "sentence"), rows))
    plot(discs[args.edge], plane, names, parents, args.out)
    return verdict([] if discs[args.edge].mean < plane.mean else ["the plane is as good as the disc"])


if __name__ == "__main__":
    sys.exit(main())
