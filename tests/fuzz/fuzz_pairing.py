"""Invariant: any text is an invite, a list of peers or of invites, or ConfigError; what is one has one spelling."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.config.authorized import check_name, find, parse_peers
    from cryprq_proxy.crypto.identity import PeerId
    from cryprq_proxy.errors import ConfigError
    from cryprq_proxy.pairing.invitation import Invitation, parse_expiry, public_url
    from cryprq_proxy.pairing.invite_store import parse_invites

ID = PeerId(bytes(32))
URL = f"cryprq://{ID}@exit.example:4433"
LINE = '{"name":"a","hash":"' + "0" * 64 + '","created":0,"expires":1}\n'
FILE = Path("file")


def uris(text: str) -> None:
    invitation = Invitation.parse(text)
    if Invitation.parse(str(invitation)) != invitation or len(invitation.secret) != 16:
        raise RuntimeError(f"{invitation!r} does not come back")


def secrets(text: str) -> None:
    if str(Invitation.parse(f"{URL}#{text}")) != f"{URL}#{text.strip().lower()}":
        raise RuntimeError(f"{text!r} is a second spelling of a secret")


def addresses(text: str) -> None:
    Invitation(public_url(ID, text, 4433), bytes(16))


def expiries(text: str) -> None:
    if not 60 <= parse_expiry(text) <= 30 * 86_400:
        raise RuntimeError(f"{text!r} is out of bounds")


def names(text: str) -> None:
    name = check_name(text)
    if [peer.name for peer in parse_peers(f"{ID} {name}\n", FILE)] != [name]:
        raise RuntimeError(f"the name {name!r} does not come back from the list")


def lists(text: str) -> None:
    find(parse_peers(text, FILE), text[:52])


def invites(text: str) -> None:
    for invite in parse_invites(LINE + text, FILE):
        check_name(invite.name)


TARGETS = (uris, secrets, addresses, expiries, names, lists, invites)


def fuzz(data: bytes) -> None:
    if not data:
        return
    text = data[1:].decode("utf-8", "surrogatepass" if data[0] & 0x80 else "replace")
    try:
        TARGETS[data[0] % len(TARGETS)](text)
    except ConfigError as error:
        str(error).encode()


def one_input(data: bytes) -> None:
    try:
        fuzz(data)
    except UnicodeDecodeError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
