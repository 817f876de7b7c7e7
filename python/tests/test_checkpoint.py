"""Saving and loading: bit-exact resumption, also in a new process; damage and mismatch are refused and change nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import thalweg as tw
from support import Problem, assert_same_bits, snapshot, take_step

SENTENCE = "clip_global_norm(1.0) | adamw(lr=warmup_cosine(peak=0.1, warmup=3, total=20), weight_decay=0.1) | ema(0.9)"
SHAPES = [(), (7,), (5, 3)]


def made(steps: int = 3, sentence: str = SENTENCE, dtype: Any = np.float32, **options: Any) -> tw.Optimizer:
    problem = Problem(SHAPES)
    params = problem.start(dtype)
    grads = [np.zeros_like(p) for p in params]
    opt = tw.Optimizer(params, sentence, **options)
    opt.bind_gradients(grads)
    for k in range(steps):
        take_step(opt, problem, k, params, grads)
    opt.problem = problem
    return opt


def go_on(opt: tw.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        take_step(opt, opt.problem, k, opt.params, opt.grads)


def moved(opt: tw.Optimizer, **options: Any) -> tw.Optimizer:
    """A new optimizer with the parameters and the state of another one."""
    params = [p.copy() for p in opt.params]
    twin = tw.Optimizer(params, SENTENCE, **options)
    twin.bind_gradients([np.zeros_like(p) for p in params])
    twin.load_state_dict(opt.state_dict())
    twin.problem = opt.problem
    return twin


def refused(opt: tw.Optimizer, data: Any, error: Any = (tw.FormatError, tw.VersionError, tw.MismatchError)) -> None:
    before = snapshot(opt)
    with pytest.raises(error):
        opt.load_state_dict({"format": 1, "state": data})
    assert snapshot(opt) == before


def test_state_dict_is_plain() -> None:
    state = made().state_dict()
    assert set(state) == {"format", "sentence", "state"}
    assert isinstance(state["state"], bytes) and isinstance(state["sentence"], str)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bf16"}, {"state_dtype": "q8"}], ids=str)
@pytest.mark.parametrize("cut", range(6))
def test_resumes_bit_by_bit(cut: int, options: dict[str, Any]) -> None:
    straight = made(6, **options)
    opt = made(cut, **options)
    twin = moved(opt, **options)
    go_on(twin, cut, 6)
    assert_same_bits(twin.params, straight.params)
    assert twin.state_dict()["state"] == straight.state_dict()["state"]
    assert twin.steps == 6


def test_resumes_in_another_process(tmp_path: Path) -> None:
    opt = made(4)
    opt.save(tmp_path / "state")
    np.savez(tmp_path / "params.npz", *opt.params)
    go_on(opt, 4, 8)
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, thalweg as tw
from test_checkpoint import SENTENCE, SHAPES, Problem, go_on
file = np.load({str(tmp_path / "params.npz")!r})
params = [file[k] for k in file.files]
opt = tw.Optimizer(params, SENTENCE)
opt.bind_gradients([np.zeros_like(p) for p in params])
opt.load({str(tmp_path / "state")!r})
opt.problem = Problem(SHAPES)
go_on(opt, 4, 8)
np.savez({str(tmp_path / "after.npz")!r}, *params)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    after = np.load(tmp_path / "after.npz")
    assert_same_bits([after[k] for k in after.files], opt.params)


def test_file_and_memory_agree(tmp_path: Path) -> None:
    opt = made()
    opt.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == opt.state_dict()["state"]
    assert os.listdir(tmp_path) == ["a"]  # nothing is left beside it
    opt.save(str(tmp_path / "a"))  # over an older one
    opt.load(tmp_path / "a")


def test_it_is_safetensors() -> None:
    data = made().state_dict()["state"]
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    meta = header.pop("__metadata__")
    assert all(isinstance(v, str) for v in meta.values())
    end = 0
    for entry in sorted(header.values(), key=lambda e: e["data_offsets"]):
        assert entry["data_offsets"][0] == end
        end = entry["data_offsets"][1]
    assert len(data) == 8 + size + end


def test_q8_and_names_survive() -> None:
    w = np.ones(5000, np.float32)
    opt = tw.AdamW([("w", w)], lr=0.1, state_dtype="q8")
    opt.step([np.linspace(-1, 1, 5000).astype(np.float32)])
    twin = tw.AdamW([("w", w.copy())], lr=0.1, state_dtype="q8")
    twin.load_state_dict(opt.state_dict())
    for name, arrays in opt.state().items():
        np.testing.assert_array_equal(arrays[0], twin.state()[name][0])


def test_live_changes_are_restored() -> None:
    opt = made(3, "adamw(lr=0.1)")
    opt.set("lr", 0.025)
    params = [p.copy() for p in opt.params]
    twin = tw.Optimizer(params, "adamw(lr=0.1)")
    twin.load_state_dict(opt.state_dict())
    assert twin.get("lr") == 0.025


# ---- what does not fit


def test_other_sentence_and_other_tensors() -> None:
    data = made().state_dict()["state"]
    for sentence in ("sgd(lr=0.1)", "adamw(lr=0.1)", "clip_global_norm(1.0) | adamw(lr=0.1) | swa"):
        refused(made(0, sentence), data, tw.MismatchError)
        refused(made(2, sentence), data, tw.MismatchError)
    for shapes in ([(), (7,)], [(), (7,), (3, 5)], [(), (7,), (5, 3), (1,)], [(), (7,), (15,)]):
        opt = tw.Optimizer([np.zeros(s, np.float32) for s in shapes], SENTENCE)
        refused(opt, data, tw.MismatchError)
    refused(made(2, dtype=np.float64), data, tw.MismatchError)


def test_other_names() -> None:
    data = tw.AdamW([("a", np.ones(3)), ("b", np.ones(3))], lr=0.1).state_dict()
    opt = tw.AdamW([("a", np.ones(3)), ("c", np.ones(3))], lr=0.1)
    with pytest.raises(tw.MismatchError, match="b|c"):
        opt.load_state_dict(data)


def test_newer_version() -> None:
    opt = made()
    data = opt.state_dict()["state"]
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    meta = header["__metadata__"]
    meta["version"] = "999"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    refused(opt, struct.pack("<Q", len(text)) + text + data[8 + size :], tw.VersionError)
    before = snapshot(opt)
    with pytest.raises(tw.VersionError):
        opt.load_state_dict({**opt.state_dict(), "format": 2})
    assert snapshot(opt) == before


@pytest.mark.parametrize("wrong", [None, {}, [], "text", 3, {"format": 1}, {"format": "1", "state": b""},
                                   {"format": True, "state": b""}, {"format": 0, "state": b""},
                                   {"format": 1, "state": "text"}, {"format": 1, "state": None}], ids=repr)
def test_things_that_are_no_state_dict(wrong: Any) -> None:
    opt = made()
    before = snapshot(opt)
    with pytest.raises(tw.FormatError):
        opt.load_state_dict(wrong)
    assert snapshot(opt) == before


def test_every_truncation() -> None:
    opt = made(1)
    data = opt.state_dict()["state"]
    for size in range(len(data)):
        with pytest.raises(tw.FormatError):
            opt.load_state_dict({"format": 1, "state": data[:size]})
    refused(opt, data + b"\0", tw.FormatError)
    assert opt.state_dict()["state"] == data


OPT = made(2)
DATA = OPT.state_dict()["state"]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage(data: st.DataObject) -> None:
    """Flipped bits, lost and repeated pieces: refused, or a checkpoint that is still whole; never a crash."""
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "repeat", "overwrite"]))
        # headers are where a parser goes wrong: half of the damage is there
        at = data.draw(st.one_of(st.integers(0, max(len(damaged) - 1, 0)), st.integers(0, min(200, max(len(damaged) - 1, 0)))))
        if kind == "flip" and damaged:
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 64))]
        elif kind == "repeat":
            damaged[at:at] = damaged[at : at + 16]
        else:
            damaged[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    before = OPT.state_dict()["state"]
    try:
        OPT.load_state_dict({"format": 1, "state": bytes(damaged)})
    except (tw.FormatError, tw.VersionError, tw.MismatchError):
        assert OPT.state_dict()["state"] == before
    else:
        OPT.state()
        OPT.load_state_dict({"format": 1, "state": DATA})


def test_foreign_files(tmp_path: Path) -> None:
    opt = made()
    before = snapshot(opt)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, world\n" * 100)
    (tmp_path / "pickle").write_bytes(b"\x80\x04" + os.urandom(500))
    other = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "safetensors").write_bytes(struct.pack("<Q", len(other)) + other + bytes(8))
    for name in ("empty", "text", "pickle", "safetensors"):
        with pytest.raises((tw.FormatError, tw.MismatchError)):
            opt.load(tmp_path / name)
    for name in ("missing", ".", "a/b/c"):
        with pytest.raises(tw.FileError, match="."):
            opt.load(tmp_path / name)
    with pytest.raises((ValueError, tw.Error)):
        opt.load("a\0b")
    with pytest.raises(TypeError):
        opt.load(3)
    assert snapshot(opt) == before


# ---- files that cannot be written


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """With a limit on the size of files, writing fails half-way as on a full disk."""
    opt = tw.AdamW([np.ones(20_000)], lr=0.1)
    opt.step([np.ones(20_000)])
    path = tmp_path / "state"
    path.write_bytes(b"older")
    before = snapshot(opt)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            opt.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value, tw.FileError) and "state" in str(caught.value)
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == ["state"]
    assert snapshot(opt) == before
    opt.save(path)
    assert path.read_bytes() == before[1]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    opt = made()
    before = snapshot(opt)
    for path in (tmp_path / "no" / "such" / "folder", tmp_path, "", "/dev/full/x"):
        with pytest.raises(tw.FileError):
            opt.save(path)
    assert snapshot(opt) == before and not list(tmp_path.iterdir())


def test_loading_into_an_optimizer_in_evaluation_mode() -> None:
    opt = made()
    data = opt.state_dict()
    trained = [p.copy() for p in opt.params]
    opt.eval()
    try:
        opt.load_state_dict(data)
    except tw.SequenceError:
        pass
    opt.train()
    assert_same_bits(opt.params, trained)
