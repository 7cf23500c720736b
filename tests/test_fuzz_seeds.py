"""Every fuzz target has seeds, and every folder of seeds a target."""

from __future__ import annotations

from pathlib import Path

from cryprq_proxy.exit.proxy_protocol import HEAD, MAX_HEADER

FUZZ = Path(__file__).parent / "fuzz"


def test_every_target_has_seeds_and_every_seed_a_target() -> None:
    targets = {path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py")}
    assert targets
    assert {path.parent.name for path in FUZZ.glob("corpus/*/*")} == targets


def test_a_proxy_header_of_the_seeds_is_longer_than_the_bound() -> None:
    """And whole, so that the target would see it if it were read."""
    seeds = [path.read_bytes() for path in FUZZ.glob("corpus/proxy_protocol/*")]
    sizes = [(len(seed), HEAD.size + HEAD.unpack_from(seed)[3]) for seed in seeds]
    assert any(there == size > MAX_HEADER for there, size in sizes)
