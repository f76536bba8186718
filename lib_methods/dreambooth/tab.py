"""What the tab's controls do when they are used: values in, values out. Keeps no state: that is on the disk."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from lib_methods.checks import SettingsError, check_whole
from lib_methods.dreambooth import page
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.job import BUSY, State, Trainings
from lib_methods.dreambooth.job_files import JobFiles
from lib_methods.dreambooth.photos import Photo, find_photos, intake, without_companions
from lib_methods.dreambooth.preview import Machine, OwnMachine, preview
from lib_methods.dreambooth.request import clean_name, from_controls, parse_request
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.ui.status import status_html

Mistakes = (SettingsError, DreamBoothError)


class HostLists(Protocol):
    """What the tab asks the host: `lib_methods.hosts.model_lists`."""

    def checkpoints(self) -> list[str]: ...

    def loaded(self) -> str: ...

    def checkpoint_file(self, title: object) -> Path: ...

    def checkpoint_title(self, file: Path) -> str: ...

    def folder_of(self, kind: str) -> Path: ...

    def refresh(self) -> None: ...


@dataclass(frozen=True)
class Usage:
    """How the result is used: what to put into the prompt, and which checkpoint to choose, "" for the present one."""

    prompt: str
    checkpoint: str = ""


class TabHandlers:
    """Event handlers of the tab, and what the REST routes do."""

    def __init__(self, trainings: Trainings, lists: HostLists, machine: Machine | None = None) -> None:
        """machine: what is known of the device that a training gets."""
        self.trainings, self.lists, self.machine = trainings, lists, machine or OwnMachine()
        self._beginning = threading.Lock()

    # -- what is about to happen

    def form(self, files: Any, *values: Any) -> list[Any]:
        """What stands below the form, with the plan as soon as there is what it needs, and the dropped photos.

        values: those of `request.CONTROLS`.
        """
        pictures = without_companions(intake.uploaded(files))
        return [self._line(pictures, values, with_plan=True), page.photos_html(pictures)]

    def _line(self, pictures: Sequence[Path], values: Sequence[Any], with_plan: bool) -> str:
        wanted = from_controls(values)
        missing = [] if pictures else ["Drop 3 to 5 photos of the subject"]
        missing += [] if str(wanted.get("class_noun", "")).strip() else ['say what it is ("dog", "coffee mug")']
        if missing:
            text = " and ".join(missing)
            return status_html(f"{text[:1].upper()}{text[1:]}, then press Train.")
        try:
            settings = self._settings(wanted, "name")
            plan = self._plan(settings, len(pictures)) if with_plan else {}
        except Mistakes as error:
            return status_html(str(error), problem=True)
        what = "a LoRA" if settings.kind == "LoRA" else "a whole checkpoint"
        count = f"{len(pictures)} photo{'s' if len(pictures) != 1 else ''}"
        steps = f", {settings.steps} steps" if settings.steps else ""
        few = " Three to five photos teach more than these." if len(pictures) < 3 else ""
        sentence = f'{count} of a {settings.class_noun} become {what} of "{wanted.get("base")}"{steps}.{few}'
        return page.preview_html(sentence, plan)

    def _plan(self, settings: TrainingSettings, photos: int) -> dict[str, Any]:
        return preview(settings, photos, self.machine, self.trainings.root, self.trainings.is_running)

    def plan(self, wanted: dict[str, Any], photos: Any) -> dict[str, Any]:
        """The plan of a training, as a REST request asks for it; nothing is begun or kept.

        photos: encoded pictures as `begin` takes them, or how many there will be. Raises SettingsError and
        DreamBoothError.
        """
        clean_name(wanted.get("name"), wanted.get("class_noun"))
        settings = self._settings(wanted, "name")
        if isinstance(photos, int) and not isinstance(photos, bool):
            return self._plan(settings, check_whole("The number of photos", photos, 1, intake.MOST_FILES))
        if not photos:
            raise DreamBoothError(intake.NO_PHOTOS)
        with tempfile.TemporaryDirectory() as folder:
            taken, _ = intake.take_in_encoded(photos, Path(folder) / "photos")
        return self._plan(settings, len(taken))

    def _settings(self, wanted: dict[str, Any], name: str) -> TrainingSettings:
        files = JobFiles(self.trainings.root, name)
        base = self.lists.checkpoint_file(wanted.get("base"))
        return parse_request(wanted, photos=files.photos, base=base, out=files.out, name=name)

    # -- buttons

    def train(self, files: Any, *values: Any) -> list[Any]:
        """Begins; returns the line below the form, without the plan, which the panel now tells, and `look`'s
        outputs."""
        dropped = intake.uploaded(files)
        try:
            self.begin(from_controls(values), dropped)
        except Mistakes as error:
            return [status_html(str(error), problem=True), *self.look("")]
        return [self._line(without_companions(dropped), values, with_plan=False), *self.look("")]

    def begin(self, wanted: dict[str, Any], photos: Sequence[Path] | list[Any]) -> TrainingSettings:
        """A new training. photos: files, or the encoded pictures of a REST request. Raises SettingsError and
        DreamBoothError; then nothing was begun."""
        with self._beginning:  # a second press of the button must not take the first one's photos away
            return self._begin(wanted, photos)

    def _begin(self, wanted: dict[str, Any], photos: Sequence[Path] | list[Any]) -> TrainingSettings:
        if self.trainings.is_running:
            raise DreamBoothError(BUSY)
        if not photos:
            raise DreamBoothError(intake.NO_PHOTOS)
        name = self.trainings.free_name(clean_name(wanted.get("name"), wanted.get("class_noun")))
        settings = self._settings(wanted, name)
        folder = JobFiles(self.trainings.root, name).photos
        if all(isinstance(photo, Path) for photo in photos):
            intake.take_in(photos, folder)
        else:
            intake.take_in_encoded(photos, folder)
        self.trainings.start(settings)
        return settings

    def cancel(self) -> list[Any]:
        """Returns the line and `look`'s outputs, as the other buttons do."""
        return self._pressed(self.trainings.cancel, "")

    def resume(self, name: Any = "") -> list[Any]:
        return self._pressed(lambda: self.trainings.resume(str(name or "")), "")

    def _pressed(self, action: Any, said: str) -> list[Any]:
        try:
            action()
        except Mistakes as error:
            return [status_html(str(error), problem=True), *self.look("")]
        return [status_html(said) if said else gr.update(), *self.look("")]

    def use(self) -> list[str]:
        """The line, and for the page's script what to put where, as JSON; "" when there is nothing to use."""
        try:
            usage = self.usage()
        except Mistakes as error:
            return [status_html(str(error), problem=True), ""]
        answer = {"prompt": usage.prompt, "checkpoint": usage.checkpoint}
        return [status_html(f"txt2img now has: {usage.prompt}"), json.dumps(answer)]

    def usage(self) -> Usage:
        """Makes the last result known to the host, and says how it is used. Raises DreamBoothError."""
        record = self.trainings.state().record
        if record is None or record.status != "done" or not record.result:
            raise DreamBoothError("There is no finished training to use.")
        file = self.lists.folder_of(record.kind) / record.result
        if not file.is_file():
            raise DreamBoothError(f"{record.result} is not there any more.")
        self.lists.refresh()
        return Usage(record.usage, "" if record.kind == "LoRA" else self.lists.checkpoint_title(file))

    # -- what is going on

    def look(self, seen: str) -> list[Any]:
        """The panel, the samples, Train, Cancel, Resume, Use and what was seen; nothing new where that is `seen`."""
        state = self.trainings.state()
        version, pictures = _version(state), _pictures(state)
        if seen == f"{version}|{pictures}":
            return [gr.update() for _ in range(7)]
        same_pictures = bool(seen) and seen.rpartition("|")[2] == pictures
        record = state.record
        done = record is not None and record.status == "done" and bool(record.result)
        return [
            page.state_html(state),
            gr.update() if same_pictures else page.samples_html(state.progress),
            gr.update(interactive=not state.is_running),
            gr.update(visible=state.is_running),
            gr.update(visible=state.can_resume),
            gr.update(visible=done),
            f"{version}|{pictures}",
        ]

    def bases(self) -> Any:
        """The base models as they are on the disk now."""
        self.lists.refresh()
        return gr.update(choices=self.lists.checkpoints())

    def unfinished(self) -> Any:
        """The trainings that can be gone on with."""
        names = self.trainings.unfinished()
        return gr.update(choices=names, value=names[0] if names else None)

    def photos_of(self, name: str) -> list[Photo]:
        """The photos of a training."""
        return find_photos(JobFiles(self.trainings.root, name).photos)[0]


def _version(state: State) -> str:
    record = state.record
    if record is None:
        return "none"
    return f"{record.name}/{record.started}/{record.status}/{state.stopping}/{state.progress.version}"


def _pictures(state: State) -> str:
    if state.record is None:
        return "none"
    progress = state.progress
    return f"{state.record.name}/{state.record.started}/{len(progress.samples)}/{len(progress.warnings)}"
