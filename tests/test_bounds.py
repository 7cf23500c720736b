"""Each bound that docs/threat-model.md lists is reached by a test: which one, row by row."""

from __future__ import annotations

import ast

import pytest

from tests.support.pages import ROOT, THREATS, table

REACHED = {
    "connections without a valid first flight; of them in TLS or HTTP": [
        "exit/test_lobby.py::test_the_room_never_holds_more_than_its_capacity",
        "exit/test_listener.py::test_no_more_strangers_than_the_room_has_places",
        "exit/test_listener.py::test_strangers_take_half_of_the_descriptors_at_most",
        "carriers/test_websocket.py::test_no_more_upgrades_at_once_than_there_is_room_for",
    ],
    "first flights that wait for their turn": [
        "exit/test_listener.py::test_the_slow_steps_have_a_bounded_queue"
    ],
    "handshakes at once": ["exit/test_listener.py::test_no_more_handshakes_at_once_than_configured"],
    "handshakes per IPv4 address or IPv6 /64": [
        "exit/test_listener.py::test_no_more_handshakes_a_minute_from_one_prefix_than_configured"
    ],
    "handshakes of a listed peer that are not counted for its address": [
        "exit/test_listener.py::test_a_peer_gets_back_no_more_than_its_own_tokens"
    ],
    "time for the first flight; waiting for a turn; for the rest of a handshake": [
        "exit/test_listener.py::test_a_stranger_that_says_nothing_is_cut",
        "exit/test_listener.py::test_who_waits_for_the_thread_has_a_deadline",
        "exit/test_listener.py::test_a_slow_third_flight_ends_the_handshake",
        "carriers/test_websocket.py::test_who_says_nothing_is_cut",
    ],
    "steps with signatures or slow key exchange that wait or run, beyond which no handshake begins": [
        "exit/test_listener.py::test_the_slow_steps_have_a_bounded_queue"
    ],
    "connections read from in one turn of the loop; dismissed": [
        "exit/test_first_flight.py::test_a_bounded_number_is_read_from_in_one_turn",
        "exit/test_listener.py::test_a_bounded_number_is_dismissed_in_one_turn",
    ],
    "bytes before the verdict; of a PROXY header": [
        "exit/test_listener.py::test_a_flight_of_impossible_length_is_not_read",
        "exit/test_proxy_protocol.py::test_what_is_refused_at_its_head",
    ],
    "remembered prefixes, peers, first flights": [
        "exit/test_limits.py::test_the_prefix_not_heard_of_for_longest_is_forgotten",
        "exit/test_flight_memory.py::test_a_full_memory_forgets_its_oldest",
    ],
    "first flights on disk; written at once": [
        "exit/test_flight_memory.py::test_few_are_written_each_time_and_all_when_they_are_many"
    ],
    "open invites; a guess": [
        "pairing/test_invite_store.py::test_names_are_unique_and_the_number_is_bounded",
        "pairing/test_invite_store.py::test_ten_thousand_guesses",
    ],
    "lines in the log about refused peers": ["exit/test_exit.py::test_lines_about_refused_peers_are_bounded"],
    "on the WebSocket entrance: request line, one header; headers; one message": [
        "carriers/test_websocket.py::test_an_upgrade_has_a_bounded_head",
        "carriers/test_websocket.py::test_a_stranger_hears_nothing",
    ],
    "sessions; of them without a carrier, and for how long": [
        "exit/test_exit.py::test_no_more_sessions_of_a_peer_than_configured",
        "exit/test_exit.py::test_of_sessions_without_a_carrier_the_oldest_end_beyond_the_configured_number",
        "exit/test_exit.py::test_a_session_without_a_carrier_ends_after_its_time",
    ],
    "streams of a session; opens of a peer": [
        "session/test_streams.py::test_too_many_streams",
        "exit/test_exit.py::test_no_more_opens_of_a_peer_than_configured",
    ],
    "work in one turn of the event loop, all sessions together": [
        "session/test_turns.py::test_a_flood_is_taken_a_turn_at_a_time",
        "session/test_turns.py::test_a_peers_sessions_have_one_budget",
        "session/test_turns.py::test_many_small_frames_leave_a_turn_at_a_time",
        "session/test_turns.py::test_very_many_streams_end_with_their_session_a_turn_at_a_time",
    ],
    "sockets of its targets served in one turn; datagrams read from each": [
        "outbound/test_socket_group.py::test_a_bounded_number_is_served_in_one_turn_and_each_has_its_own",
        "exit/test_exit.py::test_what_targets_say_waits_for_the_next_turn_of_their_peer",
        "outbound/test_udp_association.py::test_a_bounded_number_of_datagrams_is_read_at_once",
    ],
    "control frames; frames for ended streams": [
        "session/test_turns.py::test_a_flood_of_control_frames_ends_the_session",
        "session/test_turns.py::test_a_flood_of_addresses_ends_the_session",
        "session/test_turns.py::test_a_flood_for_dead_streams_ends_the_session",
    ],
    "acknowledged frames dropped in one turn": [
        "session/test_turns.py::test_an_acknowledgement_of_very_many_frames_frees_them_a_turn_at_a_time"
    ],
    "datagrams of the lane opened in one turn, of all peers": [
        "carriers/lane/test_inbox.py::test_small_datagrams_count_for_more_than_their_bytes"
    ],
    "plaintext kept per session; by all sessions": ["session/test_sendlog.py::test_the_bound_of_a_session"],
    "addresses in the tunnel that it gets by refusing others; answers that wait for the carrier": [
        "carriers/lane/test_packet_link.py::test_a_flood_of_refusals_has_one_answer",
        "tun/routing/test_address_pool.py::test_a_peer_that_refuses_everything_takes_few_addresses",
        "session/test_wire.py::test_prefixes_that_are_none_are_refused",
    ],
    "data received and not yet taken by targets, per session": [
        "session/test_streams.py::test_more_than_the_window",
        "session/test_streams.py::test_the_pool_bounds_all_windows_together",
    ],
    "streams whose end the peer owes": ["session/test_session.py::test_opening_without_ending_is_bounded"],
    "small frames that the peer does not acknowledge": [
        "session/test_session.py::test_what_a_peer_does_not_acknowledge_is_bounded"
    ],
    "datagrams waiting for the carrier; packets": [
        "session/test_session.py::test_the_queue_of_datagrams_is_bounded_and_drops_the_oldest",
        "session/test_datagrams.py::test_the_queue_of_packets_is_bounded",
        "session/test_session.py::test_old_datagrams_are_dropped",
    ],
    "lane keys kept; split packets of which a part has come": [
        "lane/test_sealing.py::test_many_dials_without_a_datagram_keep_few_keys",
        "lane/test_slices.py::test_parts_of_split_packets_are_bounded",
    ],
    "sent to an address that is not yet proved, on the lane": [
        "lane/test_path.py::test_little_is_sent_to_an_unproven_address"
    ],
    "hosts that may answer a UDP association; datagrams waiting for a name": [
        "outbound/test_udp_association.py::test_the_host_sent_to_least_recently_is_forgotten_at_the_bound",
        "outbound/test_udp_association.py::test_datagrams_that_wait_for_a_name_are_bounded",
    ],
    "what the kernel keeps for a target that does not read, per stream": [
        "base/test_sockets.py::test_the_kernel_keeps_little_for_an_end_that_does_not_read"
    ],
    "time to connect a target; addresses tried for a name; at the same time, each counted as a file descriptor": [
        "outbound/test_dialer.py::test_the_sockets_of_a_race_are_bounded_and_counted",
        "exit/test_descriptor_shares.py::test_the_sockets_of_a_name_count_like_streams",
        "outbound/test_dialer.py::test_an_attempt_gets_no_more_than_the_time_left",
        "outbound/test_dialer.py::test_a_name_with_very_many_addresses_gets_a_bounded_number_of_attempts",
    ],
    "ICMP errors of the exit for refused packets, all peers together": [
        "tun/test_exit_network.py::test_answers_are_limited_in_rate"
    ],
    "names being resolved, of one peer; waiting, of one peer; remembered": [
        "outbound/resolving/test_fair_slots.py::test_one_asker_does_not_get_all",
        "outbound/resolving/test_fair_slots.py::test_waiting_is_bounded_for_each_and_for_all",
        "outbound/resolving/test_resolver.py::test_the_memory_is_bounded",
    ],
    "time for a name; an answer; its records, addresses, aliases": [
        "outbound/resolving/test_dns_names.py::test_all_of_it_has_a_bound_in_time",
        "outbound/resolving/test_dns_addresses.py::test_a_long_answer_over_tcp_is_refused",
        "outbound/resolving/test_dns_answer.py::test_records_are_bounded",
        "outbound/resolving/test_dns_answer.py::test_addresses_are_bounded",
        "outbound/resolving/test_dns_answer.py::test_chains_are_bounded",
        "outbound/resolving/test_dns_addresses.py::test_aliases_without_end_end",
    ],
    "verdicts of the policy remembered for packets": [
        "tun/test_exit_network.py::test_the_verdicts_that_are_remembered_are_bounded"
    ],
    "connections": ["fronts/test_listener.py::test_no_more_connections_than_the_bound"],
    "time for a SOCKS negotiation, or the head of an HTTP request": [
        "fronts/test_listener.py::test_slow_negotiations_are_ended",
        "fronts/test_listener.py::test_a_slow_head_of_http_is_answered_and_ended",
    ],
    "head of an HTTP message": ["fronts/test_http_proxy.py::test_a_client_cannot_make_us_keep_without_bound"],
    "one that has died, while nobody takes what it has sent; another machine that does not answer": [
        "outbound/test_relays.py::test_an_application_that_died_is_seen_while_its_target_does_not_read",
        "base/test_sockets.py::test_the_kernel_asks_a_quiet_end_whether_it_is_there",
        "base/test_far_end.py::test_silence_counts_while_an_answer_is_due",
    ],
    "a connection in which nothing moves": [
        "outbound/test_relays.py::test_the_idle_limit_counts_from_the_last_byte"
    ],
    "waiting for the link; an application that has died while its target is not connected yet": [
        "client/test_waiting.py::test_each_waits_for_its_own_time",
        "fronts/test_listener.py::test_an_application_that_ended_while_it_waits_is_missed_and_one_that_reads_on_is_not",
    ],
    "DNS questions that wait; time for one": [
        "tun/dns/test_forwarder.py::test_questions_that_wait_are_bounded",
        "tun/dns/test_upstreams.py::test_silence_ends_in_time_and_is_remembered",
    ],
    "DNS connections; questions open on one; idle": [
        "tun/dns/test_server.py::test_connections_are_bounded_and_the_most_silent_one_makes_room",
        "tun/dns/test_server.py::test_a_silent_connection_is_closed",
    ],
    "DNS answers kept": ["tun/dns/test_cache.py::test_bytes_are_bounded_too"],
    "names in blocklists": ["tun/dns/test_blocklist.py::test_what_a_person_must_change"],
    "the list of peers; revocations remembered": [
        "config/test_authorized.py::test_a_full_list",
        "config/test_authorized.py::test_thirty_thousand_peers",
        "config/test_authorized.py::test_revocations_are_bounded_and_the_latest_stay",
    ],
    "names in rule lists; a list; a line; broken lines described": [
        "rules/test_lists.py::test_what_a_person_must_change",
        "rules/test_lists.py::test_the_longest_line",
        "rules/test_lists.py::test_only_some_broken_lines_are_described",
    ],
    "LAN prefixes that get a rule": [
        "tun/routing/test_lan.py::test_a_flood_of_prefixes_is_bounded_in_each_family"
    ],
    "file descriptors for its streams (a UDP association counts as two)": [
        "exit/test_descriptor_shares.py::test_one_peer_leaves_a_quarter",
        "e2e/test_descriptors.py::test_one_peer_leaves_descriptors_to_others",
    ],
    "lines that wait for the reader of the log": [
        "base/test_log_writer.py::test_a_full_queue_drops_and_says_how_many",
        "base/test_log_writer.py::test_the_length_of_all_lines_is_bounded_too",
    ],
    "attempts without a free file descriptor: accepting again; lines in the log": [
        "base/test_accept_loop.py::test_a_machine_without_resources_is_given_time",
        "e2e/test_descriptors.py::test_an_exit_without_descriptors",
    ],
    "one answer of the deputy; time for it; links on the way there": [
        "base/test_deputy.py::test_an_answer_that_is_none_ends_it",
        "base/test_deputy.py::test_data_that_was_not_asked_for_is_refused",
        "base/test_deputy.py::test_silence_ends_it",
        "base/test_owners.py::test_links_have_an_end",
    ],
    "connections; request; time; answer": [
        "process/test_control.py::test_connections_are_bounded",
        "process/test_control.py::test_a_request_is_bounded",
        "process/test_control.py::test_a_slow_request_times_out",
        "process/test_control.py::test_a_long_answer_arrives_and_one_beyond_the_bound_is_refused",
    ],
}
"""From the column "what" of the table to tests, below tests/."""


def test_every_bound_has_a_test() -> None:
    assert {row[1] for row in table(THREATS, "of whom", "what", "bound")} == set(REACHED)


@pytest.mark.parametrize("name", [name for names in REACHED.values() for name in names])
def test_the_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    assert function in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
