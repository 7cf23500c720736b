"""Which control socket a configuration means, whatever else is in it or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.base.paths import ROLES, Role, default_control_socket
from cryprq_proxy.commands import running
from cryprq_proxy.commands.asked import control_sockets
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.process.control import NotRunning
from cryprq_proxy.process.started import Started


def test_the_socket_of_a_configuration_is_the_only_one_asked(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    file.write_text('control_socket = "e.sock"\n')
    assert control_sockets(file) == [tmp_path / "e.sock"]
    # What else is in it may be wrong: it was changed since the start.
    file.write_text('control_socket = "e.sock"\nnonsense = 1\n')
    assert control_sockets(file) == [tmp_path / "e.sock"]
    file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"exit\.toml"):
        control_sockets(file)


@pytest.mark.parametrize(
    ("text", "name", "role"),
    [
        ('default = "direct"\n', "exit-rules.toml", "client"),
        ("allow_private = true\n", "some.toml", "exit"),
        ('log_level = "debug"\n', "some.toml", "client"),
        ('log_level = "debug"\n', "exit.toml", "exit"),
    ],
)
def test_a_configuration_may_lack_what_flags_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, role: Role
) -> None:
    """A client's exit, for example. Where nothing runs, the keys of the file tell its role, or else its name."""
    by_path: dict[Path, Started] = {}

    def query_started(path: Path) -> Started:
        if path not in by_path:
            raise NotRunning("nothing answers")
        return by_path[path]

    monkeypatch.setattr(running, "query_started", query_started)
    file = tmp_path / name
    file.write_text(text)
    assert control_sockets(file) == [default_control_socket(role)]
    for each in ROLES:
        by_path[default_control_socket(each)] = Started.of(each, tmp_path / "another.toml", {})
    assert control_sockets(file) == [default_control_socket(role)]
    for each in ROLES:
        socket = Path("/run/cryprq") / f"{each}.sock"
        by_path = {socket: Started.of(each, file, {"peer": ("cryprq://a@b",)})}
        assert control_sockets(file) == [socket], "it was started with that file"
