"""The process of a job: it makes sure of the packages, then it is `run.py VERB`.

Started by `job.py` as a plain file, with the host's interpreter: `python worker.py VERB JOB_FILE [--resume]`. It holds
the job's lock for as long as it lives, so that a host that was restarted sees whether a job still runs. When the host
ends, its end of this process's standard input closes: then the job is asked to stop, which saves its state.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAILED, STOPPED = 1, 130
_PATIENCE = 10.0  # seconds for the lock, which a process before this one may hold a little longer


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 done, 1 failed, 130 stopped."""
    # this file's folder is no place to import from: it has modules called `state`, `model` ...
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path and Path(path).resolve() != Path(__file__).parent)]
    from filelock import FileLock, Timeout

    from lib_methods.errors import Cancelled, UserError
    from lib_methods.jobs import packages
    from lib_methods.jobs.files import KINDS, JobFiles, read_json

    verb, record, *more = arguments
    files = JobFiles.of(Path(record), KINDS[verb])
    lock = FileLock(files.lock)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        files.note("error", text="This run is already going on in another process.")
        return FAILED
    threading.Thread(target=_stop_with_host, args=(files.cancel,), daemon=True).start()
    try:
        packages.ensure(
            packages.folder_for(files.packages),
            lambda text, done, total: files.note("phase", text=text, done=done, total=total),
            files.cancel.exists,
            (str(read_json(files.settings).get("optimizer")), str(read_json(files.record).get("kind"))),
        )
    except Cancelled:
        files.note("cancelled", step=0)
        return STOPPED
    except (UserError, OSError) as error:
        known = isinstance(error, UserError)
        files.note(
            "error",
            text=str(error)
            if known
            else "The pack's packages cannot be written to disk. Make room, or check permissions.",
        )
        print(error, file=sys.stderr)
        return FAILED
    if files.cancel.exists():
        return STOPPED
    os.environ["STEER_NO_VENV"] = "1"  # this interpreter is the one that was meant
    sys.argv = [str(ROOT / "run.py"), verb, "--settings", str(files.settings), *more]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return FAILED
        return end.code or 0
    return 0


def _stop_with_host(cancel: Path) -> None:
    """Waits for the end of standard input. Read without a buffer, whose lock would be in the way when Python ends."""
    try:
        while os.read(0, 64):
            pass
    except OSError:  # there is no standard input: started by hand
        return
    cancel.parent.mkdir(parents=True, exist_ok=True)
    cancel.touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
