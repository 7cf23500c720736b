"""Every fuzz target has seeds, and every folder of seeds a target."""

from __future__ import annotations

from pathlib import Path

FUZZ = Path(__file__).parent / "fuzz"


def test_every_target_has_seeds_and_every_seed_a_target() -> None:
    targets = {path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py")}
    assert targets
    assert {path.parent.name for path in FUZZ.glob("corpus/*/*")} == targets
