"""A grammar of SOCKS5 negotiations and datagrams: each part right, odd, impossible or cut short."""

from __future__ import annotations

from typing import Final

from tests.support.choices import Choices

NAMES: Final = (
    b"target.example", b"Target.EXAMPLE.", b"a", b"_x.example", b"-", b"a" * 63 + b".b", b"a" * 64 + b".b",
    b".".join([b"c" * 63] * 3) + b"." + b"d" * 61, b".".join([b"c" * 63] * 3) + b"." + b"d" * 62, b"e" * 255,
    b"", b".", b"..", b"a..b", b".a", b"a b", b"a\0b", b"a/b", b"a@b", b"a:80", b"\xc3\xa4.example", b"xn--4ca.example",
    b"192.0.2.1", b"192.0.2.1.", b"192.0.2", b"192.0.2.256", b"192.0.2.01", b"0x7f.1", b"a.0x", b"2130706433", b"1e3",
    b"2001:db8::1", b"::ffff:192.0.2.1", b"[2001:db8::1]", b"fe80::1%eth0", b"::", b":", b"1::2::3", b"localhost",
)  # fmt: skip
LOGINS: Final = (
    (b"u", b"p"),
    (b"u", b"q"),
    (b"", b""),
    (b"\xff", b"p"),
    (b"u" * 255, b"p" * 255),
    (b"u:p", b""),
)


def address(choices: Choices) -> bytes:
    """ATYP | DST.ADDR | DST.PORT."""
    port = choices.pick((b"\x01\xbb", b"\x00\x50", b"\xff\xff", b"\x00\x00"))
    match choices.number(8):
        case 0 | 1:
            return b"\x01" + choices.pick((b"\xc0\x00\x02\x01", bytes(4), b"\xff" * 4)) + port
        case 2:
            return (
                b"\x04"
                + choices.pick((b"\x20\x01\x0d\xb8" + bytes(12), bytes(10) + b"\xff\xff\xc0\x00\x02\x01"))
                + port
            )
        case 3:
            return bytes((choices.number(256),)) + bytes(choices.number(20)) + port
        case _:
            name = choices.pick(NAMES if choices.once_in(2) else NAMES[:3])
            return bytes((3, len(name))) + name + port


def negotiation(choices: Choices) -> bytes:
    """Methods, a login where the methods may lead to one, the request, and what follows."""
    methods = choices.pick((b"\x00", b"\x00\x02", b"\x02", b"\x02\x00", b"\x01\x02\x80", b"", b"\x01"))
    data = bytes((choices.pick((5, 5, 5, 5, 5, 5, 5, 4)), len(methods))) + methods
    if (b"\0" not in methods) != choices.once_in(6):
        user, password = choices.pick(LOGINS)
        version = choices.pick((1, 1, 1, 1, 1, 5, 0))
        data += bytes((version, len(user))) + user + bytes((len(password),)) + password
    data += bytes(
        (choices.pick((5, 5, 5, 5, 5, 5, 4)), choices.pick((1, 1, 1, 3, 2, 0, 4, 255)), choices.number(2))
    )
    data += address(choices) + choices.pick((b"", b"left", b"\x05\x01\x00"))
    return data[: choices.number(len(data) + 1)] if choices.once_in(6) else data


def datagram(choices: Choices) -> bytes:
    """RSV | FRAG | ATYP | DST.ADDR | DST.PORT | DATA."""
    head = choices.pick((b"\0\0\0", b"\0\0\0", b"\0\0\0", b"\0\0\0", b"\0\0\1", b"\0\1\0", b"\1\0\0"))
    data = head + address(choices) + choices.pick((b"", b"payload"))
    return data[: choices.number(len(data) + 1)] if choices.once_in(6) else data
