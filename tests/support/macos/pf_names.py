"""Which anchors a rule of pf calls, by the name that stands in it, as XNU does (`pf_anchor_setup`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.support.macos.state import Anchor

UP = "../"


def called(path: str, name: str) -> str | None:
    """The full name of what a rule calls that stands in the anchor `path`, empty for the main ruleset; None where it
    lies outside of all, which the kernel refuses to load.

    `/a` is absolute, everything else begins where the rule stands, and each `../` in front goes one up.
    """
    if name.startswith("/"):
        return name[1:]
    while name.startswith(UP):
        if not path:
            return None
        path = path.rpartition("/")[0]
        name = name.removeprefix(UP)
    return f"{path}/{name}" if path else name


def below(anchors: Mapping[str, Anchor], path: str, name: str) -> Iterator[tuple[str, Anchor]]:
    """The rulesets that it calls, in the order in which they are asked. `a/*` are all anchors directly below `a`; a `*`
    alone in the main ruleset is a name as any other."""
    full = called(path, name)
    if full is None:
        return
    if not full.endswith("/*"):
        if full in anchors:
            yield full, anchors[full]
        return
    for each in sorted(anchors):
        if each.rpartition("/")[0] == full.removesuffix("/*"):
            yield each, anchors[each]
