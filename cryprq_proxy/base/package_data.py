"""The sample configurations, units and system files that come with the program.

Their one source is configs/ of the tree. A wheel carries the same files inside of the package, as cryprq_proxy/data
(pyproject.toml); an editable install runs in the tree and reads them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parents[1]


def read(name: str) -> str:
    """The text of one file, named as in configs/: "client.toml", "sysctl.d/cryprq.conf".

    Raises OSError for a name that does not come with the program, or an installation that has lost it.
    """
    return (_directory() / name).read_text(encoding="utf-8")


def _directory() -> Path:
    in_wheel = _PACKAGE / "data"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "configs"
