"""One case: its states, our timing, its peers, and what became of its promises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

from simtool import __version__
from simtool.bench import cases, children, peers
from simtool.bench.arrays import Arrays, Source, Workload, read, workload
from simtool.bench.cases import ConvCase, ModelCase, Promise
from simtool.bench.compare import Compared, compare
from simtool.bench.conv import conv_workload
from simtool.bench.measure import Measured, paired, spread
from simtool.bench.table import Line
from simtool.certificate import certify
from simtool.solvers import get
from simtool.solvers.native import solve_path

_log = logging.getLogger("simtool")
_BETA_ROWS, _BETA_STEPS = 12, 14
_PATH_VALUES, _PATH_SMALLEST, _PATH_REPETITIONS = 20, 0.01, 5
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Settings:
    """How cases run: where states come from, the gap, how many rows a peer gets and for how many seconds."""

    source: Source
    folder: Path
    tolerance: float = 1e-6
    peer_rows: int = 5
    peer_seconds: float = 60.0
    quick: bool = False
    arrays: dict[tuple[str, int], Arrays] = field(default_factory=dict)

    def states_file(self, sizes: str, samples: int, rescale: str = "none") -> tuple[Path, str]:
        """A states file of a network of ``sizes``, extracted once; and where it is from."""
        if self.source.states is not None:
            return self.source.states, f"states of {self.source.states.name}"
        path = self.folder / f"{sizes}-{samples}-{rescale}.h5"
        note = path.with_suffix(".txt")
        if not path.exists():
            source = self.source
            if source.network is not None and sizes not in (cases.CASE_F, cases.CASE_F_QUICK):
                source = replace(source, network=None)  # the network given is case F's
            note.write_text(source.extract_to(path, sizes, samples, rescale))
        return path, note.read_text()

    def states(self, sizes: str, samples: int) -> Arrays:
        """The same in memory; at most ``samples`` columns."""
        if (sizes, samples) not in self.arrays:
            self.arrays.clear()  # one at a time: they are large
            path, origin = self.states_file(sizes, samples)
            held = read(path, origin, samples)
            self.arrays[sizes, samples] = held
        return self.arrays[sizes, samples]


@dataclass(frozen=True)
class Result:
    """One case as reported: facts in words, our measurement, peers, lines of the speed table, and how long it took."""

    name: str
    title: str
    facts: tuple[str, ...]
    lines: tuple[Line, ...]
    seconds: float
    measured: Measured | None = None
    peers: tuple[Compared, ...] = ()


def run(name: str, settings: Settings) -> Result:
    """Run the case called ``name``."""
    started = perf_counter()
    special: dict[str, Callable[[Settings], Result]] = {
        cases.PATH: _path,
        cases.MEMORY: _memory,
        cases.IMPORT: _import,
    }
    if name in special:
        result = special[name](settings)
    else:
        case = next(case for case in cases.CASES if case.name == name)
        result = _rows(case.quick() if settings.quick else case, settings)
    return replace(result, seconds=perf_counter() - started)


def _rows(case: ModelCase | ConvCase, settings: Settings) -> Result:
    work, facts = _workload(case, settings)
    _log.info("%s: %s", case.title, work.origin)
    measured = paired(work, settings.tolerance, 2.0 if settings.quick else 20.0)
    compared: dict[tuple[str, float], Compared] = {}

    def beside(name: str, tolerance: float) -> Compared:
        if (name, tolerance) not in compared:
            count, seconds = settings.peer_rows, settings.peer_seconds
            compared[name, tolerance] = compare(
                work, measured, [getattr(peers, name)], tolerance, count, seconds
            )[0]
        return compared[name, tolerance]

    for name in case.peers:
        beside(name, settings.tolerance)
    lines = tuple(_line(case.title, promise, measured, beside, settings) for promise in case.promises)
    last = measured.last
    facts += (
        f"{work.rows} rows, d = {work.d}, m = {work.m}, {last.nonzeros:.0f} non-zeros in the median row",
        f"{last.certified} of {last.rows} rows certified at {settings.tolerance:g}, largest relative gap "
        f"{last.largest_gap:.1e}",
    )
    ours = Compared(
        name="simtool, the whole model",
        version=__version__,
        rows=last.rows,
        row=measured.whole / last.rows,
        to_ours=1.0,
        to_reference=measured.ratio,
        gap=last.largest_gap,
        tolerance=settings.tolerance,
        reason=None
        if last.certified == last.rows
        else f"{last.rows - last.certified} rows are not certified",
    )
    return Result(case.name, case.title, facts, lines, 0.0, measured, (ours, *compared.values()))


def _workload(case: ModelCase | ConvCase, settings: Settings) -> tuple[Workload, tuple[str, ...]]:
    """The rows of a case; where non-zeros are promised, with the l1 weight that gives them."""
    if isinstance(case, ConvCase):
        data = settings.source.available()
        if settings.source.states is not None:
            _log.warning("%s makes its own states; --states is not used for it", case.name)

        def build(beta: float | None) -> Workload:
            return conv_workload(case, data, beta)

    else:
        arrays = settings.states(case.sizes, case.samples)

        def build(beta: float | None) -> Workload:
            return workload(arrays, case.options if beta is None else replace(case.options, beta=beta))

    if case.nonzeros is None:
        work = build(None)
        return work, (work.origin,)
    beta = _beta_for(build, case.nonzeros, settings.tolerance)
    work = build(beta)
    return work, (work.origin, f"--beta {beta:.4g}")


def _beta_for(build: Callable[[float | None], Workload], nonzeros: int, tolerance: float) -> float:
    """The l1 weight at which the median of a few rows has ``nonzeros`` non-zeros, by halving in the logarithm."""
    solver = get("native")
    some = spread(build(1.0).fresh(), _BETA_ROWS)
    low, high = 1e-6, 1e6
    for rows in some:  # above 2 loss_weight max|W z| every row is zero
        reach = 2.0 * rows.objective.loss_weight * float(np.abs(rows.correlation()).max(initial=0.0))
        high = min(high, max(reach, 1e-6)) if rows is some[0] else max(high, reach)
    low = high * 1e-7
    for _ in range(_BETA_STEPS):
        beta = float(np.sqrt(low * high))
        counts = [
            (solver(rows, tolerance) != 0).sum(axis=1) for rows in spread(build(beta).fresh(), _BETA_ROWS)
        ]
        found = float(np.median(np.concatenate(counts)))
        if abs(found - nonzeros) <= 0.05 * nonzeros:
            break
        low, high = (beta, high) if found > nonzeros else (low, beta)
    return beta


def _line(
    title: str,
    promise: Promise,
    measured: Measured,
    beside: Callable[[str, float], Compared],
    settings: Settings,
) -> Line:
    last = measured.last
    note, gap = "", last.largest_gap
    if last.certified < last.rows:
        note = f"{last.rows - last.certified} of {last.rows} rows are not certified at {settings.tolerance:g}"
    reached: float | None
    if promise.peer is not None:
        peer = beside(promise.peer, promise.tolerance or settings.tolerance)
        reached = peer.to_ours
        if reached is None:
            note = peer.reason or "the peer failed"
        elif peer.reason is not None:
            # Its time for a worse answer bounds the factor from below, so it can meet the promise, not break it.
            note = f"{promise.against} is {peer.reason}, gap {peer.gap:.0e}: the factor is a lower bound"
            reached = reached if reached >= promise.least else None
    elif promise.unit == cases.ROW:
        reached = 1e3 * measured.row
    else:
        reached = measured.ratio
    if last.certified < last.rows:
        reached = None  # a time without its proof is no result
    return Line(title, promise.unit, promise.least, promise.aim, reached, gap, note, promise.against)


def _case_f(settings: Settings) -> ModelCase:
    case = next(c for c in cases.CASES if isinstance(c, ModelCase) and c.name == "case-f")
    return case.quick() if settings.quick else case


def _path(settings: Settings) -> Result:
    """Twenty values of kappa against one, Gram matrix and correlations included, certificates of all apart."""
    case = _case_f(settings)
    work = workload(settings.states(case.sizes, case.samples), case.options)
    kappas = [float(k) for k in np.geomspace(_PATH_SMALLEST, 0.99, _PATH_VALUES)]
    title = f"case F, a kappa path of {_PATH_VALUES} values"
    ratios, worst, uncertified = [], 0.0, 0
    solver = get("native")
    for repetition in range(_PATH_REPETITIONS + 1):
        started = process_time()
        for task in work.fresh():
            _ = task.rows.design.gram
            solver(task.rows, settings.tolerance)
        one = process_time() - started
        fresh = work.fresh()
        started = process_time()
        found = []
        for task in fresh:
            _ = task.rows.design.gram
            found.append(solve_path(task.rows, kappas, settings.tolerance))
        ratios.append((process_time() - started) / one)
        if repetition == 0:
            for task, answers in zip(fresh, found, strict=True):
                for kappa, w in zip(kappas, answers, strict=True):
                    proof = certify(task.rows.with_kappa(kappa), w, settings.tolerance)
                    worst = max(worst, float(proof.relative_gap.max(initial=0.0)))
                    uncertified += int((~proof.certified).sum())
    facts = (work.origin, f"kappa from {_PATH_SMALLEST:g} to .99; certificates of all values are not timed")
    reached = median(ratios[1:]) if not uncertified else None
    note = "solving alone; every value is certified, outside the timing"
    if uncertified:
        note = f"{uncertified} rows of the path are not certified"
    line = Line(title, "x one solve", 3.0, 1.5, reached, worst, note)
    return Result(cases.PATH, title, facts, (line,), 0.0)


def _memory(settings: Settings) -> Result:
    """Peak memory of a serial sparsify above what its states take."""
    sizes, samples = (cases.CASE_F_QUICK, 200) if settings.quick else (cases.MLP_1024, 10_000)
    path, origin = settings.states_file(sizes, samples)
    _log.info("memory: %s", origin)
    held = read(path, origin, samples=1)
    d = held.design.shape[0]
    gram = 8 * d * d / _MEGABYTE
    above, result = children.memory_above_states(path, settings.folder / "memory-run")
    line = Line(
        f"memory above the states, d = {d}",
        "MB",
        round(gram + 1000.0),
        round(gram + 300.0),
        max(above, 0) / _MEGABYTE,
        float(result["max_relative_gap"]),
    )
    facts = (
        origin,
        "peak of a serial sparsify, free, kappa .99, less the peak of a process that holds the states",
    )
    return Result(cases.MEMORY, line.work, facts, (line,), 0.0)


def _import(settings: Settings) -> Result:
    """From the start of Python to the first certified row, kernels in their cache."""
    del settings
    line = Line("import and first row (numba warm)", "s", 2.0, 1.0, children.first_row_seconds())
    facts = (
        "a Python process from its start to its end, with one row solved and certified; the median of five",
    )
    return Result(cases.IMPORT, line.work, facts, (line,), 0.0)


def uncertified(results: Sequence[Result]) -> int:
    """How many of our rows missed their certificate in all ``results``."""
    return sum(r.measured.last.rows - r.measured.last.certified for r in results if r.measured is not None)
