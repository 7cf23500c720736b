"""Invariant: whatever stands in a journal, reading it raises nothing, and undoing it nothing but CryprqError."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tun", "cryprq_proxy", "json"]):
    from cryprq_proxy.errors import CryprqError
    from tun.journal import parse
    from tun.linux.sysctl import undo_sysctl

NOWHERE = Path(tempfile.gettempdir(), "no", "such", "sysctls")
PIECES = (
    b'{"kind":"sysctl","name":"net.ipv4.ip_forward","before":"0","value":"1"}\n',
    b'{"kind":"sysctl","name":"net.ipv4.conf.',
    b'.rp_filter","before":"',
    b'","followers":{"net.ipv4.conf.all.forwarding":"0"}}\n',
)


def fuzz(data: bytes) -> None:
    if data[:1] > b"\x7f":  # most random bytes are no JSON: let some of it be right
        data = PIECES[data[0] % 4] + data[1:] + PIECES[data[0] // 4 % 4]
    entries, whole, damaged = parse(data)
    if len(entries) + damaged > data.count(b"\n") or parse(data[:whole]) != (entries, whole, damaged):
        raise RuntimeError("what is whole does not read the same again")
    if parse(data[:whole] + b'{"kind":"x"}\n')[0] != [*entries, {"kind": "x"}]:
        raise RuntimeError("an entry cannot be appended")
    for entry in entries:
        try:
            undo_sysctl(entry, NOWHERE)
        except CryprqError:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
