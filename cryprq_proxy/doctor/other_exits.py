"""What lies beyond the exits that a running client has a link to and does not use now: new connections go there by a
rule, or when the exit in use is lost. Each is asked about itself as that one is (beyond.py), all at the same time.

What is wrong there is a warning: the exit in use is not concerned.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ..errors import CryprqError
from ..status import KnownExit
from .beyond import MORE, judge_clock, judge_names, judge_routes, told_by_client
from .checks import CheckState, CheckVerdict, Context, ok, skip, warn
from .reach import linked

MOST_ASKED: Final = 5
"""Exits. Python's pool of threads has as many on any machine, so none waits for another's silence."""


async def other_exits(context: Context) -> CheckVerdict:
    """Ask each of them, and judge its clock, its routes and its resolver."""
    status = linked(context)
    if status is None:
        several = len(context.client_config.exits()) > 1
        return skip("only a running client has links to them" if several else "there are no others")
    others = [exit for exit in status.exits if not exit.active]
    if not others:
        return skip("there are no others")
    connected = [exit for exit in others if exit.link == "up"]
    asked, unasked = connected[:MOST_ASKED], connected[MOST_ASKED:]
    verdicts = await asyncio.gather(*(_beyond(context, exit) for exit in asked))
    said = [f"{exit.name}: {verdict.text}" for exit, verdict in zip(asked, verdicts, strict=True)]
    said += [f"{exit.name}: has no link, so it is not asked" for exit in others if exit not in connected]
    said += [f"{exit.name}: not asked, {MOST_ASKED} others are enough" for exit in unasked]
    text, remedies = "; ".join(said), [verdict.remedy for verdict in verdicts if verdict.remedy]
    return warn(text, "; ".join(remedies)) if remedies else ok(text)


async def _beyond(context: Context, exit: KnownExit) -> CheckVerdict:
    """What is wrong with one exit, or that nothing is."""
    try:
        told = await told_by_client(context, exit.name)
    except CryprqError as error:
        return warn(str(error), f"look at the exit {exit.name}: {MORE}")
    where = f"at the exit {exit.name}: "
    verdicts = [
        judge_routes(told.report, "it", where),
        judge_names(told.report, "it", where, f"; {MORE}"),
        judge_clock(told, f"at the exit {exit.name}"),
    ]
    wrong = [verdict for verdict in verdicts if verdict.state is not CheckState.OK]
    if not wrong:
        return ok(", ".join(verdict.text for verdict in verdicts))
    return warn(", ".join(verdict.text for verdict in wrong), "; ".join(verdict.remedy for verdict in wrong))
