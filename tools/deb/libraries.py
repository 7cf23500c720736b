"""The libraries of the program, as they are in the environment that runs this: `make` has installed them there, each
checked against its hash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROGRAM: Final = "cryprq-proxy"
NOT_IMPORTED: Final = {"pygments"}
"""rich requires it to colour source text, and imports it for nothing else."""
_NEVER: Final = {"__pycache__", "_testcapi", "tests"}
_ONLY_TO_BUILD: Final = {".c", ".cpp", ".h", ".hpp", ".pxd", ".pyx", ".pyi", ".typed", ".hash"}


def copy_to(directory: Path) -> None:
    """Everything that the program requires, without the program."""
    for library in _required():
        for file in library.files or ():
            if _is_needed(file):
                target = directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)


def _is_needed(file: PackagePath) -> bool:
    # The scripts of a library are in bin/, and not below the directory of packages.
    words = {part.partition(".")[0] for part in file.parts}
    return file.parts[0] != ".." and file.suffix not in _ONLY_TO_BUILD and not words & _NEVER


def _required() -> Iterator[Distribution]:
    """What the program needs here, and what that needs, each once."""
    waiting, seen = [distribution(PROGRAM)], NOT_IMPORTED | {PROGRAM}
    while waiting:
        for text in waiting.pop().requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name in seen or not _holds(requirement):
                continue
            seen.add(name)
            found = distribution(name)
            waiting.append(found)
            yield found


def _holds(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
