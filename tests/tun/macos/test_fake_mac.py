"""The frame of the fake Mac: its state, its lock, its programs as processes, and what disturbs it."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.macos import configd, disturbances
from tests.support.macos.default import default_state
from tests.support.macos.machine import HOME, FakeMac
from tests.support.macos.state import Anchor, Route, State, from_json, to_json
from tun.macos.programs import Command

FLUSH = Command(("dscacheutil", "-flushcache"))


@pytest.fixture
def mac(tmp_path: Path) -> FakeMac:
    return FakeMac(tmp_path / "mac")


def defaults(state: State) -> list[Route]:
    """Of IPv4, without a scope."""
    return [each for each in state.routes if each.destination == "0.0.0.0/0" and "I" not in each.flags]


def test_the_state_is_the_same_after_json() -> None:
    state = default_state()
    state.pf.anchors["a"] = Anchor("pass quick all\n", "", {"lan": ["10.0.0.0/8"]})
    state.store["State:/x"] = {"List": ["1"], "Text": "2", "Dictionary": {"a": "b"}}
    assert from_json(json.loads(json.dumps(to_json(state)))) == state


def test_two_machines_of_a_directory_are_one(mac: FakeMac) -> None:
    with FakeMac(mac.directory).change() as state:
        state.pf.enabled = True
    assert mac.read().pf.enabled


def test_an_exception_changes_nothing(mac: FakeMac) -> None:
    before = mac.snapshot()
    with pytest.raises(ZeroDivisionError), mac.change() as state:
        state.pf.enabled = True
        _ = 1 // 0
    assert mac.snapshot() == before


def test_changes_at_the_same_time_are_all_kept(mac: FakeMac) -> None:
    def change() -> None:
        for _ in range(10):
            with mac.change() as state:
                state.pf.next_token += 1

    threads = [threading.Thread(target=change) for _ in range(4)]
    before = mac.read().pf.next_token
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mac.read().pf.next_token == before + 40


def test_the_snapshot_has_what_stays_and_not_what_only_counts(mac: FakeMac) -> None:
    before = mac.snapshot()
    mac.run(FLUSH)
    with mac.change() as state:
        state.pf.next_token += 1
        state.routes.reverse()
    assert mac.snapshot() == before
    with mac.change() as state:
        state.pf.anchors["com.apple/ours"] = Anchor()
    assert mac.snapshot() != before


def test_a_programs_failure_is_its_code_and_words(mac: FakeMac) -> None:
    answer = mac.run(Command(("dscacheutil", "-wrong")))
    assert answer.code
    assert answer.err.startswith("Usage")
    assert mac.commands() == [["/usr/bin/dscacheutil", "-wrong", ""]]


def test_a_program_that_no_mac_has_is_a_fault_of_the_caller(mac: FakeMac) -> None:
    with pytest.raises(AssertionError, match="on no Mac"):
        mac.answer(("ip", "route"))


@pytest.mark.process
def test_programs_run_as_processes_on_the_same_state(mac: FakeMac) -> None:
    program = mac.install() / "usr/bin/dscacheutil"
    subprocess.run([program, "-flushcache"], check=True, stdin=subprocess.DEVNULL)
    assert mac.read().flushes == 1
    assert (
        subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 64
    )


def test_a_renewal_brings_other_gateways_and_routes_and_takes_the_old_ones_away(mac: FakeMac) -> None:
    before = mac.snapshot()
    disturbances.renew(mac, replace(HOME, pushed={"8.8.0.0/16": "192.168.1.254"}))
    state = mac.read()
    assert [each.gateway for each in state.routes if each.destination == "8.8.0.0/16"] == ["192.168.1.254"]
    disturbances.roam(mac)
    state = mac.read()
    assert [each.gateway for each in defaults(state)] == ["10.20.28.1"]
    assert state.store["State:/Network/Global/DNS"]["ServerAddresses"] == ["10.20.28.1"]
    disturbances.come_home(mac)
    assert mac.snapshot() == before


def test_a_static_route_by_a_gateway_outlives_the_network(mac: FakeMac) -> None:
    with mac.change() as state:
        state.routes.append(Route("203.0.113.7/32", "192.168.1.1", "en0", "UGHS"))
    disturbances.roam(mac)
    assert "203.0.113.7/32" in {each.destination for each in mac.read().routes}


def test_a_cable_takes_the_default_route_until_it_is_pulled_out(mac: FakeMac) -> None:
    before = mac.snapshot()
    disturbances.plug_in(mac)
    assert [each.interface for each in defaults(mac.read())] == ["en1"]
    assert mac.read().store["State:/Network/Global/IPv4"]["PrimaryInterface"] == "en1"
    disturbances.pull_out(mac)
    assert mac.snapshot() == before


def test_without_a_network_there_is_no_default_route_and_after_a_sleep_there_is(mac: FakeMac) -> None:
    before = mac.snapshot()
    disturbances.lose_network(mac)
    assert not defaults(mac.read())
    assert "State:/Network/Global/IPv4" not in mac.read().store
    disturbances.sleep_and_wake(mac)
    assert mac.snapshot() == before


def test_another_vpn_has_a_utun_of_its_own(mac: FakeMac) -> None:
    name = disturbances.other_vpn(mac, default=True)
    assert name == "utun4"
    assert [each.interface for each in defaults(mac.read())] == [name]
    with mac.change() as state:
        configd.remove_interface(state, name)
    assert name not in {each.interface for each in mac.read().routes}


def test_others_undo_what_is_in_pf_and_in_the_resolver(mac: FakeMac) -> None:
    with mac.change() as state:
        state.pf.enabled = True
        state.pf.tokens = {"1": "somebody"}
        state.pf.anchors["com.apple/ours"] = Anchor("block all\n")
        state.store["State:/ours"] = {"ServerAddresses": ["10.0.0.1"]}
    disturbances.resolver_set(mac, "State:/ours", ["10.9.9.9"])
    assert mac.read().store["State:/ours"] == {"ServerAddresses": ["10.9.9.9"]}
    disturbances.resolver_removed(mac, "State:/ours")
    disturbances.anchor_flushed(mac, "com.apple/ours")
    disturbances.pf_disabled(mac)
    state = mac.read()
    assert "State:/ours" not in state.store
    assert "com.apple/ours" not in state.pf.anchors
    assert not state.pf.enabled and not state.pf.tokens and state.pf.main.rules
    disturbances.pf_flushed(mac)
    assert not mac.read().pf.main.rules


def test_a_reboot_keeps_files_and_services_alone(mac: FakeMac) -> None:
    before = mac.read()
    with mac.change() as state:
        state.files["/etc/pf.conf"] = "# mine\n"
        state.services[0].dns = ["9.9.9.9"]
        state.sysctls["net.inet.ip.forwarding"] = "1"
        state.pf.enabled = True
        state.store["State:/ours"] = {}
        state.routes.append(Route("203.0.113.7/32", "192.168.1.1", "en0", "UGHS"))
    disturbances.reboot(mac)
    after = mac.read()
    assert after.files["/etc/pf.conf"] == "# mine\n" and after.services[0].dns == ["9.9.9.9"]
    assert after.boot_id != before.boot_id
    after.files, after.services, after.sysctls = before.files, before.services, before.sysctls
    assert after == before
