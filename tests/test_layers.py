"""The layers of the program, read from its imports: an arrow that runs the wrong way fails, and so does a circle.

A file imports from its own package and from lower layers. Packages of one layer are siblings and do not know each
other; only the values of layer 0 may. Imports under TYPE_CHECKING and inside functions count like all others.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.pages import ARCHITECTURE, ROOT, table

LAYERS = {
    "cryprq_proxy.errors": 0,
    "cryprq_proxy.address": 0,
    "cryprq_proxy.status": 0,
    "cryprq_proxy.crypto": 1,
    "cryprq_proxy.rules": 1,
    "cryprq_proxy.session": 2,
    "cryprq_proxy.lane": 2,
    "cryprq_proxy.recovery": 2,
    "cryprq_proxy.base": 3,
    "cryprq_proxy.base.faults": 1,
    "cryprq_proxy.carriers": 4,
    "cryprq_proxy.outbound": 4,
    "cryprq_proxy.process": 4,
    "cryprq_proxy.client": 5,
    "cryprq_proxy.exit": 5,
    "cryprq_proxy.fronts": 6,
    "cryprq_proxy.web": 6,
    "tun": 6,
    "cryprq_proxy.config": 7,
    "cryprq_proxy.pairing": 8,
    "cryprq_proxy.service": 9,
    "cryprq_proxy.doctor": 10,
    "cryprq_proxy.commands": 11,
    "cryprq_proxy.cli": 12,
    "cryprq_proxy.__main__": 13,
}
"""One line a package; longest prefix wins."""

PRIMITIVES = "cryprq_proxy.crypto.primitives"
ONLY_IN = {
    "cryptography": PRIMITIVES,
    "kyber_py": PRIMITIVES,
    "dilithium_py": PRIMITIVES,
    "tun": "cryprq_proxy.service.system_wide",
}
"""Package -> the one module outside of it that imports it."""

OUTSIDE_WORLD = {"asyncio", "selectors", "select", "socket", "ssl", "subprocess", "time"}
"""What a session must not know: bytes and `now` go in, bytes and events come out."""

EXEMPT = {
    ("cryprq_proxy.address", "socket"),  # inet_pton
    (PRIMITIVES, "time"),  # measures once which AEAD is the faster one here
}

UNTRACKED = {"create_task", "ensure_future", "run_coroutine_threadsafe"}


class Import(NamedTuple):
    line: int
    module: str


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    """The imports and attributes in `source`: several tests ask for them."""
    wanted = (ast.Import, ast.ImportFrom, ast.Attribute)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, wanted)]


def imports(source: str, module: str, *, package: bool = False) -> Iterator[Import]:
    """All modules that `source` imports, by their full names, also inside functions and under TYPE_CHECKING."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) - node.level + package]
                base = ".".join([*anchor, base] if base else anchor)
            # `from .. import errors` names modules, `from ..errors import X` names what is in one. Both get both
            # readings: the longest known prefix decides.
            yield from (Import(node.lineno, f"{base}.{alias.name}") for alias in node.names)


def prefix_of(module: str) -> str | None:
    found = [prefix for prefix in LAYERS if module == prefix or module.startswith(prefix + ".")]
    return max(found, key=len, default=None)


def offences(source: str, module: str, *, package: bool = False) -> list[str]:
    """What is wrong with the imports and task starts of one file; nothing for a good one."""
    found = []
    own = prefix_of(module)
    for line, target in imports(source, module, package=package):
        root = target.partition(".")[0]
        where = f"{module}:{line}"
        if root in ONLY_IN and module != ONLY_IN[root] and not module.startswith(root):
            found.append(f"{where}: only {ONLY_IN[root]} imports {root}")
        if own is not None and LAYERS[own] == 2 and root in OUTSIDE_WORLD:
            found.append(f"{where}: a session knows no {root}")
        if own is not None and LAYERS[own] < 2 and root in OUTSIDE_WORLD and (module, root) not in EXEMPT:
            found.append(f"{where}: values and crypto know no {root}")
        other = prefix_of(target)
        if other is None:
            if root == "cryprq_proxy" and target != "cryprq_proxy.__version__":
                found.append(f"{where}: {target} has no layer")
        elif own is not None and own != other and root not in ONLY_IN:
            if LAYERS[other] > LAYERS[own]:
                found.append(f"{where}: layer {LAYERS[own]} imports {target} of layer {LAYERS[other]}")
            elif LAYERS[other] == LAYERS[own] > 0:
                found.append(f"{where}: {target} is a sibling")
    if module != "cryprq_proxy.base.tasks":
        found += [f"{module}:{line}: start tasks with tasks.spawn" for line in untracked_tasks(source)]
    return found


def untracked_tasks(source: str) -> Iterator[int]:
    """Lines that start a task on asyncio or a loop. A TaskGroup keeps its tasks, so `group.create_task` is fine."""
    for node in nodes(source):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            if any(alias.name in UNTRACKED for alias in node.names):
                yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in UNTRACKED:
            owner = ast.unparse(node.value)
            if "group" not in owner.lower():
                yield node.lineno


def sources() -> list[Path]:
    return sorted(path for package in ("cryprq_proxy", "tun") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_run_downwards(path: Path) -> None:
    module = module_name(path)
    assert module in ("cryprq_proxy", "tun") or prefix_of(module) is not None, f"give {module} a layer"
    assert offences(path.read_text("utf-8"), module, package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        ("cryprq_proxy.session.mux", "import asyncio", "knows no asyncio"),
        ("cryprq_proxy.session.mux", "from time import monotonic", "knows no time"),
        ("cryprq_proxy.session.mux", "def f():\n    import socket", "knows no socket"),
        (
            "cryprq_proxy.session.mux",
            "from ..carriers import tcp",
            "layer 2 imports cryprq_proxy.carriers.tcp",
        ),
        (
            "cryprq_proxy.session.mux",
            "from ..base.tasks import spawn",
            "layer 2 imports cryprq_proxy.base.tasks.spawn",
        ),
        ("cryprq_proxy.session.mux", "import cryprq_proxy.outbound.relay", "layer 2 imports"),
        ("cryprq_proxy.errors", "from .crypto.noise import Handshake", "layer 0 imports cryprq_proxy.crypto"),
        ("cryprq_proxy.address", "import time", "know no time"),
        ("cryprq_proxy.crypto.noise", "import cryptography", "only cryprq_proxy.crypto.primitives imports"),
        (
            "cryprq_proxy.exit.exit",
            "from kyber_py.ml_kem import ML_KEM_768",
            "only cryprq_proxy.crypto.primitives",
        ),
        ("cryprq_proxy.exit.exit", "from ..fronts.socks import parse", "layer 5 imports"),
        (
            "cryprq_proxy.exit.exit",
            "if TYPE_CHECKING:\n    from ..config import ExitConfig",
            "layer 5 imports",
        ),
        (
            "cryprq_proxy.config.client",
            "import tun.device",
            "only cryprq_proxy.service.system_wide imports tun",
        ),
        (
            "cryprq_proxy.exit.exit",
            "from tun import device",
            "only cryprq_proxy.service.system_wide imports tun",
        ),
        ("tun.device.device", "from cryprq_proxy.fronts import socks", "is a sibling"),
        ("cryprq_proxy.crypto.noise", "from ..rules import engine", "is a sibling"),
        ("cryprq_proxy.exit.exit", "from cryprq_proxy import nowhere", "has no layer"),
        ("cryprq_proxy.exit.exit", "import asyncio\nasyncio.create_task(f())", "spawn"),
        ("cryprq_proxy.exit.exit", "self._loop.create_task(f())", "spawn"),
        ("cryprq_proxy.exit.exit", "from asyncio import ensure_future", "spawn"),
    ],
)
def test_a_bad_arrow_is_found(module: str, source: str, offence: str) -> None:
    found = offences(source, module)
    assert len(found) == 1
    assert offence in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cryprq_proxy.session.mux", "import struct\nfrom .wire import Frame\nfrom .streams import Stream"),
        ("cryprq_proxy.crypto.primitives", "from cryptography.hazmat.primitives import hashes"),
        (
            "cryprq_proxy.exit.exit",
            "import asyncio\nfrom ..base.tasks import spawn\nfrom ..carriers.tcp import Pump",
        ),
        ("cryprq_proxy.fronts.listener", "from . import socks\nfrom .http import Parser"),
        (
            "cryprq_proxy.service.system_wide",
            "from . import __version__\nimport tun\nfrom .config import ExitConfig",
        ),
        ("cryprq_proxy.outbound.dialer", "async with TaskGroup() as group:\n    group.create_task(f())"),
        ("cryprq_proxy.address", "from socket import inet_pton\nfrom cryprq_proxy.errors import CryprqError"),
    ],
)
def test_a_good_arrow_passes(module: str, source: str) -> None:
    if "async with" in source:
        source = "async def main():\n    " + source.replace("\n", "\n    ")
    assert offences(source, module) == []


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of modules that import each other, directly or by way of others (Tarjan's components of two or more)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_path.append(module)
        for target in arrows.get(module, ()):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in open_path:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            at = open_path.index(module)
            if len(open_path) > at + 1:
                found.append(sorted(open_path[at:]))
            del open_path[at:]

    for module in arrows:
        if module not in order:
            visit(module)
    return found


def all_arrows() -> dict[str, list[str]]:
    """Every module of the program, and those of them that it imports."""
    modules = {module_name(path): path for path in sources()}
    arrows: dict[str, list[str]] = {}
    for module, path in modules.items():
        named = imports(path.read_text("utf-8"), module, package=path.name == "__init__.py")
        # `from .tcp import X` reads as a.tcp.X: what is no module is a name inside of one.
        found = (target if target in modules else target.rpartition(".")[0] for _, target in named)
        arrows[module] = [target for target in found if target in modules and target != module]
    return arrows


def test_no_modules_import_each_other() -> None:
    assert circles(all_arrows()) == []


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, [["a", "b"]]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),
        ({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["d2"], "d2": []}, [["a", "b", "c"]]),
    ],
)
def test_circles_are_found(arrows: dict[str, list[str]], found: list[list[str]]) -> None:
    assert circles(arrows) == found


def test_the_parsers_of_the_front_ends_do_no_io() -> None:
    """They share files with nothing that does; the listener is the one that knows sockets."""
    path = ROOT / "cryprq_proxy/fronts/socks.py"
    roots = {target.partition(".")[0] for _, target in imports(path.read_text("utf-8"), module_name(path))}
    assert not roots & OUTSIDE_WORLD


@pytest.mark.parametrize(("package", "most"), [("cryprq_proxy", 6), ("tun", 10)])
def test_few_modules_stand_beside_the_packages(package: str, most: int) -> None:
    """A new module belongs into a room; these few are what all rooms share."""
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert len(modules) <= most, sorted(modules)


MEANS_OF_LINUX = re.compile(
    r"\bnft\b|netlink|conntrack|resolv\.conf|resolv_conf|resolvectl|/proc\b|pyroute2|dbus|iproute|SO_BINDTODEVICE|AF_PACKET"
)
MEANS_OF_MACOS = re.compile(r"\bpf\b|pfctl|scutil|\butun\b|ifconfig|\bbpf\b|AF_SYSTEM")
SYSTEMS = {
    "linux": (MEANS_OF_LINUX, ("tun.linux.", "cryprq_proxy.base.netlink", "cryprq_proxy.base.rtnetlink")),
    "macos": (MEANS_OF_MACOS, ("tun.macos.", "cryprq_proxy.base.route_socket")),
}
SAID = {
    ("tun/system.py", "resolv.conf"),  # how `kind` is told to people
    ("tun/system.py", "scutil"),
    ("tun/journal.py", "/proc"),  # the id of a boot
}
"""Words that stand elsewhere, with what they are there for."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_only_a_systems_own_folder_knows_its_means(system: str) -> None:
    """Nor does anything but this_system.py import it: another system takes its place."""
    found = []
    words_of_it, modules_of_it = SYSTEMS[system]
    for path in sorted((ROOT / "tun").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(f"tun/{system}/"):
            continue
        source = path.read_text("utf-8")
        if place != "tun/this_system.py":
            module = module_name(path)
            for line, target in imports(source, module, package=path.name == "__init__.py"):
                if target.startswith(modules_of_it):
                    found.append(f"{place}:{line}: {target}")
        if place.startswith(("tun/linux/", "tun/macos/")):
            continue
        for number, line_ in enumerate(source.splitlines(), 1):
            words = set(words_of_it.findall(line_))
            found += [f"{place}:{number}: {word}" for word in sorted(words) if (place, word) not in SAID]
    assert found == []


def test_the_architecture_has_a_line_for_every_package() -> None:
    """And every package in it exists, on the layer that LAYERS gives it."""
    layer_of: dict[str, int] = {}
    for layer, places, _ in table(ARCHITECTURE, "layer", "package"):
        for place in places.split(", "):
            name = place.rstrip("/").removesuffix(".py").replace("/", ".")
            layer_of["tun" if name == "tun" else f"cryprq_proxy.{name}"] = int(layer)
    outside = {"cryprq_proxy.cli": 12, "cryprq_proxy.__main__": 13}
    assert layer_of | outside == LAYERS
    inside_tun = {place.rstrip("/") for row in table(ARCHITECTURE, "place") for place in row[0].split(", ")}
    assert inside_tun == {path.name for path in (ROOT / "tun").iterdir() if not path.name.startswith("__")}


def test_no_test_module_imports_another() -> None:
    """What two of them need is in tests/support."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in (ROOT / "tests").rglob("*.py")
        for line, module in imports(path.read_text("utf-8"), module_name(path))
        if re.match(r"tests\..*\btest_", module)
    ]
    assert not found, "\n".join(found)
