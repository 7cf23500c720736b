"""The comparison of the two post-quantum implementations, with providers that lie in one thing each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cryprq_proxy.crypto.primitives import Entropy, KemKey, Provider, select_provider, system_entropy
from cryprq_proxy.doctor.algorithms import algorithms
from cryprq_proxy.doctor.checks import CheckState, CheckVerdict, Context
from cryprq_proxy.errors import ConfigError, HandshakeError

REAL = select_provider(None)


class Liar:
    """A Provider that works, but for what a test replaces."""

    name = "the liar"
    fast = True

    def __init__(self, **lies: Callable[..., Any]) -> None:
        for lie, function in lies.items():
            setattr(self, lie, function)

    def __getattr__(self, honest: str) -> Any:
        return getattr(REAL, honest)


class LyingKey:
    def __init__(self, public: bytes, secret: bytes) -> None:
        self.public = public
        self._secret = secret

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return self._secret

    def sign(self, data: bytes, context: bytes, entropy: Entropy = system_entropy) -> bytes:
        return bytes(3309)


class Gullible:
    """Decapsulates damaged ciphertexts to the very secret."""

    def __init__(self, key: KemKey) -> None:
        self._key, self.public = key, key.public
        self._known: list[bytes] = []

    def decapsulate(self, ciphertext: bytes) -> bytes:
        self._known.append(self._key.decapsulate(ciphertext))
        return self._known[0]


def refuse(*_: Any, **__: Any) -> Any:
    raise HandshakeError("the peer's ML-KEM key is malformed")


async def compared(first: Provider, second: Provider) -> CheckVerdict:
    providers = {"cryptography": first, "pure": second}
    return await algorithms(Context(select_provider=lambda name: providers[str(name)]))


async def test_the_two_that_are_installed_agree() -> None:
    verdict = await algorithms(Context())
    assert verdict.state is CheckState.OK, verdict
    assert verdict.text == "cryptography and kyber-py + dilithium-py agree on ML-KEM-768 and ML-DSA-65"


@pytest.mark.parametrize(
    ("liar", "text"),
    [
        (
            Liar(encapsulate=lambda public, entropy=None: (bytes(32), REAL.encapsulate(public)[1])),
            "does not decapsulate what the liar has encapsulated",
        ),
        (
            Liar(generate_kem=lambda entropy=system_entropy: Gullible(REAL.generate_kem(entropy))),
            "the liar takes a damaged ciphertext of cryptography",
        ),
        (
            Liar(generate_kem=lambda entropy=None: LyingKey(REAL.generate_kem().public, bytes(32))),
            "they derive different ML-KEM keys from one seed",
        ),
        (
            Liar(mldsa_key=lambda seed: LyingKey(REAL.mldsa_key(bytes(32)).public, b"")),
            "they derive different ML-DSA keys from one seed",
        ),
        (
            Liar(mldsa_key=lambda seed: LyingKey(REAL.mldsa_key(seed).public, b"")),
            "cryptography does not verify what the liar has signed",
        ),
        (Liar(mldsa_verify=lambda *_: False), "the liar does not verify what cryptography has signed"),
        (Liar(mldsa_verify=lambda *_: True), "the liar verifies a wrong signature of cryptography"),
        (
            Liar(mldsa_verify=lambda public, signature, data, _: _any_context(public, signature, data)),
            "the liar verifies a wrong signature of cryptography",
        ),
        (Liar(encapsulate=refuse), "do not take each other's values (the peer's ML-KEM key is malformed)"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
async def test_one_that_lies_is_found(liar: Any, text: str, order: int) -> None:
    verdict = await compared(*(REAL, liar)[::order])
    assert verdict.state is CheckState.FAIL
    assert text in verdict.text
    assert "use no link" in verdict.remedy


def _any_context(public: bytes, signature: bytes, data: bytes) -> bool:
    return REAL.mldsa_verify(public, signature, data, b"cryprq-proxy doctor")


@pytest.mark.parametrize(("missing", "there"), [("pure", "cryptography"), ("cryptography", "kyber-py")])
async def test_one_alone_is_a_clear_sentence(missing: str, there: str) -> None:
    def select(name: str | None) -> Provider:
        if name == missing:
            raise ConfigError("the packages are not installed")
        return select_provider(name)

    verdict = await algorithms(Context(select_provider=select))
    assert verdict.state is CheckState.SKIP
    assert verdict.text.startswith(f"only {there}") and verdict.text.endswith(
        "the packages are not installed"
    )
