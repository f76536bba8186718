"""Event handlers of the tab's controls: values in, values out. All state is on disk."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from lib_methods.checks import check_whole
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.photos import upload
from lib_methods.dreambooth.photos.companions import sort_files
from lib_methods.dreambooth.photos.folder import find_photos, without_companions
from lib_methods.dreambooth.photos.subjects import Subject, check_identifiers, companions_told, counted
from lib_methods.dreambooth.settings import Concept, TrainingSettings
from lib_methods.dreambooth.tab import html as page
from lib_methods.dreambooth.tab.preview import Machine, OwnMachine, preview
from lib_methods.dreambooth.tab.request import Dropped, clean_name, dropped, from_controls, parse_request, uploaded
from lib_methods.dreambooth.training.record import to_json
from lib_methods.errors import UserError
from lib_methods.jobs.files import JobFiles
from lib_methods.jobs.job import BUSY, Jobs, State
from lib_methods.webui.status import status_html


class HostLists(Protocol):
    """What the tab asks the host: `lib_methods.hosts.models`."""

    def checkpoints(self) -> list[str]: ...

    def loaded(self) -> str: ...

    def checkpoint_file(self, title: object) -> Path: ...

    def checkpoint_title(self, file: Path) -> str: ...

    def loras(self) -> list[str]: ...

    def lora_file(self, name: object) -> Path: ...

    def folder_of(self, kind: str) -> Path: ...

    def refresh(self) -> None: ...


@dataclass(frozen=True)
class Usage:
    """How the result is used: what to put into the prompt, and which checkpoint to choose, "" for the present one."""

    prompt: str
    checkpoint: str = ""


class TabHandlers:
    """Event handlers of the tab, and what the REST routes do."""

    def __init__(self, trainings: Jobs, lists: HostLists, machine: Machine | None = None) -> None:
        """machine: what is known of the device that a training gets."""
        self.trainings, self.lists, self.machine = trainings, lists, machine or OwnMachine()
        self._beginning = threading.Lock()

    # -- what is about to happen

    def form(self, files: Any, *values: Any) -> list[Any]:
        """What stands below the form, with the plan as soon as there is what it needs, and the dropped photos.

        values: those of `request.CONTROLS`.
        """
        pictures = uploaded(files)
        return [self._line(pictures, values, with_plan=True), page.photos_html(without_companions(pictures))]

    def _line(self, files: Sequence[Path], values: Sequence[Any], with_plan: bool) -> str:
        wanted, found = from_controls(values), sort_files(files)
        missing = [] if found.photos else ["Drop 3 to 5 photos of the subject"]
        missing += [] if str(wanted.get("class_noun", "")).strip() else ['say what it is ("dog", "coffee mug")']
        if missing:
            text = " and ".join(missing)
            return status_html(f"{text[:1].upper()}{text[1:]}, then press Train.")
        try:
            subjects = dropped(wanted, files)
            settings = self._settings(wanted, "name", subjects)
            counts = [len(without_companions(list(subject.photos))) for subject in subjects]
            plan = self._plan(settings, counts) if with_plan else {}
        except UserError as error:
            return status_html(str(error), problem=True)
        what = "a LoRA" if settings.kind == "LoRA" else "a whole checkpoint"
        beside = page.beside_words(found, settings)
        photos = f"{counted(counts[0], 'photo')} of a {settings.class_noun}{beside}"
        photos += "".join(f" and {n} of a {c.class_noun}" for n, c in zip(counts[1:], settings.concepts))
        steps = f", {settings.steps} steps" if settings.steps else ""
        few = " 3 to 5 photos work better." if counts[0] < 3 else ""
        verb = "becomes" if sum(counts) == 1 else "become"
        return page.preview_html(f'{photos} {verb} {what} of "{wanted.get("base")}"{steps}.{few}', plan)

    def _plan(self, settings: TrainingSettings, photos: Sequence[int], told: Sequence[str] = ()) -> dict[str, Any]:
        return preview(settings, photos, self.machine, self.trainings.root, self.trainings.is_running, told)

    def plan(self, wanted: dict[str, Any], photos: Any) -> dict[str, Any]:
        """The plan of a training, as a REST request asks for it; nothing is begun or kept.

        photos: encoded pictures as `begin` takes them, or how many there will be. Raises SettingsError and
        DreamBoothError.
        """
        clean_name(wanted.get("name"), wanted.get("class_noun"))
        subjects = dropped(wanted, photos)
        settings = self._settings(wanted, "name", subjects)
        if isinstance(photos, int) and not isinstance(photos, bool):
            more = [len(subject.photos) for subject in subjects[1:]]
            return self._plan(settings, [check_whole("The number of photos", photos, 1, upload.MOST_FILES), *more])
        if not photos:
            raise DreamBoothError(upload.NO_PHOTOS)
        with tempfile.TemporaryDirectory() as folder:
            upload.take_in_all(subjects, Path(folder) / "photos")
            places = upload.places_of(subjects, Path(folder) / "photos")
            found = [Subject(c, find_photos(p)[0]) for c, (p, _) in zip(settings.all_concepts, places)]
            told = companions_told(found, settings)
        return self._plan(settings, [len(subject.photos) for subject in found], told)

    def _settings(self, wanted: dict[str, Any], name: str, subjects: Sequence[Dropped]) -> TrainingSettings:
        files = JobFiles(self.trainings.root, name)
        (_, class_folder), *more = upload.places_of(subjects, files.photos)
        lora = wanted.get("continue_from")
        return parse_request(
            wanted,
            photos=files.photos,
            base=self.lists.checkpoint_file(wanted.get("base")),
            out=files.out,
            name=name,
            continue_from=self.lists.lora_file(lora) if lora else None,
            class_folder=class_folder,
            concepts=[Concept(p, s.class_noun, s.identifier, own) for s, (p, own) in zip(subjects[1:], more)],
        )

    # -- buttons

    def train(self, files: Any, *values: Any) -> list[Any]:
        """Begins; returns the line below the form, without the plan, which the panel now tells, and `look`'s
        outputs."""
        given = uploaded(files)
        try:
            self.begin(from_controls(values), given)
        except UserError as error:
            return [status_html(str(error), problem=True), *self.look("")]
        return [self._line(given, values, with_plan=False), *self.look("")]

    def begin(self, wanted: dict[str, Any], photos: Sequence[Path] | list[Any]) -> TrainingSettings:
        """A new training. photos: files, or the encoded pictures of a REST request. Raises SettingsError and
        DreamBoothError; then nothing was begun."""
        with self._beginning:  # a second press of the button must not take the first one's photos away
            return self._begin(wanted, photos)

    def _begin(self, wanted: dict[str, Any], photos: Sequence[Path] | list[Any]) -> TrainingSettings:
        if self.trainings.is_running:
            raise DreamBoothError(BUSY)
        if not photos:
            raise DreamBoothError(upload.NO_PHOTOS)
        name = self.trainings.free_name(clean_name(wanted.get("name"), wanted.get("class_noun")))
        subjects = dropped(wanted, photos)
        settings = self._settings(wanted, name, subjects)
        check_identifiers(settings.all_concepts)
        upload.take_in_all(subjects, JobFiles(self.trainings.root, name).photos)
        self.trainings.start(settings.name, settings.kind, to_json(settings))
        return settings

    def cancel(self) -> list[Any]:
        """Returns the line and `look`'s outputs, as the other buttons do."""
        return self._pressed(self.trainings.cancel, "")

    def resume(self, name: Any = "") -> list[Any]:
        return self._pressed(lambda: self.trainings.resume(str(name or "")), "")

    def _pressed(self, action: Any, said: str) -> list[Any]:
        try:
            action()
        except UserError as error:
            return [status_html(str(error), problem=True), *self.look("")]
        return [status_html(said) if said else gr.update(), *self.look("")]

    def use(self) -> list[str]:
        """The line, and for the page's script what to put where, as JSON; "" when there is nothing to use."""
        try:
            usage = self.usage()
        except UserError as error:
            return [status_html(str(error), problem=True), ""]
        answer = {"prompt": usage.prompt, "checkpoint": usage.checkpoint}
        return [status_html(f"txt2img now has: {usage.prompt}"), json.dumps(answer)]

    def usage(self) -> Usage:
        """Makes the last result known to the host, and says how it is used. Raises DreamBoothError."""
        record = self.trainings.state().record
        if record is None or record.status != "done" or not record.result:
            raise DreamBoothError("There is no finished run to use.")
        file = self.lists.folder_of(record.kind) / record.result
        if not file.is_file():
            raise DreamBoothError(f"{record.result} no longer exists. Train again.")
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

    def loras(self) -> Any:
        """The LoRAs as they are on the disk now."""
        return gr.update(choices=["", *self.lists.loras()])

    def unfinished(self) -> Any:
        """The runs that can be resumed."""
        names = self.trainings.unfinished()
        return gr.update(choices=names, value=names[0] if names else None)


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
