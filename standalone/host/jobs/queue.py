"""One job at a time: a queue with one worker thread, and one sentence for whatever goes wrong."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from lib_methods.errors import UserError, known_reason, out_of_memory

SHUTTING_DOWN = "The server is shutting down."
_numbers = itertools.count(1)


def explain(error: BaseException) -> str:
    """One sentence about `error` for the user whose job it was; no paths, no traceback."""
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return "Out of memory. Try a smaller size or batch, or fewer images in a script."
    if isinstance(error, JobEnded) or type(error).__name__ == "NansException":
        return str(error)
    told = known_reason(error)
    if told is not None:
        return f"The job failed. {told}"
    return f"The job failed because of an internal error ({type(error).__name__}). The console has the details."


class JobEnded(Exception):
    """A job that tried to end the whole program: `sys.exit`, KeyboardInterrupt. It ends the job alone."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"Something in the job tried to end the program ({kind}). Its console says what it was.")


class Job:
    """A function that waits, runs, or has run. `status`: queued, running, done, failed or cancelled."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str, task_id: str | None
    ) -> None:
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.name = name
        self.task_id = task_id or f"task({name}-{next(_numbers)})"
        self.status = "queued"
        self.exception: BaseException | None = None
        self.value: Any = None
        self._finished = threading.Event()

    @property
    def error(self) -> str | None:
        """What went wrong, in one sentence; None when nothing did."""
        return None if self.exception is None else explain(self.exception)

    @property
    def done(self) -> bool:
        return self._finished.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """Waits; what the function returned. Raises what it raised, and TimeoutError after `timeout` seconds."""
        if not self._finished.wait(timeout):
            raise TimeoutError("the job is not finished yet")
        if self.exception is not None:
            raise self.exception
        return self.value

    def _finish(self, status: str, exception: BaseException | None = None) -> None:
        self.status, self.exception = status, exception
        # nothing of the request is kept; the frames of a traceback would keep the job's tensors in memory
        self.fn, self.args, self.kwargs = (lambda: None), (), {}
        if exception is not None:
            traceback.clear_frames(exception.__traceback__)
        self._finished.set()


class JobQueue:
    """Runs jobs in order of arrival, in its own thread.

    `before(job)` is called before each job and `after(job)` after it, whatever happens. Jobs that a job starts through
    `run` are run at once, since their turn would never come.
    """

    def __init__(
        self,
        before: Callable[[Job], None] | None = None,
        after: Callable[[Job], None] | None = None,
        remember: int = 32,
    ) -> None:
        self._before, self._after = before, after
        self._waiting: deque[Job] = deque()
        self._finished: deque[Job] = deque(maxlen=remember)
        self._current: Job | None = None
        self._wake = threading.Condition()
        self._closed = False
        self.refuses = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    # -- asking

    @property
    def current(self) -> Job | None:
        """The running job."""
        return self._current

    @property
    def is_here(self) -> bool:
        """Whether the caller is a job."""
        return threading.current_thread() is self._thread

    @property
    def pending(self) -> list[Job]:
        """The waiting jobs, next first."""
        with self._wake:
            return list(self._waiting)

    def find(self, task_id: str) -> Job | None:
        """The job with this id: waiting, running, or among the last finished ones."""
        with self._wake:
            known = [*self._waiting, *([self._current] if self._current else []), *reversed(self._finished)]
        return next((job for job in known if job.task_id == task_id), None)

    def position(self, job: Job) -> int:
        """How many jobs come before this one; 0 when it runs, is next, or is over."""
        with self._wake:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (1 if self._current is not None else 0)

    # -- working

    def submit(
        self, fn: Callable[..., Any], *args: Any, name: str = "job", task_id: str | None = None, **kwargs: Any
    ) -> Job:
        """Puts a job at the end of the queue. Raises UserError when the host is shutting down."""
        job = Job(fn, args, kwargs, name, task_id)
        with self._wake:
            if self._closed or self.refuses:
                raise UserError(SHUTTING_DOWN)
            self._waiting.append(job)
            self._wake.notify_all()
        return job

    def run(
        self, fn: Callable[..., Any], *args: Any, name: str = "job", task_id: str | None = None, **kwargs: Any
    ) -> Any:
        """Waits its turn, runs `fn`, and returns what it returns or raises what it raises."""
        if self.is_here:
            return fn(*args, **kwargs)
        return self.submit(fn, *args, name=name, task_id=task_id, **kwargs).result()

    def cancel(self, task_id: str) -> bool:
        """Takes a waiting job out of the queue; False when it is not waiting."""
        with self._wake:
            job = next((job for job in self._waiting if job.task_id == task_id), None)
            if job is None:
                return False
            self._waiting.remove(job)
            self._finished.append(job)
        job._finish("cancelled", UserError("The job was cancelled before it began."))
        return True

    def refuse(self) -> None:
        """Takes no more jobs. Takes no lock either: a signal handler may call it."""
        self.refuses = True

    @property
    def has_ended(self) -> bool:
        """Whether the thread is over. After `close` it may still be in a step that takes longer than the timeout."""
        return not self._thread.is_alive()

    def close(self, timeout: float = 30.0) -> None:
        """Cancels what waits, lets the running job end, and stops the thread."""
        for job in self.pending:
            self.cancel(job.task_id)
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if not self.is_here:
            self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._current = self._waiting.popleft()
            self._run_one(job)

    def _run_one(self, job: Job) -> None:
        job.status = "running"
        exception: Exception | None = None
        try:
            if self._before is not None:
                self._before(job)
            job.value = job.fn(*job.args, **job.kwargs)
        except BaseException as error:  # the thread must outlive whatever a job does
            exception = error if isinstance(error, Exception) else JobEnded(type(error).__name__)
            if not isinstance(error, UserError):
                traceback.print_exc()
            if isinstance(error, StopIteration):  # a future cannot carry it
                exception = JobEnded("StopIteration")
            if exception is not error:
                traceback.clear_frames(error.__traceback__)
        try:
            if self._after is not None:
                self._after(job)
        except BaseException:
            traceback.print_exc()
        with self._wake:
            self._current = None
            self._finished.append(job)
        job._finish("done" if exception is None else "failed", exception)
