"""The source archive holds all that `make library` needs, and the licences."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


def test_a_package_is_made_of_the_archive_alone(unpacked, tmp_path):
    """With a library that is there already, as where no Swift is; what is made works beside nothing of the clone."""
    import numpy
    import thalweg

    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    environment = {**os.environ, "THALWEG_LIBRARY_DIR": str(Path(thalweg.__file__).parent / "lib")}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index",
               "--disable-pip-version-check", "-w", str(tmp_path), str(unpacked)]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = tmp_path.glob("thalweg-*-cp311-abi3-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "package")
        names = archive.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names) and "thalweg/__init__.pyi" in names
    code = ("import numpy, thalweg; w = numpy.ones((3, 3), 'f4'); thalweg.AdamW([w], lr=0.5).step([w.copy()]); "
            "print(thalweg.__file__, w[0, 0])")
    paths = os.pathsep.join([str(tmp_path / "package"), str(Path(numpy.__file__).parents[1])])
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": paths})
    where, weight = run.stdout.split()
    assert where.startswith(str(tmp_path)) and float(weight) == pytest.approx(0.495), run.stderr
