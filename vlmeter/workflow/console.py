"""What a person sees while work goes on: a progress line on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmeter.common.errors import UserError
from vlmeter.measure.progress import Progress
from vlmeter.measure.session import SessionFailed
from vlmeter.measure.supervision import SessionStopped
from vlmeter.measure.worker import LOG_FORMAT
from vlmeter.numbers.units import duration

#: Without a terminal a line is printed no more often than this.
LINE_EVERY_S = 5.0


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def progress_text(step: Progress) -> str:
    """Say where a session is: cell x of y, experiment, estimate with interval, time left."""
    parts = [f"cell {step.done} of {step.total}", step.cell.experiment, step.cell.cell_id]
    if step.estimate is not None:
        half = step.estimate.relative_half_width
        spread = f" +- {100 * half:.1f} %" if half < 10 else " (no interval)"
        parts.append(f"{duration(step.estimate.value)}{spread}")
    if step.note:
        parts.append(step.note)
    if step.left_s is not None and step.done < step.total:
        parts.append(f"{_span(step.left_s)} left")
    return " | ".join(parts)


@contextmanager
def session_progress(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a session's progress on stderr and write every step to the log."""
    log = logging.getLogger("vlmeter.progress")
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(
            TextColumn("{task.fields[title]}"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task("loading the model", total=None, title=title)

            def show_bar(step: Progress) -> None:
                log.info("%s", progress_text(step))
                bar.update(task, completed=step.done, total=step.total, description=progress_text(step))

            yield show_bar
        return

    last_s = -LINE_EVERY_S

    def show_line(step: Progress) -> None:
        nonlocal last_s
        log.info("%s", progress_text(step))
        if time.monotonic() - last_s >= LINE_EVERY_S or step.done == step.total:
            last_s = time.monotonic()
            print(f"{title}: {progress_text(step)}", file=sys.stderr, flush=True)

    yield show_line


@contextmanager
def job(log_file: str | Path) -> Iterator[Callable[[str], None]]:
    """Run one job of the workflow: log to its file, turn a user's mistake into one sentence and exit code 2.

    Yields a function that tells the person something, on stderr and in the log. A bug keeps its traceback.
    """
    path = Path(log_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")  # a session's own process adds to it
    except OSError as error:
        print(f"vlmeter: the log {path} cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(2)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("vlmeter").setLevel(logging.INFO)
    log = logging.getLogger("vlmeter.job")

    def tell(message: str) -> None:
        log.info("%s", message)
        print(f"vlmeter: {message}", file=sys.stderr, flush=True)

    try:
        yield tell
    except UserError as error:
        log.error("%s", error)
        print(f"vlmeter: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except (SessionFailed, SessionStopped) as error:
        log.error("%s", error)
        print(f"vlmeter: {error}; the log is {path}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("interrupted; what was finished is kept")
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException:
        log.error("%s", traceback.format_exc())
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
