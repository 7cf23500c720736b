"""For which role a configuration is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.config.whose import role_of

PEER = f'peer = "cryprq://{"a" * 52}@exit.example"\n'
OF_AN_EXIT = "allow_private = true\n"


@pytest.mark.parametrize(
    ("name", "text", "role"),
    [
        ("some.toml", PEER, "client"),
        ("some.toml", OF_AN_EXIT, "exit"),
        # A key that neither knows, as one of another version, changes nothing.
        ("some.toml", OF_AN_EXIT + "x = 1\n", "exit"),
        # What is in it counts more than what its maker called it,
        ("my-exit.toml", PEER, "client"),
        ("client-facing.toml", OF_AN_EXIT, "exit"),
        # but a role starts with the file of that name, whatever is in it.
        ("client.toml", OF_AN_EXIT, "client"),
        ("exit.toml", PEER, "exit"),
        ("my-exit.toml", "", "exit"),
        ("my-exit.toml", "x = 1\n", "exit"),
        ("my-exit.toml", "x = \n", "exit"),
        ("my-client.toml", "", "client"),
        ("some.toml", "", "client"),
        ("some.toml", "x = \n", "client"),
        # A value that only the exit's list of listeners has.
        ("some.toml", 'listen = ["192.0.2.1:4433", "192.0.2.2:4433"]\n', "exit"),
    ],
)
def test_the_role(name: str, text: str, role: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert role_of(file) == role


def test_a_file_that_is_not_there_is_told_by_its_name(tmp_path: Path) -> None:
    assert role_of(tmp_path / "my-exit.toml") == "exit"
    assert role_of(tmp_path / "some.toml") == "client"
