"""With what a role was started, as it tells it at its control socket."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import get_type_hints

import pytest

from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.decode import Text
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process import started as module
from cryprq_proxy.process.control import ControlServer
from cryprq_proxy.process.started import STARTED, Started, query_started
from cryprq_proxy.status import ClientStatus


async def status() -> ClientStatus:
    return ClientStatus()


async def test_it_is_told_as_it_was(tmp_path: Path) -> None:
    flags = {
        "peer": ("cryprq://a@b", "cryprq://c@d"),
        "listen": "127.0.0.1:0",
        "user": "me:secret",
        "identity": None,
        "exclude": (),
        "tun.enabled": True,
        "tun.confirm": 2.5,
        "log_level": "debug",
    }
    started = Started.of("client", tmp_path / "client.toml", flags)
    server = ControlServer(tmp_path / "c.sock", status, {STARTED: started.tell})
    await server.start()
    told = await asyncio.to_thread(query_started, tmp_path / "c.sock")
    await server.stop()
    assert told == started
    assert told.flags == {name: value for name, value in flags.items() if value not in (None, ())}
    assert told.options == "--confirm, --listen, --peer, --tun and --user"
    assert "secret" not in repr(told) and "secret" not in told.options


def test_files_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    started = Started.of("exit", Path("here.toml"), {"identity": "~/id", "authorized": "list"})
    assert started.file == os.path.join(tmp_path, "here.toml")
    assert started.flags == {"identity": "/home/u/id", "authorized": os.path.join(tmp_path, "list")}
    assert Started.of("exit", Path("x"), {}).options == ""


def test_every_flag_with_a_file_is_known() -> None:
    """A key whose flag is not made absolute would mean another file where it is read again."""
    flags = {"identity", "authorized", "peer", "listen", "user", "upstream", "allow"}
    for kind in (ClientConfig, ExitConfig):
        hints = get_type_hints(kind, include_extras=True)
        for name in flags & hints.keys():
            mark = hints[name].__metadata__[0]
            assert isinstance(mark, Text)
            assert (name in module._FILES) == isinstance(
                mark.parse("/x") if "path" in mark.expected else "", Path
            )


async def test_another_version_is_named(tmp_path: Path) -> None:
    async def told(_: str) -> dict[str, object]:
        return {"role": "client"}

    server = ControlServer(tmp_path / "c.sock", status, {STARTED: told})
    await server.start()
    with pytest.raises(CryprqError, match="has another version, restart it"):
        await asyncio.to_thread(query_started, tmp_path / "c.sock")
    await server.stop()
