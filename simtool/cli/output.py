"""What every command shares: --json, --quiet, the log on stderr, and errors as messages with an exit code."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import click

from simtool.errors import SimtoolError
from simtool.progress import NO_PROGRESS, Progress, TextProgress
from simtool.strict_json import finite


def emit(result: dict[str, Any], as_json: bool, human: str) -> None:
    """Print ``result`` as one JSON object, or ``human`` text, on stdout."""
    click.echo(json.dumps(finite(result), allow_nan=False) if as_json else human)


def table(lines: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def progress_for(quiet: bool) -> Progress:
    """A progress display on stderr unless ``quiet``."""
    return NO_PROGRESS if quiet else TextProgress()


def _configure_log(quiet: bool) -> None:
    logger = logging.getLogger("simtool")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("simtool: %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def fail(message: str, code: int, as_json: bool) -> None:
    """Print the error and leave with ``code``."""
    if as_json:
        click.echo(json.dumps({"error": message, "exit": code}))
    else:
        click.echo(f"error: {message}", err=True)
    raise SystemExit(code)


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, as what Ctrl-C raises: schedulers send the first before they kill, a closed terminal the second."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def _on_signal(number: int, _: object) -> None:
    raise _Terminated(number)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json and --quiet to a command and turn its errors into messages and exit codes."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout; logs stay on stderr."
    )
    @click.option("--quiet", is_flag=True, help="No progress, only warnings and errors.")
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        _configure_log(quiet)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _on_signal)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(signal.SIGHUP, _on_signal)
        try:
            return function(*args, as_json=as_json, quiet=quiet, **kwargs)
        except SimtoolError as error:
            fail(str(error), error.exit_code, as_json)
        except KeyboardInterrupt as error:
            code = error.exit_code if isinstance(error, _Terminated) else 130
            fail("interrupted. Run the same command again; a run goes on where it stopped.", code, as_json)
        except BrokenPipeError:
            # The reader of our output has gone (as in `simtool ... | head`): end quietly, as other commands do.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(1) from None
        except OSError as error:
            fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", 1, False)
        except MemoryError as error:
            fail(
                f"out of memory ({error}). Use fewer --samples or --workers, or a machine with more memory.",
                1,
                as_json,
            )

    return wrapper
