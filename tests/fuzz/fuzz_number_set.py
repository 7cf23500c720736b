"""Invariant: a NumberSet answers as a set of numbers does, and raises PeerError (LIMIT) only for a gap too many."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.errors import CloseReason, PeerError
    from cryprq_proxy.session import number_set

number_set.MAX_GAPS = 6  # type: ignore[misc]


def gaps(numbers: set[int]) -> int:
    return sum(number + 1 in numbers for number in range(1, max(numbers, default=0)) if number not in numbers)


def fuzz(data: bytes) -> None:
    numbers, model = number_set.NumberSet(), set[int]()
    for number in data:
        if not number:
            continue
        try:
            new = numbers.add(number)
        except PeerError as error:
            if error.reason is not CloseReason.LIMIT or gaps(model | {number}) <= number_set.MAX_GAPS:
                raise RuntimeError(f"{number} is too much for {sorted(model)}") from error
            return
        if new is (number in model):
            raise RuntimeError(f"{number} is {'' if new else 'not '}new to {sorted(model)}")
        model.add(number)
        if numbers.highest != max(model) or numbers.gaps != gaps(model):
            raise RuntimeError(f"{numbers.highest} and {numbers.gaps} gaps are not those of {sorted(model)}")
    if [number for number in range(257) if number in numbers] != sorted(model):
        raise RuntimeError(f"not all of {sorted(model)} are there, or more")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
