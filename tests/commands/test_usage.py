"""What a wrong command line is answered, and that it repeats no secret."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryprq_proxy
from cryprq_proxy.cli import cli, run_command
from cryprq_proxy.commands.usage import without_secrets

PEER = f"cryprq://{'a' * 52}@192.0.2.1:4433"
SECRET = "abcdefghijklmnopqrstuvwxyz"
INVITE = f"{PEER}#{SECRET}"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["start"],
            "no such command 'start': without a command the proxy starts; `exit` starts the exit; see",
        ),
        (["client"], "no such command 'client': without a command the proxy starts; see"),
        (["help"], "no such command 'help': --help is meant"),
        (["version"], "no such command 'version': --version is meant"),
        (["stop"], "Ctrl-C ends what runs"),
        (["--port", "1080"], "no such option '--port': --listen is meant; see"),
        (["stauts"], "no such command 'stauts': perhaps `status` is meant; see"),
        (["peers", "ad"], "no such command 'ad': perhaps `add` is meant; see"),
        (["frobnicate"], "no such command 'frobnicate'; see"),
        (["--lissten", "1"], "no such option '--lissten': perhaps `--listen` is meant; see"),
        (["config", "schema"], "'{client|exit}' is missing; see"),
        (["lockdown"], "'on|off' is missing; see"),
        (["connect", "web.example:80"], "the port is missing: write it behind the host"),
        (["--peer", PEER, "--confirm", "60"], "--confirm needs --tun"),
        (["--peer", PEER, "--inbound", "keep"], "--inbound needs --tun"),
        (["--peer", PEER, "--yes"], "--yes needs --tun"),
    ],
)
def test_what_was_perhaps_meant(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryprq_proxy.cli.setup", lambda *_: None)
    assert words in answer(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [
        (["pause", "abc"], "pause --help"),
        (["service", "install", "exitt"], "service install --help"),
        (["peers", "ad"], "peers --help"),
        (["connect", "web.example:80"], "connect --help"),
        (["stauts"], "cryprq-proxy --help"),
    ],
)
def test_the_help_that_is_named_is_of_that_command(
    arguments: list[str], help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, *arguments).endswith(help_of)


@pytest.mark.parametrize(
    "arguments",
    [
        [INVITE],
        [INVITE.upper()],
        ["status", INVITE],
        ["explain", "x", INVITE],
        ["--lan", INVITE],
        ["--peer", INVITE],
        [f"--{INVITE}"],
        ["switch", "x", INVITE],
        ["--config", INVITE],
        ["connect", INVITE, "1"],
        ["id", INVITE],
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_no_answer_repeats_the_secret_of_an_invite(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(arguments)
    out, err = capsys.readouterr()
    assert SECRET not in (out + err).lower()
    assert err.count("\n") == 1


def test_an_invite_without_its_command_is_told_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"an invite stands behind `join`: cryprq-proxy join '{PEER}#...'" in answer(capsys, INVITE)
    assert f"stands behind --peer: cryprq-proxy --peer {PEER}" in answer(capsys, PEER)


def test_only_the_secret_is_struck_out() -> None:
    text = f"got ({INVITE}); see '{INVITE}' and cryprq://x@h#{SECRET}, not # {SECRET}"
    assert without_secrets(text) == f"got ({PEER}#...); see '{PEER}#...' and cryprq://x@h#..., not # {SECRET}"


# --- this program's name in sentences ---

PLAIN_NAMES = {
    "base/leftovers.py": "a process",
    "commands/pairing.py": "the other machine",
    "commands/run.py": "help",
    "doctor/beyond.py": "the exit's machine",
    "doctor/reach.py": "the exit's machine",
    "doctor/start.py": "the exit's machine",
    "errors.py": "the exit's machine",
    "fronts/http_failures.py": "applications",
    "pairing/invitation.py": "the other machine",
    "pairing/join.py": "a file that stays",
    "web/guard.py": "applications",
}
"""Where a sentence may call this program by its plain name: to whom or where it is said (base/program.py)."""


def strings(tree: ast.Module) -> Iterator[str]:
    """All strings but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    passed = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            yield node.value


def test_a_sentence_names_the_program_as_it_was_called() -> None:
    """Somebody who has .venv/bin/cryprq-proxy alone has no `cryprq-proxy`."""
    commands = set(cli.commands) | {"--tun"}
    root = Path(cryprq_proxy.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for text in strings(ast.parse(file.read_text())):
            for after in text.split("cryprq-proxy ")[1:]:
                if after.split()[:1] and after.split()[0].strip("`'\".,;)") in commands:
                    found.add(file.relative_to(root).as_posix())
    assert found == set(PLAIN_NAMES)
