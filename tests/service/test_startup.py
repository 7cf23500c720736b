"""What both roles share: the sentence for an address that cannot be listened on, and the keys that have changed."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.config.client import client_from
from cryprq_proxy.config.exit import ExitConfig, ExitLimitsTable
from cryprq_proxy.config.tun import DnsTable, TunTable
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.service.startup import explained, needs_restart

PEER = f"cryprq://{PeerId(bytes(32))}@192.0.2.1:4433"
HERE = Destination("nosuch.invalid", 4433)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "there is no address for "),
        # As socket.create_server raises it.
        (
            OSError(socket.EAI_NONAME, f"Name or service not known ({tuple(HERE)})"),
            "there is no address for ",
        ),
        (
            OSError(errno.EADDRINUSE, "in use"),
            "nosuch.invalid:4433 is in use by another program; stop that one",
        ),
        (OSError(errno.EADDRNOTAVAIL, "none"), "this machine has no address nosuch.invalid:4433"),
        (PermissionError(errno.EACCES, "no"), "listening on nosuch.invalid:4433 needs more rights"),
        (OSError(errno.ENOBUFS, "none"), "listening on nosuch.invalid:4433 failed: "),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(error: OSError, sentence: str) -> None:
    with pytest.raises(CryprqError) as caught, explained([HERE]):
        raise error
    assert str(caught.value).startswith(sentence)
    assert "(" not in str(caught.value)


def test_a_reload_names_the_keys_that_need_a_restart_and_no_values() -> None:
    taken = ("rule", "default", "log_level")
    before = client_from(f'peer = "{PEER}"\n', Path("client.toml"), True, {})
    assert not needs_restart(before, structs.replace(before, log_level="debug"), taken)
    dns = DnsTable(split=(("secret.example", ("10.0.0.1",)),), stale=5.0)
    now = structs.replace(before, log_level="debug", via=True, tun=TunTable(lan="block", dns=dns))
    said = needs_restart(before, now, taken)
    assert said.endswith(" needs a restart: via, tun.lan, tun.dns.split, tun.dns.stale")
    old = ExitConfig()
    limits = ExitLimitsTable(streams_per_peer=7)
    assert needs_restart(old, structs.replace(old, limits=limits), ()).endswith(": limits.streams_per_peer")
