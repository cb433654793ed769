"""The SLURM layer: what it writes, and what a real (private, loopback) cluster makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_cluster import SlurmCluster, slurm, slurm_session, until

from simtool.engines import slurm as layer
from simtool.engines.slurm import Job, Jobs, Phase, SlurmOptions, job_name, render, render_ray
from simtool.engines.slurm.options import time_seconds
from simtool.errors import FormatError, InputError, OptionError, OutputError, WorkerError

__all__ = ["slurm", "slurm_session"]  # fixtures

# A task leaves one line a completion in FOLDER/PHASE-PART; "hold" waits until FOLDER/go exists.
TASK = """
import os, pathlib, signal, sys, time
folder, phase, part, how = pathlib.Path(sys.argv[1]), *sys.argv[2:5]
def stop(*_):
    (folder / f"stopped-{part}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
seen = sorted(p.name for p in folder.iterdir())
(folder / f"started-{phase}-{part}").touch()
if how == f"fail-{part}":
    sys.exit("a fault")
if how == f"die-{part}":
    os.kill(os.getpid(), signal.SIGKILL)
while how == "hold" and not (folder / "go").exists():
    time.sleep(0.05)
with (folder / f"{phase}-{part}").open("a") as file:
    print(os.environ["SLURMD_NODENAME"], os.environ["OPENBLAS_NUM_THREADS"], os.getcwd(), *seen, sep="|", file=file)
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("5", 300),
            ("5:30", 330),
            ("1:00:00", 3600),
            ("2-0", 172800),
            ("1-2:30", 95400),
            ("1-2:3:4", 93784),
        ),
        *(
            ("", None),
            ("1h", None),
            ("1:2:3:4", None),
            ("-5", None),
            ("1-", None),
            ("٥", None),
            ("5\n", None),
        ),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert time_seconds(text) == seconds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time": "1h"}, r"--time.*'1h'.*H:MM:SS"),
        ({"time": "0"}, "positive limit"),
        ({"partition": "a b"}, "--partition.*'a b'.*sinfo"),
        ({"partition": ""}, "--partition"),
        ({"partition": "--wrap=x"}, "--partition"),
        ({"partition": "a\n#SBATCH --uid=0"}, "--partition"),
        ({"account": "a\x07"}, "--account"),
        ({"cpus_per_task": 0}, "--cpus-per-task.*got 0"),
        ({"array_size": -1}, "--array-size"),
        ({"array_size": True}, "--array-size"),
        ({"memory": 0}, "--memory"),
        ({"ray_nodes": 0}, "--ray-nodes"),
        ({"extra": ("qos=x",)}, "'qos=x'.*equals sign"),
        ({"extra": ("--qos x",)}, "one word"),
        ({"extra": ("-p",)}, "one word"),
        ({"extra": ("--comment=a\nb",)}, "control"),
        ({"extra": ("--array=0-3",)}, "Use --array-size"),
        ({"extra": ("--output=x",)}, "simtool writes --output"),
    ],
)
def test_options_are_refused_with_the_value_and_the_remedy(options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=f"(?s){said}"):
        SlurmOptions(**options)  # type: ignore[arg-type]


def test_the_script_is_what_a_person_would_write(tmp_path: Path) -> None:
    options = SlurmOptions(
        "main", "1:00:00", 4, memory=2000, account="group", extra=("--qos=short", "--comment=a b")
    )
    phase = Phase(
        "rows", ("simtool", "work", "RUN", "--part", "{part}", "--label={part}"), 8, "rows in shards"
    )
    text = render(phase, options, tmp_path / "slurm", tmp_path, "tiles")
    name = job_name(tmp_path / "slurm", "rows")
    assert text.splitlines()[:17] == [
        "#!/bin/bash",
        "# simtool: rows in shards, in 8 array tasks.",
        f"# By hand: sbatch --dependency=afterany:JOB_OF_TILES {tmp_path}/slurm/rows.sbatch",
        f"#SBATCH --job-name={name}",
        "#SBATCH --partition=main",
        "#SBATCH --account=group",
        "#SBATCH --time=1:00:00",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=2000M",
        f"#SBATCH --output={tmp_path}/slurm/log/rows-%A_%a.txt",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --array=0-7",
        "#SBATCH --signal=B:TERM@30",
        "#SBATCH --qos=short",
        '#SBATCH "--comment=a b"',
        "",
    ]
    assert text.endswith("exec simtool work RUN --part \"$SLURM_ARRAY_TASK_ID\" '--label={part}'\n")
    assert name.startswith("simtool-")
    assert "--signal" not in render(phase, SlurmOptions(time="4"), tmp_path, tmp_path)


@settings(max_examples=25)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), min_size=1, max_size=5
    )
)
def test_words_reach_the_command_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    if "{part}" in words:
        words.remove("{part}")
    command = ("printf", r"%s\0", *words, "{part}")
    text = render(Phase("rows", command, 3), SlurmOptions(), folder, folder)
    done = subprocess.run(
        ["bash"],
        input=text.encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
    )
    assert done.stdout == b"\0".join([*(word.encode() for word in words), b"2", b""])


@pytest.mark.parametrize("name", ["back\\slash", "line\nend", "bell\x07"])
def test_paths_that_sbatch_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="another -o"):
        render(Phase("rows", ("true",)), SlurmOptions(), tmp_path / name, tmp_path)


def test_the_ray_script_starts_a_head_and_the_others(tmp_path: Path) -> None:
    phase = Phase("ray", ("simtool", "sparsify", "--address", "{address}"))
    text = render_ray(phase, SlurmOptions(ray_nodes=3), tmp_path, tmp_path)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True).stderr == ""
    for line in (
        "#SBATCH --nodes=3",
        "srun --overlap --nodes=2 --ntasks=2 ",
        'sparsify --address "$RAY_ADDRESS"',
    ):
        assert line in text
    assert "ray stop" not in text
    assert "--exclude" not in render_ray(phase, SlurmOptions(ray_nodes=1), tmp_path, tmp_path)
    with pytest.raises(OptionError, match="--ray-nodes 2"):
        render_ray(phase, SlurmOptions(), tmp_path, tmp_path)


def test_without_slurm_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerError, match=r"sbatch, squeue, scancel, scontrol.*--engine process or ray"):
        layer.submit([Phase("rows", ("true",))], SlurmOptions(), tmp_path / "slurm")
    assert not (tmp_path / "slurm").exists()


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("sbatch", "squeue", "scancel", "scontrol"):
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    with pytest.raises(WorkerError, match=r"SLURM_CONF names /nowhere/slurm\.conf"):
        layer.submit([Phase("rows", ("true",))], SlurmOptions(), tmp_path / "slurm")


def test_the_record_is_read_back_and_never_believed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no jobs were submitted"):
        Jobs.read(tmp_path)
    assert not Jobs.exist(tmp_path)
    job = Job("rows", job_name(tmp_path, "rows"), 3, "2026-01-01T00:00:00Z", 17)
    Jobs(tmp_path, "here", (job,)).write()
    assert Jobs.read(tmp_path) == Jobs(tmp_path, "here", (job,))
    path = tmp_path / "jobs.json"
    good = json.loads(path.read_text())
    for broken in (
        {**good, "format_version": 2},
        {**good, "jobs": [{**good["jobs"][0], "name": "--help"}]},
        {**good, "jobs": [{**good["jobs"][0], "name": "simtool-00000000-x,other"}]},
        {**good, "jobs": [{**good["jobs"][0], "id": "17"}]},
        {**good, "jobs": [{**good["jobs"][0], "id": -1}]},
        {**good, "jobs": [{"phase": "rows"}]},
        {**good, "jobs": 3},
        {"format_version": 1},
        [],
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=r"jobs\.json"):
            Jobs.read(tmp_path)
    path.write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        Jobs.read(tmp_path)


class Run:
    """A folder with the task script, and the phases that call it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slurm = folder / "slurm"
        self.out = folder / "out"
        self.out.mkdir(parents=True)
        (folder / "task.py").write_text(TASK)

    def phase(self, name: str, parts: int | None = None, how: str = "") -> Phase:
        part = "0" if parts is None else "{part}"
        return Phase(
            name, (sys.executable, str(self.folder / "task.py"), str(self.out), name, part, how), parts
        )

    def submit(self, *phases: Phase, **options: object) -> Jobs:
        return layer.submit(phases, SlurmOptions(**options), self.slurm, self.folder)  # type: ignore[arg-type]

    def lines(self, phase: str) -> dict[int, list[list[str]]]:
        """What each part that ended left, by part."""
        found = sorted(self.out.glob(f"{phase}-*"))
        return {
            int(p.name.split("-")[1]): [line.split("|") for line in p.read_text().splitlines()] for p in found
        }

    def go(self) -> None:
        (self.out / "go").touch()


@pytest.fixture
def run(slurm: SlurmCluster, tmp_path: Path) -> Run:
    return Run(tmp_path)


def _finish(jobs: Jobs) -> None:
    layer.wait(jobs, 0.2)


@pytest.mark.slow
def test_a_chain_runs_all_parts_in_order(run: Run) -> None:
    jobs = run.submit(
        *(run.phase("tiles", 4, "hold"), run.phase("prepare"), run.phase("rows", 7), run.phase("merge")),
        time="10",
    )
    assert [job.phase for job in jobs.jobs] == ["tiles", "prepare", "rows", "merge"]
    assert Jobs.read(run.slurm) == jobs
    assert layer.alive(jobs)
    assert layer.states(jobs)["merge"] == {"pending": 1, "running": 0}
    seen: list[layer.queue.States] = []

    def look(states: layer.queue.States, reasons: object) -> None:
        seen.append(states)
        run.go()  # not before the first look: on a busy machine some would have ended by then

    layer.wait(jobs, 0.2, look)
    assert not layer.alive(jobs)
    assert {phase: sum(count.values()) for phase, count in seen[0].items()} == {
        **{"tiles": 4, "prepare": 1},
        **{"rows": 7, "merge": 1},
    }
    assert not any(n for count in seen[-1].values() for n in count.values())
    assert sorted(run.lines("rows")) == list(range(7))
    assert all(len(lines) == 1 for lines in run.lines("rows").values())
    (prepared,) = run.lines("prepare")[0]
    assert prepared[1:3] == ["1", str(run.folder)]
    assert {f"tiles-{i}" for i in range(4)} <= set(prepared)
    assert "started-rows-0" not in prepared
    (merged,) = run.lines("merge")[0]
    assert {f"rows-{i}" for i in range(7)} <= set(merged)
    logs = sorted(p.name for p in (run.slurm / "log").iterdir())
    assert f"tiles-{jobs.jobs[0].id}_3.txt" in logs
    assert f"merge-{jobs.jobs[3].id}.txt" in logs


@pytest.mark.slow
def test_parts_that_fail_or_die_leave_the_rest_and_are_submitted_again(run: Run) -> None:
    _finish(run.submit(run.phase("rows", 4, "fail-1"), run.phase("merge")))
    assert sorted(run.lines("rows")) == [0, 2, 3]
    assert run.lines("merge")
    assert any("a fault" in p.read_text() for p in (run.slurm / "log").glob("rows-*_1.txt"))
    (run.out / "rows-3").unlink()
    _finish(run.submit(run.phase("rows", 4, "die-3")))
    assert sorted(run.lines("rows")) == [0, 1, 2]
    _finish(run.submit(run.phase("rows", 4)))
    assert sorted(run.lines("rows")) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_cancelled_task_and_a_requeued_one(run: Run, slurm: SlurmCluster) -> None:
    jobs = run.submit(run.phase("rows", 3, "hold"), run.phase("merge"))
    until(lambda: layer.states(jobs)["rows"]["running"] == 3)
    until(lambda: len(list(run.out.glob("started-rows-*"))) == 3)
    number = jobs.jobs[0].id
    slurm.run("scancel", f"{number}_0")
    slurm.run("scontrol", "requeue", f"{number}_1")
    # bash is replaced by the command, so SIGTERM reaches it and it can end well.
    until(lambda: (run.out / "stopped-0").exists())
    run.go()
    _finish(jobs)
    assert sorted(run.lines("rows")) == [1, 2]
    assert run.lines("merge")


@pytest.mark.slow
def test_a_lost_node_gives_its_tasks_to_the_others(run: Run, slurm: SlurmCluster) -> None:
    jobs = run.submit(run.phase("rows", 6, "hold"), run.phase("merge"))
    until(lambda: len(list(run.out.glob("started-rows-*"))) == 6)
    number = jobs.jobs[0].id
    assert number is not None
    lost = slurm.where(number, 0)
    there = [part for part in range(6) if slurm.where(number, part) == lost]
    slurm.kill_node(lost)
    until(lambda: layer.states(jobs)["rows"]["pending"] == len(there))
    assert layer.states(jobs)["merge"] == {"pending": 1, "running": 0}
    run.go()
    _finish(jobs)
    lines = run.lines("rows")
    assert sorted(lines) == list(range(6))
    assert {lines[part][0][0] for part in there} <= set(slurm.nodes) - {lost}
    assert {f"rows-{i}" for i in range(6)} <= set(run.lines("merge")[0][0])


@pytest.mark.slow
def test_cancel_ends_this_run_and_nothing_else(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    others = other.submit(other.phase("rows", 1, "hold"))
    jobs = run.submit(run.phase("rows", 8, "hold"), run.phase("merge"))
    until(lambda: layer.states(jobs)["rows"]["running"] > 0)
    with pytest.raises(OutputError, match=r"in the queue already.*simtool cancel"):
        run.submit(run.phase("rows", 2))
    # A number that now belongs to somebody else is not ours.
    foreign = replace(jobs, jobs=(replace(jobs.jobs[0], id=others.jobs[0].id),))
    assert not layer.alive(foreign)
    assert layer.cancel(foreign) == 0
    with pytest.raises(WorkerError, match="'elsewhere'"):
        layer.cancel(replace(jobs, cluster="elsewhere"))
    # A submission cut short before its answer is found by its name.
    unknown = replace(jobs, jobs=tuple(replace(job, id=None) for job in jobs.jobs))
    assert layer.states(unknown) == layer.states(jobs)
    assert layer.cancel(unknown) == 9
    assert not layer.alive(jobs)
    assert layer.cancel(jobs) == 0
    assert not run.lines("merge")
    assert layer.alive(others)
    other.go()
    _finish(others)
    assert sorted(other.lines("rows")) == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a run", 'it\'s "quoted"', "100%a %j%%", "größe 模型 🧪", "#x $HOME `id` ;&*?[a]"]
)
def test_paths_of_every_kind(slurm: SlurmCluster, tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / name)
    jobs = run.submit(run.phase("rows", 2), extra=('--comment=it\'s "a" \\ # comment',))
    _finish(jobs)
    lines = run.lines("rows")
    assert sorted(lines) == [0, 1]
    assert lines[0][0][2] == str(run.folder)
    assert sorted(p.name for p in (run.slurm / "log").iterdir()) == [
        f"rows-{jobs.jobs[0].id}_{i}.txt" for i in (0, 1)
    ]
    shown = slurm.run("scontrol", "show", "job", f"{jobs.jobs[0].id}_0")
    assert 'Comment=it\'s "a" \\ # comment' in shown


@pytest.mark.slow
def test_what_sbatch_refuses_is_said_in_its_words_with_the_lever(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        WorkerError, match=r"invalid partition.*nowhere.*--partition: this cluster has main, short"
    ):
        run.submit(run.phase("rows", 2), partition="nowhere")
    with pytest.raises(WorkerError, match="smaller --memory"):
        run.submit(run.phase("rows", 2), memory=10**7)
    with pytest.raises(OptionError, match=r"MaxArraySize = 1001.*--array-size 1001"):
        run.submit(run.phase("rows", 1002))
    # The second submission fails: the first is taken back.
    good, bad = run.phase("rows", 2, "hold"), run.phase("merge")

    def render_phase(phase: Phase, *rest: object) -> str:
        text = render(phase, *rest)  # type: ignore[arg-type]
        return text if phase is good else text.replace("#SBATCH --requeue", "#SBATCH --partition=nowhere")

    with pytest.raises(WorkerError, match=r"merge\.sbatch"):
        layer.submit([good, bad], SlurmOptions(), run.slurm, run.folder, render_phase)
    until(lambda: not layer.alive(Jobs.read(run.slurm)))
    # What a user's environment asks of sbatch does not take the place of what the run asked for.
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    _finish(run.submit(run.phase("merge"), partition="main"))
    assert run.lines("merge")


@pytest.mark.slow
def test_jobs_that_can_never_start_are_not_waited_for(run: Run, slurm: SlurmCluster) -> None:
    jobs = run.submit(run.phase("rows", 2), run.phase("merge"), partition="short", time="5")
    with pytest.raises(WorkerError, match=r"Partition(TimeLimit|Config).*simtool cancel"):
        layer.wait(jobs, 0.5)
    layer.cancel(jobs)
    for node in slurm.nodes:
        slurm.drain(node)
    jobs = run.submit(run.phase("rows", 2))
    until(lambda: "rows" in layer.reasons(jobs) and "Priority" not in layer.reasons(jobs)["rows"])
    for node in slurm.nodes:
        slurm.undrain(node)
    _finish(jobs)
    assert sorted(run.lines("rows")) == [0, 1]


@pytest.mark.slow
def test_a_controller_that_is_away_is_waited_for(run: Run, slurm: SlurmCluster) -> None:
    jobs = run.submit(run.phase("rows", 1, "hold"))
    until(lambda: (run.out / "started-rows-0").exists())
    slurm.stop_controller()
    try:
        with pytest.raises(WorkerError, match="controller does not answer"):
            layer.alive(jobs, patience=0)
        with pytest.raises(WorkerError, match="controller does not answer"):
            run.submit(run.phase("merge"))
    finally:
        slurm.start_controller()
    run.go()
    _finish(jobs)
    assert run.lines("rows")


@pytest.mark.slow
def test_ray_runs_in_an_allocation_of_two_nodes(tmp_path: Path) -> None:
    """In a network of its own, as the workers of Ray listen on every address that they find."""
    pytest.importorskip("ray")
    program = Path(__file__).with_name("slurm_ray_run.py")
    shell = f"ip link set lo up && ip addr add 10.99.0.1/32 dev lo && exec {sys.executable} {program} '{tmp_path}'"
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs unshare and ip (Debian: apt-get install util-linux iproute2)")
    probe = subprocess.run(
        ["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("a network of its own needs root")
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", shell], capture_output=True, text=True, check=False
    )
    if "not installed here" in done.stdout + done.stderr:
        pytest.skip("SLURM is not installed here (Debian: apt-get install slurm-wlm and munge)")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["squares"] == [0, 1, 4, 9]
    assert len(answer["nodes"]) == 2
    assert not list((tmp_path / "slurm").glob("*.token"))
