"""Worker processes that do the demo's jobs side by side: each a Python of its own, with one thread.

Separate programs and not ``multiprocessing``: they need no ``if __name__ == "__main__"`` in the caller's script, and a
network as small as these gains nothing from a second thread. Jobs, messages and results are JSON, one line each.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphfuse import errors

WORKERS = 4
Job = dict[str, Any]
Listener = Callable[[int, Job], None]
"""Called with (index of the job, message), from any thread."""


def run_jobs(jobs: Sequence[Job], listener: Listener | None = None) -> list[Any]:
    """Have worker processes do jobs.

    Parameters
    ----------
    jobs : sequence of dict
        What :mod:`graphfuse.demo.worker` understands; begun in this order.
    listener : callable, optional
        Hears what the workers say while they work.

    Returns
    -------
    list
        The result of each job.

    Raises
    ------
    GraphFuseError
        A job failed; the error is the worker's own where that was one of graphfuse.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(jobs)):
        waiting.put(i)
    shift = _Shift(jobs, waiting, listener or (lambda *_: None))
    threads = [threading.Thread(target=shift.work, daemon=True) for _ in range(min(WORKERS, _cores(), len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if shift.failures:
        raise shift.failures[0]
    return [shift.results[i] for i in range(len(jobs))]


class _Shift:
    """What the threads of one call share; each of them drives one process."""

    def __init__(self, jobs: Sequence[Job], waiting: queue.SimpleQueue[int], listener: Listener) -> None:
        self.jobs, self.waiting, self.listener = jobs, waiting, listener
        self.results: dict[int, Any] = {}
        self.failures: list[Exception] = []

    def work(self) -> None:
        """Drive one process until no jobs are left or one has failed."""
        with tempfile.TemporaryFile("w+") as complaints:
            process = subprocess.Popen(
                [sys.executable, "-m", "graphfuse.demo.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment(),
            )  # fmt: skip
            with process:
                while not self.failures and (i := self._next()) is not None:
                    try:
                        self.results[i] = self._do(process, i)
                    except Exception as error:  # whatever went wrong, it is raised where run_jobs was called
                        complaints.seek(0)
                        self.failures.append(_explained(self.jobs[i], error, complaints.read()))

    def _next(self) -> int | None:
        try:
            return self.waiting.get_nowait()
        except queue.Empty:
            return None

    def _do(self, process: subprocess.Popen[str], i: int) -> Any:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(self.jobs[i]) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if "result" in message:
                return message["result"]
            if "error" in message:
                raise getattr(errors, message["error"], errors.GraphFuseError)(message["text"])
            self.listener(i, message)
        raise EOFError


def _explained(job: Job, error: Exception, complaints: str) -> Exception:
    if isinstance(error, errors.GraphFuseError):
        return error
    last = (complaints.strip() or f"the process ended: {error!r}").splitlines()[-1]
    told = ", ".join(f"{key} {value}" for key, value in job.items() if key != "folder")
    return errors.GraphFuseError(f"a process of the demo failed ({told}): {last}")


def _environment() -> dict[str, str]:
    """The environment, so amended that a worker imports this graphfuse and uses one thread."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
