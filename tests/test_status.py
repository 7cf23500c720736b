"""The status: what each version may leave out or add, how it is encoded, and that each figure is shown somewhere."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy import status as definitions
from cryprq_proxy.base.text import to_json
from cryprq_proxy.commands.status.view import render
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.control import read_status
from cryprq_proxy.process.sd_notify import summary
from cryprq_proxy.status import ClientStatus, ExitStatus, LoggedError, OpenConnection, Status, read
from cryprq_proxy.web.metrics import Exposition

ROLES = ClientStatus, ExitStatus
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 62) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(sorted({field.name for role in ROLES for field in msgspec.structs.fields(role)}))


def metrics(status: Status) -> str:
    text, _ = Exposition().write(status, "")
    # Those of the process itself change from one look to the next.
    return "\n".join(line for line in text.decode().splitlines() if "process_" not in line)


VIEWS: tuple[Callable[[Status], str], ...] = (summary, metrics, render)
"""All that is shown of a status outside of a browser, the quick ones first."""


def show(status: Status) -> list[str]:
    return [view(status) for view in VIEWS]


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_what_is_encoded_is_read_back(role: type[Status]) -> None:
    full = sample(role, True, 0)
    assert read(json.loads(to_json(full))) == full


@pytest.mark.parametrize("role", ["client", "exit"])
def test_all_may_be_missing_and_more_may_be_there(role: str) -> None:
    assert show(read({"role": role})) == show(
        read({"role": role, "of the future": [1], "bytes": {"lost": 1}})
    )


@pytest.mark.parametrize("told", [{}, {"role": "relay"}, {"role": "client", "bytes": 3}, {"role": 1}])
def test_what_cannot_be_read_is_one_sentence(told: dict[str, Any]) -> None:
    with pytest.raises(
        CryprqError, match=r"^the cryprq-proxy at /x\.sock has another version, restart it: .+$"
    ):
        read_status(told, Path("/x.sock"))


@given(st.sampled_from(["client", "exit"]), st.dictionaries(KEYS, JUNK, max_size=8))
def test_another_version_is_shown_or_refused_in_a_sentence(role: str, told: dict[str, Any]) -> None:
    try:
        status = read_status(told | {"role": role}, Path("/x.sock"))
    except CryprqError as error:
        assert str(error).isprintable()
    else:
        show(status)


def test_text_that_is_not_unicode_is_escaped() -> None:
    errors = json.loads(to_json(ClientStatus(errors=(LoggedError(text="\ud800"),))))["errors"]
    assert errors[0]["text"] == "\ud800"


def test_every_field_has_a_default() -> None:
    for part in vars(definitions).values():
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            part()


# --- each figure is shown --------------------------------------------------------------------------------------------

JSON_ONLY = {
    "what leaktest asks": {
        "TunRules.direct",
        "TunStatus.exclude",
        "TunStatus.exclude_cgroups",
        "TunStatus.exclude_uids",
        "TunStatus.include",
        "TunStatus.lan",
        "TunStatus.uplinks",
    },
    "what pairing asks": {
        "PairingStatus.authorized",
        "PairingStatus.listen",
        "PairingStatus.psk",
        "PairingStatus.public",
    },
    "what helps to find a fault": {
        "DnsStatus.blocklist_names",
        "DnsStatus.cache_bytes",
        "PathCounters.answered",
        "PathCounters.migrations",
        "PathCounters.probes",
        "PathCounters.shrinks",
        "PeerSessionStatus.clock_off",
        "PeerSessionStatus.connection_round_trip",
        "RepairStatus.found",
        "UpstreamStatus.answers",
        "UpstreamStatus.latency",
    },
    "what another figure shows already, or a script may ask": {
        "ClientStatus.carriers",
        "ClientStatus.log_level",
        "ExitStatus.log_level",
        "KnownExit.peer_id",
        "PeerSessionStatus.attached",
        "PeerSessionStatus.rotations",
        "SessionStatus.attached",
        "TunStatus.ipv6",
    },
}
"""Fields that only `status --json` tells, by the reason why that is enough."""


def sample(kind: Any, flag: bool, salt: int) -> Any:
    """A value of that type, whole: every struct there, every list with two entries. `salt` makes another one."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        values = {}
        for field in msgspec.structs.fields(kind):
            values[field.name] = sample(field.type, flag, salt)
            if field.name == "link":
                values[field.name] = "up" if flag else "down"
        return kind(**values)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return sample(next(each for each in arguments if each is not type(None)), flag, salt)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return (sample(arguments[0], flag, salt), sample(arguments[0], flag, salt + 1))
        return tuple(sample(each, flag, salt) for each in arguments)
    if origin is dict or isinstance(kind, type(definitions.Counts)):
        value = dict[str, int] if isinstance(kind, type(definitions.Counts)) else kind
        return {f"cause{salt}": sample(get_args(value)[1], flag, salt)}
    if kind is bool:
        return flag
    return {int: 1000 + salt, float: 2000.0 + salt, str: f"word{salt}"}[kind]


def leaves(kind: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Each field that is no struct itself: its name as Struct.field, the path to it, and its type."""
    for field in msgspec.structs.fields(kind):
        inner = field.type
        here = (*path, field.name)
        while get_origin(inner) in (Union, types.UnionType, tuple):
            if get_origin(inner) is tuple:
                if get_args(inner)[-1] is not Ellipsis or not _is_struct(get_args(inner)[0]):
                    break
                here = (*here, 0)
            inner = next(each for each in get_args(inner) if each is not type(None))
        if _is_struct(inner):
            yield from leaves(inner, here)
        else:
            yield f"{kind.__name__}.{field.name}", here, inner


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def changed(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    """`value` with another leaf at `path`."""
    if not path:
        return leaf
    first, *rest = path
    if isinstance(first, int):
        return (*value[:first], changed(value[first], tuple(rest), leaf), *value[first + 1 :])
    return msgspec.structs.replace(value, **{first: changed(getattr(value, first), tuple(rest), leaf)})


def unseen() -> set[str]:
    """Fields whose change shows in no view, no metric and not in the dashboard's script."""
    script = (Path(definitions.__file__).parent / "web/dashboard.js").read_text()
    missing: dict[str, bool] = {}
    for role in ROLES:
        wholes = [sample(role, flag, 0) for flag in (True, False)]
        shown = [show(whole) for whole in wholes]
        for name, path, kind in leaves(role):
            if missing.get(name) is False:
                continue  # another place of the same figure shows it
            seen = re.search(rf"\.{path[-1]}\b", script) is not None and role is ClientStatus
            for whole, before, flag in zip(wholes, shown, (True, False), strict=True):
                other = sample(kind, not flag, 77)
                seen = seen or any(
                    view(changed(whole, path, other)) != text
                    for view, text in zip(VIEWS, before, strict=True)
                )
            missing[name] = not seen
    return {name for name, is_missing in missing.items() if is_missing}


def test_every_figure_is_shown_or_listed_as_json_only() -> None:
    assert unseen() == set().union(*JSON_ONLY.values())


def test_the_dashboard_shows_every_figure_of_a_connection() -> None:
    script = (Path(definitions.__file__).parent / "web/dashboard.js").read_text()
    for field in OpenConnection.__struct_fields__:
        assert re.search(rf"\.{field}\b", script), field
