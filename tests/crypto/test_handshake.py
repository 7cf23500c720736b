"""The handshake: both providers, frozen flights, and what happens when a single thing is wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto import handshake
from cryprq_proxy.crypto.handshake import (
    FIRST_SIZE,
    LENGTH,
    SECOND_SIZE,
    THIRD_SIZE,
    ClientHandshake,
    EpochSecrets,
    ExitHandshake,
    default_psk,
)
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.payloads import (
    RESUME_CLIENT,
    RESUME_EXIT,
    Choice,
    Claim,
    HandshakeOffer,
    InviteClaim,
    ResumeRequest,
    choose,
    decode_proof,
    encode_proof,
    resume_proof,
)
from cryprq_proxy.crypto.primitives import (
    Cipher,
    Ed25519Key,
    Entropy,
    KemKey,
    MldsaKey,
    Provider,
    select_provider,
    sha256,
    system_entropy,
)
from cryprq_proxy.errors import HandshakeError, LocalError
from tests.vectors.make import FROZEN, FastReader, frozen

AES, CHACHA = Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305
BOTH = (CHACHA, AES)
FAST = select_provider()
CLIENT = Identity.generate(FAST)
EXIT = Identity.generate(FAST)
RESUME = ResumeRequest(bytes(range(16)), 7, 2**40, bytes(range(32)))
INVITE = InviteClaim(bytes(range(100, 116)))


def new_client(**changes: Any) -> ClientHandshake:
    arguments: dict[str, Any] = {
        "identity": CLIENT,
        "exit_id": EXIT.peer_id,
        "provider": FAST,
        "ciphers": BOTH,
    }
    return ClientHandshake(**(arguments | changes))


def new_exit(**changes: Any) -> ExitHandshake:
    arguments: dict[str, Any] = {"identity": EXIT, "provider": FAST, "ciphers": BOTH}
    return ExitHandshake(**(arguments | changes))


def flights(client: ClientHandshake, exit_: ExitHandshake, claim: Claim = None) -> tuple[bytes, bytes, bytes]:
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    third = client.write_third(claim)
    exit_.read_third(third)
    return first, second, third


# --- what works ---


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(("cryptography", "pure"), repeat=2)))
def test_every_pair_of_providers(ours: str, theirs: str) -> None:
    client_provider, exit_provider = select_provider(ours), select_provider(theirs)
    client_id, exit_id = Identity.generate(client_provider), Identity.generate(exit_provider)
    client = new_client(identity=client_id, exit_id=exit_id.peer_id, provider=client_provider)
    exit_ = new_exit(identity=exit_id, provider=exit_provider)
    flights(client, exit_)
    assert exit_.result.peer == client_id.peer_id
    assert client.result.peer == exit_id.peer_id
    assert (client.result.provider, exit_.result.provider) == (client_provider.name, exit_provider.name)
    expected = replace(client.result, peer=client_id.peer_id, provider=exit_provider.name)
    assert exit_.result == expected
    assert exit_.resume is None
    assert client.resume_hash == exit_.resume_hash


@pytest.mark.parametrize("claim", [None, RESUME, INVITE], ids=["new", "resume", "invite"])
def test_sizes(claim: Claim) -> None:
    first, second, third = flights(new_client(), new_exit(), claim)
    assert len(first) in FIRST_SIZE
    assert len(second) in SECOND_SIZE
    assert len(third) in THIRD_SIZE
    assert LENGTH.unpack(LENGTH.pack(SECOND_SIZE[-1])) == (SECOND_SIZE[-1],)


def test_secrets_are_all_different_and_new() -> None:
    seen: set[bytes] = set()
    for _ in range(2):
        client, exit_ = new_client(), new_exit()
        flights(client, exit_)
        epoch = client.result.epoch
        secrets = [getattr(epoch, field.name) for field in fields(EpochSecrets)]
        secrets += [client.result.session_id, client.result.resume_secret]
        assert [len(secret) for secret in secrets] == [32] * 6 + [16, 32]
        seen.update(secrets)
    assert len(seen) == 16


@pytest.mark.parametrize(
    "provider", [select_provider("pure"), FastReader()], ids=lambda provider: provider.name
)
def test_frozen(provider: Provider) -> None:
    """The protocol is what it was: the pure pair writes the frozen flights, the fast one reads them."""
    assert frozen(provider) == json.loads(FROZEN.read_text())


def test_a_configured_psk() -> None:
    psk = bytes(range(32))
    client, exit_ = new_client(psk=psk), new_exit(psk=psk)
    flights(client, exit_)
    assert client.result.epoch == exit_.result.epoch
    assert default_psk(EXIT.peer_id) == sha256(b"cryprq/1 psk0" + bytes(EXIT.peer_id))
    flights(new_client(psk=default_psk(EXIT.peer_id)), new_exit())


def test_resume() -> None:
    client, exit_ = new_client(), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    session_id, secret = bytes(range(16)), bytes(range(32))
    request = ResumeRequest.make(session_id, secret, client.resume_hash, 3, 99)
    exit_.read_third(client.write_third(request))
    assert exit_.resume == request
    h = exit_.resume_hash
    assert request.proves(secret, h)
    assert not request.proves(bytes(32), h)
    assert not request.proves(secret, bytes(32))
    for wrong in (replace(request, attempt=4), replace(request, rx=98), replace(request, proof=bytes(32))):
        assert not wrong.proves(secret, h)
    assert resume_proof(secret, RESUME_CLIENT, h, 3, 99) == request.proof
    assert resume_proof(secret, RESUME_EXIT, h, 3, 99) != request.proof


@pytest.mark.parametrize(
    ("claim", "resume", "invite"),
    [(None, None, None), (RESUME, RESUME, None), (INVITE, None, INVITE.secret)],
    ids=["new", "resume", "invite"],
)
def test_what_the_client_asks_for(claim: Claim, resume: ResumeRequest | None, invite: bytes | None) -> None:
    client, exit_ = new_client(), new_exit()
    flights(client, exit_, claim)
    assert (exit_.resume, exit_.invite) == (resume, invite)
    assert client.result.session_id == exit_.result.session_id


def test_no_secrets_in_repr() -> None:
    assert repr(INVITE) == "InviteClaim(...)"
    client = new_client()
    flights(client, new_exit())
    result = client.result
    assert repr(result.epoch) == "EpochSecrets(...)"
    assert repr(result) == (
        f"Established(cipher=CHACHA20_POLY1305, peer={EXIT.peer_id!r}, provider='cryptography')"
    )


# --- what a stranger or a meddler sees ---


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_id": CLIENT.peer_id},
        {"psk": bytes(32)},
        {"exit_id": CLIENT.peer_id, "psk": default_psk(EXIT.peer_id)},
    ],
    ids=["id", "psk", "id with the right psk"],
)
def test_who_does_not_know_the_exit(changes: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError):
        new_exit().read_first(new_client(**changes).write_first())


def test_a_private_exit_is_not_reached_with_its_id_alone() -> None:
    with pytest.raises(HandshakeError):
        new_exit(psk=bytes(32)).read_first(new_client().write_first())


def impostor(identity: Identity) -> ExitHandshake:
    """An exit that knows EXIT's id, but has other keys."""
    exit_ = new_exit()
    exit_._signer._identity = identity
    return exit_


def test_an_exit_with_other_keys() -> None:
    client, exit_ = new_client(), impostor(CLIENT)
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="not the expected one"):
        client.read_second(exit_.write_second())


class Forger(Identity):
    """Shows the public key of another identity, and signs as well as it can without its seeds."""

    def __init__(
        self, public: bytes, ed25519: Callable[[bytes], bytes], mldsa: Callable[[bytes], bytes]
    ) -> None:
        super().__init__(FAST, bytes(32), bytes(32))
        self.__dict__["public"] = public
        self._forge_ed25519, self._forge_mldsa = ed25519, mldsa

    def sign(self, data: bytes, entropy: Entropy = system_entropy) -> bytes:
        return self._forge_ed25519(data) + self._forge_mldsa(data)


NEUTRAL_POINT = b"\1" + bytes(31)
FORGERS = {
    "no signature": (EXIT.public, lambda data: bytes(64), lambda data: bytes(3309)),
    "Ed25519 broken": (EXIT.public, lambda data: EXIT.sign(data)[:64], lambda data: bytes(3309)),
    "ML-DSA broken": (EXIT.public, lambda data: bytes(64), lambda data: EXIT.sign(data)[64:]),
    "other data": (EXIT.public, lambda data: EXIT.sign(b"")[:64], lambda data: EXIT.sign(b"")[64:]),
    "small order": (
        NEUTRAL_POINT + EXIT.public[32:],
        lambda data: NEUTRAL_POINT + bytes(32),
        lambda data: EXIT.sign(b"")[64:],
    ),
    "no ML-DSA key": (
        Ed25519Key(bytes(32)).public + bytes(1952),
        Ed25519Key(bytes(32)).sign,
        lambda data: bytes(3309),
    ),
}


@pytest.mark.parametrize("name", FORGERS)
def test_forged_exits(name: str) -> None:
    forger = Forger(*FORGERS[name])
    pinned = PeerId.of(forger.public)
    client, exit_ = new_client(exit_id=pinned), new_exit(identity=forger)
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="are invalid"):
        client.read_second(exit_.write_second())


@pytest.mark.parametrize("name", FORGERS)
def test_forged_clients(name: str) -> None:
    client, exit_ = new_client(identity=Forger(*FORGERS[name])), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    third = client.write_third()
    with pytest.raises(HandshakeError, match="are invalid"):
        exit_.read_third(third)
    with pytest.raises(LocalError):
        _ = exit_.result


def test_a_signature_does_not_serve_the_other_role() -> None:
    """A client that is also an exit cannot be made to sign for the exit's role."""
    client, exit_ = new_client(exit_id=CLIENT.peer_id), new_exit(identity=CLIENT)
    client._signer._role = b"S"
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="are invalid"):
        client.read_second(exit_.write_second())


class Step:
    """How to come to the point where one side reads one flight."""

    def __init__(self, name: str, size: range, boundaries: list[int]) -> None:
        self.name = name
        self.size = size
        self.boundaries = boundaries
        """Where the fields of the flight start."""

    def prepare(self) -> tuple[Callable[[bytes], None], bytes]:
        client, exit_ = new_client(), new_exit()
        first = client.write_first()
        if self.name == "first":
            return exit_.read_first, first
        exit_.read_first(first)
        second = exit_.write_second()
        if self.name == "second":
            return client.read_second, second
        client.read_second(second)
        return exit_.read_third, client.write_third(RESUME)


STEPS = [
    Step("first", FIRST_SIZE, [0, 32, 1216, 1232]),
    Step("second", SECOND_SIZE, [0, 32, 1120, 1136, 1168, 3120, 3136, 3200, 6509, 6525, 6531]),
    Step("third", THIRD_SIZE, [0, 32, 1984, 2000, 2064, 5373, 5389, 5390, 5406, 5410, 5418]),
]


def offsets(step: Step, size: int) -> Iterator[int]:
    """Both ends of every field, and a sample of what is in between."""
    near = {start + delta for start in step.boundaries for delta in (-1, 0, 1)}
    yield from sorted(offset for offset in near | set(range(7, size, 67)) | {size - 1} if 0 <= offset < size)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_byte_counts(step: Step) -> None:
    size = len(step.prepare()[1])
    for offset in offsets(step, size):
        read, flight = step.prepare()
        wrong = bytearray(flight)
        wrong[offset] ^= 0x80 if offset % 2 else 0x01
        with pytest.raises(HandshakeError):
            read(bytes(wrong))
        with pytest.raises(LocalError):  # not even the right one is read now
            read(flight)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_other_lengths(step: Step) -> None:
    right = len(step.prepare()[1])
    lengths = {
        0,
        1,
        31,
        32,
        33,
        right - 1,
        right + 1,
        step.size[0] - 1,
        step.size[0],
        step.size[-1] + 1,
        65535,
    }
    for length in sorted((lengths | set(step.size[::9]) | set(range(0, right, 499))) - {right}):
        read, flight = step.prepare()
        with pytest.raises(HandshakeError) as caught:
            read((flight + bytes(65535))[:length])
        assert ("wrong length" in str(caught.value)) is (length not in step.size)


def test_flights_of_another_handshake() -> None:
    (first, second, third), (_, other_second, other_third) = (flights(new_client(), new_exit()) for _ in "12")
    client = new_client()
    client.write_first()
    with pytest.raises(HandshakeError):
        client.read_second(second)
    exit_ = new_exit()
    exit_.read_first(first)  # a repeated first flight opens: the driver remembers those it has seen
    exit_.write_second()
    for old in (third, other_third):
        with pytest.raises((HandshakeError, LocalError)):
            exit_.read_third(old)
    assert second != other_second


class Hostile:
    """A provider whose KEM key or ciphertext is what the test says; the rest is the fast one's."""

    name = "hostile"
    fast = True

    def __init__(self, public: bytes = b"", ciphertext: bytes = b"") -> None:
        self.public = public
        self._ciphertext = ciphertext

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        return self

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return bytes(32)

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        return bytes(32), self._ciphertext

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return FAST.mldsa_key(seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        return FAST.mldsa_verify(public, signature, data, context)


def test_a_client_with_a_malformed_kem_key() -> None:
    """A peer that knows the exit may send anything under a key that opens."""
    client, exit_ = new_client(provider=Hostile(public=b"\xff" * 1184)), new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="ML-KEM"):
        exit_.write_second()


def test_an_exit_with_a_wrong_kem_ciphertext() -> None:
    client, exit_ = new_client(), new_exit(provider=Hostile(ciphertext=bytes(1088)))
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError):
        client.read_second(exit_.write_second())


@pytest.mark.parametrize("useless", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_x25519_keys_of_small_order(useless: bytes) -> None:
    client, exit_ = new_client(), new_exit()
    noise = client._noise

    class Useless:
        public = useless

    def write_e() -> bytes:
        noise._e = Useless()  # type: ignore[assignment]
        noise._mix_e(useless)
        return useless

    # The tokens of a first flight by hand, with an ephemeral key that gives an all-zero secret.
    noise._mix_psk()
    first = (
        write_e()
        + noise._write_e1()
        + noise._symmetric.encrypt_and_hash(HandshakeOffer((1,), BOTH, 0).encode())
    )
    exit_.read_first(first)
    with pytest.raises(HandshakeError, match="X25519"):
        exit_.write_second()


# --- the choices ---


@pytest.mark.parametrize(
    ("client", "exit_", "chosen"),
    [
        ((AES, CHACHA), (AES, CHACHA), AES),
        ((CHACHA, AES), (AES, CHACHA), CHACHA),
        ((AES, CHACHA), (CHACHA, AES), CHACHA),
        ((CHACHA, AES), (CHACHA, AES), CHACHA),
        ((CHACHA,), (AES, CHACHA), CHACHA),
        ((AES,), (AES,), AES),
        ((AES,), (CHACHA, AES), None),
        ((CHACHA,), (AES,), None),
    ],
)
def test_ciphers(client: tuple[Cipher, ...], exit_: tuple[Cipher, ...], chosen: Cipher | None) -> None:
    ours, theirs = new_client(ciphers=client), new_exit(ciphers=exit_)
    if chosen is None:
        with pytest.raises(HandshakeError, match="no cipher"):
            theirs.read_first(ours.write_first())
    else:
        flights(ours, theirs)
        assert ours.result.cipher is theirs.result.cipher is chosen


def test_default_ciphers_agree() -> None:
    client, exit_ = new_client(ciphers=None), new_exit(ciphers=None)
    flights(client, exit_)
    assert client.result.cipher is exit_.result.cipher


@pytest.mark.parametrize("values", [(0,), (2, 3), (255,)])
def test_no_common_version(values: tuple[int, ...]) -> None:
    client = new_client()
    client._offer = HandshakeOffer(values, BOTH, 0)
    with pytest.raises(HandshakeError, match="version"):
        new_exit().read_first(client.write_first())


def test_unknown_offers_mean_nothing() -> None:
    client, exit_ = new_client(), new_exit()
    client._offer = HandshakeOffer((9, 1, 77), (200, AES, CHACHA), 2**32 - 1)
    flights(client, exit_)
    assert exit_.result.cipher is CHACHA
    assert exit_.result.features == 0


@pytest.mark.parametrize(
    "choice",
    [
        Choice(2, CHACHA, 0),
        Choice(0, CHACHA, 0),
        Choice(1, AES, 0),
        Choice(1, CHACHA, 1),
        Choice(1, CHACHA, 2**31),
    ],
)
def test_choices_that_were_not_offered(choice: Choice) -> None:
    client, exit_ = new_client(ciphers=(CHACHA,)), new_exit()
    exit_.read_first(client.write_first())
    exit_._choice = choice
    with pytest.raises(HandshakeError, match="not offered"):
        client.read_second(exit_.write_second())


# --- the payloads ---

offers = st.builds(
    HandshakeOffer,
    st.lists(st.integers(0, 255), min_size=1, max_size=29).map(tuple),
    st.lists(st.integers(0, 255), min_size=1, max_size=29).map(tuple),
    st.integers(0, 2**32 - 1),
)


@given(offers)
def test_offer_round_trip(offer: HandshakeOffer) -> None:
    encoded = offer.encode()
    assert 8 <= len(encoded) <= 64
    assert HandshakeOffer.decode(encoded) == offer
    for size in range(len(encoded)):
        with pytest.raises(HandshakeError):
            HandshakeOffer.decode(encoded[:size])
    with pytest.raises(HandshakeError):
        HandshakeOffer.decode(encoded + b"\0")


@given(st.binary(max_size=80))
def test_offer_of_any_bytes(payload: bytes) -> None:
    try:
        offer = HandshakeOffer.decode(payload)
    except HandshakeError:
        return
    assert offer.encode() == payload
    try:
        choice = choose(offer, BOTH)
    except HandshakeError:
        return
    assert choice.version in offer.versions
    assert choice.cipher in offer.ciphers
    assert Choice.decode(choice.encode()) == choice


@given(st.binary(max_size=10) | st.binary(min_size=6, max_size=6))
def test_choice_of_any_bytes(payload: bytes) -> None:
    try:
        choice = Choice.decode(payload)
    except HandshakeError:
        return
    assert choice.encode() == payload


requests = st.builds(
    ResumeRequest,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
)


invites = st.binary(min_size=16, max_size=16).map(InviteClaim)


@given(st.none() | requests | invites)
def test_proof_round_trip(claim: Claim) -> None:
    encoded = encode_proof(claim)
    assert decode_proof(encoded) == claim
    for size in range(len(encoded)):
        with pytest.raises(HandshakeError):
            decode_proof(encoded[:size])
    with pytest.raises(HandshakeError):
        decode_proof(encoded + b"\0")


@given(
    st.binary(max_size=130)
    | st.builds(lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 3), st.binary(max_size=62))
)
def test_proof_of_any_bytes(payload: bytes) -> None:
    try:
        claim = decode_proof(payload)
    except HandshakeError:
        return
    assert encode_proof(claim) == payload


def test_an_invite_is_seventeen_bytes() -> None:
    assert encode_proof(INVITE) == b"\2" + INVITE.secret
    assert decode_proof(b"\2" + bytes(16)) == InviteClaim(bytes(16))
    for size in (0, 15, 17, 60):
        with pytest.raises(HandshakeError):
            decode_proof(b"\2" + bytes(size))
        with pytest.raises(LocalError):
            InviteClaim(bytes(size))


@pytest.mark.parametrize("kind", [3, 255])
def test_unknown_kinds_abort(kind: int) -> None:
    for size in (1, 17, 61):
        with pytest.raises(HandshakeError):
            decode_proof(bytes((kind,)) + bytes(size - 1))


@pytest.mark.parametrize(
    "arguments",
    [(bytes(15), 0, 0, bytes(32)), (bytes(17), 0, 0, bytes(32)), (bytes(16), 0, 0, bytes(31))],
)
def test_resume_request_sizes(arguments: tuple[bytes, int, int, bytes]) -> None:
    with pytest.raises(LocalError):
        ResumeRequest(*arguments)


@pytest.mark.parametrize(("attempt", "rx"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**64)])
def test_resume_numbers(attempt: int, rx: int) -> None:
    with pytest.raises(LocalError):
        resume_proof(bytes(32), RESUME_CLIENT, bytes(32), attempt, rx)


# --- the order of the calls ---


def test_client_calls_out_of_turn() -> None:
    client = new_client()
    for early in (
        client.write_third,
        lambda: client.read_second(b""),
        lambda: client.result,
        lambda: client.resume_hash,
    ):
        with pytest.raises(LocalError):
            early()
    exit_ = new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(LocalError):
        client.write_first()
    client.read_second(exit_.write_second())
    with pytest.raises(LocalError):
        _ = client.result
    client.write_third()
    with pytest.raises(LocalError):
        client.write_third()


def test_exit_calls_out_of_turn() -> None:
    client, exit_ = new_client(), new_exit()
    for early in (
        exit_.write_second,
        lambda: exit_.read_third(b""),
        lambda: exit_.result,
        lambda: exit_.resume,
        lambda: exit_.invite,
        lambda: exit_.resume_hash,
    ):
        with pytest.raises(LocalError):
            early()
    first = client.write_first()
    exit_.read_first(first)
    with pytest.raises(LocalError):
        exit_.read_first(first)
    client.read_second(exit_.write_second())
    for early in (exit_.write_second, lambda: exit_.resume, lambda: exit_.result):
        with pytest.raises(LocalError):
            early()


def test_every_step_of_the_tables_is_a_method() -> None:
    for side, steps in ((ClientHandshake, handshake._CLIENT_STEPS), (ExitHandshake, handshake._EXIT_STEPS)):
        assert all(callable(getattr(side, call)) for _, call in steps)


@pytest.mark.parametrize("psk", [b"", bytes(31), bytes(33)])
def test_psk_size(psk: bytes) -> None:
    with pytest.raises(LocalError):
        new_client(psk=psk)
    with pytest.raises(LocalError):
        new_exit(psk=psk)
