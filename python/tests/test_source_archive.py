"""The source archive holds all that `make library` needs, and the licences."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    if not (ROOT / "Package.swift").exists():
        pytest.skip("the tests are not in a clone")
    folder = tmp_path_factory.mktemp("archive")
    # From a copy, since what is built writes into its folder.
    python = folder / "clone" / "python"
    ignore = shutil.ignore_patterns("tests", "benchmarks", "lib", "build", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "python", python, ignore=ignore)
    for name in ("Package.swift", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "Sources", "include", "Tests"):
        (python.parent / name).symlink_to(ROOT / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=python, check=True, capture_output=True)
    (archive,) = folder.glob("thalweg-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_sources_are_whole(unpacked):
    wanted = [ROOT / "Package.swift", ROOT / "Makefile", ROOT / "LICENSE"]
    for folder in ("Sources", "include", "Tests/ThalwegTests"):
        wanted += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(wanted) > 300
    other = [path for path in wanted if not same(path, unpacked / "library" / path.relative_to(ROOT))]
    assert not other
    for name in ("setup.py", "pyproject.toml", "src/_thalweg.c", "licenses/LICENSE", "licenses/LICENSE.swift.txt"):
        assert (unpacked / name).is_file(), name


def same(path: Path, copy: Path) -> bool:
    return copy.is_file() and copy.read_bytes() == path.read_bytes()


def test_the_library_can_be_made_of_them(unpacked):
    if not shutil.which("make"):
        pytest.skip("needs make")
    run = subprocess.run(["make", "-n", "library"], cwd=unpacked / "library", capture_output=True, text=True)
    assert run.returncode == 0 and "swift build" in run.stdout and "libthalweg.map" in run.stdout, run.stderr


def test_metadata(unpacked):
    head, _, text = (unpacked / "PKG-INFO").read_text().partition("\n\n")
    assert "License-Expression: MIT AND Apache-2.0 WITH Swift-exception" in head
    assert head.count("License-File: licenses/LICENSE") == 2
    assert "Classifier: Programming Language :: Python :: 3.13" in head and "Keywords: optimizer" in head
    assert text.strip() == (ROOT / "README.md").read_text().strip()
