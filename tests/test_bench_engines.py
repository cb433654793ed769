"""The comparison of engines: its arithmetic, its report, and that different bytes are an error, not a table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from simtool.bench import engines_measure as measure
from simtool.bench import engines_memory as memory
from simtool.bench import engines_report as report
from simtool.bench import engines_targets as goals
from simtool.bench.engines import EngineBenchOptions, bench_engines, worker_counts
from simtool.bench.engines_account import Phase, TaskTime, account
from simtool.bench.engines_cases import CASES, chosen
from simtool.bench.engines_measure import Entry, Run, Where
from simtool.bench.engines_memory import Load, Sampler
from simtool.cli import main
from simtool.errors import InputError, OptionError, OutputError, WorkerError

# --- the arithmetic ----------------------------------------------------------------------------------------------------


def _phase(began: float, ended: float, *tasks: tuple[int, float, float]) -> Phase:
    return Phase("rows", began, ended, tuple(TaskTime(*task) for task in tasks))


def test_overhead_falls_into_its_parts() -> None:
    tiles = _phase(100.0, 104.0, (1, 101.0, 103.0), (2, 102.0, 104.0))
    rows = _phase(110.0, 116.0, (1, 110.5, 112.5), (1, 113.0, 114.0), (2, 110.0, 116.0))
    found = account([tiles, rows], 2)
    assert found.wall == pytest.approx(10.0)
    assert found.busy == pytest.approx(2 + 2 + 2 + 1 + 6)
    assert found.first_task == pytest.approx(1.0)
    assert found.starting == pytest.approx(1 + 2)
    assert found.between == pytest.approx(0.5 + 0.5)
    assert found.waiting == pytest.approx(1 + 2)
    assert (found.tasks, found.longest) == (5, pytest.approx(6.0))
    assert found.overhead == pytest.approx(1 - 13 / 20)
    assert found.shard_overhead == pytest.approx(1 / 14)
    assert found.per_task == pytest.approx(0.2)
    assert Phase.from_json(json.loads(json.dumps(asdict(rows)))) == rows


def test_a_worker_that_comes_late_is_starting() -> None:
    """One task in the first phase needs one worker; the other's interpreter starts in the second."""
    found = account(
        [_phase(0.0, 2.0, (1, 1.0, 2.0)), _phase(2.0, 6.0, (1, 2.0, 6.0), (2, 3.0, 6.0))], workers=2
    )
    assert found.starting == pytest.approx(1 + 1)
    assert found.between == 0
    assert found.waiting == pytest.approx(2.0)  # the worker that the first phase did not need


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2), st.floats(0, 2)), max_size=12),
    st.integers(1, 3),
)
def test_the_parts_add_up(workers: int, pieces: list[tuple[int, float, float]], count: int) -> None:
    """Whatever the tasks: busy + starting + between + waiting = workers x wall."""
    at, phases = 0.0, []
    for _ in range(count):
        clock = dict.fromkeys(range(workers), at)
        tasks = []
        for worker, gap, length in pieces:
            began = clock[worker % workers] + gap
            clock[worker % workers] = began + length
            tasks.append((worker % workers, began, began + length))
        ended = max(clock.values()) + 0.25
        phases.append(_phase(at, ended, *tasks))
        at = ended + 1.0
    found = account(phases, workers)
    parts = found.busy + found.starting + found.between + found.waiting
    assert parts == pytest.approx(workers * found.wall)
    assert -1e-9 <= found.overhead <= 1.0


def test_nothing_to_do_is_no_overhead() -> None:
    found = account([], 2)
    assert (found.overhead, found.shard_overhead, found.per_task) == (0.0, 0.0, 0.0)


# --- targets and tables ------------------------------------------------------------------------------------------------


def _run(seconds: float, workers: int = 1, first: float = 0.0, **changes: Any) -> Run:
    tasks = [(worker, first, seconds) for worker in range(workers)]
    made = Run(
        account=account([_phase(0.0, seconds, *tasks)], workers),
        solve_seconds=seconds,
        total_seconds=seconds + 1,
        before=0.5,
        joining=0.0,
        after=0.5,
        cpu_seconds=seconds,
        coordinator_bytes=10,
        worker_bytes=200_000_000,
        workers_bytes=workers * 200_000_000,
        services_bytes=0,
        private_bytes=10,
        pss_bytes=10,
        load=0.0,
        others=0.0,
        rows=5,
        certified=5,
        max_relative_gap=1e-9,
        sha256="a",
    )
    return replace(made, **changes)


def _entries() -> tuple[Entry, ...]:
    return (
        Entry(Where("serial", 1), (_run(10.0), _run(30.0))),
        # The machine was three times slower in the second repetition, for both.
        Entry(Where("process", 2), (_run(5.0, 2, 0.1), _run(15.0, 2, 0.1))),
        Entry(Where("ray", 2), (), "no ray here"),
    )


def test_targets_are_judged_within_repetitions() -> None:
    serial, process, _ = entries = _entries()
    assert goals.speed_up(entries, process) == pytest.approx(2.0)
    assert goals.speed_up(entries, serial) == 1.0
    found = {target.name: target for target in goals.targets(entries)}
    assert found["2 processes beside serial"].met
    assert found["process: seconds to the first task"].reached == pytest.approx(0.1)
    assert found["a worker's memory above the mapped inputs"].reached == pytest.approx(200.0)
    absent = [target for target in found.values() if target.name.startswith(("Ray", "ray"))]
    assert absent
    assert all(target.met is None and target.note == "no ray here" for target in absent)
    slow = goals.Target("t", 3.0, "%", 3.5)
    assert (slow.met, goals.Target("t", 3.0, "x", 3.5, least=True).met) == (False, True)


def test_tables_keep_what_failed() -> None:
    outcome = report.Outcome(CASES[1], "made up", _entries())
    page = report.page([outcome], outcome, "a machine")
    assert "| ray, 2 | none |" in page
    assert "no ray here" in page
    text = report.text([outcome], outcome, "a machine")
    assert "2 processes beside serial" in text
    assert max(len(line) for line in text.splitlines()) <= 110
    json.dumps(outcome.to_json())
    assert report.draw([outcome])["png"].startswith(b"\x89PNG")


def test_without_proc_memory_is_not_measured() -> None:
    blind = _run(1.0, worker_bytes=None, private_bytes=None, workers_bytes=None, others=None)
    entries = (Entry(Where("serial", 1), (blind,)), Entry(Where("process", 1), (blind,)))
    found = {target.name: target for target in goals.targets(entries)}
    assert found["a worker's memory above the mapped inputs"].reached is None
    assert report.cells(entries, entries[1])[-1] == "-"


def test_counts_of_workers() -> None:
    assert [worker_counts(cores) for cores in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    asked = EngineBenchOptions(engines=("process",), workers=(3, 2, 3)).places()
    assert asked == (Where("serial", 1), Where("process", 2), Where("process", 3))
    assert [case.name for case in chosen(("mlp-1024",))] == ["mlp-1024"]
    assert chosen(()) == CASES


# --- equal bytes -------------------------------------------------------------------------------------------------------


def test_different_bytes_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = iter(["a" * 64, "a" * 64, "a" * 64, "b" * 64])
    monkeypatch.setattr(measure, "run_once", lambda *_: _run(1.0, sha256=next(models)))
    places = (Where("serial", 1), Where("process", 2))
    states, options = tmp_path / "states.h5", CASES[0].options
    assert len(measure.side_by_side(states, options, places, 1, tmp_path)) == 2
    with pytest.raises(WorkerError, match=r"same bytes on every engine.*serial: a+; process, 2: b+"):
        measure.side_by_side(states, options, places, 1, tmp_path)


def test_what_fails_keeps_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(states: Path, options: Any, where: Where, folder: Path) -> Run:
        if where.engine != "process":
            raise measure._Failed("not installed")
        return _run(1.0)

    monkeypatch.setattr(measure, "run_once", run)
    states, options = tmp_path / "states.h5", CASES[0].options
    process, ray = measure.side_by_side(states, options, (Where("process", 1), Where("ray", 1)), 2, tmp_path)
    assert (len(process.runs), process.reason) == (2, None)
    assert (len(ray.runs), ray.reason) == (0, "not installed")
    with pytest.raises(WorkerError, match="serial"):
        measure.side_by_side(states, options, (Where("serial", 1),), 1, tmp_path)


# --- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="private memory is read from /proc")
def test_descendants_are_seen_and_strangers_are_not() -> None:
    hold = "import sys; held = bytearray(50_000_000); print(flush=True); sys.stdin.read()"
    nested = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {hold!r}]))"
    with (
        subprocess.Popen(
            [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
        subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as stranger,
    ):
        for process in (child, stranger):
            assert process.stdout is not None
            process.stdout.readline()
        before = Load.now()
        seen = Sampler(child.pid)
        for _ in range(3):
            seen.sample()
        assert len(seen.private) == 2
        assert stranger.pid not in seen.private
        assert sorted(held > 50_000_000 for held in seen.private.values()) == [False, True]
        assert seen.private_together > 50_000_000
        assert seen.pss_together > 0
        others = before.others_since(sum(seen.cpu.values()))
        assert others is not None
        assert others >= 0
        for process in (child, stranger):
            process.communicate()
    seen.sample()  # they are gone
    assert os.getpid() not in seen.private


def test_waiting_for_an_idle_machine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "sleep", lambda _: None)
    seen: list[float | None] = [1.5, 0.7, 0.05]
    monkeypatch.setattr(Load, "others_since", lambda self, own: seen.pop(0))
    memory.await_idle(1e9, 0.1)
    assert seen == []
    seen.append(None)  # not known: nothing to wait for
    memory.await_idle(1e9, 0.1)
    memory.await_idle(0.0, 0.1)
    assert seen == []


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_the_command_reports(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    asked = ["bench", "engines", "--quick", "--case", "mlp-1024", "--engine", "process", "--workers", "2"]
    asked += ["--json", "--quiet", "-o", str(folder)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (case,) = found["cases"]
    assert [(e["engine"], e["workers"]) for e in case["engines"]] == [("serial", 1), ("process", 2)]
    assert case["certified"] == case["rows"] == 58
    for engine in case["engines"]:
        assert engine["reason"] is None
        (run,) = engine["runs"]
        assert run["sha256"] == case["model_sha256"]
        assert 0 < run["solve_seconds"] < run["total_seconds"]
        assert run["account"]["tasks"] == case["engines"][0]["runs"][0]["account"]["tasks"] > 0
        assert 0 <= run["account"]["overhead"] <= 1
        parts = [run["account"][key] for key in ("busy", "starting", "between", "waiting")]
        assert sum(parts) == pytest.approx(engine["workers"] * run["account"]["wall"])
    assert {target["met"] for target in found["targets"]} <= {True, False, None}
    assert found["machine"]["date"]
    assert found["report"] == str(folder)
    assert {file.name for file in folder.iterdir()} == {
        *("bench.json", "engines.md", "time-by-engine.png", "time-by-engine.svg")
    }
    stored = json.loads((folder / "bench.json").read_text())
    assert stored["cases"] == found["cases"]
    assert stored["machine"]["cpu"] in (folder / "engines.md").read_text()
    again = CliRunner().invoke(main, asked)
    assert again.exit_code == 1
    assert "--overwrite" in again.output


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_bytes(digits: dict[str, Path], tmp_path: Path) -> None:
    options = EngineBenchOptions(states=digits["states"], workers=(1,), quick=True)
    result = bench_engines(options, tmp_path / "report")
    (case,) = result["cases"]
    assert [engine["reason"] for engine in case["engines"]] == [None, None, None]
    ray = case["engines"][-1]
    assert ray["engine"] == "ray"
    assert ray["services_bytes"] is None or ray["services_bytes"] > 0
    assert "Ray beside as many processes (1)" in result["text"]


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--case"):
        EngineBenchOptions(names=("case-x",))
    with pytest.raises(OptionError, match="--engine"):
        EngineBenchOptions(engines=("slurm",))
    with pytest.raises(OptionError, match="--workers"):
        EngineBenchOptions(workers=(0,))
    with pytest.raises(OptionError, match="--repeats"):
        EngineBenchOptions(repeats=0)
    with pytest.raises(OptionError, match="--wait"):
        EngineBenchOptions(wait=-1.0)
    with pytest.raises(InputError, match="does not exist"):
        EngineBenchOptions(states=tmp_path / "no.h5")
    with pytest.raises(OptionError, match="--states"):
        EngineBenchOptions(states=tmp_path / "no.h5", names=("case-f",))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(OutputError, match=r"no bench\.json"):
        bench_engines(EngineBenchOptions(quick=True), tmp_path / "other", overwrite=True)
