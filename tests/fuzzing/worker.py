"""Runs the inputs of one target in this process, under limits and under watch, and prints what it finds as lines of JSON.

Guided by coverage: an input that makes simtool's own code run a line that none ran before joins the corpus, from which later
inputs are made. The corpus lies in a folder, so that a worker that takes over from a crashed one has it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
import warnings
import zlib
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import simtool

# Before numpy's own imports would be watched: the product, and what its readers import when first used.
from fuzzing.mutations import mutate_bytes
from fuzzing.targets import TARGETS, Target
from simtool.errors import SimtoolError
from simtool.hdf5 import guard

MEMORY_BYTES = 512 * 2**20
CPU_SECONDS = 30
GUARD_CPU_SECONDS = 2.0
_SIMTOOL = str(Path(simtool.__file__).parent)
_EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen", "code.__new__")  # fmt: skip
_CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree", "shutil.move")  # fmt: skip


class Watch:
    """Code that is run, or files that are written or read, because of what an input holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._roots = tuple(
            {
                str(Path(p).resolve())
                for p in (sys.prefix, sys.base_prefix, _SIMTOOL, Path(__file__).parents[1])
            }
        )
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        self.armed = False  # what this does is not the input's doing
        try:
            fault = self._judge(event, arguments)
        finally:
            self.armed = True
        if fault:
            self.seen.append(f"{event}: {fault}")

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "subprocess.Popen":  # the guard's child is started anew after a crash
            return None if guard._COMMAND in (arguments[1] or ()) else repr(arguments)[:200]
        if event == "pickle.find_class":
            return None if _from_torch_or_numpy(str(arguments[0])) else repr(arguments)[:200]
        if event in _EXECUTING or event.startswith("socket."):
            return None if event == "os.posix_spawn" else repr(arguments)[:200]
        if event == "exec":
            code = arguments[0]
            name = code.co_filename if isinstance(code, CodeType) else str(code)
            return None if self._is_installed(name) else f"{name}: {code!r}"[:200]
        if event == "import":
            root = str(arguments[0]).split(".")[0]
            known = root in sys.stdlib_module_names or root in sys.modules
            return None if known else str(arguments[0])
        if event in _CHANGING:
            return None if str(arguments[0]).startswith(self._folder) else repr(arguments)[:200]
        if event == "open":
            return self._judge_open(*arguments)
        return None

    def _is_installed(self, name: str) -> bool:
        # dataclasses and namedtuples of modules that are imported late are made of text
        return (
            name.startswith(self._roots)
            or name.startswith("<frozen")
            or (name in ("<string>", "<template>") and _importing())
        )

    def _judge_open(self, path: Any, mode: Any, flags: Any) -> str | None:
        if isinstance(path, int):
            return None
        name = os.path.abspath(os.fsdecode(path))
        writing = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if name.startswith(self._folder) or name == os.devnull:
            return None
        if not writing and (name.startswith(self._roots) or name.startswith(("/proc/", "/sys/", "/dev/"))):
            return None
        return f"{'writes' if writing else 'reads'} {name}"


def _from_torch_or_numpy(module: str) -> bool:
    return module.split(".")[0] in ("torch", "collections", "numpy")


def _importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class Coverage:
    """The lines of simtool that ran."""

    def __init__(self) -> None:
        self._ours: dict[CodeType, bool] = {}
        self.lines: set[tuple[CodeType, int]] = set()
        self._now: set[tuple[CodeType, int]] = set()

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(_SIMTOOL)
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._now.add((frame.f_code, frame.f_lineno))
        return self._line

    def start(self) -> None:
        self._now.clear()
        sys.settrace(self._call)

    def stop(self) -> bool:
        """Whether a line ran for the first time."""
        sys.settrace(None)
        new = not self._now <= self.lines
        self.lines |= self._now
        return new


def judge(target: Target, path: Path, watch: Watch, expected: str | None) -> tuple[str, str]:
    """(verdict, detail): accepted, refused, or what is wrong."""
    watch.seen.clear()
    watch.armed = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = target.read(path)
        verdict, detail = "accepted", ""
        if expected is not None and found != expected:
            verdict, detail = "wrong", "its checksum covers it, and the answer is another one"
    except SimtoolError as error:
        verdict, detail = "refused", str(error)
        if not detail.strip() or "Traceback" in detail:
            verdict = "message"
        elif _short_of_memory(detail) and target.name != "state-dict" and not _by_guard(error):
            verdict = "memory"
    except MemoryError:
        verdict, detail = "memory", traceback.format_exc()
    except BaseException:
        verdict, detail = "traceback", traceback.format_exc()
    finally:
        watch.armed = False
    if watch.seen:
        return "code", "; ".join(watch.seen[:5])
    return verdict, detail


def _short_of_memory(detail: str) -> bool:
    # Not for torch.load, which asks for what a file claims before it looks (one input in ten thousand): a message follows.
    return any(word in detail for word in ("MemoryError", "Unable to allocate", "bad_alloc"))


def _by_guard(error: BaseException) -> bool:
    return any(frame.filename.endswith("guard.py") for frame in traceback.extract_tb(error.__traceback__))


def limit() -> None:
    """Limits for this process: memory above what it has, and no core files."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def say(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def prepare(target: Target, seeds: Path, folder: Path) -> tuple[list[bytes], list[str], Watch]:
    """The seeds' contents and answers; everything that is imported late has been when this returns."""
    watch = Watch(folder)
    guard.CPU_SECONDS = GUARD_CPU_SECONDS
    contents, answers = [], []
    for name in target.seeds:
        content = (seeds / name).read_bytes()
        (folder / target.place).write_bytes(content)
        try:
            answers.append(target.read(folder / target.place))
        except SimtoolError as error:
            answers.append(f"refused: {error}")
        contents.append(content)
    for start in range(0, len(contents[0]), max(1, len(contents[0]) // 10)):  # and what only errors import
        (folder / target.place).write_bytes(contents[0][:start])
        judge(target, folder / target.place, watch, None)
    limit()
    return contents, answers, watch


def run(name: str, seeds: Path, folder: Path, seed: int, start: int, stop: int) -> None:
    """Inputs ``start`` to ``stop`` of the target ``name``."""
    target = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    corpus_folder, work = folder / "corpus", folder / "work"
    for path in (corpus_folder, work):
        path.mkdir(exist_ok=True)
    contents, answers, watch = prepare(target, seeds, work)
    corpus = [path.read_bytes() for path in sorted(corpus_folder.iterdir())]
    coverage, counts = Coverage(), {"accepted": 0, "refused": 0, "crashes": 0}
    place = work / target.place
    for index in range(start, stop):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
        which = int(rng.integers(len(contents)))
        from_corpus = bool(corpus) and rng.random() < 0.4
        base = corpus[int(rng.integers(len(corpus)))] if from_corpus else contents[which]
        try:
            content, covered = target.mutate(base, rng, work, not from_corpus)
        except Exception:  # a mutant of a mutant need not be of its format any more
            content, covered = mutate_bytes(base, rng), False
        expected = answers[which] if covered and content != base else None
        place.write_bytes(content)
        say(at=index)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signals end this process
        signal.setitimer(signal.ITIMER_REAL, 20 * CPU_SECONDS)
        coverage.start()
        try:
            verdict, detail = judge(target, place, watch, expected)
        finally:
            new = coverage.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if verdict in counts:
            counts[verdict] += 1
            crashed = "the HDF5 library" in detail
            counts["crashes"] += crashed
            if new and not crashed and len(content) < 2**17:  # a crash costs a new child each time
                corpus.append(content)
                (corpus_folder / f"{index:08d}").write_bytes(content)
        else:
            kept = folder / f"finding-{index:08d}-{target.place}"
            kept.write_bytes(content)
            say(finding=verdict, detail=detail[-3000:], file=str(kept), at=index)
    say(done=True, corpus=len(corpus), lines=len(coverage.lines), **counts)


def again(name: str, file: Path, folder: Path) -> str:
    """One input again, outside of all limits but the guard's; what it does is printed or raised."""
    target = TARGETS[name]
    (folder / target.place).write_bytes(file.read_bytes())
    try:
        return f"accepted: {target.read(folder / target.place)}"
    except SimtoolError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *(int(text) for text in sys.argv[4:7]))
