"""All errors of a configuration at once, and the command that tells them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cryprq_proxy.cli import cli
from cryprq_proxy.config.check import problems
from cryprq_proxy.config.whose import role_of

CONFIGS = Path(__file__).parents[2] / "configs"
PEER = f'peer = "cryprq://{"a" * 52}@exit.example"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.toml"


def told(file: Path, text: str) -> list[str]:
    """Without the name of the file, with which each begins."""
    file.write_text(text)
    found = problems(file, role_of(file))
    assert all(each.startswith(f"{file}: ") for each in found)
    return [each.removeprefix(f"{file}: ") for each in found]


def test_every_key_and_value(file: Path) -> None:
    text = """
        listen = true
        peeer = "x"
        [limits]
        max_connections = 0
        max_conections = 1
        [tun.dns]
        block_answer = "no"
        [[rule]]
        to = "nowhere"
        [[rule]]
        to = "block"
        [[rule]]
        to = "block"
        ports = [443, "x"]
        """
    assert [each.partition(": ")[0] for each in told(file, text)] == [
        "listen",
        "peeer",
        "limits.max_connections",
        "limits.max_conections",
        "tun.dns.block_answer",
        "rule[1].to",
        "rule[2]",
        "rule[3].ports",
    ]


def test_a_table_with_an_error_is_not_blamed_for_what_it_lacks_then(file: Path) -> None:
    assert told(file, '[[rule]]\nto = 1\ndomain = "x"\n') == [
        'rule[1].to: expected a string: "tunnel", "direct", "block" or "exit:NAME", got the integer 1',
        'rule[1].domain: unknown key; did you mean "rule[1].domains"?',
    ]


def test_what_keys_say_together(file: Path) -> None:
    [wrong] = told(file, PEER + 'listen = "0.0.0.0:1080"\n')
    assert "lets other machines in" in wrong


def test_what_is_no_toml(file: Path) -> None:
    [wrong] = told(file, "listen = \n")
    assert wrong.startswith("not valid TOML: ")


def test_every_file_that_it_names(file: Path) -> None:
    file.write_text(
        PEER + 'user_file = "user"\npsk_file = "psk"\n[[rule]]\nto = "block"\nlists = ["a.txt"]\n'
        '[[rule]]\nto = "block"\nlists = ["b.txt"]\n'
    )
    found = problems(file, "client")
    assert [
        next(name for name in ("user", "psk", "a.txt", "b.txt") if f"/{name} " in each) for each in found
    ] == [
        "user",
        "psk",
        "a.txt",
        "b.txt",
    ]


def test_files_of_an_exit(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    file.write_text('psk_file = "psk"\nmetrics_token_file = "token"\nauthorized = "peers"\n')
    assert len(problems(file, role_of(file))) == 3


def test_a_file_that_is_not_there(file: Path) -> None:
    [wrong] = problems(file, "client")
    assert wrong == f"the configuration {file} does not exist"


@pytest.mark.parametrize("role", ["client", "exit"])
def test_samples_have_no_errors_and_tell_whose_they_are(role: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text((CONFIGS / f"{role}.toml").read_text())
    assert role_of(file) == role
    assert problems(CONFIGS / f"{role}.toml", role_of(CONFIGS / f"{role}.toml")) == []


# --- the command ---


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["config", "check", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_exit_codes(file: Path) -> None:
    file.write_text(PEER)
    assert call(str(file)) == (0, f"{file}: nothing is wrong, as configuration of the client\n", "")
    file.write_text("a\u0301 = \n")
    code, out, said = call(str(file))
    assert (code, out) == (2, "")
    assert said.startswith(f"cryprq-proxy: {file}: not valid TOML")


def test_control_characters_do_not_reach_the_terminal(file: Path) -> None:
    file.write_text('"\\u001b[31mx" = 1\n')
    assert "\x1b" not in call(str(file))[2]


def test_not_all_of_thousands_are_shown(file: Path) -> None:
    file.write_text(PEER + '[[rule]]\nto = "x"\n' * 5_000)
    _, _, said = call(str(file))
    lines = said.splitlines()
    assert (len(lines), lines[-1]) == (101, f"cryprq-proxy: {file}: and 4900 more")


def test_the_role_may_be_said(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("allow_private = true\n")
    assert call(str(file))[0] == 0
    assert call("--role", "client", str(file))[0] == 2


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["config", "check"])
    assert f"there is no configuration in {tmp_path}/cryprq" in str(done.exception)
    (tmp_path / "cryprq").mkdir()
    (tmp_path / "cryprq" / "exit.toml").write_text("")
    (tmp_path / "cryprq" / "client.toml").write_text("x = 1\n")
    code, out, said = call()
    assert (code, out.count("\n"), said.count("\n")) == (2, 1, 1)


# --- all at once ---


def test_all_at_once_each_with_its_key(file: Path) -> None:
    """What values say together, and every file."""
    text = (
        'psk_file = "psk"\nuser_file = "user"\nca = "ca"\n[[rule]]\nto = "exit:vps"\ndomains = ["a.example"]\n'
        '[[rule]]\nto = "exit:other"\nlists = ["a.txt"]\n[tun.dns]\nblocklists = ["b.txt"]\n'
        f'[[exit]]\nname = "home"\n{PEER}psk_file = "other"\n'
    )
    found = [each.partition(":")[0] for each in told(file, text)]
    assert [key.startswith("rule ") for key in found[:2]] == [True, True]
    assert found[2:] == [
        *("user_file", "psk_file", "ca", "exit[1].psk_file", "rule[2].lists", "tun.dns.blocklists")
    ]
    # Also beside a wrong value.
    found = told(file, f'{PEER}listen = true\nuser_file = "user"\n')
    assert [each.partition(":")[0] for each in found] == ["listen", "user_file"]


def test_all_of_an_exit_at_once(tmp_path: Path) -> None:
    file = tmp_path / "exit.toml"
    for name in ("identity", "authorized"):
        (tmp_path / name).write_text("nonsense\n")
        (tmp_path / name).chmod(0o600)
    text = 'listen = []\nmetrics = "0.0.0.0:9108"\n[websocket]\nlisten = "127.0.0.1:0"\n'
    text += 'certificate = "cert"\nkey = "key"\n'
    assert [re.split("[: ]", each)[0] for each in told(file, text)] == [
        *("listen", "metrics", "identity", "authorized", "websocket.certificate")
    ]


def test_an_exit_that_has_no_file_is_as_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "cryprq"
    directory.mkdir()
    (directory / "authorized").touch()
    for arguments in ((), ("--role", "exit")):
        code, out, said = call(*arguments)
        assert (code, said) == (0, "")
        assert out == (
            f"{directory}: there is no exit.toml, so all is as by default: nothing is wrong, for the exit\n"
        )
    (directory / "authorized").write_text("nonsense\n")
    code, out, said = call()
    assert (code, out) == (2, "") and f"{directory}/authorized: line 1" in said
    # Beside a client it is looked at as well.
    (directory / "client.toml").write_text(PEER)
    code, out, said = call()
    assert (code, out.count("\n"), said.count("\n")) == (2, 1, 1)
    assert call("--role", "client")[0] == 0
