"""Which names CPython's modules have on a system, as the type stubs tell that mypy is shipped with."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Final

MODULES: Final = (
    "socket",
    "_socket",
    "os",
    "select",
    "fcntl",
    "signal",
    "time",
    "mmap",
    "resource",
    "errno",
    "termios",
)
"""Those whose names differ between systems and that this program uses."""


@cache
def names_on(platform: str, module: str) -> frozenset[str]:
    """The names that `module` has where sys.platform is `platform`."""
    found = importlib.util.find_spec("mypy")
    assert found is not None, "the type stubs come with mypy"
    assert found.submodule_search_locations is not None
    stubs = Path(found.submodule_search_locations[0]) / "typeshed" / "stdlib"
    file = stubs / f"{module}.pyi"
    tree = ast.parse((file if file.exists() else stubs / module / "__init__.pyi").read_text())
    return frozenset(_names(tree.body, platform))


def removed(module: str) -> frozenset[str]:
    """The names that Linux has and macOS has not."""
    return names_on("linux", module) - names_on("darwin", module)


def _names(body: list[ast.stmt], platform: str) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.If(test, then, orelse):
                yield from _names(then if _holds(test, platform) else orelse, platform)
            case ast.ClassDef(name, bases, _, inside):
                yield name
                if any(isinstance(base, ast.Name) and base.id in ("IntEnum", "IntFlag") for base in bases):
                    yield from _names(inside, platform)
            case ast.FunctionDef(name):
                yield name
            case ast.AnnAssign(ast.Name(name)):
                yield name
            case ast.Assign(targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(str(other), [ast.alias("*")]):
                yield from names_on(platform, other)
            case ast.ImportFrom(_, aliases):
                yield from (alias.asname or alias.name for alias in aliases)


def _holds(test: ast.expr, platform: str) -> bool:
    """Whether a condition of a stub holds: all are about the system and the version of Python."""
    code = compile(ast.Expression(test), "<stub>", "eval")
    told = SimpleNamespace(platform=platform, version_info=sys.version_info)
    return bool(eval(code, {"sys": told, "TYPE_CHECKING": True}))
