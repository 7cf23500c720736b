"""conftest.py: what belongs to the program on this machine is not for tests, whoever uses it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REAL_PLACES, PlacesGuard, UsedRealPlaces, starts_program, uses_real_places

LED = {"XDG_CONFIG_HOME": "/a", "XDG_STATE_HOME": "/b"}


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        ((sys.executable, "-m", "cryprq_proxy", "exit"), True),
        (("/a/bin/cryprq-proxy", "exit"), True),
        (("cryprq-proxy",), True),
        (("setpriv", "--reuid=nobody", "/a/bin/cryprq-proxy", "exit"), True),
        (("nsenter", "--net=/x", "--", "nsenter", sys.executable, "-m", "cryprq_proxy"), True),
        (("nsenter", "--net=/x", "--", "cryprq-proxy", "exit"), False),
        (("curl", "http://cryprq.test/"), False),
        ((), False),
    ],
)
def test_the_start_of_the_program_is_seen_by_either_name(words: Sequence[str], starts: bool) -> None:
    assert starts_program(words) is starts


@pytest.mark.parametrize("command", [["/a/bin/cryprq-proxy", "exit"], "/a/bin/cryprq-proxy"])
def test_the_program_of_root_may_start_where_it_is_led_elsewhere(
    monkeypatch: pytest.MonkeyPatch, command: list[str] | str
) -> None:
    def uses(environment: dict[str, str] | None) -> bool:
        return uses_real_places("subprocess.Popen", ("x", command, None, environment))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert uses({}) and uses({"XDG_CONFIG_HOME": "/a"})
    assert not uses(LED) and not uses(None), "each test has directories of its own"
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert not uses({})


@pytest.mark.parametrize("place", REAL_PLACES)
def test_a_real_place_is_seen_where_it_is_used(place: str) -> None:
    assert uses_real_places("open", (f"{place}/identity", "r", 0))
    assert not uses_real_places("open", ("/etc/hosts", "r", 0))


def test_a_place_that_appears_fails_the_test_in_which_it_does(tmp_path: Path) -> None:
    there, place = tmp_path / "there", tmp_path / "place"
    there.mkdir()
    guard = PlacesGuard([str(there), str(place)])
    guard.look()
    (there / "first-flights.recent").touch()
    place.mkdir()
    with pytest.raises(UsedRealPlaces, match=f"has made {place}$"):
        guard.look()
    guard.look()
