"""Do two independent implementations of the post-quantum algorithms agree on this machine?

OpenSSL (by `cryptography`) and kyber-py with dilithium-py were written by different people from the same standards
(FIPS 203, FIPS 204). A broken, replaced or miscompiled one disagrees with the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import permutations
from typing import Final

from ..crypto.primitives import SEED_SIZE, Provider, system_entropy
from ..errors import ConfigError, HandshakeError
from .checks import CheckVerdict, Context, fail, ok, skip

PROVIDERS: Final = ("cryptography", "pure")
_CONTEXT: Final = b"cryprq-proxy doctor"


async def algorithms(context: Context) -> CheckVerdict:
    """Let each implementation read the output of the other one, and refuse damaged output."""
    found, lacks = [], []
    for name in PROVIDERS:
        try:
            found.append(context.select_provider(name))
        except ConfigError as error:
            lacks.append(str(error))
    if len(found) < 2:
        there = found[0].name if found else "no implementation"
        return skip(f"only {there} is installed, so ML-KEM-768 and ML-DSA-65 cannot be compared: {lacks[0]}")
    first, second = found
    faults = await asyncio.to_thread(lambda: list(disagreements(first, second)))
    if faults:
        return fail(
            f"the implementations of the post-quantum algorithms disagree: {'; '.join(faults)}",
            "one of them is broken or was replaced: install cryptography, kyber-py and dilithium-py again from a "
            "source that you trust, and use no link until this check succeeds",
        )
    return ok(f"{first.name} and {second.name} agree on ML-KEM-768 and ML-DSA-65")


def disagreements(first: Provider, second: Provider) -> Iterator[str]:
    """The differences between the two, as parts of a sentence. Takes about 0.1 s with the pure pair."""
    seed = system_entropy(2 * SEED_SIZE)
    if first.generate_kem(lambda _: seed).public != second.generate_kem(lambda _: seed).public:
        yield "they derive different ML-KEM keys from one seed"
    seed = system_entropy(SEED_SIZE)
    if first.mldsa_key(seed).public != second.mldsa_key(seed).public:
        yield "they derive different ML-DSA keys from one seed"
    for one, other in permutations((first, second)):
        try:
            yield from _kem(one, other)
            yield from _signature(one, other)
        except HandshakeError as error:
            yield f"{other.name} and {one.name} do not take each other's values ({error})"


def _kem(one: Provider, other: Provider) -> Iterator[str]:
    key = one.generate_kem()
    secret, ciphertext = other.encapsulate(key.public)
    if key.decapsulate(ciphertext) != secret:
        yield f"{one.name} does not decapsulate what {other.name} has encapsulated"
    if key.decapsulate(_damaged(ciphertext)) == secret:
        yield f"{one.name} takes a damaged ciphertext of {other.name}"


def _signature(one: Provider, other: Provider) -> Iterator[str]:
    key, data = one.mldsa_key(system_entropy(SEED_SIZE)), system_entropy(64)
    signature = key.sign(data, _CONTEXT)
    if not other.mldsa_verify(key.public, signature, data, _CONTEXT):
        yield f"{other.name} does not verify what {one.name} has signed"
    if (
        other.mldsa_verify(key.public, signature, _damaged(data), _CONTEXT)
        or other.mldsa_verify(key.public, _damaged(signature), data, _CONTEXT)
        or other.mldsa_verify(key.public, signature, data, _CONTEXT + b"!")
    ):
        yield f"{other.name} verifies a wrong signature of {one.name}"


def _damaged(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))
