"""Starts workers, one after the other: a crash or a hang ends one, is a finding, and the next goes on behind it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
_MOST_FINDINGS = int(os.environ.get("FUZZ_FINDINGS", "25"))
_HANGS = (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU)


@dataclass
class Outcome:
    """What a campaign against one target gave."""

    inputs: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def campaign(target: str, seeds: Path, folder: Path, seed: int, count: int) -> Outcome:
    """``count`` inputs of ``target``; stops early if there is much to repair."""
    outcome, start = Outcome(), 0
    while start < count and len(outcome.findings) < _MOST_FINDINGS:
        start = _worker(target, seeds, folder, seed, start, count, outcome)
    return outcome


def _worker(
    target: str, seeds: Path, folder: Path, seed: int, start: int, stop: int, outcome: Outcome
) -> int:
    """The index at which the next worker goes on."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "fuzzing.worker",
        target,
        str(seeds),
        str(folder),
        str(seed),
        str(start),
        str(stop),
    ]
    at = start - 1
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=folder
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                facts = json.loads(line)
                at = facts.get("at", at)
                outcome.inputs += "at" in facts and "finding" not in facts
                if "finding" in facts:
                    outcome.findings.append(_story(target, facts["finding"], facts["detail"], facts["file"]))
                    if len(outcome.findings) >= _MOST_FINDINGS:
                        break
                elif "done" in facts:
                    _count(outcome, facts)
        finally:
            if len(outcome.findings) >= _MOST_FINDINGS or sys.exc_info()[0] is not None:
                process.kill()
            process.stdout.close()  # type: ignore[union-attr]
            code = process.wait()
    if code == 0 or len(outcome.findings) >= _MOST_FINDINGS:
        return stop
    tail = (folder / "stderr").read_bytes()[-2000:].decode(errors="replace")
    if at < start:
        raise RuntimeError(f"the worker of {target} ended with {code} before its first input: {tail}")
    kept = folder / f"finding-{at:08d}-ended"
    for path in (folder / "work").iterdir():
        if path.is_file() and path.stat().st_mtime_ns == max(
            p.stat().st_mtime_ns for p in (folder / "work").iterdir()
        ):
            shutil.copy(path, kept)
    what = "hang" if -code in _HANGS else "crash"
    outcome.findings.append(_story(target, what, f"exit code {code}; {tail}", str(kept)))
    return at + 1


def _count(outcome: Outcome, facts: dict[str, Any]) -> None:
    for key in ("accepted", "refused", "crashes", "corpus", "lines"):
        outcome.counts[key] = outcome.counts.get(key, 0) + facts[key]


def _story(target: str, what: str, detail: str, file: str) -> str:
    return (
        f"{what} in {target}: {detail.strip()}\n  again: {sys.executable} {TESTS / 'fuzzing'} {target} {file}"
    )
