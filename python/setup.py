"""Builds the package: the Swift library (by the Makefile above this folder), then the extension linked to it.

The library's files lie in a folder with the layout

    libthalweg.so.1
    glibc-hwcaps/x86-64-v3/libthalweg.so.1      (chosen by the dynamic loader where the CPU allows)
    glibc-hwcaps/x86-64-v4/libthalweg.so.1

and are copied into the package as thalweg/lib, where the extension's run path $ORIGIN/lib finds them.  Set
THALWEG_LIBRARY_DIR to such a folder to use a library that is built already; nothing is compiled from Swift then.

A source archive holds the library's sources in a folder library/, so that it builds wherever Swift is.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
# The library's sources: above this folder in a clone, within it in a source archive.
ROOT = HERE / "library" if (HERE / "library").is_dir() else HERE.parent
SOURCES = ["Package.swift", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "Sources", "include", "Tests"]
SONAME = "libthalweg.so.1"


class Build(build):
    """A build from nothing: a stale build folder would keep files of an older library."""

    def run(self):
        shutil.rmtree(self.build_base, ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Puts the library into the package and links the extension against that copy."""

    def run(self):
        package = HERE / "src" / "thalweg" if self.inplace else Path(self.build_lib) / "thalweg"
        library = copy_library(find_library(), package / "lib")
        for extension in self.extensions:
            # (by its name: one without a soname would be asked for by the path of this build)
            extension.extra_link_args = [*extension.extra_link_args, f"-L{library.parent}", f"-l:{library.name}"]
        super().run()

    def get_outputs(self):
        outputs = super().get_outputs()
        if not self.inplace:
            folder = Path(self.build_lib) / "thalweg" / "lib"
            outputs += [str(path) for path in sorted(folder.rglob(SONAME))]
        return outputs


class SourceArchive(sdist):
    """Adds the library's sources, which lie outside of this folder in a clone."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        target = Path(base_dir) / "library"
        target.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.o", "*.so"))
            else:
                shutil.copy2(ROOT / name, target / name)


def gather_notices() -> None:
    """Puts the licences of all that a wheel carries where pyproject.toml names them: metadata takes no file above it."""
    target = HERE / "licenses"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in [ROOT / "LICENSE", *sorted((ROOT / "Sources" / "packaging" / "licenses").glob("LICENSE.*"))]:
        shutil.copyfile(path, target / path.name)


def find_library() -> Path:
    """The folder with the built library, which is built when THALWEG_LIBRARY_DIR does not name one."""
    named = os.environ.get("THALWEG_LIBRARY_DIR")
    if named:
        folder = Path(named).expanduser().resolve()
    else:
        if not (ROOT / "Makefile").exists():
            sys.exit(
                "thalweg: the sources of the library are not beside this folder.  Install from a clone of the "
                f"repository or a source archive, or set THALWEG_LIBRARY_DIR to a folder with {SONAME}."
            )
        subprocess.run(["make", "-C", str(ROOT), "library"], check=True)
        folder = ROOT / "build" / "lib"
    if not (folder / SONAME).exists():
        sys.exit(f"thalweg: there is no {SONAME} in {folder}.")
    return folder


def copy_library(source: Path, target: Path) -> Path:
    """Copies the library files to `target` and returns the one to link against."""
    shutil.rmtree(target, ignore_errors=True)
    for path in [source / SONAME, *sorted(source.glob(f"glibc-hwcaps/*/{SONAME}"))]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
    return target / SONAME


def xla() -> list[Extension]:
    """The call for JAX, where jaxlib's headers are there: in the environment that pip installs into, also when it builds in one
    of its own."""
    for name in ("purelib", "platlib"):
        include = Path(sysconfig.get_path(name)) / "jaxlib" / "include"
        if (include / "xla" / "ffi" / "api" / "c_api.h").exists():
            return [
                Extension(
                    "thalweg._xla",
                    sources=["src/_xla.c"],
                    include_dirs=[str(ROOT / "include"), str(include)],
                    extra_compile_args=["-std=c99", "-O2", "-Wall", "-Wextra"],
                    extra_link_args=["-Wl,-rpath,$ORIGIN/lib"],
                    libraries=["m"],
                    py_limited_api=True,
                )
            ]
    return []


gather_notices()
setup(
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    cmdclass={"build": Build, "build_ext": BuildExtension, "sdist": SourceArchive},
    ext_modules=[
        Extension(
            "thalweg._thalweg",
            sources=["src/_thalweg.c"],
            include_dirs=[str(ROOT / "include")],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-std=c99", "-Wall", "-Wextra", "-Wno-missing-field-initializers"],
            extra_link_args=["-Wl,-rpath,$ORIGIN/lib"],
            py_limited_api=True,
        ),
        *xla(),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
