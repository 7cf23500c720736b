"""Invariant: what a DNS server sends is a NameAnswer with addresses or an AnswerError; any hosts file can be read."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.outbound.resolving.dns_answer import (
        AAAA,
        A,
        AnswerError,
        Question,
        encode_name,
        read_answer,
    )
    from cryprq_proxy.outbound.resolving.hosts_file import MAX_ADDRESSES, read_hosts

NAME = encode_name("exit.example.org") or b""
QUESTIONS = [Question(NAME, kind).wire() for kind in (A, AAAA)]


def fuzz(data: bytes) -> None:
    for version, asked in zip((4, 6), QUESTIONS, strict=True):
        # As it comes; and with what makes it an answer to the question, so that the rest is looked at.
        answered = (
            asked[:2] + b"\x80" + data[:1] + asked[4:6] + data[1:7].ljust(6, b"\x00") + asked[12:] + data[7:]
        )
        for message in (data, answered):
            try:
                answer = read_answer(message, asked)
            except AnswerError:
                continue
            if len(answer.addresses) > MAX_ADDRESSES or any(
                ipaddress.ip_address(address).version != version for address in answer.addresses
            ):
                raise RuntimeError(f"{answer!r} is no answer")
            if answer.alias is not None and (answer.addresses or len(answer.alias) > 255):
                raise RuntimeError(f"{answer!r} is no alias")
    for addresses in read_hosts(data).values():
        for address in addresses:
            ipaddress.ip_address(address)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
