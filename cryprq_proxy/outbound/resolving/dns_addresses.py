"""Both families of a name, asked of one DNS server at the same time."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from ...base.tasks import spawn
from .dns_answer import AAAA, A, AnswerError, NameAnswer, Question, is_answer, read_answer
from .name_server import NameServer

OTHER_FAMILY_SECONDS: Final = 0.3
"""Seconds for the second answer after the first one with addresses: some servers never answer AAAA."""
MAX_RESTARTS: Final = 4
"""Further questions for the name at the end of a chain of CNAMEs."""
MAX_MESSAGE: Final = 4_096
"""Bytes of an answer over TCP: 250 addresses."""


async def ask_addresses(
    server: NameServer, name: bytes, seconds: float, *, only_tcp: bool = False
) -> NameAnswer:
    """The addresses of `name`, those of IPv6 first; none if the server says that there is none.

    `seconds` is the time for one question over UDP, and again over TCP if its answer was too long for a datagram.
    Raises AnswerError or OSError, which TimeoutError is, if neither family has an answer.
    """
    asking = [
        spawn(_ask_family(server, Question(name, kind), seconds, only_tcp), "addresses of a name")
        for kind in (AAAA, A)
    ]
    try:
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        answered = any(_good(task) for task in asking)
        await asyncio.wait(asking, timeout=OTHER_FAMILY_SECONDS if answered else None)
    finally:
        for task in asking:
            task.cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
    found = [answer for task in asking if (answer := _good(task)) is not None]
    if found:
        addresses = [address for answer in found for address in answer.addresses]
        return NameAnswer(tuple(addresses), min(answer.seconds for answer in found))
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        # What the server or this machine said tells more than silence.
        raise min(failures, key=lambda failure: isinstance(failure, TimeoutError))
    return NameAnswer()


async def _ask_family(
    server: NameServer, question: Question, seconds: float, only_tcp: bool
) -> NameAnswer | AnswerError | OSError:
    """Returns a failure instead of raising it: it is one of two answers, not a failed task."""
    kept = (1 << 32) - 1
    try:
        for _ in range(MAX_RESTARTS + 1):
            answer = await _exchange(server, question.wire(), seconds, only_tcp)
            kept = min(kept, answer.seconds)
            if answer.alias is None:
                return answer._replace(seconds=kept)
            question = question._replace(name=answer.alias)
    except (AnswerError, OSError) as error:
        return error
    return AnswerError("too many CNAMEs")


async def _exchange(server: NameServer, asked: bytes, seconds: float, only_tcp: bool) -> NameAnswer:
    message = None
    if not only_tcp:
        message = await server.ask_over_udp(asked, partial(is_answer, asked=asked), seconds)
    if message is None:
        try:
            message = await server.ask_over_tcp(asked, seconds, MAX_MESSAGE)
        except EOFError:
            raise AnswerError("the server closed the connection") from None
        except ValueError as error:
            raise AnswerError(str(error)) from None
    return read_answer(message, asked)


def _good(task: asyncio.Task[NameAnswer | AnswerError | OSError]) -> NameAnswer | None:
    """What a task has found, if it has found addresses."""
    if not task.done() or task.cancelled():
        return None
    result = task.result()
    return result if isinstance(result, NameAnswer) and result.addresses else None
