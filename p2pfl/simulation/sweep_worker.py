"""A process that runs jobs of a sweep, one after the other: `python -m p2pfl.simulation.sweep_worker`.

Jobs come in as lines of JSON, an empty line asks the run under way to stop, and rows go out as lines of JSON. It is a
program of its own, and not a fork, so that a script that calls `sweep` needs no guard around its main part.
"""

import os
import signal
import sys
import threading
from queue import SimpleQueue

import msgspec

from p2pfl.simulation.jobs import Job, run_job

_GRACE_S = 60.0  # for the round under way, when the parent is gone


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which tells its workers
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as rows:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the user's own code prints is no row
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        stop = threading.Event()
        threading.Thread(target=_listen, args=(jobs, stop), daemon=True).start()
        while (job := jobs.get()) is not None:
            rows.write(msgspec.json.encode(run_job(job, stop.is_set)) + b"\n")


def _listen(jobs: "SimpleQueue[Job | None]", stop: threading.Event) -> None:
    for line in sys.stdin.buffer:
        if line.strip():
            jobs.put(msgspec.json.decode(line, type=Job))
        else:
            stop.set()
    stop.set()
    jobs.put(None)
    threading.Event().wait(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
