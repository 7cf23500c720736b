"""Every value that a person can set has one default, in config/. The layers below take it and have none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from msgspec import Struct

from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.exit import ExitConfig

ROOT = Path(__file__).parent.parent.parent

OWN = {
    "DnsSettings": {"ipv6", "stale_wait", "hedge", "timeout", "link_wait", "questions"},
    "ExitNetworkSettings": {"device", "pool4", "pool6", "fixed"},
    "RotationLimits": {"datagrams"},
    "TunnelSettings": {"device", "mark"},
    "WebSocketSettings": {"forwarded"},
}
"""What no key of the configuration sets, and the one switch whose absence is a default everywhere."""

RULESETS = {"FilterSettings"}
"""The input of the function that writes rules of the kernel: a safe value where a caller names none."""

OTHER_MEANINGS = {
    "path",
    "interval",
    "default",
    "key",
    "lan",
    "offload",
    "split",
    "listen",
    "include",
    "inbound",
    "resolver",
    "connect",
}
"""Keys whose word names other things as a parameter."""


def keys(kind: type[Struct]) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        inner = [
            each for each in (hint, *get_args(hint)) if isinstance(each, type) and issubclass(each, Struct)
        ]
        for table in inner:
            yield from keys(table)
        if not inner:
            yield name


KEYS = {*keys(ClientConfig), *keys(ExitConfig)}


def is_absence(default: ast.expr) -> bool:
    """None, zero, empty, or a factory: no value that a person could look for."""
    if isinstance(default, ast.Constant):
        return default.value in (None, "", b"", 0) and default.value is not False
    if isinstance(default, ast.Tuple | ast.List | ast.Dict):
        return not (default.keys if isinstance(default, ast.Dict) else default.elts)
    if isinstance(default, ast.Call) and ast.unparse(default.func) in ("field", "msgspec.field"):
        return all(
            keyword.arg != "default" or is_absence(keyword.value) for keyword in default.keywords
        ) and not any(
            keyword.arg == "default_factory" and ast.unparse(keyword.value).endswith(("Settings", "Limits"))
            for keyword in default.keywords
        )
    return False


def second_defaults(source: str) -> list[str]:
    """The defaults of a module below config/ that a configuration has as well."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name not in RULESETS:
            settings = node.name.endswith(("Settings", "Limits", "Bounds"))
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    name = ast.unparse(field.target)
                    suspect = settings or name in KEYS - OTHER_MEANINGS
                    if suspect and name not in OWN.get(node.name, ()) and not is_absence(field.value):
                        found.append(f"{node.name}.{name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [f"{node.name}({name})" for name in _parameters(node.args)]
    return found


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [
        *zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if default is not None and argument.arg in KEYS - OTHER_MEANINGS:
            switch = isinstance(default, ast.Constant) and isinstance(default.value, bool)
            if not switch and not is_absence(default):
                yield argument.arg


def below_config() -> list[Path]:
    """All modules but those of config/, and status.py: what another version did not tell is no setting."""
    files = [*(ROOT / "cryprq_proxy").rglob("*.py"), *(ROOT / "tun").rglob("*.py")]
    return sorted(file for file in files if file.parent.name != "config" and file.name != "status.py")


def test_no_value_has_a_second_default() -> None:
    found = {str(file.relative_to(ROOT)): second_defaults(file.read_text("utf-8")) for file in below_config()}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "class SessionLimits:\n    keepalive: float = 10.0",
        "class Anything:\n    keepalive: float = SECONDS",
        "class LinkSettings:\n    via: bool = False",
        "class LinkSettings:\n    streams: int = 1 << 14",
        "class LinkSettings:\n    limits: SessionLimits = field(default_factory=SessionLimits)",
        "class LinkSettings:\n    upstreams: tuple[str, ...] = ('exit',)",
        "def f(*, wait_for_link: float = 10.0): ...",
        "async def f(failback=FAILBACK): ...",
    ],
)
def test_a_second_default_is_found(source: str) -> None:
    assert len(second_defaults(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class LinkSettings:\n    keepalive: float",
        "class LinkSettings:\n    psk: bytes | None = field(default=None, repr=False)",
        "class LinkSettings:\n    exclude: tuple[str, ...] = ()",
        "class Anything:\n    seconds: float = 10.0",
        "def f(allow_private: bool = False): ...",
        "def f(listen=None, path=PATH): ...",
    ],
)
def test_absence_is_no_default(source: str) -> None:
    assert second_defaults(source) == []
