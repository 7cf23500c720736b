"""What a Tab offers of this machine: exits, names in rules, peers, open invites; nothing secret, and never late."""

from __future__ import annotations

import logging
import select
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from cryprq_proxy.base.program import PROGRAM
from cryprq_proxy.cli import cli
from cryprq_proxy.commands import completion
from cryprq_proxy.crypto.identity import PeerId

IDS = [str(PeerId(bytes([number]) * 32)) for number in range(3)]
CLIENT = f"""
user = "alice:secret"
[[exit]]
name = "home"
peer = "cryprq://{IDS[0]}@home.example"
[[exit]]
name = "work"
peer = "cryprq://{IDS[1]}@work.example"
[[rule]]
to = "direct"
domains = ["intranet.example", ".corp.example", "*.dev.example"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the configuration, where nothing runs."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("cryprq_proxy.commands.running.control_sockets", list)
    # A machine with many tests is slower than a person is patient.
    monkeypatch.setattr(completion, "ANSWER_SECONDS", 60.0)
    directory = tmp_path / "cryprq"
    directory.mkdir()
    write(directory / "client.toml", CLIENT)
    write(directory / "exit.toml", "")
    write(directory / "authorized", f"{IDS[0]} laptop\n{IDS[1]}\n{IDS[2]} phone\n")
    return directory


def write(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)


def offered(*words: str, begun: str = "") -> list[str]:
    asked = ShellComplete(cli, {}, PROGRAM, completion.VARIABLE)
    return [item.value for item in asked.get_completions(list(words), begun)]


def test_exits(place: Path) -> None:
    assert offered("switch") == ["auto", "home", "work"]
    assert offered("switch", begun="wo") == ["work"]


def test_names_in_rules(place: Path) -> None:
    assert offered("explain") == ["intranet.example", "corp.example"]
    assert offered("connect", begun="c") == ["corp.example"]


def test_peers_and_their_ids_where_they_have_no_name(place: Path) -> None:
    assert offered("peers", "revoke") == ["laptop", IDS[1], "phone"]
    assert offered("peers", "rename", begun="ph") == ["phone"]
    assert offered("peers", "rename", "phone") == [], "the new name is nobody's yet"


def test_the_configuration_that_the_line_names(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    write(other, CLIENT.replace('"home"', '"abroad"'))
    assert offered("switch", "--config", str(other)) == ["auto", "abroad", "work"]
    write(tmp_path / "exit.toml", 'authorized = "mine"\n')
    write(tmp_path / "mine", f"{IDS[0]} tablet\n")
    assert offered("peers", "--config", str(tmp_path / "exit.toml"), "revoke") == ["tablet"]


@pytest.mark.parametrize("words", [("switch",), ("explain",), ("peers", "revoke"), ("invite", "--cancel")])
def test_nothing_is_said_where_nothing_can_be_read(
    words: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in place.iterdir():
        write(file, "\x00 = = \n")
    assert [word for word in offered(*words) if word != "auto"] == []
    assert capsys.readouterr() == ("", "")


def test_no_secret_is_offered(place: Path) -> None:
    everything = [offered(*words) for words in (("switch",), ("explain",), ("connect",), ("peers", "revoke"))]
    assert "secret" not in str(everything)


def test_a_word_that_a_line_cannot_carry_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["good", "two words", "a,b", "\x1b[31mred", "line\nplain,evil", "good"]
    offer = completion._words(lambda _: names)
    monkeypatch.setattr(cli.commands["switch"].params[0], "_custom_shell_complete", offer)
    assert offered("switch") == ["good"]


def test_a_long_list_is_not_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "MOST_LIST", 10)
    assert offered("peers", "revoke") == []


def test_a_late_answer_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: object) -> list[str]:
        # For less than pytest leaves a test, whose alarm would end this too.
        select.select([], [], [], 5)
        return ["late"]

    monkeypatch.setattr(completion, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(cli.commands["switch"].params[0], "_custom_shell_complete", completion._words(hang))
    assert offered("switch") == []


def test_the_log_does_not_write_into_the_line_that_is_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", "cryprq-proxy st")
    monkeypatch.setenv("COMP_CWORD", "1")
    try:
        assert completion.answer(cli, "bash_complete") == 0
        logging.getLogger("cryprq_proxy").error("said")
    finally:
        logging.disable(logging.NOTSET)
    assert capsys.readouterr() == ("plain,status\n", "")
