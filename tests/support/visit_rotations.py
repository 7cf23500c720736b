"""The rotation to epoch 1, by a client of the tests at a real exit."""

from __future__ import annotations

from dataclasses import replace

from cryprq_proxy.crypto.handshake import EpochSecrets, Established, record_keys
from cryprq_proxy.crypto.rekey import RekeyInitiator
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from tests.support.links import FAST
from tests.support.visits import Known, Visit


def begun(visit: Visit) -> Established:
    established = visit.admission.begins
    assert established is not None
    return established


async def ask(visit: Visit, session: Established) -> RekeyInitiator:
    """Begin the rotation to epoch 1."""
    initiator = RekeyInitiator(FAST, session.session_id, session.epoch, 1)
    await visit.send(*wire.encode_message(wire.REKEY, 1, initiator.write()))
    return initiator


async def answer(visit: Visit) -> bytes:
    parts: dict[int, bytes] = {}
    while len(parts) < wire.PARTS:
        _, _, value = await visit.read(wire.REKEY_ANSWER)
        assert isinstance(value, tuple)
        parts[value[1]] = value[2]
    return b"".join(parts[part] for part in range(wire.PARTS))


async def rotate(visit: Visit, session: Established) -> EpochSecrets:
    """The whole of it, with both borders of the visit's path."""
    initiator = await ask(visit, session)
    epoch = initiator.read(await answer(visit))
    await visit.send(wire.encode_epoch(wire.SWITCH, 1))
    await visit.read(wire.SWITCH)
    keys, number = visit.admission.keys, visit.admission.number
    out, into = record_keys(epoch.records, number)
    keys = keys._replace(sealer=RecordSealer(keys.cipher, out), opener=RecordOpener(keys.cipher, into))
    visit.admission = replace(visit.admission, keys=keys)
    return epoch


async def rotated(visit: Visit, session: Established) -> Known:
    """The same; returns by what the session is joined then."""
    return Known(session.session_id, (await rotate(visit, session)).resume)
