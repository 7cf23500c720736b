"""Tests of cryprq_proxy/errors.py: reasons in words."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

import pytest

from cryprq_proxy.errors import CloseReason, StreamReason, reason_of, words_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)"), "connection refused"),
        (OSError(errno.ENOENT, "", "/a/file"), "no such file or directory"),
        (OSError(errno.EMFILE, None), "too many open files"),
        (OSError(None, None), "no reason given"),
        (OSError(), "no reason given"),
        (OSError("Multiple exceptions: a, b"), "multiple exceptions: a, b"),
        (TimeoutError(), "timed out"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name or service not known"),
        (ssl.SSLError(1, "[SSL] the peer speaks no TLS"), "[SSL] the peer speaks no TLS"),
    ],
)
def test_an_error_of_the_system_becomes_a_part_of_a_sentence(error: OSError, reason: str) -> None:
    assert reason_of(error) == reason


async def test_the_address_that_asyncio_adds_is_left_out() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as caught:
            await asyncio.open_connection(*closed.getsockname())
    assert reason_of(caught.value) == "connection refused"


def test_every_reason_on_the_wire_has_words() -> None:
    assert words_of(StreamReason.CONNECTION_REFUSED) == "connection refused"
    for reason in (*StreamReason, *CloseReason):
        assert "_" not in words_of(reason)
        assert words_of(reason) == words_of(reason).lower()
