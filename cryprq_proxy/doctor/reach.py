"""The steps to reach the exits, as a link makes them: name, connection, handshake.

The status of a running client with a link proves that all of them work.

An exit does not answer strangers, so that it cannot be recognized. So three causes look the same from here: a wrong
peer id in the URL, a wrong pre-shared key, and a port with another program.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ..base import leftovers as marks
from ..base.program import to_run, to_run_as_root
from ..carriers.admission import introduce, meet_exit, read_verdict
from ..carriers.dial.connect import Dialling
from ..carriers.dial.dial import dial
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.tcp import by_system, connect_tcp
from ..config.client import ClientConfig
from ..config.exits import ExitChoice
from ..crypto.client_handshake import ClientHandshake
from ..crypto.identity import PeerId
from ..crypto.payloads import Feature
from ..errors import CarrierError, CloseReason, CryprqError, HandshakeError, PeerError, to_be_let_in
from ..session.wire import ACCEPT, encode_close
from ..status import ClientStatus
from . import on_macos
from .checks import CheckState, CheckVerdict, Context, fail, ok, skip, warn

SECONDS: Final = 10.0
"""Seconds for each connection and each handshake."""


def dialling(config: ClientConfig, exit: ExitChoice) -> Dialling:
    return Dialling(config.upstream, by_system, 0, exit.ca)


def linked(context: Context) -> ClientStatus | None:
    """The status of the client of this machine, if its link is up."""
    client = context.running_client
    return client if client is not None and client.link == "up" else None


# --- name, connection ---


def _kept_in() -> CheckVerdict | None:
    """Why nothing can be tried from here: the block of system-wide mode, while no client runs in it."""
    if marks.holder("client") is not None:
        return None
    if marks.lockdown():
        return skip("not tried: lockdown lets nothing out until --tun runs, this test neither")
    if marks.kill_switch_in(marks.marks("client")):
        return skip(
            "not tried: the kill switch that an earlier --tun has left lets nothing out, this test neither"
        )
    return None


async def name(context: Context) -> CheckVerdict:
    config, exits = context.client_config, context.client_config.exits()
    if config.upstream is not None:
        return skip(f"names are resolved by the upstream proxy at {config.upstream.address}")
    names = list(
        dict.fromkeys(end.address.host for exit in exits for end in exit.endpoints if not end.address.is_ip)
    )
    if not names:
        return ok("the exits are given by address, so no name is asked for")
    if kept_in := _kept_in():
        return kept_in
    found, errors = [], []
    for host in names:
        try:
            async with asyncio.timeout(SECONDS):
                addresses = list(dict.fromkeys(await by_system(host)))
            found.append(f"{host} is {', '.join(addresses[:4])}")
        except TimeoutError:
            errors.append(f"the name {host} got no answer in {SECONDS:g} s")
        except CryprqError as error:
            errors.append(str(error))
    remedy = (
        "compare the name with the invite; try `getent hosts NAME`; or put the exit's address into the URL"
    )
    return _judge(found, errors, remedy)


async def reach(context: Context) -> CheckVerdict:
    """Connect to each endpoint, for any kind of carrier, and send nothing."""
    if status := linked(context):
        ill = [
            f"the exit {exit.name} has a fault: {exit.last_error or 'no answer'}"
            for exit in status.exits
            if not exit.healthy
        ]
        if ill:
            return warn(
                "; ".join(ill),
                "the others are used meanwhile; look at that exit (cryprq-proxy doctor --exit)",
            )
        return ok("the running client's link is up, so the exit is reached")
    client = context.running_client
    if client is not None and client.tun:
        return fail(
            f"the running client has no link: {client.last_error}",
            "system-wide mode keeps all else in, this test too: stop it "
            f"({to_run_as_root('cleanup')} if it was killed), "
            "then ask again",
        )
    if kept_in := _kept_in():
        return kept_in
    config, exits = context.client_config, context.client_config.exits()
    if config.upstream is not None and not await _listens(config.upstream.address):
        return fail(
            f"nothing answers at the upstream proxy {config.upstream.address}",
            "start that proxy, or take `upstream` out of the configuration",
        )
    found, errors = [], []
    for exit in exits:
        for endpoint in exit.endpoints:
            try:
                async with asyncio.timeout(SECONDS):
                    (await dial(endpoint, dialling(config, exit))).close()
                found.append(f"{endpoint} answers")
            except TimeoutError:
                errors.append(f"{endpoint} did not answer within {SECONDS:g} s")
            except CryprqError as error:
                errors.append(str(error))
    if not errors and client is not None and on_macos.keeps_from_the_local_network(client.last_error):
        return warn(
            f"{'; '.join(found)}, but the running client has no link: {client.last_error}",
            on_macos.LOCAL_NETWORK,
        )
    remedy = (
        "look whether the exit runs (`cryprq-proxy status` there) and its firewall lets the port in; where a network "
        "lets out nothing but the web, the exit needs a cryprq+wss:// address"
    )
    return _judge(found, errors, remedy)


async def _listens(address: Any) -> bool:
    try:
        async with asyncio.timeout(SECONDS):
            (await connect_tcp(address)).close()
    except (CarrierError, TimeoutError):
        return False
    return True


def _judge(found: list[str], errors: list[str], remedy: str) -> CheckVerdict:
    """The verdict for all, some or none found."""
    if not errors:
        return ok("; ".join(found))
    text = "; ".join(errors + found)
    return warn(text, remedy) if found else fail(text, remedy)


# --- handshake ---


async def handshake(context: Context) -> CheckVerdict:
    """For each exit: is it the right one, and is this client authorized?"""
    if linked(context):
        return ok("the running client's link is up: each side has proved its identity")
    config, exits = context.client_config, context.client_config.exits()
    verdicts = [await _first_answer(context, config, exit) for exit in exits]
    if len(verdicts) == 1:
        return verdicts[0]
    text = "; ".join(f"{exit.name}: {verdict.text}" for exit, verdict in zip(exits, verdicts, strict=True))
    bad = [verdict for verdict in verdicts if verdict.state is CheckState.FAIL]
    if not bad:
        return ok(text)
    return warn(text, bad[0].remedy) if len(bad) < len(verdicts) else fail(text, bad[0].remedy)


async def _first_answer(context: Context, config: ClientConfig, exit: ExitChoice) -> CheckVerdict:
    """The result of the first endpoint that works."""
    verdict = fail("no endpoint answers", "see the step before")
    for endpoint in exit.endpoints:
        verdict = await _shake(context, config, exit, endpoint)
        if verdict.state is CheckState.OK:
            break
    return verdict


async def _shake(
    context: Context, config: ClientConfig, exit: ExitChoice, endpoint: Endpoint
) -> CheckVerdict:
    (identity, provider), psk = context.keys, exit.psk()
    try:
        async with asyncio.timeout(SECONDS):
            pipe = await dial(endpoint, dialling(config, exit))
    except TimeoutError:
        return fail(f"{endpoint} did not answer within {SECONDS:g} s", "see the step before")
    except PeerError as error:
        return fail(str(error), "see the step before")
    shaking = ClientHandshake(identity, exit.peer_id, provider, psk=psk, features=Feature(0))
    known = False
    try:
        async with asyncio.timeout(SECONDS):
            await meet_exit(pipe, shaking, asyncio.to_thread)
            known = True
            admission = await introduce(pipe, shaking, asyncio.to_thread)
            await read_verdict(pipe, admission.keys.opener, ACCEPT)
            await pipe.write(admission.keys.sealer.seal(encode_close(CloseReason.NORMAL)))
    except HandshakeError as error:
        return fail(
            f"what answers at {endpoint} is not the exit that the URL names: {error}",
            "compare the peer id with the output of `cryprq-proxy id` at the exit; for new keys, ask for a new URL",
        )
    except (CarrierError, TimeoutError) as error:
        if known:
            why = str(error) or "it gave no answer in time"
            return fail(
                f"the exit at {endpoint} proved its identity, but there is no link: {why}",
                "its log says why; try again in a minute",
            )
        wrong, missing = (
            "the pre-shared key differs from the exit's",
            "the exit wants a pre-shared key (psk_file)",
        )
        return fail(
            f"{endpoint} accepts the connection but does not answer, as an exit does with strangers: the peer id in "
            f"the URL is not this exit's, or {missing if psk is None else wrong}, or something else listens there",
            "compare the URL with a new invite, and psk_file on both sides; after many attempts, wait a minute",
        )
    except PeerError as error:
        return _refused(error, endpoint, identity.peer_id)
    finally:
        pipe.close()
    return ok(f"{endpoint} is {exit.name}: it proved its identity, and lets this client in")


def _refused(error: PeerError, endpoint: Endpoint, me: PeerId) -> CheckVerdict:
    if error.reason is CloseReason.NOT_AUTHORIZED:
        return fail(
            f"the exit at {endpoint} is the right one, but does not let this client in (peer id {me})",
            f"use an invite ({to_run('join URI')}), or {to_be_let_in(me)}",
        )
    if error.reason is CloseReason.LIMIT:
        return fail(
            f"the exit at {endpoint} has too many sessions of this client already",
            "stop other clients that use the same keys: each machine has its own; or wait some minutes",
        )
    return fail(f"the exit at {endpoint} refuses: {error}", "its log says why; are both of the same version?")
