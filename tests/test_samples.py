"""Every sample of the pages: what a person pastes is taken as it stands by the program, or by a shell.

The commands are parsed by the command line itself, with all their values; configurations are read as at a start.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cryprq_proxy.cli import cli
from cryprq_proxy.config.client import client_from
from cryprq_proxy.config.exit import exit_from
from cryprq_proxy.config.rules import to_rules
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.engine import RuleSet
from tests.support.pages import ARCHITECTURE, CONTRIBUTING, MANUAL, PROTOCOL, README, ROOT, SECURITY, THREATS

PAGES = [README, CONTRIBUTING, SECURITY, *MANUAL, PROTOCOL, THREATS, ARCHITECTURE]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
EXITS = "".join(
    f'[[exit]]\nname = "{name}"\npeer = "cryprq://{letter * 51}a@{name}.example:4433"\n'
    for name, letter in (("home", "a"), ("work", "b"))
)
"""What a sample leaves out that names no exit."""
STANDS_FOR = {
    "OTHERID": "b" * 51 + "a",
    "CLIENTPEERID": "b" * 51 + "a",
    "EXITPEERID": "a" * 52,
    "PEERID": "a" * 52,
    "ID": "a" * 52,
    "SECONDS": "5",
}
"""Capitals in a sample, and what a person writes there."""
CALLERS = {"ProxyCommand", "cryprq-exit"}
"""Words that a command follows: of ssh_config(5), and the container's name behind `docker exec`."""
ENDS = {"|", ">", ">>", "&&", ";"}


def filled(sample: str) -> str:
    sample = re.sub(r"\[([A-Z]+)\]", r"\1", sample)
    for name, value in STANDS_FOR.items():
        sample = re.sub(rf"\b{name}\b", value, sample)
    return sample


def blocks(language: str) -> list[object]:
    """The page and the text of each fenced block, as parameters of a test."""
    return [
        pytest.param(page.name, text, id=f"{page.name}-{at}")
        for page in PAGES
        for at, (found, text) in enumerate(FENCED.findall(page.read_text()))
        if found == language
    ]


def words_behind(line: str) -> list[str] | None:
    """The words behind this program's name in a line of shell up to the command's end; None if it is not called."""
    line = re.sub(r"\s#.*", "", re.sub(r'"\$\((.*)\)"', r"; \1", line))
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;()")
    lexer.commenters, lexer.whitespace_split = "", True
    words = list(lexer)
    for at, word in enumerate(words):
        before = [each for each in words[:at] if each != "sudo" and "=" not in each]
        if word.removeprefix(".venv/bin/") == "cryprq-proxy" and (not before or before[-1] in CALLERS | ENDS):
            return list(takewhile(lambda each: each not in ENDS, words[at + 1 :]))
    return None


def pasted() -> Iterator[tuple[str, str]]:
    """The page and each line that is there to be pasted: in shell blocks, and indented."""
    for page in PAGES:
        text = page.read_text()
        for language, block in FENCED.findall(text):
            if language == "sh":
                yield from ((page.name, line) for line in block.replace("\\\n", "").splitlines())
        for line in re.findall(r"^ {4,}(.*)$", FENCED.sub("", text), re.MULTILINE):
            yield page.name, line


def named() -> Iterator[tuple[str, str]]:
    """The page and each line between back-ticks that begins with this program."""
    for page in PAGES:
        for line in re.findall(
            r"`((?:sudo )?(?:\.venv/bin/)?cryprq-proxy(?: [^`]*)?)`", FENCED.sub("", page.read_text())
        ):
            yield page.name, " ".join(line.split())


def load(text: str) -> None:
    """Read a sample as the exit's configuration if it says so in its first line, else as the client's."""
    text, source = filled(text), ROOT / "configs" / "sample.toml"
    if text.startswith("# exit.toml\n"):
        exit_from(text, source, {})
    else:
        config = client_from(text if "peer = " in text else text + EXITS, source, True, {})
        RuleSet(to_rules(config.rule), config.default)


def take(arguments: list[str]) -> None:
    """Let the command line parse it, as far as before the command itself. Raises click.UsageError."""
    context = cli.make_context("cryprq-proxy", arguments)
    rest = arguments
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)


def check(page: str, line: str, words: list[str]) -> None:
    try:
        take(words)
    except click.exceptions.Exit:  # --help
        pass
    except click.UsageError as error:
        raise AssertionError(f"{page}: {line}: {error.format_message()}") from None


def test_lines_to_paste_are_taken() -> None:
    taken = 0
    for page, line in pasted():
        if (words := words_behind(filled(line))) is not None:
            check(page, line, words)
            taken += 1
    assert taken >= 30


def test_lines_in_the_text_are_taken() -> None:
    """A command alone is only named: it need not be complete."""
    taken = 0
    for page, line in named():
        words = words_behind(filled(line))
        assert words is not None, line
        if len(words) == 1 and not words[0].startswith("-"):
            assert words[0] in cli.commands, f"{page}: {line}"
        else:
            check(page, line, words)
        taken += 1
    assert taken >= 30


@pytest.mark.process
@pytest.mark.parametrize(("page", "text"), blocks("sh"))
def test_a_shell_reads_the_blocks(page: str, text: str) -> None:
    read = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (read.returncode, read.stderr) == (0, ""), page


@pytest.mark.parametrize(("page", "text"), blocks("json"))
def test_lines_of_json_are_json(page: str, text: str) -> None:
    assert [json.loads(line) for line in text.splitlines()], page


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_configurations_are_read(page: str, text: str) -> None:
    try:
        load(text)
    except ConfigError as error:
        raise AssertionError(f"{page}: {error}") from None


def test_the_answer_of_explain_is_the_one_shown(tmp_path: Path) -> None:
    """With the example of the same page. The page leaves out what stands behind "..."."""
    page = ROOT / "docs" / "rules.md"
    found = FENCED.findall(page.read_text())
    shown = next(text for language, text in found if not language and ": direct, by the office" in text)
    example = next(text for language, text in found if language == "toml")
    (tmp_path / "client.toml").write_text(filled(example) + EXITS)
    (tmp_path / "ads.txt").write_text("ads.example\n")
    given = ["explain", "https://www.corp.example/", "--config", str(tmp_path / "client.toml")]
    told = CliRunner().invoke(cli, given).output
    parts = [" ".join(part.split()) for part in shown.split("...")]
    at = 0
    for part in parts:
        at = " ".join(told.split()).index(part, at)
