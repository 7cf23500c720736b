"""What is said about a fault of this program: once, with its traceback."""

from __future__ import annotations

import pytest

from cryprq_proxy.base.faults import Faults, contained, is_fault, report_fault
from cryprq_proxy.errors import ConfigError, LocalError


def raised() -> ZeroDivisionError:
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError as error:
        return error


def test_a_fault_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = raised()
    report_fault("ends a connection", error)
    [record] = caplog.records
    assert record.getMessage() == "a fault in this program ends a connection"
    assert record.levelname == "ERROR"
    assert record.exc_info is not None and record.exc_info[1] is error


def test_the_first_fault_of_a_kind_is_logged_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults("drops packets")
    for _ in range(3):
        faults.report(raised())
    assert faults.count == 3
    assert [record.getMessage() for record in caplog.records] == ["a fault in this program drops packets"]


def test_a_step_that_fails_is_reported_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    with contained("leaves a file behind"):
        raise raised()
    assert [record.getMessage() for record in caplog.records] == [
        "a fault in this program leaves a file behind"
    ]


def test_a_fault_is_what_no_person_and_no_peer_has_caused() -> None:
    assert is_fault(raised()) and is_fault(LocalError("a bug"))
    assert not is_fault(ConfigError("a wrong file")) and not is_fault(KeyboardInterrupt())
