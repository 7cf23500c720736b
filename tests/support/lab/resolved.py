"""systemd-resolved as it is shipped, inside of a host: with a bus of the host's own, and as its resolver."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.lab.net import Namespace, until
from tests.support.pages import ROOT

UNPACKED: Final = ROOT / "build" / "systemd-resolved"
"""Where the Makefile unpacks the package; to install it would change the machine's own resolver."""
PLACES: Final = (
    Path("/usr/lib/systemd/systemd-resolved"),
    UNPACKED / "usr/lib/systemd/systemd-resolved",
    UNPACKED / "lib/systemd/systemd-resolved",
)
QUIET: Final = "FallbackDNS=\nLLMNR=no\nMulticastDNS=no\n"
"""No questions to the neighbours, which are LAN discovery and allowed."""
BUS: Final = """
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
PREPARE: Final = """set -e
for directory in /run/dbus /run/systemd; do
    mkdir -p $directory
    mount -t tmpfs none $directory
done
grep -q ^systemd-resolve: /etc/group || echo systemd-resolve:x:990: >>/etc/group
grep -q ^systemd-resolve: /etc/passwd || echo systemd-resolve:x:990:990::/:/usr/sbin/nologin >>/etc/passwd
mkdir -p /run/systemd/resolve /etc/systemd
chown systemd-resolve:systemd-resolve /run/systemd/resolve
cp /etc/resolv.conf /etc/resolv.conf.before
ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
"""
RESTORE: Final = """
mv /etc/resolv.conf.before /etc/resolv.conf
rm -f /etc/systemd/resolved.conf
umount /run/systemd /run/dbus
"""


def program() -> Path | None:
    """The program, if it is here and runs."""
    for place in PLACES:
        if place.exists() and not subprocess.run([place, "--version"], capture_output=True).returncode:
            return place
    return None


@contextmanager
def resolved(host: Namespace, program: Path, settings: str) -> Iterator[None]:
    """It runs with these lines of the section [Resolve] of resolved.conf(5), and resolv.conf names its stub."""
    host.run(["sh", "-c", PREPARE])
    try:
        host.run(["tee", "/etc/systemd/resolved.conf"], stdin=f"[Resolve]\n{QUIET}{settings}\n")
        config = host.directory / "bus.conf"
        config.write_text(BUS)
        bus = host.popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"],
            stdout=subprocess.PIPE,
        )
        assert bus.stdout is not None
        assert bus.stdout.readline().startswith("unix:")
        with bus, host.popen([str(program)]) as process:
            try:
                until(
                    lambda: ":53 " in host.run(["ss", "-Hltn", "src 127.0.0.53"]) and _owns_name(host),
                    "systemd-resolved listens",
                )
                yield
            finally:
                process.kill()
                bus.kill()
    finally:
        host.run(["sh", "-c", RESTORE])


def _owns_name(host: Namespace) -> bool:
    bus = "org.freedesktop.DBus"
    call = ["dbus-send", "--system", "--print-reply", f"--dest={bus}", "/org/freedesktop/DBus"]
    asked = host.attempt([*call, f"{bus}.NameHasOwner", "string:org.freedesktop.resolve1"])
    return "true" in asked.stdout
