"""The sparsify stage: a states file in, a run folder with a certified sparse implicit model out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtool import engines
from simtool.engines import Engine, EngineOptions
from simtool.errors import InputError, OptionError, OutputError
from simtool.networks import Network, NetworkSpec, load_network
from simtool.progress import NO_PROGRESS, Progress
from simtool.solvers import backends
from simtool.stages.sparsify import agreement, constraints, local, remote
from simtool.stages.sparsify.estimate import estimate, require_room
from simtool.stages.sparsify.finish import finish, finished
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.plan import Plan, plan_of
from simtool.stages.sparsify.request import Request, require_trust
from simtool.stages.sparsify.spec import constraints_asked, make_spec
from simtool.stages.sparsify.status import status
from simtool.stages.sparsify.student import require_network
from simtool.stages.sparsify.work import constraints_of
from simtool.states import States, first, open_states

if TYPE_CHECKING:
    from simtool.engines.slurm import Jobs

_log = logging.getLogger("simtool")


def sparsify(
    states: str | Path,
    output: str | Path,
    options: SparsifyOptions | None = None,
    *,
    engine: str | EngineOptions = "process",
    workers: int | None = None,
    network: NetworkSpec | None = None,
    samples: int | None = None,
    allow_mixed: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Solve every row of the states file and write the sparse implicit model.

    Parameters
    ----------
    states : a states.h5 written by extract
    output : the run folder; an unfinished run with the same spec is resumed, a finished one is returned
    options : what is asked of every row
    engine, workers : where rows are solved; no effect on the answer
    network : the network that the states came from, where options.sequential has to run it
    samples : how many of the file's samples, the first; all of them unless given
    allow_mixed : let machines work on the run whose packages, BLAS or CPU differ; recorded in the model

    Returns
    -------
    dict with rows, certified, statuses, max_relative_gap, nnz, baseline_nnz, sparsity, norm_a_inf, norm_a_inf_raw,
    well_posed, well_posed_by, seconds, solve_seconds, peak_memory_bytes, engine, workers, run, model; with
    ``eliminate`` also eliminated_features, eliminated_per_row_mean. With the engine slurm, unless it waits: what
    :func:`simtool.status` returns, once the jobs are submitted.

    Raises OptionError, InputError, FormatError, SpecChanged, OutputError or WorkerError; a run that failed can be
    resumed by the same call.
    """
    where = engine if isinstance(engine, EngineOptions) else EngineOptions(engine, workers)
    folder = RunFolder(Path(output))
    with _started(where, folder) as early, open_states(Path(states)) as whole:
        whole.verify_content()
        source = whole if samples is None else first(whole, samples)
        asked, options = constraints_asked(source, options or SparsifyOptions())
        spec = make_spec(source, options)
        return _Call(folder, source, spec, where, allow_mixed, progress, early, network).carry_out(asked)


def resume(
    run: str | Path,
    *,
    states: str | Path | None = None,
    objective: str | None = None,
    engine: str | EngineOptions | None = None,
    workers: int | None = None,
    allow_mixed: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Go on with the run in the folder ``run``: solve, or submit, only what is missing.

    ``states`` is needed if the states file has moved; ``engine`` and ``workers`` change where rows are solved. As files are not
    trusted, ``objective`` repeats an objective of one's own, whose code runs. Returns and raises what :func:`sparsify` does.
    """
    folder = RunFolder(Path(run))
    spec, plan = folder.read_spec(), plan_of(folder)
    done = _already(folder, plan)
    if done is not None:
        return done
    require_trust(folder, objective)
    request = None if states is not None and engine is not None else Request.read(folder)
    if request is None and states is None:
        raise InputError(f"{folder.request} is missing, so where the states are is not known. Pass --states.")
    if engine is None:
        where = request.engine if request is not None else EngineOptions()
        where = where if workers is None else replace(where, workers=workers)
        if where.ray_address not in (None, "auto", "local"):
            raise OptionError(
                f"the run was solved on the Ray cluster at {where.ray_address}, as its folder says. Go on there with --engine ray "
                f"--ray-address {where.ray_address}, or elsewhere with another --engine."
            )
    else:
        where = engine if isinstance(engine, EngineOptions) else EngineOptions(engine, workers)
    path = Path(states) if states is not None else request.states if request is not None else Path()
    if not path.exists():
        raise InputError(
            f"the states file of {folder.path}, {path}, does not exist. Pass where it is with --states."
        )
    with _started(where, folder) as early, open_states(path) as whole:
        whole.verify_content()
        if whole.content_sha256() != spec["states"]["content_sha256"]:
            raise InputError(f"{path} is not the states file of {folder.path}. Pass that one with --states.")
        source = first(whole, plan.m)
        asked = constraints_of(folder, plan)
        return _Call(folder, source, spec, where, allow_mixed, progress, early).carry_out(asked)


def dry_run(
    states: str | Path,
    output: str | Path,
    options: SparsifyOptions | None = None,
    *,
    engine: str | EngineOptions = "process",
    workers: int | None = None,
) -> dict[str, Any]:
    """What :func:`sparsify` would take in time, memory and disk; writes nothing. See :class:`Estimate`."""
    where = engine if isinstance(engine, EngineOptions) else EngineOptions(engine, workers)
    with open_states(Path(states)) as source:
        _, options = constraints_asked(source, options or SparsifyOptions())
        return estimate(Plan(make_spec(source, options)), where, Path(output)).to_json()


@contextmanager
def _started(where: EngineOptions, folder: RunFolder) -> Iterator[Engine | None]:
    """Workers that start while the states are read and checked; None where there will be none to start."""
    ours = where.name == "process" or (where.name == "ray" and where.ray_address == "local")
    if not ours or folder.timing.exists():  # a run that is there is finished, most likely
        yield None
        return
    engine = engines.get(where)
    try:
        engine.prepare(local.IMPORTS, engine.workers)
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True)
class _Call:
    """One call of sparsify or resume."""

    folder: RunFolder
    source: States
    spec: dict[str, Any]
    where: EngineOptions
    allow_mixed: bool
    progress: Progress
    early: Engine | None
    network: NetworkSpec | None = None

    def carry_out(self, asked: constraints.Constraints) -> dict[str, Any]:
        """Return the result of a finished run; else go on with it."""
        folder, where = self.folder, self.where
        # A finished run is only read: its folder need not be writable, nor free.
        if folder.spec.exists():
            folder.claim(self.spec)
            result = _already(folder, plan_of(folder))
            if result is not None:
                return result
            jobs = remote.jobs_at_work(folder)
            if jobs is not None:
                return self._follow(jobs)
        network = self._network()
        backends.require(self.spec["options"]["solver"])
        _check_own_objective(Plan(self.spec))
        engine = self.early or (None if where.name in engines.BATCH else engines.get(where))
        try:
            require_room(Plan(self.spec), where, folder)
            folder.prepare()
            with folder.locked(), _logged_to(folder):
                plan = self._begin(asked)
                result = finished(folder, plan)  # another may have ended meanwhile
                if result is not None:
                    return result
                if engine is not None:
                    return self._solve(plan, engine, network)
                jobs = remote.submit(folder, plan, self.source, where)
        finally:
            if engine is not None:
                engine.close()
        return self._follow(jobs)

    def _begin(self, asked: constraints.Constraints) -> Plan:
        """Make the run ready to be worked on, and refuse what cannot be."""
        folder = self.folder
        request = Request(self.source.path, self.where)
        if not folder.spec.exists():
            request.write(folder)  # before the spec: a run that there is can be resumed
        folder.claim(self.spec)
        folder.remove_temporary()
        if self.allow_mixed:
            agreement.allow_mixed(folder)
        agreement.require(folder)
        plan = plan_of(folder)
        request.write(folder)
        if plan.has_constraints_file:
            asked.save(folder.constraints)
        _warn_if_interpolating(plan)
        return plan

    def _network(self) -> Network | None:
        """The network that --sequential runs between layers; None where states are all it needs."""
        plan = Plan(self.spec)
        if not (plan.options.sequential and plan.layers):
            return None
        found = None if self.network is None else load_network(self.network, self.source.header.input_shape)
        require_network(self.source, found)
        return found

    def _solve(self, plan: Plan, engine: Engine, network: Network | None) -> dict[str, Any]:
        started = time.perf_counter()
        times = local.solve(self.folder, plan, self.source, engine, self.progress, network)
        return finish(self.folder, plan, self.source, times, time.perf_counter() - started)

    def _follow(self, jobs: Jobs) -> dict[str, Any]:
        """Wait for jobs in the queue, or say where they stand."""
        if self.where.name not in engines.BATCH:
            ids = ", ".join(str(job.id) for job in jobs.jobs)
            raise OutputError(
                f"{self.folder.path} is being solved by the SLURM jobs {ids}. Wait for them (simtool status "
                f"{self.folder.path}), or end them with simtool cancel {self.folder.path}."
            )
        if self.where.wait:
            return remote.wait(self.folder, plan_of(self.folder), jobs, self.progress)
        return status(self.folder.path)


def _already(folder: RunFolder, plan: Plan) -> dict[str, Any] | None:
    """The result of a finished run, None for any other."""
    result = finished(folder, plan)
    if result is not None:
        _log.info("%s is finished already; its result is returned", folder.path)
        folder.remove_work()  # left by a process that ended right after it had finished
    return result


def _check_own_objective(plan: Plan) -> None:
    """Call the user's function for rows of every shape: whatever is wrong with it is said before any work."""
    if plan.options.custom:
        from simtool.solvers.custom.objective import check, load

        tasks = ((plan.task(group), group.features.size) for group in plan.groups)
        check(load(plan.options.objective), {(task.states, size - task.states) for task, size in tasks})


def _warn_if_interpolating(plan: Plan) -> None:
    if plan.options.anchor is not None:
        return
    short = [group for group in plan.groups if plan.samples(group) < group.features.size]
    if not short:
        return
    worst = max(short, key=lambda group: group.features.size / plan.samples(group))
    more = "more --samples or --positions" if plan.layers else f"at least {2 * worst.features.size} samples"
    more += ", or hold the rows near the network's own with --anchor 0.01"
    _log.warning(
        "%d samples for rows of up to %d features%s: such rows can fit any target exactly, noise included, and "
        "say little about new data. Extract %s, or use a smaller --kappa.",
        plan.samples(worst),
        worst.features.size,
        f" ({worst.name})" if plan.layers else "",
        more,
    )


class _RunLog(logging.FileHandler):
    """A log that a full disk cannot turn into tracebacks: what cannot be written is left out."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record


@contextmanager
def _logged_to(folder: RunFolder) -> Iterator[None]:
    """Copy the log into the run folder while the run is at work."""
    try:
        handler = _RunLog(folder.log)
    except OSError as error:
        _log.warning("%s cannot be written (%s); the run goes on without it", folder.log, error.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
