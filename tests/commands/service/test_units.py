"""commands/service/units.py: the samples with this program's path, and whose a unit is."""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import pytest

from cryprq_proxy.base import package_data
from cryprq_proxy.base.owners import user_name
from cryprq_proxy.commands.service import units
from cryprq_proxy.commands.service.units import (
    MARK,
    OWN_PROXY,
    SERVICES,
    Service,
    Start,
    check_ours,
    check_readable,
    exit_tun_text,
    hidden_parts,
    plist_text,
    program,
    quoted,
    unit_text,
)
from cryprq_proxy.errors import ConfigError

CALLED = Path("/usr/local/bin/cryprq-proxy")


def settings(text: str) -> list[str]:
    """The lines that a manager reads."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("service", [*SERVICES.values(), OWN_PROXY], ids=lambda service: service.sample)
def test_a_unit_is_the_sample_with_another_program(service: Service) -> None:
    sample = package_data.read(service.sample)
    text = unit_text(service, CALLED)
    assert text.startswith(f"{MARK}\n\n[Unit]\n")
    changed = [line for line in settings(text) if line not in settings(sample)]
    assert len(settings(text)) == len(settings(sample)) and [line[:10] for line in changed] == ["ExecStart="]
    assert "/opt/" not in text
    start = Start.of(text)
    assert start.command[0] == str(CALLED)
    assert start.user == (service.user or "root")


def test_the_exit_that_carries_packets_is_roots() -> None:
    start = Start.of(unit_text(SERVICES["exit"], CALLED), exit_tun_text(CALLED))
    assert start.command == [str(CALLED), "exit", "--overlap", "--tun"]
    assert start.user == "root"


def test_how_to_start_it_by_hand() -> None:
    assert Start.of(unit_text(SERVICES["exit"], CALLED)).by_hand() == (
        "setpriv --reuid=cryprq --regid=cryprq --init-groups env "
        "XDG_RUNTIME_DIR=/run XDG_CONFIG_HOME=/etc XDG_STATE_HOME=/var/lib "
        "/usr/local/bin/cryprq-proxy exit --overlap"
    )
    start = Start.of(unit_text(SERVICES["tun"], CALLED))
    assert start.by_hand() == "/usr/local/bin/cryprq-proxy --tun"
    assert start.directories == [Path("/run/cryprq"), Path("/var/lib/cryprq"), Path("/var/lib/cryprq-proxy")]


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/x/cryprq-proxy", "/opt/x/cryprq-proxy"),
        ("/opt/my programs/x", '"/opt/my programs/x"'),
        ("/opt/100%/x", "/opt/100%%/x"),
        ('/opt/"\\/x', '"/opt/\\"\\\\/x"'),
    ],
)
def test_a_path_is_written_as_a_manager_reads_it(word: str, written: str) -> None:
    assert quoted(word) == written
    assert Start.of(unit_text(SERVICES["exit"], Path(word))).command[0] == word


def test_of_a_home_directory_a_service_sees_the_program_alone() -> None:
    text = unit_text(SERVICES["exit"], CALLED, [Path("/home/a b/venv"), Path("/root/python")])
    assert "ProtectHome=yes" not in text
    at = settings(text).index("ProtectHome=tmpfs")
    assert settings(text)[at + 1 : at + 3] == [
        'BindReadOnlyPaths="/home/a b/venv"',
        "BindReadOnlyPaths=/root/python",
    ]


def test_what_of_the_program_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/alice/venv")
    monkeypatch.setattr(sys, "base_prefix", "/home/alice/python")
    monkeypatch.setattr(units, "__file__", "/home/alice/venv/lib/cryprq_proxy/commands/service/units.py")
    assert hidden_parts(Path("/home/alice/venv/bin/cryprq-proxy")) == [
        Path("/home/alice/python"),
        Path("/home/alice/venv"),
    ]
    monkeypatch.setattr(units, "__file__", "/usr/lib/cryprq_proxy/commands/service/units.py")
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert hidden_parts(CALLED) == []


def test_a_program_that_is_closed_to_others_is_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ConfigError, match=f"as {tmp_path} is closed to others: run: chmod"):
        check_readable(tmp_path, [], "cryprq")
    # What is shown to the service under its own name may lie below a closed directory.
    inner = tmp_path / "venv"
    inner.mkdir(mode=0o755)
    monkeypatch.setattr(sys, "prefix", str(inner))
    monkeypatch.setattr(units, "__file__", str(inner / "cryprq_proxy" / "a" / "b" / "units.py"))
    (inner / "cryprq_proxy").mkdir()
    check_readable(inner, [inner], "cryprq")
    inner.chmod(0o700)
    with pytest.raises(ConfigError, match=f"as {inner} is closed"):
        check_readable(inner, [inner], "cryprq")
    # Its owner may; root only where it is root's, as the unit takes the right to pass by permissions.
    check_readable(inner, [inner], user_name(os.getuid()))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b", "a$b"])
def test_a_path_that_no_unit_takes_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / name / "cryprq-proxy"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(ConfigError, match="holds characters that no unit takes") as error:
        program()
    assert str(error.value).isprintable()


def test_the_program_is_the_one_that_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_FLEETING", ())
    (tmp_path / "cryprq-proxy").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["./cryprq-proxy"])
    assert program() == tmp_path / "cryprq-proxy"
    # As a module: the script beside the interpreter, if there is one.
    monkeypatch.setattr(sys, "argv", ["/lib/cryprq_proxy/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert program() == tmp_path / "cryprq-proxy"
    (tmp_path / "cryprq-proxy").unlink()
    with pytest.raises(ConfigError, match="install it first"):
        program()


def test_a_directory_that_is_emptied_holds_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(sys, "argv", ["/tmp/x/cryprq-proxy"])
    with pytest.raises(ConfigError, match="services do not see"):
        program()


def test_a_unit_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "cryprq-exit.service"
    assert not check_ours(file)
    file.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(ConfigError, match=r"was not written by .* left alone: move it away first"):
        check_ours(file)
    file.write_text(unit_text(SERVICES["exit"], CALLED))
    assert check_ours(file)
    file.unlink()
    file.symlink_to(os.devnull)
    with pytest.raises(ConfigError, match="is masked; run: systemctl unmask"):
        check_ours(file)


def test_launchd_is_told_the_same(tmp_path: Path) -> None:
    told = plistlib.loads(plist_text(Path("/opt/a & b/cryprq-proxy"), tmp_path / "log").encode())
    assert told["ProgramArguments"] == ["/opt/a & b/cryprq-proxy"]
    assert told["RunAtLoad"] is True and told["KeepAlive"] == {"SuccessfulExit": False}
    file = tmp_path / "org.cryprq.proxy.plist"
    file.write_text(plist_text(CALLED, tmp_path / "log"))
    assert check_ours(file)
