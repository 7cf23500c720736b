"""What both roles share when they start: the sentence for an address that cannot be listened on."""

from __future__ import annotations

import errno
import socket

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.service.startup import explained

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
