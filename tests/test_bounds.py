"""Each bound that docs/threat-model.md lists is reached by a test: which one, row by row."""

from __future__ import annotations

import ast
import re

import pytest

from cryprq_proxy.base import accept_loop, descriptors, linger, log_writer, netlink, owners, paths, sockets
from cryprq_proxy.carriers import pipe, websocket
from cryprq_proxy.carriers.dial import http_connect
from cryprq_proxy.carriers.dial import websocket as dial_websocket
from cryprq_proxy.carriers.lane import gathered, held, packet_link, udp_socket
from cryprq_proxy.carriers.lane.batch import RECEIVE_SIZE
from cryprq_proxy.client import ask_exit, dispatcher, endpoints, leaving, reached, split_association
from cryprq_proxy.client import exits as client_exits
from cryprq_proxy.config import authorized, decode, exits, forwards
from cryprq_proxy.config import exit as exit_config
from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.crypto import handshake
from cryprq_proxy.doctor import other_exits
from cryprq_proxy.exit import (
    datagram_resolver,
    exit,
    first_flight,
    flight_memory,
    handshake_thread,
    limits,
    lobby,
    peer_book,
    peer_session,
    proxy_protocol,
    reception,
    report,
    ticket_book,
    websocket_listener,
)
from cryprq_proxy.exit.exit import TOLD_AT_ONCE
from cryprq_proxy.fronts import socks_udp
from cryprq_proxy.lane import path as lane_path
from cryprq_proxy.lane import replay, sealing, slices
from cryprq_proxy.outbound import (
    address_race,
    backlog,
    bytestream,
    http_chunks,
    http_heads,
    http_reader,
    http_sections,
    relay,
    relays,
    udp_association,
    waiting_datagrams,
)
from cryprq_proxy.outbound.resolving import (
    dns_addresses,
    dns_answer,
    dns_names,
    host_configuration,
    hosts_file,
    resolver,
)
from cryprq_proxy.pairing import invite_store
from cryprq_proxy.process import answers, control, overlap, peers_pages, recent_errors
from cryprq_proxy.recovery import bandwidth, flight, pacer, received, recovery
from cryprq_proxy.rules import lists
from cryprq_proxy.rules.pac import script
from cryprq_proxy.service import facts
from cryprq_proxy.session import (
    control_rates,
    epochs,
    frames_ahead,
    lane_inbox,
    lane_outbox,
    number_set,
    path,
    reassembly,
    retention,
    session,
    session_credit,
    stream_numbers,
    stream_receiver,
    turns,
    verdict,
    windows,
    wire,
)
from cryprq_proxy.web import connections, events, history, metrics, server
from tests.mutants.run import load_all
from tests.support.pages import ROOT, THREATS, table
from tun import exit_network, journal
from tun.device import device, offload, urgent
from tun.dns import cache, framed, https, lan_server, packet_server
from tun.dns import server as dns_server
from tun.firewall import inbound, own_page
from tun.linux.firewall import lockdown
from tun.linux.resolver import resolvconf
from tun.macos import front_anchors
from tun.resolver import known_addresses
from tun.routing import address_pool, lan

OWN_PAGE_TIME = (
    "the time in which our own page is there in system-wide mode, from each check --browser on; its visitors"
)
HTTP_GIVEN_UP = (
    "an HTTP request whose application has closed, on this machine; elsewhere, while the answer does not go on; "
    "time for its origin to end"
)
BESIDE_SUCCESSOR = (
    "an exit beside its successor, beyond the time of its streams; one that is stuck, after SIGABRT"
)
REPORTS = (
    "what the exit is asked about itself, by all peers together: look-ups at a time; time for one; "
    "bytes of a question"
)
RESOLVER_DATAGRAMS = (
    "on a stream to the resolver that goes as datagrams: questions at once, each counted as a file descriptor; "
    "bytes of one; of answers that wait"
)
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
    "first flights opened per IPv4 address or IPv6 /64": [
        "exit/test_listener.py::test_no_more_handshakes_a_minute_from_one_prefix_than_configured",
        "exit/test_listener.py::test_no_prefix_opens_flights_beyond_its_rate",
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
    "connections read from in one turn of the loop; dismissed; first flights opened because time has brought tokens": [
        "exit/test_first_flight.py::test_a_bounded_number_is_read_from_in_one_turn",
        "exit/test_listener.py::test_a_bounded_number_is_dismissed_in_one_turn",
        "exit/test_listener.py::test_a_bounded_number_is_opened_in_one_turn",
    ],
    "bytes before the verdict; of a PROXY header": [
        "exit/test_listener.py::test_a_flight_of_impossible_length_is_not_read",
        "exit/test_proxy_protocol.py::test_what_is_refused_at_its_head",
    ],
    "bytes read behind the third flight before the verdict, on a WebSocket": [
        "exit/test_early_messages.py::test_what_follows_the_third_flight_waits_unopened_and_is_bounded"
    ],
    "bytes read and dropped of a peer that is refused, on TCP; for how long, in its place among the handshakes": [
        "base/test_linger.py::test_no_more_is_dropped_than_the_bound",
        "exit/test_early_records.py::test_no_more_is_read_of_a_refused_peer_than_the_bound",
        "exit/test_early_records.py::test_who_is_refused_keeps_its_place_until_it_has_ended",
    ],
    "remembered prefixes, peers, first flights": [
        "exit/test_limits.py::test_the_prefix_not_heard_of_for_longest_is_forgotten",
        "exit/test_flight_memory.py::test_a_full_memory_forgets_its_oldest",
    ],
    "first flights on disk; written at once": [
        "exit/test_flight_memory.py::test_few_are_written_each_time_and_all_when_they_are_many",
        "exit/test_flight_memory.py::test_the_whole_list_has_no_more_than_the_memory",
    ],
    "open invites; a guess": [
        "pairing/test_invite_store.py::test_names_are_unique_and_the_number_is_bounded",
        "pairing/test_invite_store.py::test_ten_thousand_guesses",
    ],
    "lines in the log about refused peers": ["exit/test_exit.py::test_lines_about_refused_peers_are_bounded"],
    "lines in the log about clients of another version": [
        "exit/test_joining.py::test_clients_of_version_1_fill_no_log"
    ],
    "on the WebSocket entrance: request line, one header; headers; one message": [
        "carriers/test_websocket.py::test_an_upgrade_has_a_bounded_first_line",
        "carriers/test_websocket.py::test_an_upgrade_has_a_bounded_head",
        "carriers/test_websocket.py::test_a_message_that_is_too_long_ends_the_connection_before_it_has_come",
    ],
    "sessions; of them without a carrier, and for how long": [
        "exit/test_sessions.py::test_no_more_sessions_of_a_peer_than_configured",
        "exit/test_sessions.py::test_of_sessions_without_a_carrier_the_oldest_end_beyond_the_configured_number",
        "exit/test_sessions.py::test_a_session_without_a_carrier_ends_after_its_time",
    ],
    "paths of a session at a time": ["exit/test_exit.py::test_no_more_carriers_of_a_session_than_the_bound"],
    "streams that it opens at an exit that is about to stop, after it was asked to leave": [
        "exit/test_exit.py::test_an_exit_that_retires_asks_all_its_peers_to_leave"
    ],
    "records that it sends before it has read the verdict": [
        "exit/test_early_records.py::test_no_early_record_begins_behind_the_bound",
        "exit/test_early_records.py::test_behind_a_signed_claim_nothing_may_be_early",
    ],
    "tickets that each session has at the exit: for how many paths; of how many epochs": [
        "exit/test_ticket_book.py::test_the_next_eight_paths",
        "exit/test_ticket_book.py::test_no_more_than_two_epochs",
    ],
    "streams of a session; opens of a peer": [
        "session/test_streams.py::test_more_streams_than_the_exit_allows",
        "exit/test_sessions.py::test_no_more_opens_of_a_peer_than_configured",
    ],
    "sessions told of, added up or encoded in one turn, when the status is asked for": [
        "exit/test_exit.py::test_the_status_of_many_sessions_is_read_a_turn_at_a_time",
        "process/test_answers.py::test_a_long_list_is_encoded_a_turn_at_a_time",
    ],
    "work in one turn of the event loop, all sessions together": [
        "session/test_turns.py::test_a_flood_is_taken_a_turn_at_a_time",
        "session/test_turns.py::test_a_peers_sessions_have_one_budget",
        "exit/test_sessions.py::test_the_sessions_of_a_peer_have_one_budget",
        "carriers/lane/test_driver.py::test_a_flood_of_acknowledgements_is_looked_at_a_turn_at_a_time",
        "session/test_turns.py::test_many_small_frames_leave_a_turn_at_a_time",
        "session/test_turns.py::test_very_many_streams_end_with_their_session_a_turn_at_a_time",
    ],
    "sockets of its targets served in one turn; datagrams read from each": [
        "outbound/test_socket_group.py::test_a_bounded_number_is_served_in_one_turn_and_each_has_its_own",
        "exit/test_sessions.py::test_what_targets_say_waits_for_the_next_turn_of_their_peer",
        "outbound/test_udp_association.py::test_a_bounded_number_of_datagrams_is_read_at_once",
    ],
    "on a WebSocket: bytes of one read; messages in one turn before the link is up; pings that are not answered": [
        "carriers/test_websocket.py::test_both_sides_read_little_at_once",
        "carriers/test_websocket.py::test_others_have_their_turn_during_a_flood_of_messages_before_the_handshake",
        "carriers/test_websocket.py::test_pings_of_a_peer_are_work_and_no_answer_waits",
    ],
    "control frames; frames for ended streams": [
        "session/test_turns.py::test_a_flood_of_control_frames_ends_the_session",
        "session/test_turns.py::test_a_flood_of_addresses_ends_the_session",
        "session/test_turns.py::test_a_flood_for_dead_streams_ends_the_session",
        "session/test_control_rates.py::test_control_frames_have_a_burst_and_a_rate",
        "session/test_control_rates.py::test_late_frames_have_a_burst_and_a_rate",
    ],
    "sent again when a path falls in doubt, as the peer may say at any time, besides one frame; frames looked at for "
    "that": [
        "session/test_retention.py::test_of_a_path_in_doubt_a_bounded_part_goes_again",
        "session/test_retention.py::test_of_a_path_in_doubt_a_bounded_number_of_units_is_looked_at",
    ],
    "stream numbers that are left out": [
        "session/test_number_set.py::test_gaps_are_bounded_at_the_end",
        "session/test_number_set.py::test_gaps_are_bounded_in_the_middle",
    ],
    "data that come before those in front of them, besides their bytes": [
        "session/test_reassembly.py::test_the_pieces_of_a_stream_are_bounded",
        "session/test_reassembly.py::test_the_pieces_of_a_session_are_bounded",
        "session/test_lane_path.py::test_more_holes_than_are_kept_are_refused_and_filled_ones_are_not",
    ],
    "of messages of a rotation: parts that wait for the rest; a part": [
        "session/test_message_parts.py::test_one_message_is_held_at_a_time",
        "session/test_frame_reader.py::test_parts_of_a_rotation_are_few_and_small",
    ],
    "what comes by the lane for streams whose OPEN has not come; frames that wait there for the next turn; streams "
    "that were reset while it carried something of them": [
        "session/test_lane_path.py::test_what_finds_no_room_before_its_open_is_refused",
        "session/test_lane_path.py::test_frames_beyond_the_work_of_a_turn_wait_for_the_next_and_are_bounded",
        "session/test_lane_path.py::test_more_resets_than_are_remembered_cost_bytes_and_nothing_else",
    ],
    "acknowledged frames dropped in one turn, also those of a lost path or an ended session; at once": [
        "session/test_turns.py::test_what_a_lost_path_had_brought_is_freed_a_turn_at_a_time",
        "session/test_turns.py::test_what_a_session_kept_is_freed_a_turn_at_a_time",
        "session/test_turns.py::test_an_acknowledgement_of_very_many_frames_frees_them_a_turn_at_a_time",
        "session/test_turns.py::test_many_acknowledgements_together_free_a_turns_worth_at_a_time",
    ],
    "pieces of data written to a slow target, or application, in one turn": [
        "outbound/test_backlog.py::test_one_turn_writes_a_bounded_number_of_pieces",
        "outbound/test_relay.py::test_small_frames_that_waited_leave_together",
    ],
    "datagrams of the lane opened in one turn, of all peers": [
        "carriers/lane/test_inbox.py::test_small_datagrams_count_for_more_than_their_bytes"
    ],
    "plaintext kept per session; by all sessions": [
        "session/test_retention.py::test_the_bound_of_a_session",
        "session/test_retention.py::test_the_budget_of_the_process_leaves_each_session_its_share",
    ],
    "addresses in the tunnel that it gets by refusing others; refusals": [
        "carriers/lane/test_packet_link.py::test_a_flood_of_refusals_has_few_answers",
        "carriers/lane/test_packet_link.py::test_an_address_that_is_in_use_is_refused_and_another_one_asked_for",
        "tun/routing/test_address_pool.py::test_a_peer_that_refuses_everything_takes_few_addresses",
        "session/test_frame_reader.py::test_prefixes_that_are_none_are_refused",
    ],
    "data received and not yet taken by targets, per session; by all sessions; streams looked at at once": [
        "session/test_streams.py::test_more_than_the_window",
        "session/test_windows.py::test_the_pool_bounds_all_windows_together",
        "session/test_windows.py::test_the_budget_of_the_process_leaves_each_session_its_share",
        "session/test_windows.py::test_old_credit_that_finds_no_room_is_refused",
        "session/test_windows.py::test_old_credit_is_refused_beyond_the_budget_of_the_process",
        "session/test_windows.py::test_few_streams_are_looked_at_at_once",
    ],
    "streams whose end the peer owes": [
        "session/test_session.py::test_ends_that_are_awaited_are_bounded_however_many_streams_there_may_be",
        "session/test_session.py::test_opening_without_ending_is_bounded",
    ],
    "small frames that the peer does not acknowledge": [
        "session/test_session.py::test_opening_without_acknowledging_is_bounded"
    ],
    "datagrams waiting for the carrier; packets": [
        "session/test_session.py::test_the_queue_of_datagrams_is_bounded_and_drops_the_oldest",
        "session/test_datagrams.py::test_the_queue_of_packets_is_bounded",
        "session/test_session.py::test_old_datagrams_are_dropped",
    ],
    "lane keys kept; split packets of which a part has come": [
        "lane/test_sealing.py::test_many_epochs_without_a_datagram_keep_few_keys",
        "lane/test_slices.py::test_parts_of_split_packets_are_bounded",
    ],
    "views of the lane's buffers that are kept for later": [
        "lane/test_slices.py::test_views_that_are_kept_are_bounded"
    ],
    "sent to an address that is not yet proved, on the lane": [
        "lane/test_path.py::test_little_is_sent_to_the_first_address_before_it_answers",
        "lane/test_path.py::test_little_is_sent_to_an_unproven_address",
        "lane/test_path.py::test_an_unproven_address_is_asked_at_intervals",
    ],
    REPORTS: [
        "exit/test_report.py::test_the_resolver_is_asked_once_for_all_who_wait",
        "exit/test_report.py::test_a_resolver_that_is_silent_is_waited_for_within_bounds",
        "exit/test_report.py::test_who_sends_more_than_the_time_gets_no_report",
    ],
    "hosts that may answer a UDP association; its datagrams waiting for a name; their bytes; in all associations": [
        "outbound/test_udp_association.py::test_the_host_sent_to_least_recently_is_forgotten_at_the_bound",
        "outbound/test_udp_association.py::test_datagrams_that_wait_for_a_name_are_bounded",
        "outbound/test_udp_association.py::test_the_bytes_that_wait_for_a_name_are_bounded",
        "outbound/test_udp_association.py::test_the_bytes_that_wait_in_all_associations_are_bounded",
        "outbound/test_udp_association.py::test_empty_datagrams_that_wait_are_bounded_for_a_peer",
    ],
    "what the kernel keeps for a target that does not read, per stream": [
        "base/test_sockets.py::test_the_kernel_keeps_little_for_an_end_that_does_not_read"
    ],
    "time to connect a target; addresses tried for a name; at the same time, each counted as a file descriptor": [
        "outbound/test_address_race.py::test_the_sockets_of_a_race_are_bounded_and_counted",
        "exit/test_descriptor_shares.py::test_the_sockets_of_a_name_count_like_streams",
        "outbound/test_address_race.py::test_an_attempt_gets_no_more_than_the_time_left",
        "outbound/test_address_race.py::test_a_name_with_very_many_addresses_gets_a_bounded_number_of_attempts",
    ],
    RESOLVER_DATAGRAMS: [
        "exit/test_targets.py::test_a_server_that_answers_over_udp_alone_serves",
        "exit/test_targets.py::test_a_question_that_is_too_long_ends_the_stream",
        "exit/test_targets.py::test_answers_that_nobody_takes_are_bounded",
    ],
    "in the same budget of work: an attempt to connect to an address of a name; asking the policy about one": [
        "outbound/test_address_race.py::test_addresses_that_fail_at_once_are_tried_in_the_turns_of_their_peer",
        "outbound/test_address_race.py::test_addresses_that_the_policy_forbids_are_work_too",
    ],
    "ICMP errors of the exit for refused packets, all peers together": [
        "tun/test_exit_network.py::test_answers_are_limited_in_rate"
    ],
    "names being resolved, of one peer; waiting, of one peer; remembered": [
        "outbound/resolving/test_fair_slots.py::test_one_asker_does_not_get_all",
        "outbound/resolving/test_fair_slots.py::test_waiting_is_bounded_for_each_and_for_all",
        "outbound/resolving/test_resolver.py::test_the_memory_is_bounded",
    ],
    "of those that wait for one name, told in one turn of the loop": [
        "outbound/resolving/test_resolver.py::test_many_that_wait_for_one_name_go_on_by_turns"
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
    "sockets of their direct connections beyond one for each: for further addresses of a name, for UDP": [
        "client/test_direct.py::test_the_sockets_of_many_names_are_bounded_together",
        "client/test_direct.py::test_associations_without_room_for_their_sockets_are_refused",
        "base/test_descriptors.py::test_what_a_limit_allows",
    ],
    "time for a SOCKS negotiation, or the head of an HTTP request": [
        "fronts/test_listener.py::test_slow_negotiations_are_ended",
        "fronts/test_listener.py::test_a_slow_head_of_http_is_answered_and_ended",
    ],
    "head of an HTTP message, or trailers; lines in it; commas; answers before the response": [
        "fronts/test_http_proxy.py::test_a_client_cannot_make_us_keep_without_bound",
        "fronts/test_http_turns.py::test_sections_beyond_the_bounds_are_refused",
        "fronts/test_http_turns.py::test_trailers_beyond_the_bounds_are_refused",
        "fronts/test_http_turns.py::test_answers_before_the_response_are_bounded",
    ],
    "head of a response; lines in it; commas, and spaces; line ends before it": [
        "fronts/test_http_turns.py::test_responses_at_the_bounds_pass_in_any_cut",
        "fronts/test_http_turns.py::test_responses_beyond_the_bounds_are_refused_in_any_cut",
    ],
    "work of HTTP in one turn of the loop, all connections together; chunks in one slice; line before a chunk": [
        "fronts/test_http_turns.py::test_tiny_chunks_of_an_origin_pass_a_turn_at_a_time",
        "fronts/test_http_turns.py::test_all_connections_have_one_budget_and_all_of_them_their_turn",
        "fronts/test_http_turns.py::test_the_line_before_a_chunk_is_bounded",
    ],
    "one that has died, while nobody takes what it has sent; another machine that does not answer": [
        "outbound/test_relays.py::test_an_application_that_died_is_seen_while_its_target_does_not_read",
        "base/test_sockets.py::test_the_kernel_asks_a_quiet_end_whether_it_is_there",
        "base/test_far_end.py::test_silence_counts_while_an_answer_is_due",
    ],
    "a connection in which nothing moves": [
        "outbound/test_relays.py::test_the_idle_limit_counts_from_the_last_byte"
    ],
    "waiting for the link; a dead application whose target is not connected yet, without and with data sent": [
        "client/test_waiting.py::test_each_waits_for_its_own_time",
        "fronts/test_listener.py::test_an_application_that_ended_while_it_waits_is_missed_and_one_that_reads_on_is_not",
    ],
    HTTP_GIVEN_UP: [
        "fronts/test_listener.py::test_a_dead_application_is_seen_while_its_origin_is_silent",
        "outbound/test_relays.py::test_a_request_whose_application_has_gone_is_given_up_at_once",
        "outbound/test_bytestream.py::test_a_stream_that_is_left_ends_in_order_and_then_at_once",
    ],
    "DNS questions that wait; time for one": [
        "tun/dns/test_forwarder.py::test_questions_that_wait_are_bounded",
        "tun/dns/test_upstreams.py::test_silence_ends_in_time_and_is_remembered",
    ],
    "DNS connections; questions open on one; idle": [
        "tun/dns/test_server.py::test_connections_are_bounded_and_the_most_silent_one_makes_room",
        "tun/dns/test_server.py::test_a_silent_connection_is_closed",
    ],
    "questions in packets to servers of the programs' own choice, that wait (macOS)": [
        "tun/dns/test_packet_server.py::test_questions_in_packets_are_bounded"
    ],
    "anchors that other programs put in front of ours and that are looked into (macOS)": [
        "tun/macos/test_main_ruleset.py::test_very_many_anchors_in_front_are_an_answer"
    ],
    "DNS answers kept": ["tun/dns/test_cache.py::test_bytes_are_bounded_too"],
    "names in blocklists": ["tun/dns/test_blocklist.py::test_what_a_person_must_change"],
    "of how many it is remembered when and from where they came": [
        "exit/test_peer_book.py::test_only_the_latest_are_remembered"
    ],
    "the list of peers; revocations remembered": [
        "config/test_authorized.py::test_a_full_list",
        "config/test_authorized.py::test_thirty_thousand_peers",
        "config/test_authorized.py::test_revocations_are_bounded_and_the_latest_stay",
    ],
    "names in rule lists; a list; a line; broken lines described": [
        "rules/test_lists.py::test_what_a_person_must_change",
        "rules/test_lists.py::test_a_list_that_grows_while_it_is_read_is_left",
        "rules/test_lists.py::test_the_longest_line",
        "rules/test_lists.py::test_only_some_broken_lines_are_described",
    ],
    "LAN prefixes that get a rule": [
        "tun/linux/routing/test_networks.py::test_a_flood_of_prefixes_is_bounded_in_each_family"
    ],
    "data of all streams of a session beyond what targets have taken, gaps included": [
        "session/test_session_credit.py::test_no_more_may_come_than_was_announced",
        "session/test_session_credit.py::test_credit_is_announced_in_steps",
        "session/test_session_credit.py::test_more_than_the_session_allows_closes_it",
    ],
    "file descriptors for its streams (a UDP association counts as two)": [
        "exit/test_descriptor_shares.py::test_one_peer_leaves_a_quarter",
        "e2e/test_descriptors.py::test_one_peer_leaves_descriptors_to_others",
    ],
    "time for the next part of an answer, and beyond that for the whole": [
        "process/test_control.py::test_an_answer_that_trickles_has_an_end"
    ],
    "pages of peers that are asked for": ["process/test_peers_pages.py::test_pages_without_an_end"],
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
    "reads of one relay in one turn of the loop; datagrams of an application's association": [
        "outbound/test_relay.py::test_one_wake_up_reads_a_bounded_number_of_times",
        "fronts/test_socks_udp.py::test_one_wake_up_reads_a_bounded_number_of_datagrams",
    ],
    "counters of datagrams remembered for each lane key, against replays": [
        "lane/test_replay.py::test_the_size_of_the_lane"
    ],
    "probes of the lane that wait for an answer": [
        "lane/test_path.py::test_whatever_comes_the_path_stays_within_its_bounds"
    ],
    "ranges of counters remembered on the lane, of what came; told at once": [
        "recovery/test_received.py::test_no_more_ranges_are_kept_than_there_may_be",
        "recovery/test_received.py::test_the_highest_ranges_are_told",
    ],
    "packets and datagrams that wait beside streams for room on the lane; time": [
        "carriers/lane/test_held.py::test_what_waits_is_bounded_and_the_oldest_is_dropped",
        "carriers/lane/test_held.py::test_nothing_waits_for_long",
    ],
    "datagrams in flight on the lane": [
        "recovery/test_recovery.py::test_no_more_is_in_flight_than_there_may_be"
    ],
    "lost runs of datagrams remembered; counters left out; how far behind a datagram may come that is not lost": [
        "recovery/test_flight.py::test_few_lost_runs_are_remembered",
        "recovery/test_recovery.py::test_few_left_out_counters_are_remembered",
        "recovery/test_flight.py::test_thresholds_have_a_bound",
    ],
    "samples of a lane's bandwidth that are kept; time that its pacer is ahead": [
        "recovery/test_bandwidth.py::test_few_samples_are_kept_however_many_come",
        "recovery/test_pacer.py::test_a_debt_is_over_in_a_second",
    ],
    "time between two probes of a silent lane; in the first 10 s": [
        "recovery/test_recovery.py::test_time_outs_double_up_to_a_bound"
    ],
    "epochs in the status": ["session/test_status.py::test_the_ledger_is_bounded_and_holds_no_keys"],
    "what the kernel keeps for a socket of the lane, in each direction": [
        "carriers/lane/test_udp_socket.py::test_options_of_root"
    ],
    "datagrams that a socket of the lane has read at once and nobody has taken; sizes that are prepared for that": [
        "carriers/lane/test_gathered.py::test_it_reads_no_more_than_it_is_asked_for",
        "carriers/lane/test_gathered.py::test_sizes_that_change_all_the_time_are_not_kept_for_ever",
    ],
    "targets remembered as reached through an exit, to answer sooner; for how long": [
        "client/test_reached.py::test_the_oldest_is_forgotten_beyond_the_bound",
        "client/test_reached.py::test_it_is_forgotten_after_its_time",
    ],
    "datagrams that wait until their route is open": [
        "client/test_dispatcher.py::test_datagrams_that_wait_are_bounded"
    ],
    "sessions that it has asked the client to leave, and that run out; for how long": [
        "client/test_leaving.py::test_the_oldest_ends_beyond_the_bound",
        "client/test_leaving.py::test_it_ends_after_its_time",
    ],
    "what it tells about itself; time for it; a text in it": [
        "client/test_ask_exit.py::test_an_exit_that_says_too_much",
        "client/test_ask_exit.py::test_an_exit_that_says_nothing",
        "client/test_ask_exit.py::test_what_is_no_report_is_one_sentence",
    ],
    "exits beside the one in use that doctor asks about themselves, all at a time": [
        "doctor/test_other_exits.py::test_all_at_the_same_time_and_no_more_than_a_few"
    ],
    "addresses that it names for resuming; how long the first attempt goes there alone": [
        "client/test_advertised.py::test_the_last_one_counts_and_only_what_may",
        "client/test_endpoints.py::test_it_has_a_head_start_of_some_seconds",
        "client/test_endpoints.py::test_its_silence_is_nothing_to_remember",
    ],
    "verdict on the client; records sent before it; head of a proxy's answer": [
        "session/test_verdict.py::test_a_verdict_has_a_bound",
        "carriers/test_admission.py::test_a_verdict_has_a_bound",
        "session/test_verdict.py::test_no_more_than_its_bound_is_sent_before_the_verdict",
        "carriers/dial/test_websocket.py::test_what_proxies_answer",
    ],
    "connections; time for the first request; bytes of one read": [
        "web/test_server.py::test_connections_are_bounded",
        "web/test_server.py::test_little_is_read_at_once",
    ],
    "requests answered in one turn of the loop": [
        "web/test_server.py::test_one_request_is_answered_in_a_turn_of_the_loop",
        "web/test_server.py::test_who_asks_for_metrics_together_shares_the_status_and_no_turn",
        "process/test_answers.py::test_one_goes_on_in_each_turn_and_in_order",
    ],
    "requests carried out, or answered, in one turn of the loop": [
        "process/test_control.py::test_one_request_is_carried_out_in_a_turn_of_the_loop",
    ],
    "body of a request; time for it": [
        "web/test_server.py::test_bodies_are_bounded",
        "web/test_server.py::test_a_body_has_its_time",
    ],
    "pages with live data; one that takes nothing": [
        "web/test_server.py::test_listeners_are_bounded_and_stop_ends_them",
        "web/test_server.py::test_a_listener_that_takes_nothing_is_cut_off",
    ],
    "samples of the throughput that are kept for the dashboard, one every 5 s": [
        "web/test_history.py::test_ten_minutes_are_kept_and_no_more",
    ],
    OWN_PAGE_TIME: [
        "tun/firewall/test_own_page.py::test_it_is_there_for_some_minutes",
        "tun/firewall/test_own_page.py::test_two_who_ask_at_once_get_one_page",
        "fronts/test_listener.py::test_visitors_of_our_own_page_count_as_all_applications_do",
    ],
    "reports that the exit is asked for because of our own page: at a time; how long one is told to all who ask": [
        "service/test_facts.py::test_many_who_ask_at_once_cost_one_question",
    ],
    "connections listed; peers in the status, or in a page of all; series of a metric": [
        "client/test_dispatcher.py::test_very_many_connections",
        "client/test_dispatcher.py::test_very_many_connections_of_two_exits",
        "service/test_exit.py::test_twenty_thousand_peers_are_let_in",
        "exit/test_peer_book.py::test_peers_with_sessions_leave_less_room_for_others",
        "exit/test_peer_book.py::test_all_are_told_page_after_page",
        "web/test_metrics.py::test_labels_are_bounded_and_quoted",
    ],
    "PAC file; patterns with wildcards in it": [
        "rules/pac/test_script.py::test_what_does_not_fit_goes_to_the_proxy",
        "rules/pac/test_script.py::test_more_patterns_than_are_quick_are_cut",
    ],
    "failed DNS questions remembered": [
        "tun/dns/test_cache.py::test_failures_are_remembered_for_seconds_and_in_bounds"
    ],
    "questions on a connection to a server, to a server of the LAN; connections of DNS over HTTPS": [
        "tun/dns/test_framed.py::test_questions_on_one_connection_are_bounded",
        "tun/dns/test_lan_server.py::test_questions_at_once_are_bounded",
        "tun/dns/test_tls.py::test_a_request_given_up_ends_its_connection_and_frees_its_place",
    ],
    "packets of the interface that wait for the link, together": [
        "tun/device/test_device.py::test_a_drain_is_bounded_and_comes_back",
        "tun/device/test_device.py::test_what_waits_is_bounded_and_what_is_urgent_overtakes_it",
        "tun/device/test_device.py::test_further_small_packets_wait_in_the_kernel_s_queue",
    ],
    "UDP flows of the interface with large datagrams that are known": [
        "tun/device/test_urgent.py::test_the_flows_that_are_known_are_bounded",
    ],
    "packets read from the interface in one turn of the loop; datagrams joined to one": [
        "tun/device/test_device.py::test_a_drain_is_bounded_and_comes_back",
        "tun/device/test_coalesce.py::test_super_packets_are_bounded",
    ],
    "any other file; tables of one kind in it; exits, and addresses of each; proxies that name clients; forwards": [
        "config/test_config.py::test_a_long_file_is_not_read",
        "config/test_config.py::test_tables_are_bounded",
        "config/test_config.py::test_exits_and_their_endpoints_are_bounded",
        "config/test_config.py::test_proxies_that_name_their_clients",
        "config/test_forwards.py::test_forwards_are_bounded",
    ],
    "exits that were taken out of it, whose streams run out": [
        "client/test_changed_exits.py::test_those_that_run_out_are_bounded",
    ],
    "an own certificate, or its key; trusted certificates": [
        "carriers/test_websocket.py::test_a_long_certificate_is_not_used",
        "carriers/dial/test_websocket.py::test_a_long_file_of_authorities_is_not_used",
    ],
    "the host's own: its list of hosts; servers and search domains": [
        "outbound/resolving/test_host_configuration.py::test_a_long_hosts_file_is_left_to_the_c_library",
        "outbound/resolving/test_host_configuration.py::test_name_servers",
        "outbound/resolving/test_host_configuration.py::test_search_lists",
    ],
    "addresses of an exit's name kept on disk": [
        "tun/resolver/test_known_addresses.py::test_what_is_learned_is_known_at_the_next_start"
    ],
    "the filter of lockdown": ["tun/linux/firewall/test_lockdown.py::test_a_file_without_end_takes_no_place"],
    "the journal": ["tun/test_journal.py::test_a_full_journal_takes_no_more"],
    "connections from outside that go on past the tunnel": [
        "tun/firewall/test_inbound.py::test_a_flood_of_connections_is_bounded"
    ],
    "one answer of the kernel about routes and addresses": [
        "base/test_netlink.py::test_an_answer_without_end_is_left"
    ],
    "resolv.conf put back, until the next start": [
        "tun/linux/resolver/test_resolvconf.py::test_a_fight_ends_before_the_journal_grows_without_bound"
    ],
    "warnings and errors kept for the status": ["process/test_recent_errors.py::test_the_newest_are_kept"],
    BESIDE_SUCCESSOR: [
        "process/test_overlap.py::test_a_child_that_does_not_end_in_its_time_is_ended",
        "process/test_overlap.py::test_a_child_that_survives_its_abort_is_killed",
    ],
    "connections accepted in one turn of the loop, by each listener": [
        "base/test_accept_loop.py::test_connections_are_accepted_up_to_the_bound_of_a_wake_up"
    ],
    "time for the last bytes of a connection that is being closed": [
        "base/test_linger.py::test_a_peer_that_never_ends"
    ],
    "buffers of 128 KiB that are kept for later": [
        "session/test_retention.py::test_the_slot_used_last_comes_first"
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


# --- without the bound, its test fails ---

KEPT = {
    "base/test_deputy.py::test_an_answer_that_is_none_ends_it",
    "config/test_authorized.py::test_thirty_thousand_peers",
    "e2e/test_descriptors.py::test_an_exit_without_descriptors",
    "e2e/test_descriptors.py::test_one_peer_leaves_descriptors_to_others",
}
"""Tests with real processes, which are too slow to be run with a fault, and of what must still pass below a bound."""


@pytest.mark.parametrize("name", sorted({name for names in REACHED.values() for name in names} - KEPT))
def test_the_bound_is_removed_by_a_fault(name: str, removing: set[str]) -> None:
    """`make mutants` removes it, and then this test must fail, or another one of its file."""
    assert f"tests/{name}" in removing or f"tests/{name.partition('::')[0]}" in removing


@pytest.fixture(scope="module")
def removing() -> set[str]:
    """What the faults name."""
    return {test for fault in load_all() for test in fault.tests}


# --- the numbers ---

EXIT, CLIENT = ExitConfig(), ClientConfig()
BOUNDS = EXIT.bounds()

NUMBERS: dict[str, list[float]] = {
    "connections without a valid first flight; of them in TLS or HTTP": [
        reception.MAX_STRANGERS,
        reception.MAX_UPGRADING,
    ],
    "first flights that wait for their turn": [reception.MAX_WAITING],
    "handshakes at once": [BOUNDS.handshakes_in_flight],
    "first flights opened per IPv4 address or IPv6 /64": [BOUNDS.handshakes_per_minute],
    "handshakes of a listed peer that are not counted for its address": [BOUNDS.handshakes_per_minute],
    "time for the first flight; waiting for a turn; for the rest of a handshake": [
        lobby.PATIENCE,
        lobby.SHORT_PATIENCE,
    ],
    "steps with signatures or slow key exchange that wait or run, beyond which no handshake begins": [
        handshake_thread.SIGNATURES_WAITING
    ],
    "connections read from in one turn of the loop; dismissed; first flights opened because time has brought tokens": [
        first_flight.READS,
        reception.SWEPT,
    ],
    "bytes before the verdict; of a PROXY header": [
        handshake.THIRD_SIZE.stop - 1,
        proxy_protocol.MAX_HEADER,
    ],
    "remembered prefixes, peers, first flights": [limits.MAX_KEYS],
    "first flights on disk; written at once": [flight_memory.MAX_FLIGHTS, flight_memory.MAX_RECENT],
    "open invites; a guess": [invite_store.MAX_OPEN],
    "lines in the log about refused peers": [exit.REFUSALS_LOGGED, exit.REFUSAL_SECONDS],
    "lines in the log about clients of another version": [
        reception.VERSIONS_LOGGED,
        reception.VERSION_SECONDS,
    ],
    "on the WebSocket entrance: request line, one header; headers; one message": [
        websocket_listener.MAX_LINE,
        websocket_listener.MAX_HEADERS,
        websocket.MAX_MESSAGE,
    ],
    "sessions; of them without a carrier, and for how long": [
        BOUNDS.sessions_per_peer,
        BOUNDS.detached_sessions_per_peer,
        BOUNDS.resume_seconds,
    ],
    "paths of a session at a time": [peer_session.MOST_PATHS],
    "records that it sends before it has read the verdict": [path.MAX_EARLY],
    "tickets that each session has at the exit: for how many paths; of how many epochs": [
        ticket_book.AHEAD,
        ticket_book.MAX_SECRETS,
    ],
    "streams of a session; opens of a peer": [
        EXIT.session_limits().streams,
        BOUNDS.opens_per_second,
    ],
    "streams that it opens at an exit that is about to stop, after it was asked to leave": [
        peer_session.IN_FLIGHT_SECONDS
    ],
    "sessions told of, added up or encoded in one turn, when the status is asked for": [
        TOLD_AT_ONCE,
        answers.ENCODED_AT_ONCE,
    ],
    "work in one turn of the event loop, all sessions together": [turns.TURN_WORK],
    "control frames; frames for ended streams": [
        control_rates.CONTROL_BURST,
        control_rates.CONTROL_RATE,
        control_rates.LATE_BURST,
        control_rates.LATE_RATE,
    ],
    "sent again when a path falls in doubt, as the peer may say at any time, besides one frame; frames looked at for "
    "that": [retention.REPEATED, retention.DROPS],
    "stream numbers that are left out": [number_set.MAX_GAPS],
    "data that come before those in front of them, besides their bytes": [
        reassembly.MAX_PIECES,
        reassembly.MAX_SESSION_PIECES,
        stream_receiver.SPARE_PIECES,
    ],
    "of messages of a rotation: parts that wait for the rest; a part": [wire.PARTS, wire.MAX_PART],
    "what comes by the lane for streams whose OPEN has not come; frames that wait there for the next turn; streams "
    "that were reset while it carried something of them": [
        frames_ahead.MAX_AHEAD,
        frames_ahead.FRAME_COST,
        lane_inbox.MAX_UNREAD,
        lane_outbox.MOST_RESETS,
    ],
    "acknowledged frames dropped in one turn, also those of a lost path or an ended session; at once": [
        retention.DROPS
    ],
    "pieces of data written to a slow target, or application, in one turn": [
        backlog.WRITES,
        backlog.PIECE,
    ],
    "plaintext kept per session; by all sessions": [
        EXIT.limits.retained_bytes,
        BOUNDS.retained_total,
        retention.ASSURED,
    ],
    "addresses in the tunnel that it gets by refusing others; refusals": [
        address_pool.MOST_OF_ONE_PEER,
        packet_link.MOST_REFUSALS,
        wire.MAX_TAKEN,
        control_rates.CONTROL_BURST / control_rates.CONTROL_FRAMES[wire.TAKEN],
    ],
    "data of all streams of a session beyond what targets have taken, gaps included": [
        session_credit.INITIAL_CREDIT,
        windows.INITIAL_WINDOW,
    ],
    "file descriptors for its streams (a UDP association counts as two)": [descriptors.RESERVE],
    "data received and not yet taken by targets, per session; by all sessions; streams looked at at once": [
        windows.INITIAL_WINDOW,
        EXIT.limits.window_pool,
        BOUNDS.window_total,
        retention.ASSURED,
        windows.LOOKS,
    ],
    "reads of one relay in one turn of the loop; datagrams of an application's association": [
        relay.READS,
        socks_udp.READS,
    ],
    "streams whose end the peer owes": [stream_numbers.MAX_AWAITED],
    "small frames that the peer does not acknowledge": [session.MAX_SMALL],
    "datagrams waiting for the carrier; packets": [session.DATAGRAM_QUEUE, session.PACKET_QUEUE],
    "lane keys kept; split packets of which a part has come": [
        sealing.MAX_EPOCHS,
        slices.ASSEMBLED_GROUPS,
        slices.ASSEMBLED_BYTES,
    ],
    "views of the lane's buffers that are kept for later": [slices.MAX_VIEWS],
    "counters of datagrams remembered for each lane key, against replays": [replay.WINDOW],
    "probes of the lane that wait for an answer": [lane_path._OUTSTANDING],
    "ranges of counters remembered on the lane, of what came; told at once": [
        received.MAX_RANGES,
        received.SENT_RANGES,
    ],
    "packets and datagrams that wait beside streams for room on the lane; time": [
        held.MAX_HELD,
        held.ITEM_COST,
        1_000 * held.HELD_SECONDS,
    ],
    "datagrams in flight on the lane": [flight.MAX_DATAGRAMS],
    "lost runs of datagrams remembered; counters left out; how far behind a datagram may come that is not lost": [
        flight.REMEMBERED,
        recovery.SKIPPED,
        flight.MAX_THRESHOLD,
    ],
    "samples of a lane's bandwidth that are kept; time that its pacer is ahead": [
        bandwidth.MOST,
        pacer.AHEAD,
    ],
    "time between two probes of a silent lane; in the first 10 s": [
        recovery.LONGEST_TIMEOUT,
        recovery.LONGEST_TIMEOUT_AT_FIRST,
    ],
    "epochs in the status": [epochs.MAX_EPOCHS],
    "sent to an address that is not yet proved, on the lane": [lane_path.CHALLENGE_INTERVAL],
    REPORTS: [report.LOOK_UP_SECONDS, report.QUESTION.size],
    "hosts that may answer a UDP association; its datagrams waiting for a name; their bytes; in all associations": [
        udp_association.MAX_HOSTS,
        waiting_datagrams.MAX_WAITING,
        waiting_datagrams.MAX_HELD,
        waiting_datagrams.MAX_HELD_TOGETHER,
        waiting_datagrams.DATAGRAM_OVERHEAD,
        waiting_datagrams.NAME_OVERHEAD,
    ],
    "what the kernel keeps for a target that does not read, per stream": [sockets.UNSENT],
    "what the kernel keeps for a socket of the lane, in each direction": [2 * udp_socket.SOCKET_BUFFER],
    "datagrams that a socket of the lane has read at once and nobody has taken; sizes that are prepared for that": [
        gathered.PLACES,
        RECEIVE_SIZE,
        gathered.MOST_LAYOUTS,
    ],
    "time to connect a target; addresses tried for a name; at the same time, each counted as a file descriptor": [
        BOUNDS.connect_timeout,
        address_race.MAX_ADDRESSES,
    ],
    RESOLVER_DATAGRAMS: [
        datagram_resolver.MAX_QUESTIONS,
        datagram_resolver.MAX_QUESTION,
        datagram_resolver.MAX_UNSENT,
    ],
    "in the same budget of work: an attempt to connect to an address of a name; asking the policy about one": [
        turns.ATTEMPT_WORK,
        turns.JUDGE_WORK,
    ],
    "ICMP errors of the exit for refused packets, all peers together": [exit_network.ANSWERS],
    "names being resolved, of one peer; waiting, of one peer; remembered": [
        dns_names.SLOTS,
        dns_names.WAITING,
        dns_names.WAITING_EACH,
        resolver.CACHE_SIZE,
        resolver.MOST_SECONDS,
    ],
    "of those that wait for one name, told in one turn of the loop": [resolver.WOKEN],
    "time for a name; an answer; its records, addresses, aliases": [
        dns_names.LOOKUP_SECONDS,
        dns_addresses.MAX_MESSAGE,
        dns_answer.MAX_RECORDS,
        hosts_file.MAX_ADDRESSES,
        dns_answer.MAX_LINKS,
        dns_addresses.MAX_RESTARTS,
    ],
    "verdicts of the policy remembered for packets": [exit_network.VERDICTS],
    "connections": [CLIENT.limits.max_connections, descriptors.RESERVE // 2],
    "time for a SOCKS negotiation, or the head of an HTTP request": [CLIENT.negotiation_timeout],
    "head of an HTTP message, or trailers; lines in it; commas; answers before the response": [
        http_sections.MAX_HEADER,
        http_sections.MAX_FIELDS,
        http_sections.MAX_MEMBERS,
        http_reader.MAX_INTERIM,
    ],
    "head of a response; lines in it; commas, and spaces; line ends before it": [
        http_heads.MAX_RESPONSE_HEAD,
        http_heads.MAX_RESPONSE_FIELDS,
        http_heads.MAX_RESPONSE_MEMBERS,
        http_heads.MAX_EMPTY_LINES,
    ],
    "work of HTTP in one turn of the loop, all connections together; chunks in one slice; line before a chunk": [
        turns.TURN_WORK,
        http_chunks.SLICE_CHUNKS,
        http_chunks.MAX_CHUNK_HEADER,
    ],
    "datagrams that wait until their route is open": [split_association.MAX_EARLY],
    "targets remembered as reached through an exit, to answer sooner; for how long": [
        reached.MOST_REACHED,
        reached.REACHED_SECONDS,
    ],
    "waiting for the link; a dead application whose target is not connected yet, without and with data sent": [
        CLIENT.wait_for_link,
        relays.PROMPT_LOOK_SECONDS,
        relays.GONE_SECONDS,
    ],
    "sessions that it has asked the client to leave, and that run out; for how long": [
        leaving.MOST_LEAVING,
        leaving.LEAVING_SECONDS,
    ],
    "what it tells about itself; time for it; a text in it": [ask_exit.MAX_REPORT, ask_exit.ASK_SECONDS],
    "exits beside the one in use that doctor asks about themselves, all at a time": [other_exits.MOST_ASKED],
    "addresses that it names for resuming; how long the first attempt goes there alone": [
        endpoints.ADVERTISED_HEAD_START
    ],
    HTTP_GIVEN_UP: [relays.PROMPT_LOOK_SECONDS, relays.ENDED_SECONDS, bytestream.PARTING_SECONDS],
    "verdict on the client; records sent before it; head of a proxy's answer": [
        verdict.MAX_VERDICT,
        path.MAX_EARLY,
        http_connect.MAX_HEAD,
    ],
    "connections; time for the first request; bytes of one read": [
        connections.MAX_CONNECTIONS,
        connections.FIRST_REQUEST_SECONDS,
        connections.READ_SIZE,
    ],
    "body of a request; time for it": [server.MAX_BODY, server.BODY_SECONDS],
    "pages with live data; one that takes nothing": [events.MAX_LISTENERS, events.WRITE_SECONDS],
    "samples of the throughput that are kept for the dashboard, one every 5 s": [history.SAMPLES],
    OWN_PAGE_TIME: [own_page.OPEN_SECONDS],
    "reports that the exit is asked for because of our own page: at a time; how long one is told to all who ask": [
        1,
        facts.KEPT_SECONDS,
    ],
    "connections listed; peers in the status, or in a page of all; series of a metric": [
        dispatcher.MAX_ROWS,
        peer_book.MAX_PEERS_TOLD,
        metrics.MAX_SERIES,
    ],
    "PAC file; patterns with wildcards in it": [script.MAX_SIZE, script.MAX_WILDCARDS],
    "DNS connections; questions open on one; idle": [
        dns_server.MAX_CONNECTIONS,
        dns_server.MAX_PIPELINED,
        dns_server.IDLE_SECONDS,
    ],
    "questions in packets to servers of the programs' own choice, that wait (macOS)": [
        packet_server.MAX_OPEN
    ],
    "anchors that other programs put in front of ours and that are looked into (macOS)": [
        front_anchors.MAX_ANCHORS
    ],
    "failed DNS questions remembered": [cache.MAX_FAILURES],
    "questions on a connection to a server, to a server of the LAN; connections of DNS over HTTPS": [
        framed.MAX_IN_FLIGHT,
        lan_server.MAX_IN_FLIGHT,
        https.MAX_CONNECTIONS,
    ],
    "packets of the interface that wait for the link, together": [device.BUFFERS, device.QUEUE_BYTES],
    "UDP flows of the interface with large datagrams that are known": [
        urgent.MAX_FLOWS,
        urgent.MAX_FLOWS,
    ],
    "packets read from the interface in one turn of the loop; datagrams joined to one": [
        device.READS_PER_WAKEUP,
        offload.GSO_MAX_SEGS,
        offload.GSO_MAX_SIZE,
    ],
    "names in blocklists": [lists.MAX_NAMES],
    "pages of peers that are asked for": [peers_pages.MAX_PAGES, peer_book.MAX_PEERS_TOLD],
    "of how many it is remembered when and from where they came": [peer_book.MAX_SEEN],
    "the list of peers; revocations remembered": [paths.MAX_LIST, authorized.MAX_REVOKED],
    "names in rule lists; a list; a line; broken lines described": [
        lists.MAX_NAMES,
        lists.MAX_FILE,
        lists.MAX_LINE,
        lists.MAX_PROBLEMS,
    ],
    "any other file; tables of one kind in it; exits, and addresses of each; proxies that name clients; forwards": [
        paths.MAX_FILE,
        decode.MAX_TABLES,
        exits.MAX_EXITS,
        exits.MAX_ENDPOINTS,
        exit_config.MAX_PROXIES,
        forwards.MAX_FORWARDS,
    ],
    "exits that were taken out of it, whose streams run out": [client_exits.MOST_LEAVING],
    "an own certificate, or its key; trusted certificates": [paths.MAX_FILE, dial_websocket.MAX_AUTHORITIES],
    "the host's own: its list of hosts; servers and search domains": [
        host_configuration.MAX_FILE,
        host_configuration.MAX_SERVERS,
        host_configuration.MAX_SEARCH,
    ],
    "addresses of an exit's name kept on disk": [known_addresses.MAX_ADDRESSES],
    "the filter of lockdown": [lockdown.MAX_SIZE],
    "the journal": [journal.MAX_JOURNAL],
    "LAN prefixes that get a rule": [lan.MAX_PREFIXES],
    "connections from outside that go on past the tunnel": [inbound.MOST],
    "one answer of the kernel about routes and addresses": [netlink.MAX_DATAGRAMS],
    "resolv.conf put back, until the next start": [resolvconf.MAX_REPAIRS],
    "one answer of the deputy; time for it; links on the way there": [owners.MAX_LINKS],
    "connections; request; time; answer": [
        control.MAX_CONNECTIONS,
        control.BACKLOG,
        control.MAX_REQUEST,
        control.TIMEOUT,
        control.CROWDED_TIMEOUT,
        control.MAX_ANSWER,
    ],
    "time for the next part of an answer, and beyond that for the whole": [control.TIMEOUT, control.WHOLE],
    "lines that wait for the reader of the log": [log_writer.MAX_LINES, log_writer.MAX_CHARACTERS],
    "warnings and errors kept for the status": [recent_errors.MAX_ENTRIES],
    BESIDE_SUCCESSOR: [overlap.OVERTIME, overlap.ABORT_SECONDS],
    "connections accepted in one turn of the loop, by each listener": [accept_loop.ACCEPTS],
    "time for the last bytes of a connection that is being closed": [linger.SECONDS],
    "bytes read and dropped of a peer that is refused, on TCP; for how long, in its place among the handshakes": [
        pipe.MAX_DROPPED,
        linger.SECONDS,
    ],
    "attempts without a free file descriptor: accepting again; lines in the log": [
        accept_loop.PAUSE,
        descriptors.LOG_SECONDS,
    ],
}
"""What stands in the column "bound", read from the code, in bytes, seconds or pieces."""


def numbers_in(bound: str) -> set[float]:
    """Each with its unit, if it is one of size."""
    sizes = {"KiB": 1 << 10, "MiB": 1 << 20}
    found = re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)(?: (KiB|MiB))?", bound)
    return {float(number.replace(",", "")) * sizes.get(unit, 1) for number, unit in found}


@pytest.mark.parametrize("what", NUMBERS)
def test_the_numbers_are_those_of_the_code(what: str) -> None:
    (bound,) = [row[2] for row in table(THREATS, "of whom", "what", "bound") if row[1] == what]
    assert set(NUMBERS[what]) <= numbers_in(bound), bound
