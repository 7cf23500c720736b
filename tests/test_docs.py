"""The documentation against the program: what README and docs/ promise exists, and their numbers are the code's."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import IPv4Network
from pathlib import Path

import click
import msgspec
import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.paths import default_identity
from cryprq_proxy.carriers.lane import carrier as lane_carrier
from cryprq_proxy.cli import cli
from cryprq_proxy.config import tun as config_tun
from cryprq_proxy.config.authorized import revoked_beside
from cryprq_proxy.config.client import ClientConfig, client_from
from cryprq_proxy.config.exit import ExitConfig, authorized_file, exit_from
from cryprq_proxy.config.rules import to_rules
from cryprq_proxy.crypto.handshake import (
    FIRST_SIZE,
    SECOND_SIZE,
    SHORT_SECOND_SIZE,
    SHORT_THIRD_SIZE,
    THIRD_SIZE,
    default_psk,
    record_keys,
)
from cryprq_proxy.crypto.identity import PUBLIC_SIZE, SIGNATURE_SIZE, PeerId
from cryprq_proxy.crypto.noise import protocol_name
from cryprq_proxy.crypto.payloads import (
    JOIN_CLIENT,
    JOIN_EXIT,
    PATH_SIZE,
    SIGNED_SECONDS,
    VERSION,
    Feature,
    HandshakeOffer,
    InviteClaim,
    JoinClaim,
    encode_proof,
    join_proof,
    join_ticket,
)
from cryprq_proxy.crypto.primitives import Cipher, new_aead
from cryprq_proxy.crypto.rekey import REKEY_ANSWER_SIZE, REKEY_SIZE
from cryprq_proxy.crypto.symmetric import SymmetricState
from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.exit import flight_memory
from cryprq_proxy.exit.peer_session import MOST_PATHS
from cryprq_proxy.exit.ticket_book import AHEAD
from cryprq_proxy.lane import layout, replay, sealed_train, slices
from cryprq_proxy.lane import path as lane_path
from cryprq_proxy.lane import sealing as lane
from cryprq_proxy.pairing import invite_store
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.number_set import MAX_GAPS
from cryprq_proxy.session.path import MAX_EARLY
from cryprq_proxy.session.reassembly import MAX_PIECES, MAX_SESSION_PIECES
from cryprq_proxy.session.records import MAX_RECORD, RecordOpener, RecordSealer
from cryprq_proxy.session.session import DATAGRAM_QUEUE, PACKET_QUEUE
from cryprq_proxy.session.session_credit import INITIAL_CREDIT
from cryprq_proxy.session.stream_numbers import INITIAL_STREAMS
from cryprq_proxy.session.verdict import MAX_VERDICT
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import Kind, StreamProtocol
from cryprq_proxy.status import ClientStatus
from tests.support.frames import WORKED
from tests.support.pages import (
    ARCHITECTURE,
    CHANGELOG,
    CONTRIBUTING,
    MANUAL,
    PROTOCOL,
    README,
    ROOT,
    SECURITY,
    SYSTEM_WIDE,
    THREATS,
    UPGRADE,
    table,
)
from tun import settings as tun_settings
from tun.device.urgent import MAX_URGENT
from tun.firewall import policy
from tun.linux.firewall import nft
from tun.linux.routing import route_rules as rules

TOP = [README, CONTRIBUTING, CHANGELOG, SECURITY]
PAGES = [*TOP, *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests" / "vectors" / "README.md"]
OURS = [*TOP, *MANUAL, PROTOCOL, THREATS, ARCHITECTURE]
MOST_LINES = 150
"""Of the README."""
LONG_ENOUGH = 50
"""Characters of a sentence that must not stand twice; shorter ones may be headings of a table."""


def by_name(path: Path) -> str:
    return path.name


NO_KEYS = {"http_proxy", "https_proxy", "gso_size", "clock_kept"}
"""Environment variables of other programs and fields of the protocol, written like keys."""
METRICS = "cryprq_"
"""How the names of our metrics begin; they are not keys."""
MADE = {"build"}
"""Directories that make fills."""
LATER = {"docs/benchmarks.md"}
"""Written by `make bench` and by hand from measurements: the one target of a link that may be missing."""


def number(text: str) -> int:
    """The number at the beginning of a cell: "65,536 bytes" is 65536, and "2^28 at the most" is 268435456."""
    match = re.match(r"([0-9,]+)(?:\^([0-9]+))?", text)
    assert match, text
    base, power = int(match[1].replace(",", "")), int(match[2] or 1)
    return math.prod([base] * power)


def numbers(text: str) -> list[int]:
    """All numbers in a cell, in order."""
    return [int(digits.replace(",", "")) for digits in re.findall(r"[0-9][0-9,]*", text)]


def code_lines(page: Path) -> Iterator[str]:
    """The lines of blocks marked as shell."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        yield from block.splitlines()


# --- what is there ---


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists() or str(path.relative_to(ROOT)) in LATER, f"{page.name}: {target}"


@pytest.mark.parametrize("page", OURS, ids=by_name)
def test_places_named_in_the_text_exist(page: Path) -> None:
    """Back-ticked names of files and directories of this project."""
    tops = {
        path.name for path in (*ROOT.iterdir(), *(ROOT / "cryprq_proxy").iterdir()) if path.is_dir()
    } - MADE
    for name in re.findall(r"`([a-z_]+/[a-zA-Z0-9_./-]*)`", page.read_text()):
        if name.split("/")[0] in tops and "PACKAGE" not in name:
            assert (ROOT / name).exists() or (ROOT / "cryprq_proxy" / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_no_page_holds_both_sides_of_a_merge(page: Path) -> None:
    assert not re.search(r"^(<{7}|>{7}) ", page.read_text(), re.MULTILINE), page.name


def anchor(heading: str) -> str:
    """The fragment that leads to a heading: small letters, hyphens for spaces, no other punctuation."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_to_headings(page: Path) -> None:
    for target, fragment in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if "://" not in target:
            there = (page.parent / target).resolve() if target else page
            prose = re.sub(r"^```.*?^```", "", there.read_text(), flags=re.DOTALL | re.MULTILINE)
            headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, f"{page.name}: {target}#{fragment}"


def test_the_front_page_is_short_and_leads_to_every_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    led = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#]+)", text)}
    assert {*TOP[1:], *(ROOT / "docs").glob("*.md")} - {*led, ROOT / "docs" / "index.md"} == set()


def test_the_site_leads_to_every_page() -> None:
    """mkdocs.yml lists the pages in the README's order; `make docs` itself fails for a link that leads nowhere."""
    listed = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} < set(listed)
    assert [name for name in listed if ROOT / "docs" / name in MANUAL] == [page.name for page in MANUAL]


def test_no_sentence_stands_twice() -> None:
    """On the pages for a person who runs the program: what changes is changed in one place."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for page in (README, CONTRIBUTING, CHANGELOG, SECURITY, *MANUAL):
        prose = re.sub(r"^```.*?^```", "\n\n", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for block in re.split(r"\n\n+|^[-|]", prose, flags=re.MULTILINE):
            for sentence in re.split(r"(?<=[.:;?])\s|\|", " ".join(block.split())):
                if len(sentence) >= LONG_ENOUGH:
                    places[sentence.strip()].append(page.name)
    assert len(places) >= 300
    assert {sentence: pages for sentence, pages in places.items() if len(pages) > 1} == {}


def test_a_backup_names_all_that_an_exit_keeps(tmp_path: Path) -> None:
    named = set(re.findall(r"[a-z][a-z.-]+", " ".join(row[0] for row in table(UPGRADE, "file", "what"))))
    authorized = authorized_file(tmp_path / "exit.toml", ExitConfig())
    kept = {
        default_identity().name,
        authorized.name,
        revoked_beside(authorized).name,
        invite_store.beside(authorized).name,
        flight_memory.FILE,
        flight_memory.RECENT,
        "exit.toml",
    }
    assert kept <= named


def test_make_verbs_exist() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in OURS:
        shown = set(re.findall(r"`make (?:-C \S+ )?([a-z]+)", page.read_text()))
        shown |= {m[1] for line in code_lines(page) if (m := re.match(r"make (?:-C \S+ )?([a-z]+)", line))}
        assert shown <= verbs, page.name
    assert {"make demo", "make test"} <= set(code_lines(README))


def test_flags_in_the_text_exist() -> None:
    """Flags between back-ticks that belong to no other program's command line."""
    commands = [cli, *cli.commands.values()]
    commands += [
        each for group in commands if isinstance(group, click.Group) for each in group.commands.values()
    ]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    known |= {"--help"}
    for page in OURS:
        for words in re.findall(r"`(-{1,2}[a-z][^`]*)`", page.read_text()):
            for flag in words.split():
                if flag.startswith("-"):
                    assert flag in known or flag in ("--socks5-hostname", "--socks5"), f"{page.name}: {flag}"


def dotted_keys(kind: type[msgspec.Struct]) -> set[str]:
    """All keys of a configuration, those of sections as "section.key"."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        found.add(field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= {f"{field.name}.{inner}" for inner in dotted_keys(field.type)}
    return found


def test_configuration_keys_exist() -> None:
    keys = {
        key
        for kind in (ClientConfig, ExitConfig)
        for dotted in dotted_keys(kind)
        for key in dotted.split(".")
    }
    sections = dotted_keys(ClientConfig) | dotted_keys(ExitConfig)
    for row in table(THREATS, "of whom", "what", "bound"):
        for name in re.findall(r"[a-z]+(?:_[a-z]+)+", row[2]):
            assert name in keys, name
    for page in OURS:
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text()):
            assert name in keys | NO_KEYS or name.startswith(METRICS), f"{page.name}: {name}"
        for name in re.findall(r"`\[([a-z.]+)\]`", page.read_text()):
            assert name in sections, f"{page.name}: [{name}]"


def test_bounds_in_the_threat_model_are_the_defaults() -> None:
    peer = "cryprq://" + "a" * 52 + "@exit.example:4433"
    client = client_from("", ROOT / "client.toml", True, {"peer": peer})
    exit = exit_from("", ROOT / "exit.toml", {})
    values: dict[str, object] = {}
    for struct in (client, client.limits, client.tun.dns, exit, exit.limits):
        values |= msgspec.structs.asdict(struct)
    seen = 0
    for row in table(THREATS, "of whom", "what", "bound"):
        for name, digits, unit in re.findall(r"([a-z]+(?:_[a-z]+)+) ([0-9][0-9,]*)( MiB)?", row[2]):
            assert int(digits.replace(",", "")) * (1 << 20 if unit else 1) == values[name], row
            seen += 1
    assert seen >= 14


def test_the_page_about_rules_names_those_of_its_example_that_system_wide_mode_refuses() -> None:
    text = (ROOT / "docs" / "rules.md").read_text()
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example
    peers = "".join(
        f'[[exit]]\nname = "{name}"\npeer = "cryprq://{letter * 51}a@{name}.example:4433"\n'
        for name, letter in (("home", "a"), ("work", "b"))
    )
    config = client_from(example[1] + peers, ROOT / "client.toml", True, {})
    refused = policy.check(RuleSet(to_rules(config.rule), config.default))
    assert [reason.split(" says ")[0] for reason in refused] == ["the office", "rule 4"]
    assert "`--tun` refuses two of them at its start, the office" in text


def test_what_system_wide_mode_changes() -> None:
    """The names and numbers on its page are those that the program uses."""
    text = SYSTEM_WIDE.read_text()
    for name in (
        f"`inet {nft.CLIENT}`",
        f"`inet {nft.EXIT}`",
        f"`{tun_settings.CLIENT_DEVICE}`",
        f"`{tun_settings.EXIT_DEVICE}`",
        f"{rules.FIRST} to {rules.LAST}",
        f"table {rules.TABLE}",
        f"`{config_tun.STATE}`",
        str(tun_settings.POOLS4[0]),
        str(tun_settings.POOLS6[0]),
        str(tun_settings.RESOLVER4),
    ):
        assert name in text, name


def test_units_and_examples_that_the_pages_install_exist() -> None:
    installed = 0
    for line in (line for page in (README, *MANUAL) for line in code_lines(page)):
        if match := re.match(r"cp /opt/cryprq-proxy/(\S+) ", line):
            assert (ROOT / match[1]).exists(), line
            installed += 1
    assert installed >= 4
    text = "\n".join(page.read_text() for page in (README, *MANUAL))
    units = re.findall(r"(?:systemctl [a-zA-Z =-]*|journalctl\s-u )\b(cryprq-[a-z-]+)", text)
    assert len(units) >= 4
    for unit in units:
        assert (ROOT / "configs" / f"{unit}.service").exists(), unit
    exit_unit = (ROOT / "configs" / "cryprq-exit.service").read_text()
    assert "ExecReload=" in exit_unit
    for path in ("/etc/cryprq", "/opt/cryprq-proxy/.venv/bin/cryprq-proxy"):
        assert path in exit_unit
        assert path in text or path.rpartition("/")[0] in text


@pytest.mark.parametrize("name", ["cryprq-client-tun.service", "cryprq-exit-tun.conf"])
def test_units_for_the_whole_system_let_it_do_what_it_does(name: str) -> None:
    lines = (ROOT / "configs" / name).read_text().splitlines()
    (state,) = [line for line in lines if line.startswith("StateDirectory=")]
    assert config_tun.STATE.name in state.partition("=")[2].split()
    assert "DeviceAllow=/dev/net/tun rw" in lines
    assert any(line.startswith("CapabilityBoundingSet=CAP_NET_ADMIN") for line in lines)
    assert not {"PrivateDevices=yes", "ProtectKernelTunables=yes"} & set(lines)
    assert any(line.startswith("ExecStart=/") and line.endswith(" --tun") for line in lines)


# --- the protocol's numbers ---


def test_frames() -> None:
    rows = table(PROTOCOL, "kind", "frame", "reliable", "sent by", "bytes", "layout behind the kind")
    assert [(int(row[0], 16), row[1]) for row in rows] == [(int(kind), kind.name) for kind in Kind]
    target = Destination("192.0.2.1", 80)
    address = 7
    made = {
        "OPEN": (wire.encode_open(1, StreamProtocol.TCP, target), address),
        "OPENED": (wire.encode_opened(1), 0),
        "REFUSED": (wire.encode_refused(1, StreamReason.GENERAL), 0),
        "DATA": (wire.encode_data_header(wire.DATA, 1, 0) + b"x", 1),
        "FIN": (wire.encode_fin(1, 0), 0),
        "RESET": (wire.encode_reset(1, StreamReason.GENERAL, 0), 0),
        "WINDOW": (wire.encode_window(1, 1), 0),
        "STREAMS": (wire.encode_number(wire.STREAMS, 1), 0),
        "REKEY": (wire.encode_part(wire.REKEY, 1, 0, b"xyz"), 3),
        "REKEY_ANSWER": (wire.encode_part(wire.REKEY_ANSWER, 1, 0, b"xyz"), 3),
        "REKEY_PLEASE": (wire.encode_epoch(wire.REKEY_PLEASE, 1), 0),
        "LANE": (wire.encode_lane(1, 2), 0),
        "NETWORK": (wire.encode_network(1, bytes(4), bytes(16)), 0),
        "TAKEN": (wire.encode_taken(1, [IPv4Network("10.0.0.0/8")]), 17),
        "GOAWAY": (wire.encode_bare(wire.GOAWAY), 0),
        "PREFER": (wire.encode_prefer(1, 1), 0),
        "ABANDON": (wire.encode_records(wire.ABANDON, 1, 1), 0),
        "ACK": (wire.encode_records(wire.ACK, 1, 1), 0),
        "PING": (wire.encode_number(wire.PING, 1), 0),
        "PONG": (wire.encode_number(wire.PONG, 1), 0),
        "SWITCH": (wire.encode_epoch(wire.SWITCH, 1), 0),
        "DATAGRAM": (wire.encode_datagram(1, target, b"xyz"), address + 3),
        "PACKET": (wire.encode_packet(0, 0, 0, b"xyz"), 3),
        "ADVERTISE": (wire.encode_advertise(target), address),
        "CLOSE": (wire.encode_close(CloseReason.NORMAL), 0),
        "ACCEPT": (wire.encode_bare(wire.ACCEPT), 0),
        "NO_SESSION": (wire.encode_bare(wire.NO_SESSION), 0),
        "JOINED": (wire.encode_joined(bytes(32)), 0),
    }
    for row in rows:
        frame, variable = made[row[1]]
        assert len(frame) - variable == number(row[4]), row
        assert (row[2] == "yes") is (int(row[0], 16) < wire.RELIABLE), row
    layout = next(row[5] for row in rows if row[1] == "OPEN")
    assert f"({', '.join(f'{int(each)} {each.name}' for each in StreamProtocol)})" in layout


def test_features() -> None:
    assert [(row[0], int(row[1])) for row in table(PROTOCOL, "feature", "bit")] == [
        (feature.name, int(feature)) for feature in Feature
    ]


def test_messages_of_the_lane() -> None:
    shown = {row[1]: int(row[0], 16) for row in table(PROTOCOL, "type", "message")}
    assert shown.pop("SLICE") == layout.SLICE
    assert shown == {name: getattr(layout, name) for name in shown}
    assert len(shown) == layout.ACK - layout.SLICE
    assert f"kind u8 = {layout.KIND:#04x} or {layout.EXPRESS_KIND:#04x} |" in PROTOCOL.read_text()
    assert f"at most {MAX_URGENT} bytes" in PROTOCOL.read_text()


def test_reasons() -> None:
    text = " ".join(PROTOCOL.read_text().split())
    for reason in StreamReason:
        assert re.search(rf"\b{int(reason)} {reason.name}\b", text), reason
    close = text[text.index("Close reasons:") :]
    for why in CloseReason:
        assert re.search(rf"\b{int(why)} {why.name}\b", close[:300]), why


def test_flights() -> None:
    rows = table(PROTOCOL, "flight", "from", "without payload", "payload", "length accepted")
    offer = HandshakeOffer((VERSION,), tuple(Cipher), 0).encode()
    proof = encode_proof(JoinClaim(bytes(16), 1, bytes(32)))
    invited = encode_proof(InviteClaim(bytes(16)))
    usual = ([len(offer)], [6], [len(encode_proof(None)), len(invited), len(proof)])
    for row, sizes, payloads in zip(rows, (FIRST_SIZE, SECOND_SIZE, THIRD_SIZE), usual, strict=True):
        bare = int(row[2])
        least, most = map(int, row[3].split(" to "))
        assert [bare + least, bare + most] == [int(n) for n in row[4].split(" to ")] == [sizes[0], sizes[-1]]
        assert [int(n) for n in re.findall(r"[0-9]+", row[5])] == [bare + size for size in payloads]
    short = table(
        PROTOCOL, "flight of the short pattern", "from", "without payload", "payload", "length accepted"
    )
    assert short[0] == rows[0]
    for row, sizes, size in zip(
        short[1:], (SHORT_SECOND_SIZE, SHORT_THIRD_SIZE), (6, PATH_SIZE), strict=True
    ):
        payloads_of = numbers(row[3])
        assert [int(row[2]) + size for size in payloads_of] == numbers(row[4])
        assert (numbers(row[4])[0], numbers(row[4])[-1]) == (sizes[0], sizes[-1])
        assert int(row[5]) == int(row[2]) + size
    tokens = table(PROTOCOL, "flight", "token", "bytes on the wire")
    for index, row in enumerate(rows, 1):
        sizes_of = [number(token[2]) for token in tokens if token[0] == str(index)]
        assert sum(sizes_of) == int(row[2])
    tokens = table(PROTOCOL, "flight of the short pattern", "token", "bytes on the wire")
    assert sum(number(token[2]) for token in tokens if token[0] == "3") == int(short[2][5])


def test_sizes_and_names() -> None:
    text = PROTOCOL.read_text()
    for pattern in ("XXhfs+sig+psk0", "NNhfs+psk0"):
        name = protocol_name(pattern).decode()
        assert f"`{name}`" in text
        assert f"{len(name)} bytes" in text
    assert f"REKEY, {REKEY_SIZE} bytes" in text and f"REKEY_ANSWER, {REKEY_ANSWER_SIZE} bytes" in text
    identity = {row[0]: int(row[1]) for row in table(PROTOCOL, "thing", "bytes", "layout")}
    assert identity == {"public key": PUBLIC_SIZE, "signature": SIGNATURE_SIZE, "peer id": 32}


def test_constants() -> None:
    limits = ClientConfig().session_limits()
    ours: dict[str, int | list[float]] = {
        "largest DATA": wire.MAX_DATA,
        "largest DATAGRAM payload": wire.MAX_DATAGRAM,
        "largest plaintext of a record": wire.MAX_PLAINTEXT,
        "largest value of a record's length": MAX_RECORD,
        "largest verdict": MAX_VERDICT,
        "largest offset of a stream": wire.MAX_OFFSET,
        "first window of each stream and direction": INITIAL_WINDOW,
        "first credit of a session and direction": INITIAL_CREDIT,
        "streams before the first STREAMS": INITIAL_STREAMS,
        "early records": MAX_EARLY,
        "pieces that wait for a gap, of a stream; of a session": [MAX_PIECES, MAX_SESSION_PIECES],
        "gaps in the numbers of streams": MAX_GAPS,
        "tickets": AHEAD,
        "the short pattern is taken after a signed flight for": int(SIGNED_SECONDS),
        "paths of a session at a time": MOST_PATHS,
        "largest packet": slices.MAX_PACKET,
        "bytes of a lane datagram around its message": [layout.OVERHEAD, layout.HEADER, layout.TAG],
        "header of a slice": slices.SLICE_SIZE,
        "slices of one packet": slices.MAX_SLICES,
        "window against replays on the lane": replay.WINDOW,
        "datagrams per epoch and direction": lane.MAX_SEALED,
        "receive keys of the lane live on": int(lane.LINGER),
        "datagrams waiting for a path": DATAGRAM_QUEUE,
        "packets waiting for a path": PACKET_QUEUE,
        "datagrams in one send": [layout.MAX_TRAIN, sealed_train.MAX_SEND],
        "epochs whose lane keys are kept": lane.MAX_EPOCHS,
        "split packets of which a part has come": [slices.ASSEMBLED_GROUPS, slices.ASSEMBLED_BYTES],
        "lane: sizes tried first": [lane_path.BASE, lane_path.LEAST],
        "lane: largest size tried": lane_carrier.MAX_PAYLOAD,
        "lane: the search ends within": lane_path.STEP,
        "lane: tries for one size": [lane_path.TRIES, lane_path.PATIENCE, 4],
        "lane: full-size probe": [lane_path.IDLE, lane_path.BUSY],
        "lane: a larger size is tried again": int(lane_path.RAISE),
        "lane: down after sending into silence for": int(lane_path.SILENCE),
        "lane: tried again while down": [lane_path.RETRY, lane_path.SOON, 1_000 * lane_path.RETRY_SOON],
        "lane: KEEPALIVE after only receiving for": int(lane_path.KEEPALIVE_AFTER),
    }
    shown = {name: value for name, value in both_tables_of_constants() if name in ours}
    assert {
        name: numbers(value) if isinstance(ours[name], list) else number(value)
        for name, value in shown.items()
    } == ours
    rotation = limits.rotation
    assert (rotation.records, rotation.bytes, rotation.datagrams, rotation.interval) == (
        1 << 22,
        1 << 38,
        1 << 27,
        300,
    )
    assert "300 s, 2^22 records, 2^38 bytes, 2^27 datagrams" in PROTOCOL.read_text()
    assert (limits.retained, limits.streams, limits.keepalive) == (40 << 20, 16_384, 10)


def both_tables_of_constants() -> Iterator[list[str]]:
    """Rows of the protocol's constants, then of this implementation's."""
    rest = PROTOCOL.read_text()
    for _ in range(2):
        rest = rest[rest.index("| constant | value |") + 1 :]
        for line in rest.splitlines()[2:]:
            if not line.startswith("|"):
                break
            yield [cell.strip() for cell in line.strip("|").split("|")]


# --- the worked example ---


def test_example_of_the_first_flight() -> None:
    frozen = json.loads((ROOT / "tests" / "vectors" / "frozen.json").read_text())
    shown = {row[0]: bytes.fromhex(row[1]) for row in table(PROTOCOL, "step", "value")}
    peer, flight = PeerId.parse(frozen["exit_id"]), bytes.fromhex(frozen["first"])
    name = protocol_name("XXhfs+sig+psk0")
    state = SymmetricState(name)
    steps = [peer.raw, state.h]
    assert state.h == sha256(name).digest()
    state.mix_hash(b"cryprq/1 link" + peer.raw)
    steps.append(state.h)
    psk = default_psk(peer)
    state.mix_key_and_hash(psk)
    steps += [psk, state.h, flight[:32]]
    state.mix_hash(flight[:32])
    key = state._derive(flight[:32], 2)[1]
    state.mix_key(flight[:32])
    state.decrypt_and_hash(flight[32 : 32 + 1200])
    steps += [key, state.decrypt_and_hash(flight[32 + 1200 :])]
    assert list(shown.values()) == steps


def test_examples_of_frames() -> None:
    assert table(PROTOCOL, "frame", "bytes") == [[worked.name, worked.shown] for worked in WORKED]


def test_examples_of_the_keys_of_a_path() -> None:
    records, resume, h2 = (bytes(range(first, first + 32)) for first in (0, 32, 64))
    client, exit_ = record_keys(records, 1)
    made = {
        "client record key": client,
        "exit record key": exit_,
        "ticket": join_ticket(resume, 1),
        "proof of the client": join_proof(resume, JOIN_CLIENT, h2, 1),
        "proof of the exit": join_proof(resume, JOIN_EXIT, h2, 1),
    }
    shown = {row[0]: bytes.fromhex(row[1]) for row in table(PROTOCOL, "value", "bytes of it")}
    assert shown == made


def test_examples_of_records() -> None:
    match = re.search(r"AES-256-GCM, key\s+`([0-9a-f]{64})`", PROTOCOL.read_text())
    assert match
    key = bytes.fromhex(match[1])
    sealer, opener = RecordSealer(Cipher.AES_256_GCM, key), RecordOpener(Cipher.AES_256_GCM, key)
    rows = table(PROTOCOL, "number", "plaintext", "record")
    for index, row in enumerate(rows):
        plaintext, record = bytes.fromhex(row[1]), bytes.fromhex(row[2])
        assert int(row[0]) == index
        assert sealer.seal(plaintext) == record
        assert opener.open(memoryview(record), 0) == (plaintext, len(record))
        decode_frames(plaintext)
    assert len(rows) == 3


def test_examples_of_datagrams() -> None:
    match = re.search(
        r"direction, AES-256-GCM, key\s+`([0-9a-f]{64})`, index [0-9,]+ \(`([0-9a-f]{8})`\)",
        PROTOCOL.read_text(),
    )
    assert match
    key, index = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    assert f"index {int.from_bytes(index):,} " in match[0]
    aead = new_aead(Cipher.AES_256_GCM, key)
    rows = table(PROTOCOL, "counter", "message", "plaintext", "datagram")
    for count, row in enumerate(rows):
        plaintext, datagram = bytes.fromhex(row[2]), bytes.fromhex(row[3])
        header = bytes((layout.KIND,)) + index + count.to_bytes(8)
        assert int(row[0]) == count
        assert getattr(layout, row[1].split(",")[0]) == plaintext[0]
        assert header + aead.encrypt(header[1:], plaintext, header) == datagram
    assert len(rows) == 2


def test_fields_of_the_status_that_a_page_names_exist() -> None:
    """Dotted names that begin with a field of the client's status, like `tun.rules`; keys of counts are not checked."""
    shown = 0
    sections = {"system", "tun", "session", "packets", "connections"}
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", page.read_text()):
            parts = name.split(".")
            if (
                parts[0] not in sections
                or parts[-1] == "py"
                or name in dotted_keys(ClientConfig) | dotted_keys(ExitConfig)
            ):
                continue
            kind: object = ClientStatus
            for part in parts:
                if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
                    break
                fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
                assert part in fields, f"{page.name}: {name}"
                options = getattr(fields[part], "__args__", (fields[part],))
                kind = options[0]
            shown += 1
    assert shown
