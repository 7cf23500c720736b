"""tools/manpages.py: the pages in docs/man are of today, complete, and groff finds no fault in them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cryprq_proxy.cli import cli
from tools.manpages import COMMANDS, CONFIGURATION, MAN, configuration_page, pages, text


def test_the_pages_are_of_today() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in MAN.iterdir()} == pages(), "run `make man`"


@pytest.mark.parametrize("name", cli.commands)
def test_each_command_has_its_place(name: str) -> None:
    assert f"\n.SS {text(name)} " in COMMANDS.read_text()


@pytest.mark.parametrize("key", ["listen", "streams_per_peer", "upstreams", "proxy_protocol"])
def test_keys_of_both_roles_are_there(key: str) -> None:
    assert f"\\fB{key} = " in configuration_page()


@pytest.mark.parametrize(
    ("words", "roff"),
    [
        (".SH no heading", "\\&.SH no heading"),
        ("a\n.b", "a\n\\&.b"),
        ("'quoted'", "\\(aqquoted\\(aq"),
        ("--a\\b", "\\-\\-a\\eb"),
        ("see `join URI`", "see \\fBjoin URI\\fR"),
    ],
)
def test_no_word_is_a_command_of_roff(words: str, roff: str) -> None:
    assert text(words) == roff


@pytest.mark.process
@pytest.mark.parametrize("page", [COMMANDS, CONFIGURATION], ids=lambda page: page.name)
def test_groff_finds_no_fault(page: object) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed; on Debian: apt-get install groff-base")
    done = subprocess.run([groff, "-man", "-Tutf8", "-ww", "-z", str(page)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
