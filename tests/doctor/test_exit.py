"""The checks of an exit that need no other process."""

from __future__ import annotations

from pathlib import Path

from cryprq_proxy.config.exit import exit_from
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.doctor.exit import invites
from cryprq_proxy.pairing.invite_store import InviteStore, beside


async def test_an_invite_is_told_before_there_is_a_list_of_peers(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    context = Context(file=file, exit=exit_from("", file, {}), now=lambda: 1000.0)
    assert (await invites(context)).text == "no invite is open"
    InviteStore(beside(tmp_path / "authorized")).create("laptop", 3600, 1000.0)
    found = await invites(context)
    assert (found.state, found.text) == (CheckState.OK, "1 open invite: laptop")
