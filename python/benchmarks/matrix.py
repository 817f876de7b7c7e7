"""Matrix and second-order methods on matrices of 1024 x 1024, beside torch, pytorch_optimizer and plain torch forms.

The costs of one matrix do not depend on how many there are, so what takes seconds a step is measured on one of the
sixteen; what walks through memory is measured on all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import cases
from .cases import BEST, LOOP, OURS, PRODUCT, Builders, Candidate, Case, loop, moving, normal, ours, torch_steps
from .common import Shapes

LR = 1e-3
ROWS = 512  # of the activations and of the gradients behind a layer
QUINTIC = (3.4445, -4.7750, 2.0315)


def task(**arguments: Any) -> dict[str, Any]:
    return cases.task(CASES, **arguments)


def run(threads: list[int], quick: bool, repetitions: int, only: str = "") -> tuple[str, Any]:
    return cases.run("matrix", threads, quick, repetitions, only)


def squares(count: int, quick: bool) -> Shapes:
    return [(128, 128) if quick else (1024, 1024)] * count


def products(shapes: Shapes, each: float) -> float:
    """Operations of `each` products of square matrices a tensor."""
    return sum(each * 2 * a**3 for a, _ in shapes)


def in_torch(name: str, **options: Any) -> Callable[[list[Any]], Any]:
    def make(tensors: list[Any]) -> Any:
        import torch

        return getattr(torch.optim, name)(tensors, **options)

    return make


def in_pytorch_optimizer(name: str, group: dict[str, Any] | None = None, **options: Any) -> Callable[[list[Any]], Any]:
    def make(tensors: list[Any]) -> Any:
        from pytorch_optimizer import load_optimizer

        return load_optimizer(name)([{"params": tensors, **(group or {})}], **options)

    return make


def sgemm(n: int) -> Callable[[], Candidate]:
    """A product of this side by torch, float32."""

    def build() -> Candidate:
        import torch

        a, b = torch.randn(n, n), torch.randn(n, n)
        out = torch.empty(n, n)
        return Candidate(lambda: torch.mm(a, b, out=out), flops=2.0 * n**3)

    return build


# ---- whole products: Muon, Scion


def narrow(build: Callable[[], Candidate], quick: bool) -> Callable[[], Candidate]:
    """For candidates that multiply in bfloat16: without instructions for it torch needs a minute a step."""

    def checked() -> Candidate:
        info = Path("/proc/cpuinfo")
        if not quick and info.exists() and "flags" in (text := info.read_text()) and "_bf16" not in text:
            raise RuntimeError("this processor does not multiply bfloat16")
        return build()

    return checked


def muon(precision: str, quick: bool) -> Builders:
    shapes = squares(1, quick)
    work = products(shapes, 15)  # five iterations of three
    return {
        OURS: ours(f"muon(lr={LR}, ns_precision={precision})", shapes, flops=work),
        "torch.optim.Muon": narrow(torch_steps(in_torch("Muon", lr=LR), shapes, flops=work), quick),
        "pytorch_optimizer": narrow(torch_steps(
            in_pytorch_optimizer("muon", {"use_muon": True}, lr=LR, weight_decay=0.1), shapes, flops=work), quick),
        "torch, f32 products": plain_muon(shapes, work),
        f"{PRODUCT}, {shapes[0][0]}": sgemm(shapes[0][0]),
    }  # fmt: skip


def plain_muon(shapes: Shapes, work: float) -> Callable[[], Candidate]:
    """For processors that do not multiply bfloat16: Muon's rule in torch, products in float32."""

    def build() -> Candidate:
        import torch

        (w,), (g,) = normal(shapes)
        rule = batched_muon(torch.from_numpy(w)[None], torch.from_numpy(g)[None], 0.1)

        def step(_: int) -> None:
            with torch.no_grad():
                rule()

        return moving(step, [w], 1, work)

    return build


def scion(quick: bool) -> Builders:
    shapes = squares(1, quick)
    work = products(shapes, 15)
    return {
        OURS: ours(f"scion(lr={LR}, norm=spectral, unconstrained=true, ns_precision=bf16)", shapes, flops=work),
        "pytorch_optimizer": narrow(torch_steps(in_pytorch_optimizer("scion", lr=LR), shapes, flops=work), quick),
    }  # fmt: skip


# ---- Kronecker factors


def soap(precision: str, quick: bool) -> Builders:
    shapes, steps = squares(1, quick), 10
    # gradient and update turned on both sides, both Gram matrices; the bases apart
    work = steps * products(shapes, 6)
    return {
        OURS: ours(f"soap(lr=3e-3, weight_decay=0, precondition_frequency=10, products={precision})", shapes, steps, work, steps),
        "pytorch_optimizer": torch_steps(in_pytorch_optimizer(
            "soap", lr=3e-3, weight_decay=0.0, precondition_frequency=10), shapes, steps, work, steps),
    }  # fmt: skip


def shampoo(quick: bool) -> Builders:
    shapes, steps = squares(1, quick), 10
    work = steps * products(shapes, 4)
    return {
        OURS: ours(f"shampoo(lr={LR}, eps=0.01, precondition_frequency=10)", shapes, steps, work),
        "pytorch_optimizer": torch_steps(in_pytorch_optimizer(
            "shampoo", lr=LR, momentum=0.0, matrix_eps=0.01, preconditioning_compute_steps=10), shapes, steps, work),
    }  # fmt: skip


def psgd_kron(precision: str, quick: bool) -> Builders:
    """A fit in every step; both draw their vectors at random."""
    shapes = squares(1, quick)
    peer = torch_steps(in_pytorch_optimizer("kron", lr=LR, pre_conditioner_update_probability=1.0), shapes)
    return {
        OURS: ours(f"psgd_kron(lr={LR}, update_prob=1, products={precision})", shapes),
        "pytorch_optimizer": lambda: Candidate(peer().step),
    }  # fmt: skip


def kfac(precision: str, quick: bool) -> Builders:
    """Averages of the factors of 512 rows in every step, damped inverses in every tenth."""
    shapes, steps, decay, damping, rate, momentum = squares(1, quick), 10, 0.95, 1e-2, 0.1, 0.9
    n = shapes[0][0]
    rng = np.random.default_rng(11)
    inputs, slopes = rng.standard_normal((ROWS, n), np.float32), rng.standard_normal((ROWS, n), np.float32) / ROWS
    # both factors, the gradient multiplied on both sides
    work = steps * (2 * 2.0 * ROWS * n**2 + products(shapes, 2))

    def answer(request: Any, gradients: list[np.ndarray]) -> None:
        if request.kind == "activations":
            request.answer_matrix(inputs, slopes)
        else:
            request.answer(gradients)

    def by_torch() -> Candidate:
        import torch

        params, grads = normal(shapes)
        w, g = torch.from_numpy(params[0]), torch.from_numpy(grads[0])
        a, d = torch.from_numpy(inputs), torch.from_numpy(slopes)
        averages: list[Any] = []
        inverses: list[Any] = []
        buffer: list[Any] = []
        count = 0

        def step(_: int) -> None:
            nonlocal count
            # the mean over the rows; the slopes are those of a mean
            factors = a.T @ a / ROWS, d.T @ d * ROWS
            if not averages:
                averages[:] = factors
            else:
                for average, factor in zip(averages, factors):
                    average.mul_(decay).add_(factor, alpha=1 - decay)
            if count % 10 == 0:
                traces = [float(average.trace()) for average in averages]
                pi = (traces[0] / traces[1]) ** 0.5
                inverses[:] = [
                    torch.cholesky_inverse(torch.linalg.cholesky(average + part * damping**0.5 * torch.eye(n)))
                    for average, part in zip(averages, (pi, 1 / pi))]
            count += 1
            v = inverses[1] @ g @ inverses[0]
            if not buffer:
                buffer.append(v.clone())
            else:
                buffer[0].mul_(momentum).add_(v)
            w.sub_(buffer[0], alpha=rate)

        return moving(step, params, steps, work)

    sentence = (f"kfac(lr={rate}, damping={damping}, factor_decay={decay}, inv_update_steps=10, kl_clip=none, "
                f"momentum={momentum}, products={precision})")
    return {OURS: ours(sentence, shapes, steps, work, answer=answer), "torch": by_torch}


# ---- diagonal Hessians, subspaces, factored moments


def given(shapes: Shapes) -> list[np.ndarray]:
    """A Hessian-vector product that is ready."""
    return [np.abs(a) for a in normal(shapes)[0]]


def diagonal(name: str, quick: bool) -> Builders:
    """The product is given: the vector drawn for it is ours to draw, theirs leave it out."""
    shapes = squares(4 if quick else 16, quick)
    ready = given(shapes)

    def answer(request: Any, gradients: list[np.ndarray]) -> None:
        request.answer(ready if request.kind == "hessian_vector" else gradients, stay=True)

    def hessian() -> Any:
        import torch

        return [torch.from_numpy(a) for a in ready]

    # the squares of both are those of the product, whatever the signs that are drawn for it; Sophia's are not
    if name == "adahessian":
        mine = ours("adahessian(lr=0.05, eps=1e-3)", shapes, answer=answer)
        peer = torch_steps(in_pytorch_optimizer("adahessian", lr=0.05, eps=1e-3), shapes, hessian=hessian)
    else:
        mine = ours("sophia(lr=0.01, gamma=0.01, weight_decay=0, interval=1, probe=rademacher)", shapes, answer=answer)
        steps = torch_steps(in_pytorch_optimizer("sophiah", lr=0.01, update_period=1), shapes, hessian=hessian)

        def peer() -> Candidate:
            return Candidate(steps().step)

    return {OURS: mine, LOOP: loop("walk", 3, shapes), "pytorch_optimizer": peer}  # gradient, product, two moments


def galore(quick: bool) -> Builders:
    """A whole period of one subspace: 200 steps of one matrix."""
    shapes, steps, rank = squares(1, quick), 200, 16 if quick else 128
    group = {"rank": rank, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
    return {
        OURS: ours(f"galore(lr={LR}, rank={rank}, update_proj_gap=200)", shapes, steps),
        LOOP: loop("walk", 0, shapes, steps),
        "pytorch_optimizer": torch_steps(in_pytorch_optimizer("galore", group, lr=LR), shapes, steps),
    }  # fmt: skip


def factored(name: str, quick: bool) -> Builders:
    shapes = squares(4 if quick else 16, quick)
    if name == "came":
        return {
            OURS: ours("came(lr=2e-4)", shapes), LOOP: loop("walk", 1, shapes),
            "pytorch_optimizer": torch_steps(in_pytorch_optimizer("came", lr=2e-4), shapes),
        }  # fmt: skip
    own = in_pytorch_optimizer("adafactor", lr=0.01, betas=(None, 0.999), relative_step=False)
    return {
        OURS: ours("adafactor(lr=0.01)", shapes), LOOP: loop("walk", 0, shapes),
        "torch": torch_steps(in_torch("Adafactor", lr=0.01, foreach=True), shapes),
        "pytorch_optimizer": lambda: Candidate(torch_steps(own, shapes)().step),  # another rule for the step size
    }  # fmt: skip


# ---- Lanczos


def lanczos(quick: bool) -> Builders:
    """32 steps on a diagonal, reorthogonalised in full twice."""
    n, steps = 50_000 if quick else 1_000_000, 32
    rng = np.random.default_rng(12)
    diagonal, start = rng.uniform(0, 1, n).astype(np.float32), rng.standard_normal(n, np.float32)

    def build() -> Candidate:
        import thalweg

        solver, found = thalweg.solver(f"lanczos(steps={steps})"), [None]

        def step() -> None:
            found[0] = solver.run(start=start, product=lambda v: diagonal * v).alpha

        return Candidate(step, lambda: found[0])

    def by_numpy() -> Candidate:
        alphas = np.zeros(steps)

        def step() -> None:
            basis = np.empty((steps + 1, n), np.float32)
            basis[0] = start / np.linalg.norm(start)
            for j in range(steps):
                w = diagonal * basis[j]
                alphas[j] = w @ basis[j]
                for _ in range(2):
                    w -= (basis[: j + 1] @ w) @ basis[: j + 1]
                basis[j + 1] = w / np.linalg.norm(w)

        return Candidate(step, lambda: alphas)

    # the rows so far, four times in each step: as often as half of all rows, twice as often as there are steps
    return {OURS: build, LOOP: loop("read", 0, [(steps // 2, n)], 4 * steps), "NumPy": by_numpy}


# ---- many equal small matrices


def small(method: str, count: int, side: int, quick: bool) -> Builders:
    """torch takes them as one batch."""
    count = count // 16 if quick else count
    shapes: Shapes = [(side, side)] * count
    if method == "muon":
        sentence, steps, work = f"muon(lr={LR}, weight_decay=0)", 1, products(shapes, 15)
    else:
        sentence, steps, work = f"shampoo(lr={LR}, eps=0.01, precondition_frequency=10)", 10, 10 * products(shapes, 4)

    def by_torch() -> Candidate:
        import torch

        w, g = (torch.from_numpy(np.stack(group)) for group in normal(shapes))
        rule = (batched_muon if method == "muon" else batched_shampoo)(w, g)

        def step(_: int) -> None:
            with torch.no_grad():
                rule()

        batch = moving(step, [w.numpy()], steps, work)
        return Candidate(batch.step, lambda: list(batch.result()[0]), work)

    return {OURS: ours(sentence, shapes, steps, work), LOOP: loop("walk", 1, shapes, steps), "torch, batched": by_torch}


def batched_muon(w: Any, g: Any, decay: float = 0.0) -> Callable[[], None]:
    """Newton-Schulz by torch.bmm, float32."""
    import torch

    a, b, c = QUINTIC
    momentum = torch.zeros_like(w)

    def rule() -> None:
        momentum.mul_(0.95).add_(g)
        x = g + 0.95 * momentum
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(5):
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        w.mul_(1 - LR * decay).sub_(x, alpha=LR)

    return rule


def batched_shampoo(w: Any, g: Any) -> Callable[[], None]:
    """Gram matrices and products by torch.bmm, fourth roots by a batched eigendecomposition in every tenth step."""
    import torch

    n = w.shape[-1]
    sums = [0.01 * torch.eye(n).repeat(len(w), 1, 1) for _ in range(2)]
    roots = [torch.eye(n).repeat(len(w), 1, 1) for _ in range(2)]
    count = 0

    def rule() -> None:
        nonlocal count
        sums[0].baddbmm_(g, g.mT)
        sums[1].baddbmm_(g.mT, g)
        count += 1
        if count == 1 or count % 10 == 0:
            for k, total in enumerate(sums):
                values, vectors = torch.linalg.eigh(total)
                roots[k] = torch.bmm(vectors * values.clamp(min=1e-12).pow(-0.25)[:, None], vectors.mT)
        w.sub_(torch.bmm(torch.bmm(roots[0], g), roots[1]), alpha=LR)

    return rule


ONE = "one of sixteen 1024 x 1024"
CASES: dict[str, Case] = {
    "muon, bf16": Case(f"`muon`, bf16 products, {ONE}", partial(muon, "bf16"), {"torch.optim.Muon": 0.65}, 0.1),
    "muon, f32": Case(f"`muon`, f32 products, {ONE}", partial(muon, "working"), {"torch.optim.Muon": 1.2}, 0.1),
    "scion": Case(f"`scion`, bf16 products, {ONE}", scion, {BEST: 0.65}, 0.1),
    "soap": Case(f"`soap`, ten steps, bases in one, {ONE}", partial(soap, "working"), {BEST: 0.5}, 0.2, steps=10),
    "soap, bf16": Case(f"`soap`, bf16 products, {ONE}", partial(soap, "bf16"), {BEST: 0.25}, 0.5, steps=10),
    "shampoo": Case(f"`shampoo`, ten steps, roots in one, {ONE}", shampoo, {BEST: 0.5}, 5e-2, steps=10),
    "psgd_kron": Case(f"`psgd_kron`, a fit a step, {ONE}", partial(psgd_kron, "working"), {BEST: 0.5}),
    "psgd_kron, bf16": Case(f"`psgd_kron`, bf16 products, {ONE}", partial(psgd_kron, "bf16"), {BEST: 0.3}),
    "kfac": Case(
        f"`kfac`, ten steps of 512 rows, inverses in one, {ONE}", partial(kfac, "working"), {BEST: 0.9}, 5e-2, steps=10),
    "kfac, bf16": Case(f"`kfac`, bf16 products, {ONE}", partial(kfac, "bf16"), {BEST: 0.5}, 5e-2, steps=10),
    "adahessian": Case("`adahessian`, product given, sixteen", partial(diagonal, "adahessian"), {BEST: 0.4}),
    "sophia": Case("`sophia`, product given, sixteen", partial(diagonal, "sophia"), {BEST: 0.35}),
    "galore": Case(f"`galore` of rank 128, 200 steps, {ONE}", galore, {BEST: 0.5}, 5e-2, steps=200),
    "came": Case("`came`, sixteen", partial(factored, "came"), {BEST: 0.3}, 1e-3),
    "adafactor": Case("`adafactor`, sixteen", partial(factored, "adafactor"), {"pytorch_optimizer": 0.2}, 1e-3),
    "lanczos": Case("`lanczos`, 32 steps on 1 M", lanczos, {"NumPy": 0.6}, 1e-4),
    **{f"{method}, {count} of {side}": Case(
        f"`{method}`, {count} of {side} x {side}" + (", roots in one step of ten" if method == "shampoo" else ""),
        partial(small, method, count, side), {"torch, batched": 0.3}, 1e-2, steps=10 if method == "shampoo" else 1)
       for method in ("muon", "shampoo") for count, side in ((4096, 16), (512, 64))},
}  # fmt: skip
