"""For how long a method's parts are registered: for one pass of a host's sampler, and no longer.

A host may use one sampler for several batches (img2img), and continues after an exception in a script. So what methods
register is kept in a `Pass`, which ends when the sampler's `launch_sampling` is left, whether it returned, was
interrupted or raised.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lib_methods.denoiser import DenoiserCall, Guidance, Guide, Hook, RowChoice, RowGuide, RowPlanner
from lib_methods.errors import UserError, out_of_memory

T = TypeVar("T")

_PASS = "_steer_pass"
_LAUNCH = "launch_sampling"
_WITHOUT = "The rest of the image was generated without it."


class Pass:
    """What methods have registered for one pass of a sampler."""

    def __init__(self, sampler: Any, key: tuple[int, bool]) -> None:
        self.key = key
        self.hooks: dict[type, Hook] = {}
        self.guides: dict[type, Guide] = {}
        self.planner: RowPlanner | None = None
        self.seam: object = None  # of the host that needs one
        self.failures: dict[type, str] = {}  # what ended early, and why, in a sentence for the user
        self.needed: set[type] = set()  # without these the host cannot run its model
        self.is_over = False
        self._at_end = ExitStack()
        self._taken_back: ExitStack | None = None
        vars(sampler)[_PASS] = self
        self._at_end.callback(vars(sampler).pop, _PASS, None)
        self._end_after_launch(sampler)

    @staticmethod
    def of(p: Any) -> Pass:
        """The pass that the job's sampler is about to make, or makes. A pass of another batch or of the first half of
        Hires.fix, whose end the host did not show, ends here."""
        key = (int(getattr(p, "iteration", 0)), bool(getattr(p, "is_hr_pass", False)))
        found = vars(p.sampler).get(_PASS)
        if found is not None and found.key != key:
            found.end()
            found = None
        return Pass(p.sampler, key) if found is None else found

    def _end_after_launch(self, sampler: Any) -> None:
        launch = getattr(sampler, _LAUNCH, None)
        if launch is None:
            return

        def launched(*args: Any, **kwargs: Any) -> Any:
            try:
                return launch(*args, **kwargs)
            finally:
                self.end()

        own = vars(sampler).get(_LAUNCH)
        setattr(sampler, _LAUNCH, launched)
        self._at_end.callback(put_back, sampler, _LAUNCH, launched, own)

    def at_end(self, undo: Callable[..., object], *args: Any) -> None:
        """Call `undo` when the pass ends, the last one first."""
        self._at_end.callback(undo, *args)

    def register(self, parts: dict[type, Any], part: Any) -> None:
        """Put a part among `parts`, in the place of one of its class."""
        kind = type(part)
        before = parts.get(kind)
        parts[kind] = part
        self.taken_back_by(lambda: parts.pop(kind, None) if before is None else parts.update({kind: before}))

    def taken_back_by(self, undo: Callable[[], object]) -> None:
        """Say what undoes the registration just made, in case that the method fails half-way."""
        if self._taken_back is not None:
            self._taken_back.callback(undo)

    @contextmanager
    def registering(self) -> Iterator[None]:
        """Around one method's registrations: all of them, or after an exception none."""
        with ExitStack() as stack:
            self._taken_back = stack
            try:
                yield
                stack.pop_all()
            finally:
                self._taken_back = None

    @contextmanager
    def around(self, call: DenoiserCall) -> Iterator[None]:
        """Within all hooks, in the order in which they were added, and then the guide that chooses rows."""
        with ExitStack() as stack:
            for hook in (*self.hooks.values(), *self._row_guides):
                stack.enter_context(hook.around(call))
            yield

    @property
    def _row_guides(self) -> list[RowGuide]:
        return [guide for guide in self.guides.values() if isinstance(guide, RowGuide)]

    def choose(self, call: DenoiserCall, scale: float) -> RowChoice:
        """The rows of a call at the host's CFG scale, as a guide chooses them."""
        return next((guide.choose(call, scale) for guide in self._row_guides), RowChoice())

    def ask(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The guided prediction after all guides, in the order of `lib_methods.denoiser.Order`."""
        for guide in sorted(self.guides.values(), key=lambda guide: guide.order):
            try:
                guidance = replace(guidance, guided=guide.guide(call, guidance))
            except Exception as error:
                self._fail({type(guide)}, error)
        return guidance.guided

    def guarded(self, run: Callable[[], T]) -> T:
        """`run()`, which runs the host's denoiser within the hooks. A method that makes it fail ends here, and `run` is
        called again without it; where none is left, the error is the host's own. Raises UserError where the model
        needs the method that failed."""
        while True:
            try:
                return run()
            except Exception as error:
                found = (*self.hooks.values(), *self._row_guides, self.planner)
                parts = {type(part) for part in found if part is not None}
                if not parts:
                    raise
                files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
                rooms = {kind: Path(sys.modules[kind.__module__].__file__ or "").parent for kind in parts}
                blamed = {kind for kind, room in rooms.items() if any(room in file.parents for file in files)}
                self._fail(blamed or parts, error)

    def _fail(self, kinds: set[type], error: Exception) -> None:
        if isinstance(error, UserError):
            reason = str(error)
        elif out_of_memory(error):
            reason = "Out of memory. Choose a smaller size or batch."
        else:
            reason = "An internal error; the console has the details."
        names = ", ".join(kind.__name__ for kind in kinds)
        logging.getLogger(__name__).error("%s ended in the middle of a sampling.", names, exc_info=error)
        if kinds & self.needed:
            raise UserError(reason) from error
        for kind in kinds:
            self.failures[kind] = f"{reason} {_WITHOUT}"
            self.hooks.pop(kind, None)
            self.guides.pop(kind, None)
            if type(self.planner) is kind:
                self.planner = None

    def end(self) -> None:
        """Take everything back. Also what somebody still holds a reference to is without effect from now on."""
        self.is_over = True
        self.hooks.clear()
        self.guides.clear()
        self.planner = None
        self._at_end.close()


def put_back(owner: Any, name: str, ours: Any, before: Any) -> None:
    """Undo `owner.name = ours`, where `before` was the instance's own attribute, None for the class's. Left alone where
    somebody has put theirs over it since; ours must be a pass-through then."""
    if vars(owner).get(name) != ours:
        return
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def is_stopped() -> bool:
    """Whether the user has ended or skipped what the host is at."""
    state = getattr(sys.modules.get("modules.shared"), "state", None)
    return bool(getattr(state, "interrupted", False) or getattr(state, "skipped", False))
