"""Run by test_write_errors.py in a process of its own, with failing_writes.c loaded: makes every write fail in its turn.

    python write_errors.py CASE STATES WEIGHTS FOLDER SHARE SEED

Prints one JSON object: operations of an undisturbed call, how many were made to fail, and what was wrong.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from simtool.errors import SimtoolError
from simtool.networks import NetworkSpec
from simtool.stages.extract import extract
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.stage import sparsify

SHIM = ctypes.CDLL(None)
SHIM.arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int)
SHIM.counted.restype = ctypes.c_long

# The error, and whether it comes once, at every second operation from there, or for good.
MODES = ((errno.EIO, 0), (errno.ENOSPC, 1), (errno.EIO, 2))


def disturbed(call: Callable[[Path], None], run: Path, at: int, every: int, code: int) -> str | None:
    """What is wrong with how ``call`` takes a failure of operation ``at``; None if nothing is."""
    SHIM.arm(str(run).encode(), at, every, code)
    try:
        call(run)
    except SimtoolError as error:
        if not str(error):
            return "an error without words"
    except OSError as error:
        # The command line prints these too, but a library call should say what to do.
        return f"a bare {type(error).__name__}: {error}\n{traceback.format_exc()}"
    except BaseException:
        return traceback.format_exc()
    finally:
        SHIM.arm(b"", 0, 0, 0)
    return None


def main() -> None:
    case, states, weights, folder, share, seed = sys.argv[1:]
    logging.getLogger("simtool").setLevel(logging.CRITICAL)
    place = Path(folder)

    def solve(run: Path) -> None:
        sparsify(Path(states), run / "run", SparsifyOptions(objective="l1", beta=4.0), engine="serial")

    def take(run: Path) -> None:
        spec = NetworkSpec("simtool.demo:network", weights=Path(weights))
        extract(spec, "digits", samples=40, output=run / "states.h5", overwrite=True)

    call, product = (solve, "run/model.h5") if case == "sparsify" else (take, "states.h5")
    clean = place / "clean"
    clean.mkdir()
    SHIM.arm(str(clean).encode(), 0, 0, 0)
    call(clean)
    total = SHIM.counted()
    SHIM.arm(b"", 0, 0, 0)
    wanted = (clean / product).read_bytes()
    chosen = [(at, *mode) for at in range(1, total + 1) for mode in MODES]
    rng = random.Random(int(seed))
    chosen = sorted(rng.sample(chosen, max(1, int(float(share) * len(chosen)))))
    wrong = []
    for at, code, every in chosen:
        run = place / "run"
        run.mkdir()
        name = f"operation {at} of {total}, {errno.errorcode[code]}, every {every}"
        fault = disturbed(call, run, at, every, code)
        if fault is None:
            try:
                call(run)
                if (run / product).read_bytes() != wanted:
                    fault = "other bytes after a second call"
            except Exception:
                fault = f"the second call failed: {traceback.format_exc()}"
        left = [p.name for p in run.rglob("*") if p.name.endswith((".tmp", ".partial"))]
        if fault is None and left:
            fault = f"left behind: {left}"
        if fault is not None:
            wrong.append(f"{name}: {fault}")
        shutil.rmtree(run)
    print(json.dumps({"operations": total, "disturbed": len(chosen), "wrong": wrong}))


if __name__ == "__main__":
    main()
