"""The PAC file, the shell's variables and the desktop's settings as commands; GNOME is played by a program in PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cryprq_proxy.address import Destination, reachable
from cryprq_proxy.cli import run_command
from cryprq_proxy.commands.desktop import kept
from cryprq_proxy.commands.desktop.environment import NAMES, SHELLS, exports, shell_of, unsets, variables
from cryprq_proxy.commands.desktop.gsettings import SCHEMA, Gsettings, automatic, manual
from cryprq_proxy.commands.desktop.kept import state_file
from cryprq_proxy.errors import ConfigError, CryprqError

turn_on = partial(kept.turn_on, Gsettings)
turn_off = partial(kept.turn_off, Gsettings)

PEER = "cryprq://" + "a" * 52 + "@exit.example:4433"

GSETTINGS = '''#!{python} -IS
"""As much of gsettings as the program needs; the store is a file, and one backend is always empty."""
import json, os, sys
OWN = {own}
file = "{file}"
store = json.load(open(file)) if os.path.exists(file) else {{}}
if os.environ.get("GSETTINGS_BACKEND") == "memory":
    store = {{}}
with open("{file}.log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
command, schema, *rest = sys.argv[1:]
if command == "list-recursively":
    for name, value in OWN.items():
        print(name, store.get(name, value))
    sys.exit()
name = f"{{schema}} {{rest[0]}}"
if name not in OWN:
    sys.exit(f"No such key {{name}}")
if command == "set":
    store[name] = rest[1]
else:
    store.pop(name, None)
if not os.path.exists("{file}.deaf"):
    json.dump(store, open(file, "w"))
'''

OWN = {
    f"{SCHEMA} mode": "'none'",
    f"{SCHEMA} autoconfig-url": "''",
    f"{SCHEMA} ignore-hosts": "['localhost', '127.0.0.0/8', '::1']",
    f"{SCHEMA}.http host": "''",
    f"{SCHEMA}.http port": "8080",
    f"{SCHEMA}.http use-authentication": "false",
    **{f"{SCHEMA}.{kind} host": "''" for kind in ("https", "ftp", "socks")},
    **{f"{SCHEMA}.{kind} port": "0" for kind in ("https", "ftp", "socks")},
}

HERS = {
    f"{SCHEMA} mode": "'manual'",
    f"{SCHEMA}.http host": "'old.example'",
    f"{SCHEMA}.http port": "3128",
    f"{SCHEMA}.http use-authentication": "true",
    f"{SCHEMA}.ftp host": "'ftp.example'",
    f"{SCHEMA} ignore-hosts": "['intranet.example']",
}
"""What a person had set."""

PROXY = Destination("127.0.0.1", 1080)


class Desktop:
    """The settings behind the `gsettings` in PATH."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = directory / "store.json"
        program = directory / "gsettings"
        program.write_text(GSETTINGS.format(python=sys.executable, own=repr(OWN), file=self._file))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(directory))

    @property
    def store(self) -> dict[str, str]:
        """What is set, without the desktop's own values."""
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    @store.setter
    def store(self, values: dict[str, str]) -> None:
        self._file.write_text(json.dumps(values))

    def change(self, **values: str) -> None:
        self.store = self.store | {f"{SCHEMA} {name}": value for name, value in values.items()}

    def takes_nothing(self) -> None:
        self._file.with_name("store.json.deaf").touch()

    @property
    def calls(self) -> list[str]:
        """What was set, in order."""
        lines = self._file.with_name("store.json.log").read_text().splitlines()
        return [line for line in lines if not line.startswith("list")]


@pytest.fixture
def gnome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desktop:
    return Desktop(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def own_state(own_directories: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(own_directories / "state"))
    return own_directories / "state" / "cryprq" / "system-proxy.json"


def configured(tmp_path: Path, text: str = "", *, private: bool = True) -> str:
    file = tmp_path / "client.toml"
    file.write_text(f'peer = "{PEER}"\n{text}')
    file.chmod(0o600 if private else 0o644)
    return str(file)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# --- the desktop ---


@pytest.mark.process
@pytest.mark.parametrize("before", [{}, HERS], ids=["nothing set", "another proxy"])
@pytest.mark.parametrize("wanted", [manual(PROXY), automatic("http://127.0.0.1:1081/proxy.pac")])
def test_on_and_off(before: dict[str, str], wanted: dict[str, str], gnome: Desktop, own_state: Path) -> None:
    gnome.store = before
    turn_on(wanted, own_state)
    assert OWN | gnome.store == OWN | before | wanted
    assert own_state.stat().st_mode & 0o777 == 0o600
    assert turn_off(own_state) == []
    assert gnome.store == before
    assert not own_state.exists()


@pytest.mark.process
def test_both_twice(gnome: Desktop, own_state: Path) -> None:
    gnome.store = HERS
    turn_on(manual(PROXY), own_state)
    turn_on(manual(PROXY), own_state)
    assert turn_off(own_state) == []
    assert gnome.store == HERS
    assert turn_off(own_state) is None
    assert gnome.store == HERS


@pytest.mark.process
def test_from_one_way_to_the_other(gnome: Desktop, own_state: Path) -> None:
    gnome.store = HERS
    turn_on(manual(PROXY), own_state)
    turn_on(automatic("http://127.0.0.1:1081/proxy.pac"), own_state)
    turn_on(manual(Destination("127.0.0.1", 9999)), own_state)
    assert gnome.store[f"{SCHEMA}.socks port"] == "9999"
    assert turn_off(own_state) == []
    assert gnome.store == HERS


@pytest.mark.process
def test_the_mode_is_set_last_and_restored_first(gnome: Desktop, own_state: Path) -> None:
    """Nobody goes through half of a proxy."""
    turn_on(manual(PROXY), own_state)
    assert [" mode" in call for call in gnome.calls].index(True) == len(gnome.calls) - 1
    before = len(gnome.calls)
    turn_off(own_state)
    assert gnome.calls[before] == f"reset {SCHEMA} mode"


@pytest.mark.process
def test_what_a_person_changes_meanwhile_stays(gnome: Desktop, own_state: Path) -> None:
    turn_on(manual(PROXY), own_state)
    gnome.change(mode="'auto'", **{"autoconfig-url": "'http://pac.example/'"})
    assert turn_off(own_state) == [f"{SCHEMA} mode"]
    assert gnome.store == {f"{SCHEMA} mode": "'auto'", f"{SCHEMA} autoconfig-url": "'http://pac.example/'"}


@pytest.mark.process
def test_what_a_person_changes_before_a_second_on_is_restored(gnome: Desktop, own_state: Path) -> None:
    turn_on(manual(PROXY), own_state)
    gnome.change(mode="'auto'")
    turn_on(manual(PROXY), own_state)
    assert turn_off(own_state) == []
    assert gnome.store == {f"{SCHEMA} mode": "'auto'"}


@pytest.mark.process
@pytest.mark.parametrize("done", range(5))
def test_killed_half_way(done: int, gnome: Desktop, own_state: Path) -> None:
    """The record is written before the first change, so it may tell of changes that were not made."""
    gnome.store = HERS
    wanted = manual(PROXY)
    turn_on(wanted, own_state)
    gnome.store = HERS | dict(list(wanted.items())[: 2 * done])
    assert turn_off(own_state) == []
    assert gnome.store == HERS


@pytest.mark.process
def test_a_desktop_that_takes_nothing(gnome: Desktop, own_state: Path) -> None:
    """As gsettings is without a session: it warns, and ends with 0."""
    gnome.takes_nothing()
    with pytest.raises(CryprqError, match=r"did not take the setting .* session"):
        turn_on(manual(PROXY), own_state)
    assert turn_off(own_state) == []


@pytest.mark.process
def test_a_desktop_without_the_schema(
    gnome: Desktop, own_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "gsettings"
    program.write_text("#!/bin/sh\necho 'No schemas installed\x1b[31m' >&2\nexit 1\n")
    assert run_command(["system-proxy", "on", "--config", configured(tmp_path)]) == 1
    said = sentence(capsys)
    assert "No schemas installed" in said and "\x1b" not in said
    assert not own_state.exists()


@pytest.mark.process
def test_a_schema_without_a_key(gnome: Desktop, own_state: Path, tmp_path: Path) -> None:
    program = tmp_path / "gsettings"
    program.write_text(f"#!/bin/sh\necho \"{SCHEMA} mode 'none'\"\n")
    with pytest.raises(CryprqError, match=r"have no org\.gnome\.system\.proxy\.ftp host"):
        turn_on(manual(PROXY), own_state)
    assert not own_state.exists()


def test_no_gsettings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(["system-proxy", "on", "--config", configured(tmp_path)]) == 1
    assert "gsettings was not found" in sentence(capsys)


@pytest.mark.process
def test_a_gsettings_that_cannot_be_run(gnome: Desktop, own_state: Path, tmp_path: Path) -> None:
    (tmp_path / "gsettings").write_text("#!/nonexistent/program\n")
    with pytest.raises(CryprqError, match="cannot be run"):
        turn_on(manual(PROXY), own_state)


@pytest.mark.process
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"before": {}, "applied": {"a": "b"}}', "[" * 5000, '{"before": 1, "applied": 2}',
     '{"before": {"other.schema key": "1"}, "applied": {"other.schema key": "1"}}',
     '{"before": {"org.gnome.system.proxy mode": 1}, "applied": {"org.gnome.system.proxy mode": "1"}}'],
)  # fmt: skip
def test_a_record_that_is_none(text: str, gnome: Desktop, own_state: Path) -> None:
    gnome.store = HERS
    own_state.parent.mkdir(parents=True)
    own_state.write_text(text)
    for act in (lambda: turn_off(own_state), lambda: turn_on(manual(PROXY), own_state)):
        with pytest.raises(ConfigError, match="is not what this program wrote there"):
            act()
    assert gnome.store == HERS


@pytest.mark.process
def test_the_command(
    gnome: Desktop, own_state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, 'listen = "127.0.0.1:3333"\nadmin = "127.0.0.1:4444"\n')
    assert run_command(["system-proxy", "on", "--config", config]) == 0
    assert gnome.store[f"{SCHEMA} mode"] == "'manual'"
    assert gnome.store[f"{SCHEMA}.https host"] == "'127.0.0.1'"
    assert gnome.store[f"{SCHEMA}.https port"] == "3333"
    assert run_command(["system-proxy", "on", "--pac", "--config", config]) == 0
    assert gnome.store[f"{SCHEMA} mode"] == "'auto'"
    assert gnome.store[f"{SCHEMA} autoconfig-url"] == "'http://127.0.0.1:4444/proxy.pac'"
    assert run_command(["system-proxy", "off"]) == 0
    assert gnome.store == {}
    assert run_command(["system-proxy", "off"]) == 0
    assert "nothing to restore" in capsys.readouterr().out
    assert state_file() == own_state


def test_no_pac_without_an_address_for_it(
    gnome: Desktop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, 'admin = "off"\n')
    assert run_command(["system-proxy", "on", "--pac", "--config", config]) == 2
    assert "admin" in sentence(capsys)
    assert gnome.store == {}


@pytest.mark.process
def test_the_real_gsettings(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key-file store lies in the configuration directory, which is the test's own."""
    monkeypatch.setenv("GSETTINGS_BACKEND", "keyfile")
    program = shutil.which("gsettings")
    if program is None:
        pytest.skip("gsettings is not installed; on Debian: apt-get install libglib2.0-bin")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    if run("list-recursively", SCHEMA).returncode:
        pytest.skip("no proxy settings; on Debian: apt-get install gsettings-desktop-schemas")
    run("set", f"{SCHEMA}.http", "host", "old.example")
    run("set", SCHEMA, "mode", "manual")
    before = run("list-recursively", SCHEMA).stdout
    assert "old.example" in before
    turn_on(manual(Destination("::1", 1080)), own_state)
    assert f"{SCHEMA}.socks host '[::1]'" in run("list-recursively", SCHEMA).stdout
    turn_on(automatic("http://127.0.0.1:1081/proxy.pac"), own_state)
    assert run("get", SCHEMA, "mode").stdout == "'auto'\n"
    assert turn_off(own_state) == []
    assert run("list-recursively", SCHEMA).stdout == before


# --- the shell ---

LOGIN = "al'ice:se$c\"r`e\\t! ü@/:%41"


def evaluated(shell: str, text: str) -> dict[str, str]:
    """The variables of a shell that has run `text`."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed; on Debian: apt-get install {shell}")
    options = ["-f"] if shell == "tcsh" else []
    show = f"{sys.executable} -IS -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    arguments = [program, *options, "-c", f"{text}{show}\n"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=True
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.process
@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh"])
@pytest.mark.parametrize("login", ["", LOGIN])
def test_shells_understand_it(shell: str, login: str) -> None:
    values = variables(Destination("::1", 1080), login)
    kind = shell_of(f"/usr/bin/{shell}")
    assert values.items() <= evaluated(shell, exports(values, kind)).items()
    gone = evaluated(shell, exports(values, kind) + unsets(kind))
    assert not {name.upper() for name in gone} & set(NAMES)


@pytest.mark.process
@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "tcsh"])
def test_quoting_holds_whatever_a_value_is(shell: str) -> None:
    value = "a'b\"c$HOME`id`\\'\\! !! {x,y} * ~ #;&|<>"
    assert evaluated(shell, exports({"VALUE": value}, shell_of(shell)))["VALUE"] == value


def test_files_of_variables() -> None:
    values = variables(PROXY, LOGIN)
    assert dict(line.split("=", 1) for line in exports(values, "file").splitlines()) == values
    assert set(unsets("file").split()) == {f"{name}=" for name in values}


def test_what_the_variables_say() -> None:
    values = variables(PROXY)
    assert values["ALL_PROXY"] == values["all_proxy"] == "socks5h://127.0.0.1:1080"
    assert values["HTTPS_PROXY"] == values["http_proxy"] == "http://127.0.0.1:1080"
    assert {"localhost", "127.0.0.1", "::1"} <= set(values["no_proxy"].split(","))
    assert "all_proxy" not in variables(PROXY, socks=False)
    url = urlsplit(variables(PROXY, LOGIN)["HTTPS_PROXY"])
    assert (unquote(url.username or ""), unquote(url.password or "")) == tuple(LOGIN.split(":", 1))
    assert (url.hostname, url.port) == PROXY


@pytest.mark.parametrize(
    ("listen", "found"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.1", "192.0.2.1"), ("localhost", "localhost")],
)
def test_where_a_program_finds_the_proxy(listen: str, found: str) -> None:
    assert reachable(Destination(listen, 1)) == Destination(found, 1)


@pytest.mark.parametrize("way", ["user", "user_file"])
def test_passwords_only_where_asked_for(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if way == "user":
        config = configured(tmp_path, "user = '''" + LOGIN + "'''\n")
    else:
        (tmp_path / "login").write_text(f"{LOGIN}\n")
        (tmp_path / "login").chmod(0o600)
        config = configured(tmp_path, 'user_file = "login"\n')
    assert run_command(["env", "--shell", "file", "--config", config]) == 0
    out, err = capsys.readouterr()
    assert "@" not in out
    assert "--with-password" in err
    assert run_command(["env", "--shell", "file", "--with-password", "--config", config]) == 0
    out, err = capsys.readouterr()
    assert err == f"cryprq-proxy: no client runs; from {config}\n"
    assert out == exports(variables(PROXY, LOGIN), "file")


def test_the_shell_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    for shell, word in (
        ("/usr/bin/fish", "set -gx"),
        ("/bin/tcsh", "setenv"),
        ("/bin/zsh", "export"),
        ("", "export"),
    ):
        monkeypatch.setenv("SHELL", shell)
        assert run_command(["env", "--config", config]) == 0
        assert capsys.readouterr().out.startswith(word)


def test_unset_needs_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert run_command(["env", "--unset", "--shell", shell]) == 0
        out = capsys.readouterr().out
        assert all(f"{name}" in out and name.lower() in out for name in NAMES)


def test_http_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["env", "--http-only", "--config", configured(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "socks" not in out and "HTTPS_PROXY" in out


# --- the PAC file ---


def test_pac_needs_neither_a_client_nor_the_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(
        tmp_path,
        'listen = "0.0.0.0:3333"\nuser = "a:b"\n[[rule]]\nto = "direct"\ndomains = [".corp.example"]\n'
        '[[rule]]\nto = "block"\nlists = ["not-there.txt"]\n',
    )
    assert run_command(["pac", "--config", config]) == 0
    out, err = capsys.readouterr()
    assert err == f"cryprq-proxy: no client runs; from {config}\n"
    assert "PROXY 127.0.0.1:3333; SOCKS5 127.0.0.1:3333" in out
    assert ".corp.example" in out
    assert out.isascii()


def test_pac_of_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, '[[rule]]\nto = "nowhere"\nports = [1]\n')
    assert run_command(["pac", "--config", config]) == 2
    assert "to" in sentence(capsys)
    assert os.path.exists(config)
