"""The checks of an exit that need no other process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.config.exit import exit_from
from cryprq_proxy.doctor import exit as exit_side
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.doctor.exit import invites, names
from cryprq_proxy.outbound.resolving.host_configuration import HostConfiguration
from cryprq_proxy.pairing.invite_store import InviteStore, beside
from cryprq_proxy.status import ExitStatus, NamesStatus


async def test_an_invite_is_told_before_there_is_a_list_of_peers(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    context = Context(file=file, exit=exit_from("", file, {}), now=lambda: 1000.0)
    assert (await invites(context)).text == "no invite is open"
    InviteStore(beside(tmp_path / "authorized")).create("laptop", 3600, 1000.0)
    found = await invites(context)
    assert (found.state, found.text) == (CheckState.OK, "1 open invite: laptop")


async def test_what_answers_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = HostConfiguration(servers=("192.0.2.1", "192.0.2.2"))
    monkeypatch.setattr(exit_side, "read_configuration", lambda: configuration)
    assert (await names(Context())).text == "names are looked up by DNS, from 192.0.2.1, 192.0.2.2"
    configuration = HostConfiguration(library="nsswitch.conf says `hosts: files mdns dns`")
    found = (await names(Context())).text
    assert found == "names are looked up by the C library, since nsswitch.conf says `hosts: files mdns dns`"
    running = ExitStatus(names=NamesStatus(by="DNS, from 127.0.0.53"))
    assert (await names(Context(running=running))).text.endswith(
        "running exit looks up names by DNS, from 127.0.0.53"
    )
