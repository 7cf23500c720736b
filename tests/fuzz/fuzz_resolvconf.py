"""Invariant: whatever stands in a resolv.conf, addresses come out, and ours has our name servers and no others."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy", "tun"]):
    from cryprq_proxy.base.resolv_conf import MAX_NAMESERVERS, nameservers
    from tun.linux.resolver.resolvconf_text import render

OURS = ("198.18.255.53", "fd63:7279:7071::53")


def fuzz(data: bytes) -> None:
    found = nameservers(data)
    if len(found) > MAX_NAMESERVERS:
        raise RuntimeError("too many name servers")
    for address in found:
        ipaddress.ip_address(address)
    ours = render(OURS, data, "0" * 16)
    if nameservers(ours) != OURS or render(OURS, ours, "0" * 16) != ours:
        raise RuntimeError(f"{ours!r} is not ours")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
