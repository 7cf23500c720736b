"""The commands that end by themselves: what they print, what they leave, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cryprq_proxy import __version__
from cryprq_proxy.cli import run_command
from cryprq_proxy.config.keys import load_identity
from cryprq_proxy.config.tun import STATE
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.crypto.primitives import select_provider
from tests.support.processes import call, command, environment

PEER = "cryprq://" + "a" * 52 + "@127.0.0.1:4433"


def complaint(stderr: str) -> str:
    """The one sentence of a failed command."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("cryprq-proxy: ")
    return lines[0]


# --- keygen, id ---


@pytest.mark.process
def test_keygen_makes_a_private_file_and_prints_the_id_alone(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "key"
    done = call("keygen", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    peer = PeerId.parse(done.stdout.removesuffix("\n"))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert load_identity(select_provider(), file).peer_id == peer
    again = call("id", str(file))
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


def test_keygen_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    assert run_command(["keygen", str(file)]) == 0
    before = file.read_bytes()
    capsys.readouterr()
    assert run_command(["keygen", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "exists already" in complaint(err)
    assert file.read_bytes() == before


def test_the_default_identity_is_in_the_configuration_directory(
    own_directories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["keygen"]) == 0
    made = capsys.readouterr().out
    assert (own_directories / ".config" / "cryprq" / "identity").exists()
    assert run_command(["id"]) == 0
    assert capsys.readouterr().out == made


# --- how commands fail ---

BAD = [
    (["--no-such-flag"], "no such option"),
    (["no-such-command"], "no such command"),
    (["--listen"], "--listen"),
    ([], "no exit is named"),
    (["--peer", "x"], "--peer: expected cryprq://"),
    (["--peer", "cryprq://a@127.0.0.1:1"], "a peer id has 52 characters"),
    (["--peer", PEER, "--listen", "nonsense:port"], "--listen"),
    (["--peer", PEER, "--listen", "0.0.0.0:0"], "lets other machines in"),
    (["--peer", PEER, "--user", "name"], "NAME:PASSWORD"),
    (["--peer", PEER, "--upstream", "ftp://127.0.0.1:1"], "socks5://"),
    (["--log-format", "xml"], "'text', 'json'"),
    (["--config", "/no/such/file"], "does not exist"),
    (["--config", "/"], "name a file"),
    (["--peer", PEER, "exit"], "--peer belongs behind 'exit'"),
    (["--config", "x", "status"], "--config belongs behind 'status'"),
    (["exit", "--allow", "x"], "a peer id has 52 characters"),
    (["exit", "--listen", "x:y"], "--listen"),
    (["exit", "--config", "/no/such/file"], "does not exist"),
    (["exit", "--authorized", "/no/such/file"], "does not exist"),
    (["exit", "too", "many"], "unexpected extra argument"),
    (["id", "/no/such/file"], "there is no identity"),
    (["id", "/"], "name a file"),
    (["id", "\n\x1b[31m\udcff"], "there is no identity"),
    (["keygen", "/proc/no/such/file"], "cannot be made"),
    (["keygen", "/dev/null"], "exists already"),
    (["keygen", "a", "b"], "unexpected extra argument"),
    (["status", "--config", "/no/such/file"], "does not exist"),
    (["demo", "--listen", "x:y"], "--listen"),
    (["demo", "--listen", "0.0.0.0:0"], "lets other machines in"),
    (["--peer", PEER, "--exclude", "10.0.0.0/8"], "needs --tun"),
    (["--peer", PEER, "--include", "10.0.0.0/8"], "needs --tun"),
    (["--peer", PEER, "--exclude-uid", "0"], "needs --tun"),
    (["--peer", PEER, "--lan", "block"], "needs --tun"),
    (["--peer", PEER, "--kill-switch", "on"], "needs --tun"),
    (["--peer", PEER, "--inbound", "block"], "needs --tun"),
    (["--peer", PEER, "--confirm", "1"], "needs --tun"),
    (["--peer", PEER, "--yes"], "needs --tun"),
    (["--peer", PEER, "--tun", "--exclude", "x"], "--exclude: expected an address or prefix"),
    (["--peer", PEER, "--tun", "--include", "10.0.0.1/8"], "--include: 10.0.0.1/8 is an address within"),
    (["--peer", PEER, "--tun", "--exclude-uid", "no such user"], "--exclude-uid: there is no user"),
    (["--peer", PEER, "--tun", "--lan", "x"], "'allow', 'block'"),
    (["--peer", PEER, "--tun", "--kill-switch", "x"], "'on', 'off'"),
    (["--peer", PEER, "--tun", "--inbound", "x"], "'block', 'keep'"),
    (["--peer", PEER, "--tun", "--confirm", "x"], "--confirm"),
    (
        ["--peer", PEER, "--tun", "--confirm", "-1"],
        "--confirm': expected a number of seconds from 0 to 3600, got '-1'",
    ),
    (
        ["--peer", PEER, "--tun", "--upstream", "socks5://127.0.0.1:1"],
        "--tun and --upstream exclude each other",
    ),
    (["--tun", "cleanup"], "--tun belongs behind 'cleanup'"),
    (["--exclude", "10.0.0.0/8", "status"], "--exclude belongs behind 'status'"),
    (["pause"], "'SECONDS' is missing"),
    (["pause", "x"], "expected a whole number of seconds from 1 to 3600, got 'x'"),
    (["pause", "0"], "expected a whole number of seconds from 1 to 3600, got '0'"),
    (["pause", "3601"], "expected a whole number of seconds from 1 to 3600, got '3601'"),
    (["pause", "-5"], "expected a whole number of seconds from 1 to 3600, got '-5'"),
    (["pause", "-0.5"], "expected a whole number of seconds from 1 to 3600, got '-0.5'"),
    (["pause", "nan"], "expected a whole number of seconds from 1 to 3600, got 'nan'"),
    (["pause", "9" * 5000], f"expected a whole number of seconds from 1 to 3600, got '{'9' * 40}'"),
    (["pause", "-5", "--config"], "option '--config' requires an argument"),
    (["--confirm", "-5"], "expected a number of seconds from 0 to 3600, got '-5'"),
    (["--confirm", "nan"], "expected a number of seconds from 0 to 3600, got 'nan'"),
    (["leaktest", "--hold", "-5"], "expected a whole number of seconds from 1 to 3600, got '-5'"),
    *(
        ([*command, "-5"], "no such option '-5'; if it is no option but a value, write it behind --")
        for command in (["switch"], ["explain"], ["invite"], ["peers", "revoke"], ["peers", "rename"], ["id"])
    ),
    (["status", "-5"], "no such option '-5'; see"),
    (["pause", "1.5"], "expected a whole number of seconds from 1 to 3600, got '1.5'"),
    (["status", "--watch", "nan"], "expected a number of seconds from 0.2 to 3600, got 'nan'"),
    (["status", "--watch", "x"], "expected a number of seconds from 0.2 to 3600, got 'x'"),
    (["--confirm", "soon"], "expected a number of seconds from 0 to 3600, got 'soon'"),
    (["pause", "10", "--config", "/no/such/file"], "does not exist"),
    (["confirm", "--config", "/no/such/file"], "does not exist"),
    (["cleanup", "too", "many"], "unexpected extra argument"),
    (["leaktest"], "no cryprq-proxy is running"),
    (["leaktest", "--config", "/no/such/file"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: ascii(value))
def test_a_wrong_command_line_gets_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cli", "commands.run"):
        monkeypatch.setattr(f"cryprq_proxy.{module}.setup", lambda *_: None)  # pytest's own log handlers stay
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in complaint(err)
    assert "\x1b" not in err


@pytest.mark.process
def test_a_wrong_command_line_in_a_process_of_its_own() -> None:
    done = call("--peer", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--peer: expected cryprq://" in complaint(done.stderr)


def test_a_wrong_configuration_names_file_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'peer = "{PEER}"\nlissten = 1\n')
    assert run_command(["--config", str(file)]) == 2
    assert f"{file}: lissten: unknown key" in complaint(capsys.readouterr().err)
    # A command that asks what runs needs no more of it than where that is asked.
    assert run_command(["status", "--config", str(file)]) == 1
    assert "no cryprq-proxy is running" in complaint(capsys.readouterr().err)


def test_status_without_anybody_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["status"]) == 1
    assert "no cryprq-proxy is running" in complaint(capsys.readouterr().err)
    file = tmp_path / "exit.toml"
    file.write_text('control_socket = "mine.sock"\n')
    assert run_command(["status", "--json", "--config", str(file)]) == 1
    assert str(tmp_path / "mine.sock") in complaint(capsys.readouterr().err)


def test_a_bug_is_a_sentence_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("cryprq_proxy.config.keys.load_identity", broken)
    monkeypatch.setattr("cryprq_proxy.cli._drop_output", lambda: None)
    assert run_command(["id"]) == 1
    assert "this is a bug in cryprq-proxy: KeyError: 'x'" in complaint(capsys.readouterr().err)


# --- standard output ---


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"cryprq-proxy {__version__}\n"
    for arguments in (["--help"], ["-h"], ["exit", "--help"], ["status", "-h"]):
        assert run_command(arguments) == 0
        out, err = capsys.readouterr()
        assert out.startswith("Usage: cryprq-proxy")
        assert err == ""


@pytest.mark.process
def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            command("--help"), env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
def test_a_directory_that_is_gone_is_left(tmp_path: Path) -> None:
    """Else every library that asks where it is ends the command with a few words that say nothing."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        "import atexit, os, sys; from cryprq_proxy.cli import main\n"
        "os.chdir(sys.argv[1]); os.rmdir(sys.argv.pop(1))\n"
        "atexit.register(lambda: print(os.getcwd()))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(gone), "--version"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"cryprq-proxy {__version__}\n/\n", "")


@pytest.mark.process
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_files_that_are_closed(closed: str, tmp_path: Path) -> None:
    """Nothing is said there, and nothing that is opened later, as a socket, gets their numbers."""
    script = (
        "import os, pathlib, sys; from cryprq_proxy.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    opened = os.open(os.devnull, os.O_RDONLY)\n"
        "    pathlib.Path(os.environ['SAW']).write_text(f'{opened > 2} {sys.stdout.isatty()} {sys.stdin.isatty()}')\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", script, "--version"],
        env=environment() | {"SAW": str(tmp_path / "saw")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "saw").read_text() == "True False False"


@pytest.mark.process
def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--help"), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "no space left on device" in complaint(done.stderr)


# --- Ctrl-C ---

INTERRUPT_AT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            if os.environ["IN"] == "finalizer":
                Last()
            else:
                os.kill(os.getpid(), signal.SIGINT)

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass

sys.meta_path.insert(0, Interrupt())
from cryprq_proxy.__main__ import main
main()
"""


@pytest.mark.process
@pytest.mark.parametrize("place", ["module", "finalizer"])
@pytest.mark.parametrize("module", ["click", "cryprq_proxy.commands.doctor", "cryprq_proxy.config.exit"])
def test_an_interrupt_while_the_program_loads_is_no_traceback(module: str, place: str) -> None:
    """Where Python drops exceptions as well. The last module is loaded by the command itself."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT_AT, "status", "--watch", "--json"],
        env=environment() | {"AT": module, "IN": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.process
def test_an_ignored_interrupt_stays_ignored() -> None:
    """As of a job in a shell's background."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPT_AT
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"],
        env=environment() | {"AT": "click", "IN": "module"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"cryprq-proxy {__version__}\n")


def test_the_console_script_begins_where_interrupts_are_taken() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"cryprq-proxy": "cryprq_proxy.__main__:main"}


# --- system-wide mode ---


@pytest.mark.parametrize("command", [["pause", "5"], ["confirm"]])
def test_pause_and_confirm_without_anybody_to_ask(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command) == 1
    assert "no cryprq-proxy is running" in complaint(capsys.readouterr().err)


def test_the_commands_ask_the_running_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def query(path: Path, command: str, timeout: float, *, argument: str = "") -> dict[str, object]:
        asked.append((command, argument))
        return {}

    monkeypatch.setattr("cryprq_proxy.process.control.query", query)
    file = tmp_path / "client.toml"
    file.write_text(f'peer = "{PEER}"\n')
    assert run_command(["pause", "5", "--config", str(file)]) == 0
    assert run_command(["confirm", "--config", str(file)]) == 0
    assert asked == [("pause", "5"), ("confirm", "")]
    out, err = capsys.readouterr()
    assert "open for 5 s" in out and "confirmed" in out and err == ""


def test_a_leak_test_needs_a_client_in_system_wide_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cryprq_proxy.process.control.query", lambda *_, **__: {"role": "exit", "system": None}
    )
    monkeypatch.setattr("cryprq_proxy.service.system_wide.os.geteuid", lambda: 0)
    assert run_command(["leaktest"]) == 2
    assert "no client in system-wide mode is running" in complaint(capsys.readouterr().err)
    assert run_command(["leaktest", "--target", "one.one"]) == 2
    assert "--target: expected an IP address, got 'one.one'" in complaint(capsys.readouterr().err)
    monkeypatch.setattr("cryprq_proxy.service.system_wide.os.geteuid", lambda: 1000)
    assert run_command(["leaktest"]) == 2
    assert "run it as root" in complaint(capsys.readouterr().err)


@pytest.mark.parametrize(("code", "leak"), [(0, False), (1, True)])
def test_what_a_leak_test_prints(
    code: int, leak: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[object] = []

    def leak_test(answers: list[object], to: object, held: object) -> tuple[int, str, dict[str, object]]:
        targets.append(to)
        return code, "the table", {"leak": leak}

    monkeypatch.setattr("cryprq_proxy.process.control.query", lambda *_, **__: {"role": "client"})
    monkeypatch.setattr("cryprq_proxy.service.system_wide.leak_test", leak_test)
    assert run_command(["leaktest", "--target", "192.0.2.1", "--target", "::1"]) == code
    assert capsys.readouterr() == ("the table\n", "")
    assert run_command(["leaktest", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"leak": leak}
    assert targets == [("192.0.2.1", "::1"), ()]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peer", PEER, "--tun", "--listen", "127.0.0.1:0"],
        ["exit", "--tun", "--listen", "127.0.0.1:0"],
        ["cleanup"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_system_wide_mode_needs_root(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cli", "commands.run"):
        monkeypatch.setattr(f"cryprq_proxy.{module}.setup", lambda *_: None)
    monkeypatch.setattr("cryprq_proxy.service.system_wide.os.geteuid", lambda: 1000)
    assert run_command(arguments) == 2
    assert "run it as root (sudo)" in complaint(capsys.readouterr().err)


def test_cleanup_goes_to_the_state_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cryprq_proxy.service.system_wide.clean_up",
        lambda state, say, *, lift: say(f"in {state}{', all of it' if lift else ''}"),
    )
    assert run_command(["cleanup"]) == 0
    assert run_command(["cleanup", "--state-dir", str(tmp_path), "--all"]) == 0
    assert capsys.readouterr().out == f"in {STATE}\nin {tmp_path}, all of it\n"
