"""Every command of root with another user's configuration: none uses the files that root would open itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.base import file_access
from cryprq_proxy.base.paths import control_sockets as usual_places
from cryprq_proxy.commands.asked import control_sockets
from cryprq_proxy.commands.pairing import _here
from cryprq_proxy.config.tun import STATE
from cryprq_proxy.doctor import machine, start
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.pairing.invitation import Invitation
from cryprq_proxy.pairing.join import plan
from tests.support.deputies import on_a_thread

PEER = f"cryprq+wss://{'a' * 52}@exit.example:443/x"
OTHER = f"cryprq+wss://{'b' * 51}a@other.example:443/x"
SECRET = "a" * 26
REFUSED = (
    r"the configuration belongs to another user than root, and so root does not use the file that {} names"
)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The default directory of configurations, in which a deputy opens everything."""
    directory = tmp_path / "cryprq"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with on_a_thread(directory, everywhere=True) as deputy:
        file_access.appoint(deputy)
        yield directory
    file_access._deputies.clear()


@pytest.mark.parametrize("peer", [PEER, OTHER])
def test_join_takes_no_authority(directory: Path, peer: str) -> None:
    """Also if the exit is in the configuration already."""
    (directory / "client.toml").write_text(f'peer = "{PEER}"\nca = "pipe"\n')
    with pytest.raises(ConfigError, match=REFUSED.format("ca")):
        plan(Invitation.parse(f"{peer}#{SECRET}"), None, None, False)


def test_invite_and_peers_ask_at_no_socket_of_theirs(directory: Path) -> None:
    (directory / "exit.toml").write_text('control_socket = "/run/x.sock"\n')
    with pytest.raises(ConfigError, match=REFUSED.format("control_socket")):
        _here(None)
    # They open none of the other files.
    (directory / "exit.toml").write_text('tun.state_dir = "/tmp"\n')
    assert _here(None)[1].authorized == directory / "authorized"


def test_status_and_others_ask_at_no_socket_of_theirs(directory: Path) -> None:
    file = directory / "client.toml"
    file.write_text(f'peer = "{PEER}"\ncontrol_socket = "/run/x.sock"\n')
    with pytest.raises(ConfigError, match=REFUSED.format("control_socket")):
        control_sockets(file)
    assert Path("/run/x.sock") not in control_sockets(None)
    assert control_sockets(None)[-1] == usual_places()[-1]


async def test_the_doctor_reads_no_file_of_theirs(directory: Path) -> None:
    (directory / "client.toml").write_text(f'peer = "{PEER}"\n[[rule]]\nlists = ["l"]\nto = "direct"\n')
    (directory / "exit.toml").write_text(
        '[websocket]\nlisten = "127.0.0.1:0"\ncertificate = "pipe"\nkey = "pipe"\n'
    )
    context = Context()
    client, exit_ = await start.client_configuration(context), await start.exit_configuration(context)
    assert client.state is exit_.state is CheckState.FAIL
    assert "the file that rule.lists names" in client.text
    assert "the file that websocket.certificate names" in exit_.text
    assert context.client is context.exit is None


def test_the_doctor_looks_for_no_journal_where_they_say(directory: Path) -> None:
    (directory / "client.toml").write_text(f'peer = "{PEER}"\ntun.state_dir = "/etc"\n')
    assert list(machine._state_directories(None)) == [STATE]
