"""The systemd units in configs/: what they start exists, what confines them is there, and systemd finds no fault."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from cryprq_proxy.cli import WRONG_USAGE, cli
from cryprq_proxy.commands.service.units import SERVICES, Service, unit_text
from cryprq_proxy.config.exit import ExitConfig
from tests.support.logged import ROOT
from tests.support.pairs import Setup, echo, proxy_port
from tests.support.processes import Program, echo_server, socks_connect

CONFIGS = ROOT / "configs"
LOCKDOWN = CONFIGS / "cryprq-lockdown.service"
UNITS = [unit for unit in sorted(CONFIGS.glob("*.service")) if unit != LOCKDOWN]
"""Those that start this program."""
DROP_IN = CONFIGS / "cryprq-exit-tun.conf"
PROGRAM = "/opt/cryprq-proxy/.venv/bin/cryprq-proxy"

WORST = {
    "cryprq-exit.service": 1.3,
    "cryprq-proxy.service": 1.2,
    "cryprq-client-tun.service": 2.4,
    "cryprq-proxy-user.service": 6.5,
    "cryprq-exit.service with tun.conf": 2.4,
    "cryprq-lockdown.service": 2.4,
}
"""`systemd-analyze security`: the exposure of each, from 0 to 10, and not above this. A user's own manager can enforce
few of the options that are counted."""

EVERYWHERE = (
    "NoNewPrivileges",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
)
OF_THE_SYSTEM = ("ProtectHome", "ProtectClock", "ProtectKernelModules", "ProtectControlGroups", "PrivateTmp")


def settings(unit: Path) -> dict[str, list[str]]:
    """Each key of a unit file with all its values; a line that is none fails."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, equals, value = line.partition("=")
            assert equals and re.fullmatch("[A-Za-z0-9]+", key), line
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", [*UNITS, DROP_IN], ids=lambda unit: unit.name)
def test_what_a_unit_starts_is_a_command_with_these_flags(unit: Path) -> None:
    program, *arguments = shlex.split(settings(unit)["ExecStart"][-1])
    assert program == PROGRAM
    command: click.Command = cli
    if arguments and not arguments[0].startswith("-"):
        command = cli.commands[arguments.pop(0)]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert [flag for flag in arguments if flag.startswith("-") and flag not in known] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_manager_is_told_and_watches(unit: Path) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert found["WatchdogSec"] == ["30"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert found["Restart"][0] in ("always", "on-failure")
    assert found["RestartPreventExitStatus"] == [str(WRONG_USAGE)]


def test_the_socket_unit_passes_what_the_exit_listens_on_by_default() -> None:
    found = settings(CONFIGS / "cryprq-exit.socket")
    assert found["ListenStream"] == [str(address) for address in ExitConfig().listen]
    assert found["BindIPv6Only"] == ["ipv6-only"]


def test_a_restart_of_the_exit_leaves_open_streams_to_the_old_process() -> None:
    """The signal goes to the main process alone, which ends before its child; the child sends the messages."""
    found, more = settings(CONFIGS / "cryprq-exit.service"), settings(DROP_IN)
    assert found["KillMode"] == ["process"] and "KillMode" not in more
    assert found["NotifyAccess"] == ["all"]
    # The successor listens in the same directory, while the old process is still there.
    assert found["RuntimeDirectoryPreserve"] == ["yes"]
    for unit in (found, more):
        assert "--overlap" in unit["ExecStart"][-1].split()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_confined(unit: Path) -> None:
    found = settings(unit)
    wanted = EVERYWHERE if "user" in unit.name else (*EVERYWHERE, *OF_THE_SYSTEM)
    assert {key: found.get(key) for key in wanted} == {key: ["yes"] for key in wanted}
    assert found["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX AF_NETLINK"]
    assert found["SystemCallFilter"][:2] == ["@system-service", "~@privileged @resources"]
    assert found["SystemCallErrorNumber"] == ["EPERM"]
    assert found["UMask"] == ["0077"]
    assert found["LimitCORE"] == ["0"]


@pytest.mark.parametrize("name", ["cryprq-exit", "cryprq-proxy"])
def test_without_packets_there_is_no_root_and_no_capability(name: str) -> None:
    found = settings(CONFIGS / f"{name}.service")
    # A dynamic user's directory is a link into a place that it cannot enter, and its number is used again.
    assert "DynamicUser" not in found
    assert found["User"] == ["cryprq"]
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == [""]


@pytest.mark.parametrize(
    ("unit", "capabilities"),
    [
        (CONFIGS / "cryprq-client-tun.service", "CAP_NET_ADMIN CAP_NET_BIND_SERVICE"),
        (DROP_IN, "CAP_NET_ADMIN"),
    ],
    ids=["client", "exit"],
)
def test_packets_take_few_capabilities_and_one_device(unit: Path, capabilities: str) -> None:
    """The client's forwarder listens below port 1024."""
    found = settings(unit)
    assert found["CapabilityBoundingSet"] == [capabilities]
    assert (found["DevicePolicy"], found["DeviceAllow"]) == (["closed"], ["/dev/net/tun rw"])


def test_lockdown_stands_before_any_network_and_outlives_its_unit() -> None:
    found = settings(LOCKDOWN)
    assert found["DefaultDependencies"] == ["no"], "else it would wait for what comes after sysinit.target"
    assert "network-pre.target" in found["Before"][0].split() and found["Wants"] == ["network-pre.target"]
    assert found["After"] == found["PartOf"] == found["ReloadPropagatedFrom"] == ["nftables.service"]
    assert found["WantedBy"] == ["sysinit.target"]
    assert (found["Type"], found["RemainAfterExit"]) == (["oneshot"], ["yes"])
    assert not {"ExecStop", "ExecStopPost", "Requires", "BindsTo"} & found.keys()
    # This would wait for systemd-tmpfiles-setup.service, and let the network wait too.
    assert "PrivateTmp" not in found
    wanted = {*EVERYWHERE, *OF_THE_SYSTEM} - {"PrivateTmp"}
    assert {key: found.get(key) for key in wanted} == {key: ["yes"] for key in wanted}
    assert found["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
    assert "AF_NETLINK" in found["RestrictAddressFamilies"][0]


@pytest.mark.process
def test_systemd_makes_the_user_of_the_services(tmp_path: Path) -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        pytest.skip("systemd-sysusers is not installed; on Debian: apt-get install systemd")
    (tmp_path / "etc").mkdir()
    subprocess.run([program, f"--root={tmp_path}", str(CONFIGS / "cryprq.sysusers")], check=True, timeout=60)
    (line,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    name, _, uid, _, _, home, shell = line.split(":")
    assert (name, home) == ("cryprq", "/var/lib/cryprq")
    assert 0 < int(uid) < 1000 and shell.endswith("nologin")


# --- what systemd says ---


def analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"LC_ALL": "C", "SYSTEMD_COLORS": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=list(WORST))
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A unit with a program that exists, as `verify` wants it."""
    name = str(request.param)
    file = name.partition(" ")[0]
    unit = tmp_path / file
    unit.write_text((CONFIGS / file).read_text().replace(PROGRAM, "/bin/true"))
    if name != file:
        (tmp_path / f"{file}.d").mkdir()
        (tmp_path / f"{file}.d" / "tun.conf").write_text(DROP_IN.read_text().replace(PROGRAM, "/bin/true"))
    return name, unit


@pytest.mark.process
def test_systemd_finds_no_fault_and_little_exposure(installed: tuple[str, Path]) -> None:
    name, unit = installed
    assert analyze("verify", str(unit)) == ""
    said = analyze("security", "--offline=true", "--no-pager", str(unit))
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert overall is not None and float(overall[1]) <= WORST[name], said


@pytest.mark.process
@pytest.mark.parametrize("service", SERVICES.values(), ids=lambda service: service.unit)
def test_systemd_finds_no_fault_in_a_unit_that_was_installed(service: Service, tmp_path: Path) -> None:
    """Also where the program is in a home directory, with a name that needs quoting."""
    program = tmp_path / "100% mine" / "cryprq-proxy"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    unit = tmp_path / service.file
    unit.write_text(unit_text(service, program, [program.parent]))
    assert analyze("verify", str(unit)) == ""


# --- what the program calls ---


def call_set(name: str) -> set[str]:
    """The system calls of one of systemd's sets, those of the sets in it too."""
    found: set[str] = set()
    for line in analyze("syscall-filter", name).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= call_set(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


class Traced(Setup):
    """The pair, each under strace."""

    def traced(self, program: Program, name: str) -> set[str]:
        text = (self.directory / f"{name}.trace").read_text()
        return set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z][a-z0-9_]*)\(", text, re.MULTILINE))


@pytest.mark.process
def test_no_call_of_the_program_is_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, a stream, a reload and the end of both roles, with all their system calls written down."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed; on Debian: apt-get install strace")
    allowed = call_set("@system-service") - call_set("@privileged") - call_set("@resources")
    from tests.support import processes

    plain = processes.command
    monkeypatch.setattr(
        processes,
        "command",
        lambda *arguments: [
            strace,
            "-D",  # the program stays our child, so that signals reach it
            "-f",
            "-qq",
            "-o",
            str(tmp_path / f"{'exit' if arguments[0] == 'exit' else 'client'}.trace"),
            *plain(*arguments),
        ],
    )
    pair = Traced(tmp_path)
    with echo_server() as target, pair.exit("--overlap") as exit, pair.client() as client:
        client.log.wait("link up")
        sock, reply = socks_connect(proxy_port(client), target)
        assert reply == 0
        with sock:
            echo(sock, b"hello" * 1000)
        for program in (client, exit):
            program.end(signal.SIGTERM)
        for name, program in (("client", client), ("exit", exit)):
            called = pair.traced(program, name)
            assert len(called) > 40
            assert called - allowed - _UNDER_STRACE == set()


_UNDER_STRACE = {"execve"}
"""Of the start itself, before the filter is there."""


# --- the container ---


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (CONFIGS / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_the_image_runs_the_exit_as_nobody_special() -> None:
    last_stage = instructions()
    while last_stage[0] != ("FROM", "${BASE}"):
        last_stage.pop(0)
    found = dict(last_stage)
    assert found["USER"] not in ("", "root", "0")
    assert json.loads(found["ENTRYPOINT"]) == ["cryprq-proxy"]
    (command,) = json.loads(found["CMD"])
    assert command in cli.commands
    program, asked, *flags = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2])
    assert program == "cryprq-proxy"
    assert set(flags) <= {flag for parameter in cli.commands[asked].params for flag in parameter.opts}
    assert json.loads(found["VOLUME"]) == ["/etc/cryprq", "/var/lib/cryprq"]
    assert {"XDG_CONFIG_HOME=/etc", "XDG_STATE_HOME=/var/lib"} <= set(found["ENV"].split())


def test_the_image_stands_on_an_exact_version() -> None:
    """Which the person who builds it can replace by one with a digest."""
    (argument,) = [rest for word, rest in instructions() if word == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.12\.\d+-slim-bookworm", argument)
    assert {rest.split()[0] for word, rest in instructions() if word == "FROM"} == {"${BASE}"}


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "compose-client.yaml"])
def test_a_container_keeps_its_files_where_the_image_has_them(name: str) -> None:
    text = (CONFIGS / name).read_text()
    assert set(re.findall(r"cryprq(?:-client)?:(/\w\S*)", text)) == {"/etc/cryprq"}
    assert set(re.findall(r"/run/cryprq:uid=(\d+),", text)) == {"10001"}


def test_a_client_beside_a_container_listens_where_that_one_looks() -> None:
    text = (CONFIGS / "compose-client.yaml").read_text()
    arguments = json.loads(re.findall(r"^    command: (.*)$", text, flags=re.MULTILINE)[0])
    context = cli.make_context("cryprq-proxy", list(arguments))
    assert set(re.findall(r": \w+://(\S+)", text)) == {context.params["listen"]}


def test_the_image_is_made_of_what_is_there_and_of_no_secret() -> None:
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"requirements.txt", "pyproject.toml", *built["packages"], *built["force-include"]}
    needed |= {str(Path(file).parent) for file in built["shared-data"]}
    assert needed <= set(copied), "what the wheel is built of"
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert "." not in copied


def test_the_image_and_the_units_agree_on_the_place_of_the_files() -> None:
    for name in ("cryprq-exit", "cryprq-proxy"):
        found = settings(CONFIGS / f"{name}.service")
        assert found["StateDirectory"] == ["cryprq"]
        assert {"XDG_CONFIG_HOME=/etc", "XDG_STATE_HOME=/var/lib"} <= set(found["Environment"][0].split())
        assert found["ReadWritePaths"] == ["/etc/cryprq"]


def test_a_unit_of_roots_follows_the_rule_without_being_told() -> None:
    assert "Environment" not in settings(CONFIGS / "cryprq-client-tun.service")
