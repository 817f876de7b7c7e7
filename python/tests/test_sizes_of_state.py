"""What methods that save memory keep, counted by `memory_report` beside the formulas of their papers, in float32.

Counts are exact: no number here is a measurement.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest

import thalweg as tw

R = 128  # the rank of subspaces, an eighth of the shorter side
Count = Callable[[int, int, int], float]

# Numbers kept for a matrix of m rows and n columns, in a subspace of r directions where there is one.
KEPT: dict[str, Count] = {
    "adamw": lambda m, n, r: 2 * m * n,
    "galore(rank={r})": lambda m, n, r: r * min(m, n) + 2 * r * max(m, n),
    "coap(rank={r})": lambda m, n, r: r * min(m, n) + 2 * r * max(m, n),
    # with moments of the projector
    "online_subspace_descent(rank={r})": lambda m, n, r: 3 * r * min(m, n) + 2 * r * max(m, n),
    "online_subspace_descent(rank={r}, proj_opt=sgd)": lambda m, n, r: r * min(m, n) + 2 * r * max(m, n),
    "apollo(rank={r})": lambda m, n, r: 2 * r * max(m, n) + 1,  # the projector is drawn again; a norm
    "apollo(rank=1, scale_type=tensor, scale=128)": lambda m, n, r: 2 * max(m, n) + 1,  # the mini of the paper
    "dct_adamw(rank={r})": lambda m, n, r: 2 * r * max(m, n) + r,  # columns of a transform are numbers
    "dct_adamw(rank={r}, error_feedback=true)": lambda m, n, r: 2 * r * max(m, n) + r + m * n,
    "adafactor": lambda m, n, r: m + n,
    "came": lambda m, n, r: m * n + 2 * (m + n),
    "sm3": lambda m, n, r: m + n,
    "sm3(momentum=0.9)": lambda m, n, r: m * n + m + n,
    "adam_mini": lambda m, n, r: m * n + m,
    "adam_mini(blocks=head, heads=16)": lambda m, n, r: m * n + 16,
    "lion": lambda m, n, r: m * n,
}
# Bytes an element at 1024 x 4096, beside the 8 of adamw.
SMALL = {
    "galore(rank={r})": 1.125, "coap(rank={r})": 1.125, "online_subspace_descent(rank={r})": 1.375,
    "apollo(rank={r})": 1.00001, "apollo(rank=1, scale_type=tensor, scale=128)": 0.008, "dct_adamw(rank={r})": 1.0002,
    "adafactor": 0.005, "sm3": 0.005, "came": 4.01, "adam_mini": 4.001, "lion": 4,
}  # fmt: skip


def kept(sentence: str, *shapes: tuple[int, ...]) -> int:
    with tw.Optimizer([np.zeros(s, np.float32) for s in shapes], sentence) as opt:
        return opt.memory_report().total


@pytest.mark.parametrize("sentence", KEPT)
def test_the_report_counts_what_the_formula_counts(sentence: str) -> None:
    for m, n in ((1024, 4096), (4096, 1024), (1024, 1024)):
        assert kept(sentence.format(r=R), (m, n)) == 4 * KEPT[sentence](m, n, R)
    adamw = kept("adamw", (1024, 4096))
    assert adamw == 8 * 1024 * 4096
    if sentence in SMALL:
        assert kept(sentence.format(r=R), (1024, 4096)) <= SMALL[sentence] / 8 * adamw


@pytest.mark.parametrize("sentence", KEPT)
def test_what_is_counted_is_what_is_kept(sentence: str) -> None:
    """After two steps the state has those numbers and no others, and a checkpoint little more: names and counters."""
    rng = np.random.default_rng(0)
    for shape in ((128, 192), (192, 128)):
        w = rng.standard_normal(shape).astype(np.float32)
        with tw.Optimizer([w], sentence.format(r=16)) as opt:
            told = opt.memory_report()
            for _ in range(2):
                opt.step([rng.standard_normal(shape).astype(np.float32)])
            assert opt.memory_report() == told and told.total == 4 * KEPT[sentence](*shape, 16)
            assert 4 * sum(a.size for rows in opt.state().values() for a in rows if a is not None) == told.total
            assert told.total <= len(opt.state_dict()["state"]) < told.total + 4096
            assert all(np.any(a) for rows in opt.state().values() for a in rows)


def test_a_layer_with_galore_saves_what_its_paper_says() -> None:
    """Up to 65.5 % of the states of a model of 7 billion (rank a quarter of the width; 4096 and 11008 wide, here a
    quarter of that), embeddings at full size included: the layers alone save a little more."""
    layer = [(1024, 1024)] * 4 + [(2752, 1024)] * 2 + [(1024, 2752)]
    embeddings = [(8000, 1024)] * 2
    mine, adam = kept("galore(rank=256)", *layer), kept("adamw", *layer)
    assert 0.655 < 1 - mine / adam < 0.70
    both = 32 * mine + kept("adamw", *embeddings)
    assert 1 - both / (32 * adam + kept("adamw", *embeddings)) == pytest.approx(0.655, abs=0.01)


def test_adam_mini_keeps_a_thousandth_of_the_second_moments() -> None:
    """More than 99.9 % of them are gone where rows have a thousand entries and more."""
    m, n = 1024, 4096
    assert (kept("adam_mini", (m, n)) - kept("lion", (m, n))) / (kept("adamw", (m, n)) / 2) < 1e-3


@pytest.mark.parametrize("sentence, numbers", [
    ("adafactor", 6 * (32 + 48)), ("came", 6 * 32 * 48 + 2 * 6 * (32 + 48)),  # leading axes are problems of their own
    ("sm3", 6 + 32 + 48),  # one vector an axis
    ("adam_mini", 6 * 32 * 48 + 6), ("lion", 6 * 32 * 48),
])
def test_tensors_of_rank_three(sentence: str, numbers: int) -> None:
    assert kept(sentence, (6, 32, 48)) == 4 * numbers


@pytest.mark.parametrize("sentence", ["adafactor", "came", "sm3", "adam_mini(blocks=adam)", "galore(rank=4)"])
def test_vectors_save_nothing(sentence: str) -> None:
    """A vector has no second axis: the second moment has its length."""
    second = 4 * 4096
    assert kept(sentence, (4096,)) == second * (1 if sentence in ("adafactor", "sm3") else 2)


def test_what_steps_keep_is_told_and_stays() -> None:
    """A prox of singular values works in matrices of its own; from the third step on it has them."""
    w, g = np.ones((700, 400), np.float32), np.eye(700, 400, dtype=np.float32)
    with tw.Optimizer([w], "sgd(lr=0.01) | prox(nuclear_norm(0.001))") as opt:
        assert opt.scratch < 1 << 14
        kept = []
        for _ in range(5):
            opt.step([g])
            kept.append(opt.scratch)
        assert kept[1] == kept[4] and kept[4] >= 400 * 400 * 4
        opt.eval()
        assert opt.scratch < kept[4] / 2
        opt.train()
        opt.step([g])
        assert opt.scratch == kept[4]
