"""Every reader on mutated real files: an error message or a right answer, never a traceback, hang, over-allocation or code run.

10 000 inputs and more in continuous integration, the same ones each time; 100 000 and more, and new ones, in `make stress`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing.driver import campaign
from fuzzing.targets import TARGETS, make_seeds

_STRESS = 10


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make_seeds(folder)
    return folder


def _fuzz(name: str, seeds: Path, folder: Path, seed: int, count: int) -> None:
    outcome = campaign(name, seeds, folder, seed, count)
    print(f"{name}: {outcome.inputs} inputs from seed {seed}, {outcome.counts}")
    assert not outcome.findings, f"{len(outcome.findings)} finding(s), seed {seed}:\n" + "\n".join(
        outcome.findings
    )
    assert outcome.inputs == count
    # A fuzzer whose inputs are all refused at the door, or all accepted, tests little.
    assert outcome.counts["accepted"] > 0
    # A run whose times cannot be read is one that has not finished.
    assert outcome.counts["refused"] > count // 20 or name == "timing"
    assert outcome.counts["corpus"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TARGETS))
def test_readers_on_mutated_files(name: str, seeds: Path, tmp_path: Path) -> None:
    _fuzz(name, seeds, tmp_path, 0, TARGETS[name].share)


@pytest.mark.stress
@pytest.mark.parametrize("name", list(TARGETS))
def test_readers_on_many_mutated_files(name: str, seeds: Path, tmp_path: Path) -> None:
    _fuzz(name, seeds, tmp_path, int.from_bytes(os.urandom(4), "little"), _STRESS * TARGETS[name].share)


def test_there_are_enough_inputs() -> None:
    assert sum(target.share for target in TARGETS.values()) >= 10_000
