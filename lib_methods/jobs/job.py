"""Jobs in their own processes: start, cancel, resume, and their outcome.

One runs at a time, of all kinds, as two would not fit on one GPU. Its process is `worker.py` with the host's
interpreter; a thread of the host waits for its end. Nothing here blocks: `start` returns at once. The host's model
leaves before the process starts and comes back after its end, whatever that is.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_methods.errors import UserError
from lib_methods.files import is_file_name
from lib_methods.jobs import files as job_files
from lib_methods.jobs.files import TRAINING, JobFiles, Kind, Record, is_held
from lib_methods.jobs.log import LogReader, Progress
from lib_methods.jobs.process import STOPPED, WORKER, open_process, why

_DAMAGED = "The settings of this run are damaged. Start again under another name."
_LOOK = 0.5  # seconds between two looks at a process of an earlier host


class ModelRoom(Protocol):
    """The host's model, which makes room for a job."""

    def release(self, why: str) -> None:
        """The model leaves the device, as soon as the host generates nothing. why: the beginning of a sentence."""

    def restore(self) -> None:
        """The model comes back."""


_KNOWN: dict[str, Jobs] = {}
_KNOWN_GUARD = threading.RLock()

Settings = Mapping[str, Any]  # as JSON values, for the verb
Deliver = Callable[[JobFiles, Settings, Sequence[str]], list[str]]
"""Takes the results to where the host looks for them, and returns their new names. Raises UserError."""


@dataclass(frozen=True)
class State:
    """What there is to show: the last job and how far it is. `stopping`: it was asked to stop and has not yet."""

    record: Record | None
    progress: Progress
    stopping: bool = False

    @property
    def is_running(self) -> bool:
        return self.record is not None and not self.record.is_over

    @property
    def can_resume(self) -> bool:
        return self.record is not None and self.record.status in ("cancelled", "failed")


class Jobs:
    """The jobs of one kind of one host, kept in the folder `root`."""

    def __init__(
        self,
        root: Path,
        room: ModelRoom,
        deliver: Deliver,
        kind: Kind = TRAINING,
        *,
        python: str = sys.executable,
        worker: Path = WORKER,
    ) -> None:
        self.root, self.room, self.deliver, self.kind = root, room, deliver, kind
        self.python, self.worker = python, worker
        self.environment: Mapping[str, str] = {}
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = False
        self._readers: dict[str, tuple[LogReader, LogReader]] = {}
        self._recover()

    @classmethod
    def in_folder(
        cls,
        root: Path,
        room: ModelRoom,
        deliver: Deliver,
        environment: Mapping[str, str] | None = None,
        kind: Kind = TRAINING,
    ) -> Jobs:
        """Those of a folder: the same object for the whole life of the process, also after "Reload UI".

        environment: what the job's process gets beside the host's own variables.
        """
        with _KNOWN_GUARD:
            key = str(root.resolve())
            if key not in _KNOWN:
                _KNOWN[key] = cls(root, room, deliver, kind)
            known = _KNOWN[key]
            known.deliver, known.environment = deliver, environment or {}
            return known

    # -- asking

    def files(self, name: str) -> JobFiles:
        """Those of the run of this name."""
        return JobFiles(self.root, name, self.kind)

    def state(self, name: str = "") -> State:
        """The job of this name, by default the last one."""
        name = name or job_files.current_name(self.root)
        if not name:
            return State(None, Progress())
        files = self.files(name)
        with self._guard:
            record = job_files.load_record(files)
            setup, training = self._readers.setdefault(name, (LogReader(files.notes), LogReader(files.log)))
            before, progress = setup.read().copy(), training.read().copy()
        newer = before.time > progress.time
        stopping = record is not None and not record.is_over and (self._cancelled or files.cancel.exists())
        return State(record, before if newer else progress, stopping)

    @property
    def is_running(self) -> bool:
        """Whether a job runs or is about to."""
        return self.state().is_running

    def check_free(self) -> None:
        """Raises UserError while a job of any kind runs."""
        with _KNOWN_GUARD:
            busy = next((jobs for jobs in (self, *_KNOWN.values()) if jobs.is_running), None)
        if busy is not None:
            raise UserError(f"{busy.kind.name} is already running. Wait until it ends, or cancel it first.")

    def unfinished(self) -> list[str]:
        """The names of jobs that can be resumed, the newest first."""
        return [r.name for r in job_files.all_records(self.root) if r.status in ("cancelled", "failed")]

    def free_name(self, wanted: str) -> str:
        """The name, or with a number behind it where a job of that name is there."""
        with self._guard:
            number, name, taken = 1, wanted, job_files.names(self.root, self.kind)
            while name.casefold() in taken:
                number += 1
                name = f"{wanted[:74]}-{number}"
            return name

    # -- doing

    def start(self, name: str, kind: str, settings: Settings) -> None:
        """Begins a new job. Raises UserError: one runs, the name is taken, or the disk is full."""
        with _KNOWN_GUARD, self._guard:
            self.check_free()
            if name.casefold() in job_files.names(self.root, self.kind):
                raise UserError(f'A run called "{name}" already exists. Choose another name.')
            self._launch(self.files(name), Record(name, kind, started=time.time()), settings, resume=False)

    def resume(self, name: str = "") -> None:
        """Continues a job that was stopped or failed. Raises UserError: there is none, or one runs."""
        files = self.files(name or job_files.current_name(self.root))
        with _KNOWN_GUARD, self._guard:
            self.check_free()
            record = job_files.load_record(files) if is_file_name(files.name) else None  # names come from pages
            if record is None or record.status not in ("cancelled", "failed"):
                raise UserError("There is no run to resume.")
            settings = job_files.read_json(files.settings)
            if not settings:
                raise UserError(_DAMAGED)
            record = Record(record.name, record.kind, started=time.time())
            self._launch(files, record, settings, resume=(files.folder / self.kind.state).exists())

    def cancel(self) -> None:
        """Asks the running job to stop at the end of its step; asked again, ends its process.

        The second way loses the steps since the last save. Raises UserError when none runs.
        """
        with self._guard:
            state = self.state()
            if state.record is None or not state.is_running:
                raise UserError(f"{self.kind.name} is not running.")
            if self._cancelled and self._process is not None:
                self._process.kill()
                return
            self._cancelled = True
            self._ask_to_stop(self.files(state.record.name))

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the end of the running job; False when the time was too short."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    # -- inside

    def _launch(self, files: JobFiles, record: Record, settings: Settings, resume: bool) -> None:
        try:
            job_files.write_json(files.settings, settings)
            files.cancel.unlink(missing_ok=True)
            files.notes.unlink(missing_ok=True)
            job_files.save_record(files, record)
        except OSError:
            raise UserError(
                f"{self.kind.name} cannot start: the disk is full or not writable. Make room, or check permissions."
            ) from None
        self._readers.pop(record.name, None)
        self._cancelled = False
        self._thread = threading.Thread(
            target=self._run, args=(files, record, settings, resume), name=self.kind.verb, daemon=True
        )
        self._thread.start()

    def _run(self, files: JobFiles, record: Record, settings: Settings, resume: bool) -> None:
        """The thread of one job."""
        status: int | None = None
        try:
            self.room.release(f"{self.kind.title}: {self.kind.name} is running")
            with self._guard:
                if not self._cancelled:
                    record.status = "running"
                    job_files.save_record(files, record)
                    command = [self.python, str(self.worker), self.kind.verb, str(files.record)]
                    self._process = open_process(command, files.console, resume, self.environment)
            status = self._wait(files)
        except Exception:
            traceback.print_exc()
            record.error = f"{self.kind.name} could not start. The WebUI's console says why."
        finally:
            with self._guard:
                self._process = None
            try:
                self.room.restore()
            except Exception:
                traceback.print_exc()
            self._finish(files, record, settings, status)

    def _wait(self, files: JobFiles) -> int:
        """Waits for the process's end. It clears its folder when it begins: then it is asked once more."""
        process = self._process
        if process is None:
            return STOPPED
        while True:
            try:
                return process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if self._cancelled:
                    self._ask_to_stop(files)

    def _ask_to_stop(self, files: JobFiles) -> None:
        with suppress(OSError):  # a full disk: the second press still works
            files.folder.mkdir(parents=True, exist_ok=True)
            files.cancel.touch()

    def _finish(self, files: JobFiles, record: Record, settings: Settings, status: int | None) -> None:
        """Writes down what became of it."""
        with suppress(OSError):
            files.cancel.unlink(missing_ok=True)
        progress = self.state(record.name).progress
        outcome = progress.outcome_since(record.started)
        if outcome == "done":
            record.status = "done"
            subject = f"a {progress.subject}" if progress.subject else ""
            record.prompt = str(progress.of("done").get("activation") or subject)
            named = progress.of("done").get("files")
            names = [str(name) for name in named] if isinstance(named, list) else []
            try:
                record.results = self.deliver(files, settings, names)
            except UserError as error:
                record.error = str(error)
            except Exception:  # the host's doing: the job is done all the same
                traceback.print_exc()
                record.error = "The result could not be moved to the WebUI's model folder. The console says why."
        elif outcome != "error" and (status == STOPPED or outcome == "cancelled" or self._cancelled):
            record.status = "cancelled"
        else:
            record.status = "failed"
            told = progress.error if outcome == "error" else ""
            record.error = record.error or told or why(files, status)
        record.ended = time.time()
        try:
            job_files.save_record(files, record)
        except OSError:
            traceback.print_exc()

    def _recover(self) -> None:
        """Looks at what an earlier host has left: a job that still saves its state, or one that ended with it."""
        name = job_files.current_name(self.root)
        files = self.files(name)
        record = job_files.load_record(files) if name else None
        if record is None or record.is_over:
            return
        settings = job_files.read_json(files.settings)
        if not settings:
            record.status, record.error = "failed", _DAMAGED
            with suppress(OSError):
                job_files.save_record(files, record)
            return

        def follow() -> None:
            while is_held(files.lock):
                time.sleep(_LOOK)
            self._finish(files, record, settings, STOPPED)  # where it did not say more: it ended with its host

        if is_held(files.lock):
            self._thread = threading.Thread(target=follow, name=self.kind.verb, daemon=True)
            self._thread.start()
        else:
            follow()
