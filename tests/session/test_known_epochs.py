"""The epochs whose secrets one side knows, and by which of them a path may join."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.errors import CarrierError, CloseReason, LocalError
from cryprq_proxy.session.known_epochs import KnownEpochs


def secrets(number: int) -> EpochSecrets:
    return EpochSecrets(*(bytes([number, kind]) * 16 for kind in range(6)))


def test_paths_join_by_both_epochs_until_the_newer_one_is_in_use() -> None:
    known = KnownEpochs(secrets(0))
    known.add(secrets(1))
    assert (known.current, known.sending, known.newest) == (1, 0, secrets(1))
    assert known.resume_secrets == (secrets(1).resume, secrets(0).resume)
    assert known.joining_secret == secrets(1).resume
    assert [known.resume_epoch(secret) for secret in known.resume_secrets] == [1, 0]
    known.use()
    assert known.sending == 1 and known.resume_secrets == (secrets(1).resume,)
    with pytest.raises(LocalError):
        known.resume_epoch(secrets(0).resume)


def test_paths_have_the_epoch_before_until_none_needs_it() -> None:
    known = KnownEpochs(secrets(0))
    assert not known.waits_for_paths
    known.add(secrets(1))
    known.use()
    assert known.waits_for_paths
    assert (known.secret(0), known.secret(1), known.secret(2)) == (
        secrets(0).records,
        secrets(1).records,
        None,
    )
    known.forget_before()
    assert not known.waits_for_paths and known.secret(0) is None and known.secret(1) is not None


def test_behind_a_signed_join_no_ticket_counts_before_the_next_epoch_is_in_use() -> None:
    known = KnownEpochs(secrets(0))
    known.bound = True
    known.add(secrets(1))
    assert known.resume_secrets == () and known.claim_secrets.keys() == {0, 1}
    known.use()
    assert known.resume_secrets == (secrets(1).resume,)


def test_a_session_that_is_over_keeps_no_secret() -> None:
    known = KnownEpochs(secrets(0))
    known.add(secrets(1))
    known.end()
    assert known.newest is None and known.secret(1) is known.secret(0) is None
    assert not known.resume_secrets and not known.claim_secrets
    with pytest.raises(CarrierError) as caught:
        _ = known.joining_secret
    assert caught.value.reason is CloseReason.RESUME
