"""Several faults of one configuration at once: the first one is the sentence, and `config check` says all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..errors import ConfigError


class ConfigFaults(ConfigError):
    """Its text is the first of the `sentences`."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__(self.sentences[0])


def refuse(sentences: Iterable[str]) -> None:
    """Raise ConfigFaults if there is a sentence."""
    if found := tuple(sentences):
        raise ConfigFaults(found)


def sentences_of(error: ConfigError) -> tuple[str, ...]:
    return error.sentences if isinstance(error, ConfigFaults) else (str(error),)


def said_by(check: Callable[[], object]) -> Iterator[str]:
    """What `check` raises as ConfigError, if anything."""
    try:
        check()
    except ConfigError as error:
        yield from sentences_of(error)
