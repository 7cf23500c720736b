"""Invariant: `parse_rule` raises ConfigError or nothing, checks answer any text, and a rule denies what it names."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import ConfigError
    from cryprq_proxy.exit.egress_policy import EgressPolicy
    from cryprq_proxy.exit.egress_rules import faces, parse_rule

BUILT_IN = EgressPolicy()
NARROW = EgressPolicy(allow=["::/0", "10.0.0.0/8"], deny=["*.a", ":25"], only=["b", ":443", "8.0.0.0/7:1-99"])


def fuzz(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    name = text[: len(text) // 2]
    for policy in (BUILT_IN, NARROW):
        for answer in (policy.check_address(text, 443, name), policy.check_name(text, 443)):
            if not isinstance(answer, bool):
                raise RuntimeError(f"{answer!r} is no answer")
    if BUILT_IN.check_address(text, 443):
        inside = [face for face in faces(text) if face.version == 4]
        if any(face.value >> 24 in (0, 10, 127) or face.value >> 28 == 14 for face in inside):
            raise RuntimeError(f"{text!r} passes")
    try:
        rule = parse_rule(text)
    except ConfigError:
        return
    denying = EgressPolicy(deny=[text], allow_private=True)
    port = rule.first_port
    if rule.network is not None:
        passes = denying.check_address(str(rule.network.network_address), port)
    else:
        passes = denying.check_name(rule.name.replace("*", "x") or "x", port)
    if passes:
        raise RuntimeError(f"{text!r} does not deny what it names")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
