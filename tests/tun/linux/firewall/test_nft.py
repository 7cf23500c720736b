"""The program nft as it is called, what it says, and what cannot get into a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError
from tun.linux.firewall import nft


@given(st.text(max_size=20))
def test_a_device_name_is_quoted_or_refused(text: str) -> None:
    """Nothing that could end the quotes, or match more than one device, gets into a script."""
    try:
        quoted = nft.name(text)
    except ConfigError:
        return
    assert quoted == f'"{text}"'
    assert text.isascii() and len(text) <= 15 and not set(text) & set('"*\\/ \n{};')


def fake_nft(
    directory: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int = 1, out: str = ""
) -> None:
    """In place of nft, a program that says this; what it is given goes to the file `given`."""
    (directory / "said").write_text(said)
    (directory / "out").write_text(out)
    program = directory / "nft"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{directory}/called\n[ "$1" = -f ] && /bin/cat >>{directory}/given\n'
        f"/bin/cat {directory}/out\n/bin/cat {directory}/said >&2\nexit {code}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


@pytest.mark.process
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed",
            "as root",
        ),
        ("/dev/stdin:1:1-9: Error: Could not process rule: Operation not permitted\nadd ^^^", "as root"),
        ("nft: Unable to initialize Netlink socket: Protocol not supported", "no nftables"),
        ("/dev/stdin:4:1-9: Error: Could not process rule: No such file or directory\nx\n^", "lacks a part"),
        ("/dev/stdin:4:1-9: Error: Could not process rule: Operation not supported\nx\n^", "lacks a part"),
        (
            "/dev/stdin:4:1-9: Error: syntax error, unexpected x\nx\n^",
            "refused it: syntax error, unexpected x",
        ),
        ("", "refused it: no reason given"),
    ],
)
def test_errors_of_nft_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    fake_nft(tmp_path, monkeypatch, said)
    with pytest.raises(ConfigError) as caught:
        nft.run("x")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nft_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nft, "SBIN", (str(tmp_path),))
    with pytest.raises(ConfigError, match="install the package nftables"):
        nft.run("x")


@pytest.mark.process
def test_an_answer_that_is_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nft(tmp_path, monkeypatch, "", 0, out="[]")
    with pytest.raises(nft.UnreadableAnswer, match="cannot be read"):
        nft.exists("cryprq")


@pytest.mark.parametrize("table", ["filter", "cryprq; flush ruleset", "", None, 7, ["cryprq"]])
def test_the_undo_touches_no_other_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: object
) -> None:
    fake_nft(tmp_path, monkeypatch, "", 0)
    with pytest.raises(ConfigError, match="not this program's"):
        nft.UNDO["nft_table"]({"kind": "nft_table", "table": table})
    assert not (tmp_path / "called").exists()
