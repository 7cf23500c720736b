"""Invariant: damaged records raise CarrierError, sealed ones with any frames at most PeerError, and none hangs."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.crypto.primitives import Cipher
    from cryprq_proxy.errors import CarrierError, PeerError
    from cryprq_proxy.session.records import RecordOpener, RecordSealer
    from cryprq_proxy.session.session import Session
    from cryprq_proxy.session.wire import MAX_PLAINTEXT, StreamProtocol

from tests.support.fault_watch import FaultWatch
from tests.support.links import Link, ToyProvider

KEY = bytes(32)


def fuzz_opener(data: atheris.FuzzedDataProvider) -> None:
    """Records with a few changed bytes: what opens, opens in order, up to the first damage."""
    cipher = data.PickValueInList(list(Cipher))
    sealer, opener = RecordSealer(cipher, KEY), RecordOpener(cipher, KEY)
    plaintexts = [data.ConsumeBytes(data.ConsumeIntInRange(1, 40)) or b"-" for _ in range(3)]
    stream = bytearray(b"".join(sealer.seal(plaintext) for plaintext in plaintexts))
    for _ in range(data.ConsumeIntInRange(0, 3)):
        stream[data.ConsumeIntInRange(0, len(stream) - 1)] = data.ConsumeIntInRange(0, 255)
    opened, position = [], 0
    try:
        while True:
            plaintext, position = opener.open(memoryview(stream), position)
            if plaintext is None:
                break
            opened.append(plaintext)
    except CarrierError:
        pass
    if opened != plaintexts[: len(opened)]:
        raise RuntimeError("a changed record was opened")


def fuzz_session(data: atheris.FuzzedDataProvider) -> None:
    """A peer that knows the keys and sends what it likes on two paths, cut and joined as it likes."""
    link = Link(provider=ToyProvider())
    link.pair()
    link.open(protocol=StreamProtocol.UDP)
    link.quiesce()
    link.now = now = link.carrier.now
    carriers = (link.carrier, link.join())
    side = data.PickValueInList([0, 1])
    session = (link.client, link.exit)[side]
    waiting = [b"", b""]
    out = memoryview(bytearray(200_000))
    try:
        while data.remaining_bytes():
            number = data.PickValueInList([0, 1])
            victim, peer = carriers[number].paths[:: -1 if side else 1]
            plaintext = data.ConsumeBytes(data.ConsumeIntInRange(1, 60))
            if not plaintext:
                break
            waiting[number] += peer.keys.sealer.seal(plaintext[:MAX_PLAINTEXT])
            cut = data.ConsumeIntInRange(0, len(waiting[number]))
            waiting[number] = waiting[number][victim.receive(memoryview(waiting[number][:cut]), now) :]
            if data.ConsumeBool():
                now += data.ConsumeFloatInRange(0.0, 400.0)
                session.turn.renew()
                for path in list(session.paths.values()):
                    if path.deadline() <= now:
                        path.tick(now)
                    path.fill(out, 65_536, now)
    except PeerError as error:
        if not isinstance(error, CarrierError):
            session.close(error.reason)
            check_closed(session)


def check_closed(session: Session) -> None:
    if session.streams or session.retention.kept or session.receiver.pieces.used:
        raise RuntimeError("a closed session kept something")


def fuzz(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        fuzz_opener(provider)
    else:
        # A session contains what an App asserts.
        with FaultWatch():
            fuzz_session(provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
