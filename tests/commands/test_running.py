"""Which role a command is about: what runs, and else the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.base.paths import control_sockets
from cryprq_proxy.commands import running as module
from cryprq_proxy.commands.doctor import _about
from cryprq_proxy.commands.running import Found, default_file, find
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.control import NotRunning
from cryprq_proxy.process.started import Started

PEER = f"cryprq://{'a' * 52}@exit.example:4433"

type Answers = dict[Path, Started | CryprqError]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answers:
    """By socket. The default files are in a directory of the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    by_path: Answers = {}

    def query(path: Path) -> Started:
        answer = by_path.get(path, NotRunning(f"no answer at {path}"))
        if isinstance(answer, CryprqError):
            raise answer
        return answer

    monkeypatch.setattr(module, "query_started", query)
    default_file("client").parent.mkdir(parents=True)
    return by_path


def started(role: Any, file: Path, **flags: object) -> Started:
    return Started.of(role, file, flags)


def socket(role: str, *, system: bool = False) -> Path:
    return [path for path in control_sockets() if path.name == f"{role}.sock"][system]


def test_nothing_runs(answers: Answers) -> None:
    found = find("client", None)
    assert found == Found("client", default_file("client"), why="no client runs")
    assert found.source == f"no client runs; from {default_file('client')}"
    assert found.named is None and found.flags == {}


def test_the_user_s_own_goes_before_the_system_s(answers: Answers) -> None:
    default = default_file("client")
    system = started("client", Path("/etc/cryprq/client.toml"))
    answers[socket("client", system=True)] = system
    assert find("client", None) == Found("client", Path(system.file), socket("client", system=True), system)
    own = answers[socket("client")] = started("client", default, listen="127.0.0.1:9")
    found = find("client", None)
    assert (found.started, found.named, found.flags) == (own, None, {"listen": "127.0.0.1:9"})
    assert find("exit", None).started is None


def test_the_one_that_was_started_with_a_file(answers: Answers, tmp_path: Path) -> None:
    one, other, link = tmp_path / "one.toml", tmp_path / "other.toml", tmp_path / "link.toml"
    link.symlink_to(one)
    for file in (one, other):
        file.write_text("")
    answers[socket("client")] = started("client", one, peer=(PEER,))
    for file in (one, link):
        assert find("client", file).client().exits()[0].name == "exit.example"
    found = find("client", other)
    assert found == Found("client", other, why=f"the client that runs was started with {one}")


def test_its_socket_is_where_the_file_says(answers: Answers, tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'peer = "{PEER}"\ncontrol_socket = "c.sock"\nnonsense = 1\n')
    answers[tmp_path / "c.sock"] = started("client", file)
    assert find("client", file).socket == tmp_path / "c.sock"


def test_one_that_may_not_be_asked_is_told_of(answers: Answers) -> None:
    answers[socket("client", system=True)] = CryprqError("it belongs to another user; ask as root")
    found = find("client", None)
    assert found.source == f"it belongs to another user; ask as root; from {default_file('client')}"


# --- doctor ---


def role_of(config: Path | None = None, *, exit: bool = False) -> str:
    return _about(config, exit).role


def test_doctor_is_about_what_runs(answers: Answers, tmp_path: Path) -> None:
    default_file("client").write_text(f'peer = "{PEER}"\n')
    assert role_of() == "client"
    answers[socket("exit")] = started("exit", tmp_path / "any")
    assert role_of() == "exit"
    answers[socket("client")] = started("client", tmp_path / "any")
    assert role_of() == "client"
    assert role_of(exit=True) == "exit"


@pytest.mark.parametrize(
    ("files", "role"),
    [
        ([], "client"),
        (["client.toml"], "client"),
        (["exit.toml"], "exit"),
        (["authorized"], "exit"),
        (["client.toml", "exit.toml", "authorized"], "client"),
    ],
)
def test_doctor_is_about_what_there_is(answers: Answers, files: list[str], role: str) -> None:
    for name in files:
        (default_file("client").parent / name).write_text("")
    assert role_of() == role


def test_doctor_knows_a_file_by_what_is_in_it(answers: Answers, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("allow_private = true\n")
    assert role_of(file) == "exit"
    file.write_text(f'peer = "{PEER}"\n')
    assert role_of(file) == "client"
    file.write_text("")
    answers[socket("client")] = started("client", file, peer=(PEER,))
    assert role_of(file) == "client"
    assert os.path.samefile(_about(file, as_exit=False).file, file)
