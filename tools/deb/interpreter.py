"""A CPython that runs from its own directory, made of the one that runs this.

    DIRECTORY/bin/python3
    DIRECTORY/lib/libpython3.12.so.1.0     if the interpreter is a shared library
    DIRECTORY/lib/python3.12/              the standard library, without what a service never needs

CPython finds its library beside its own file (Modules/getpath.py), so copied files are a whole interpreter. What is
fixed in them is the path by which the loader finds libpython; patchelf makes it relative.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.deb.errors import PackageError

LIBRARY: Final = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
_NOT_OURS: Final = ("__pycache__", "site-packages", "dist-packages", "config-*", "EXTERNALLY-MANAGED")
_NOT_OF_A_SERVICE: Final = (
    "idlelib",
    "tkinter",
    "turtle*",
    "ensurepip",
    "venv",
    "lib2to3",
    "pydoc_data",
    "dbm",
)
_TESTS: Final = ("test", "tests", "_test*.so", "_ctypes_test*", "xx*.so")
_ONE_MORE_DEPENDENCY: Final = ("_gdbm.*", "_dbm.*", "*curses*", "readline.*", "_uuid.*", "_crypt.*", "nis.*")
NOT_NEEDED: Final = (
    *(*_NOT_OURS, "sitecustomize.py", "*.whl", "*.a"),
    *(*_NOT_OF_A_SERVICE, "_tkinter.*", "ossaudiodev.*"),
    *(*_TESTS, *_ONE_MORE_DEPENDENCY),
)
_RUNPATH: Final = re.compile(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]")


def copy_to(directory: Path) -> None:
    """The program, its shared library if it has one, and the standard library."""
    program = directory / "bin" / "python3"
    program.parent.mkdir(parents=True)
    original = Path(sys.executable).resolve()
    shutil.copyfile(original, program)
    program.chmod(0o755)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, directory / LIBRARY, ignore=shutil.ignore_patterns(*NOT_NEEDED), symlinks=False)
    shared = _libpython(original)
    if shared is not None:
        shutil.copyfile(shared, directory / "lib" / shared.name)


def loosen(directory: Path) -> None:
    """Take symbols for debuggers out of all machine code, three quarters of its size, and each path of the machine that
    builds. Raises PackageError where a tool is missing that this interpreter needs."""
    for path in elf_files(directory):
        subprocess.run(["strip", "--strip-unneeded", path], check=True)
        dynamic = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
        if not _RUNPATH.search(dynamic):
            continue
        if shutil.which("patchelf") is None:
            raise PackageError(
                f"patchelf is not installed, which {sys.executable} needs to be moved: apt-get install patchelf"
            )
        new = ["--set-rpath", "$ORIGIN/../lib"] if path.parent.name == "bin" else ["--remove-rpath"]
        subprocess.run(["patchelf", *new, path], check=True)


def elf_files(directory: Path) -> Iterator[Path]:
    """Programs and libraries of machine code."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _libpython(program: Path) -> Path | None:
    loaded = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    found = re.search(r"libpython\S+ => (\S+)", loaded)
    return Path(found[1]) if found else None
