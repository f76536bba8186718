"""What the tab's buttons and the REST routes do: values in, values out. All state is on disk.

- `GET /dreambooth/v1/status`: the last run, how far it is, what it told.
- `POST /dreambooth/v1/start` with {"photos": [base64, {"image": base64, "caption": text}], "class_noun", "base", ...}:
  the fields of `TrainingSettings`; "base" is the title of a checkpoint, by default the one in use, or of a
  pixel cascade as the tab lists it.
- `POST /dreambooth/v1/plan` with the same fields: what that run would take. "photos" may be their number alone.
- `POST /dreambooth/v1/cancel`, `/resume`, `/use`. `use` answers the prompt that generates the subject, and the
  checkpoint or cascade to choose.

What cannot be done is answered with 422 and a sentence. The host's logins are asked for, and other websites refused.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from lib_methods.cascade.folder import is_cascade, read_cascade
from lib_methods.checks import check_whole
from lib_methods.device import GIB
from lib_methods.dreambooth.photos.companions import sort_files, without_companions
from lib_methods.dreambooth.photos.folder import find_photos
from lib_methods.dreambooth.photos.subjects import (
    MOST_FILES,
    NO_PHOTOS,
    Dropped,
    Subject,
    check_identifiers,
    companions_told,
    counted,
    dropped,
    places_of,
    take_in_all,
    uploaded,
)
from lib_methods.dreambooth.settings import TrainingSettings, clean_name, from_json, to_json
from lib_methods.dreambooth.stages import check_stages
from lib_methods.dreambooth.tab import page
from lib_methods.dreambooth.tab.page import CONTROLS, FILES, SECOND
from lib_methods.dreambooth.training.duration import Machine, preview
from lib_methods.errors import UserError
from lib_methods.jobs import routes
from lib_methods.jobs.files import JobFiles
from lib_methods.jobs.job import Jobs
from lib_methods.webui.door import Door
from lib_methods.webui.widgets import status_html

MOST_PROMPTS = 16


class HostLists(Protocol):
    """What the tab asks the host: `lib_methods.hosts.models`."""

    def checkpoints(self) -> list[str]: ...
    def loaded(self) -> str: ...
    def checkpoint_file(self, title: object) -> Path: ...
    def checkpoint_title(self, file: Path) -> str: ...
    def cascades(self) -> dict[str, Path]: ...
    def loras(self) -> list[str]: ...
    def lora_file(self, name: object) -> Path: ...
    def folder_of(self, kind: str) -> Path: ...
    def refresh(self) -> None: ...


class TabHandlers:
    """Event handlers of the tab, and what the REST routes do."""

    def __init__(self, trainings: Jobs, lists: HostLists, machine: Machine) -> None:
        self.trainings, self.lists, self.machine = trainings, lists, machine
        self._beginning = threading.Lock()

    # -- what is about to happen

    def form(self, files: Any, *values: Any) -> list[Any]:
        """What stands below the form, with the plan as soon as there is what it needs, and the dropped photos.

        values: those of `CONTROLS`.
        """
        files = uploaded(files)
        return [self._line(files, values, with_plan=True), page.photos_html(without_companions(files))]

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
        what = "a cascade" if is_cascade(settings.base) else what
        captions = len(found.captions) if settings.captions else 0
        masks = len(found.masks) if settings.masks else 0
        beside = [f"{captions} with {'a caption' if captions == 1 else 'captions'}"] if captions else []
        beside += [f"{masks} with {'a mask' if masks == 1 else 'masks'}"] if masks else []
        photos = f"{counted(counts[0], 'photo')} of a {settings.class_noun}"
        photos += f" ({', '.join(beside)})" if beside else ""
        photos += "".join(f" and {n} of a {c.class_noun}" for n, c in zip(counts[1:], settings.concepts))
        steps = f", {settings.steps} steps" if settings.steps else ""
        few = " 3 to 5 photos work better." if counts[0] < 3 else ""
        verb = "becomes" if sum(counts) == 1 else "become"
        line = status_html(f'{photos} {verb} {what} of "{wanted.get("base")}"{steps}.{few}')
        return f'<div class="steer-job-panel">{line}{page.plan_html(plan, folded=True)}</div>'

    def _plan(self, settings: TrainingSettings, photos: Sequence[int], told: Sequence[str] = ()) -> dict[str, Any]:
        if is_cascade(settings.base):
            check_stages(settings, read_cascade([settings.base]))
            try:
                from lib_methods.dreambooth.cascade import preview_cascade
            except ModuleNotFoundError:  # a host without diffusers: the job's own plan is shown when it starts
                return {}
            device = self.machine.device()
            memory = int(settings.memory * GIB) or self.machine.memory(device, self.trainings.is_running)
            return preview_cascade(settings, photos, device, memory)
        return preview(settings, photos, self.machine, self.trainings.root, self.trainings.is_running, told)

    def plan(self, wanted: dict[str, Any], photos: Any) -> dict[str, Any]:
        """The plan of a run, as a REST request asks for it; nothing is begun or kept.

        photos: encoded images as `begin` takes them, or how many there will be. Raises UserError.
        """
        clean_name(wanted.get("name"), wanted.get("class_noun"))
        subjects = dropped(wanted, photos)
        settings = self._settings(wanted, "name", subjects)
        if isinstance(photos, int) and not isinstance(photos, bool):
            more = [len(subject.photos) for subject in subjects[1:]]
            return self._plan(settings, [check_whole("The number of photos", photos, 1, MOST_FILES), *more])
        if not photos:
            raise UserError(NO_PHOTOS)
        with tempfile.TemporaryDirectory() as folder:
            take_in_all(subjects, Path(folder) / "photos")
            places = places_of(subjects, Path(folder) / "photos")
            found = [Subject(c, find_photos(p)[0]) for c, (p, _) in zip(settings.all_concepts, places)]
            told = companions_told(found, settings)
        return self._plan(settings, [len(subject.photos) for subject in found], told)

    def _settings(self, wanted: dict[str, Any], name: str, subjects: Sequence[Dropped]) -> TrainingSettings:
        """The settings by a form or a request, but for where things are."""
        files = JobFiles(self.trainings.root, name)
        (_, class_folder), *more = places_of(subjects, files.photos)
        lora = wanted.get("continue_from")
        concepts = [
            {"photos": photos, "class_noun": s.class_noun, "identifier": s.identifier, "class_folder": own}
            for s, (photos, own) in zip(subjects[1:], more)
        ]
        settings = from_json(
            {
                **wanted,
                "photos": files.photos,
                "base": self._base(wanted.get("base")),
                "out": files.out,
                "continue_from": self.lists.lora_file(lora) if lora else None,
                "class_folder": class_folder,
                "name": name,
                "concepts": concepts,
            }
        )
        if len(settings.sample_prompts) > MOST_PROMPTS:
            raise UserError(f"There are too many sample prompts: at most {MOST_PROMPTS}.")
        return settings

    def _base(self, title: Any) -> Path:
        """A checkpoint's file, or a cascade's folder. Raises UserError."""
        try:
            return self.lists.checkpoint_file(title)
        except UserError:
            if (folder := self.lists.cascades().get(str(title))) is None:
                raise
            return folder

    def base_names(self) -> list[str]:
        return [*self.lists.checkpoints(), *self.lists.cascades()]

    # -- buttons

    def train(self, files: Any, *values: Any) -> list[Any]:
        """Begins; the line below the form then has no plan, as the panel tells it."""
        given = uploaded(files)
        return self._pressed(
            lambda: self.begin(from_controls(values), given), lambda: self._line(given, values, with_plan=False)
        )

    def begin(self, wanted: dict[str, Any], photos: Sequence[Path] | list[Any]) -> TrainingSettings:
        """A new run. photos: files, or encoded images of a REST request. Raises UserError; then nothing was begun."""
        with self._beginning:  # a second press of the button must not take the first one's photos away
            self.trainings.check_free()
            if not photos:
                raise UserError(NO_PHOTOS)
            name = self.trainings.free_name(clean_name(wanted.get("name"), wanted.get("class_noun")))
            subjects = dropped(wanted, photos)
            settings = self._settings(wanted, name, subjects)
            check_identifiers(settings.all_concepts)
            take_in_all(subjects, JobFiles(self.trainings.root, name).photos)
            kind = "cascade" if is_cascade(settings.base) else settings.kind
            self.trainings.start(settings.name, kind, to_json(settings))
            return settings

    def cancel(self) -> list[Any]:
        return self._pressed(self.trainings.cancel)

    def resume(self, name: Any = "") -> list[Any]:
        return self._pressed(lambda: self.trainings.resume(str(name or "")))

    def _pressed(self, action: Callable[[], object], line: Callable[[], Any] = gr.update) -> list[Any]:
        """The line below the form and `look`'s outputs."""
        try:
            action()
            told = line()
        except UserError as error:
            told = status_html(str(error), problem=True)
        return [told, *self.look("")]

    def use(self) -> list[str]:
        """The line, and for the page's script what to put where, as JSON; "" when there is nothing to use."""
        try:
            usage = self.usage()
        except UserError as error:
            return [status_html(str(error), problem=True), ""]
        tab = "The Cascade tab" if "cascade" in usage else "txt2img"
        return [status_html(f"{tab} now has: {usage['prompt']}"), json.dumps(usage)]

    def usage(self) -> dict[str, str]:
        """Makes the last result known to the host. How it is used: the "prompt", and the "checkpoint" to choose, "" for
        the present one; of a cascade its name, too. Raises UserError."""
        record = self.trainings.state().record
        if record is None or record.status != "done" or not record.result:
            raise UserError("There is no finished run to use.")
        file = self.lists.folder_of(record.kind) / record.result
        if not file.exists():
            raise UserError(f"{record.result} no longer exists. Train again.")
        if record.kind == "cascade":
            return {"prompt": record.usage, "checkpoint": "", "cascade": record.result}
        self.lists.refresh()
        checkpoint = "" if record.kind == "LoRA" else self.lists.checkpoint_title(file)
        return {"prompt": record.usage, "checkpoint": checkpoint}

    # -- what is going on

    def look(self, seen: str) -> list[Any]:
        """The panel, the samples, Train, Cancel, Resume, Use and what was seen; nothing new where that is `seen`."""
        state = self.trainings.state()
        record, progress = state.record, state.progress
        shown = told = "none"
        if record is not None:
            told = f"{record.name}/{record.started}/{record.status}/{state.stopping}/{progress.version}"
            shown = f"{record.name}/{record.started}/{len(progress.samples)}/{len(progress.warnings)}"
        if seen == f"{told}|{shown}":
            return [gr.update() for _ in range(7)]
        same_samples = bool(seen) and seen.rpartition("|")[2] == shown
        done = record is not None and record.status == "done" and bool(record.result)
        return [
            page.state_html(state),
            gr.update() if same_samples else page.samples_html(progress),
            gr.update(interactive=not state.is_running),
            gr.update(visible=state.is_running),
            gr.update(visible=state.can_resume),
            gr.update(visible=done),
            f"{told}|{shown}",
        ]

    def status(self) -> dict[str, Any]:
        """What there is to know, for programs: names of files, never where they are."""
        state = self.trainings.state()
        progress = state.progress
        return {
            "training": None if state.record is None else asdict(state.record),
            "running": state.is_running,
            "stopping": state.stopping,
            "step": progress.step,
            "steps": progress.steps,
            "seconds_left": progress.seconds_left,
            "subject": progress.subject,
            "plan": {key: value for key, value in progress.of("plan").items() if key not in ("event", "time")},
            "phase": progress.of("phase").get("text", ""),
            "warnings": list(progress.warnings),
            "losses": [[step, *progress.losses[step]] for step in sorted(progress.losses)[-1000:]],
            "samples": [{"step": s.step, "files": [f.name for f in s.files]} for s in progress.samples],
        }

    def bases(self) -> Any:
        """The base models as they are on the disk now."""
        self.lists.refresh()
        return gr.update(choices=self.base_names())

    def loras(self) -> Any:
        """The LoRAs as they are on the disk now."""
        return gr.update(choices=["", *self.lists.loras()])

    def unfinished(self) -> Any:
        """The runs that can be resumed."""
        names = self.trainings.unfinished()
        return gr.update(choices=names, value=names[0] if names else None)


def from_controls(values: Sequence[Any]) -> dict[str, Any]:
    """The values of `CONTROLS` by name; what was left empty is left out. A second subject becomes one of "concepts"."""
    wanted = {name: value for name, value in zip(CONTROLS, values) if value is not None and value != ""}
    for name in FILES:
        if name in wanted:
            wanted[name] = uploaded(wanted[name])
    second = {
        name.removeprefix(SECOND): wanted.pop(name) for name in CONTROLS if name in wanted and name.startswith(SECOND)
    }
    if second.get("photos") or str(second.get("class_noun", "")).strip():
        wanted["concepts"] = [second]
    return wanted


# -- for programs

PREFIX = "/dreambooth/v1"


def add_routes(app: Any, handlers: TabHandlers, door: Door | None = None) -> None:
    """Adds the routes to a FastAPI application. door: whom they answer."""

    def start(fields: dict[str, Any]) -> dict[str, str]:
        wanted = {"base": handlers.lists.loaded(), **fields}
        return {"name": handlers.begin(wanted, wanted.pop("photos", None) or []).name}

    def plan(fields: dict[str, Any]) -> dict[str, Any]:
        wanted = {"base": handlers.lists.loaded(), **fields}
        return handlers.plan(wanted, wanted.pop("photos", None))

    routes.add_routes(
        app,
        PREFIX,
        door or Door(),
        asking={"status": lambda fields: handlers.status()},
        doing={
            "start": start,
            "plan": plan,
            "cancel": lambda fields: handlers.trainings.cancel(),
            "resume": lambda fields: handlers.trainings.resume(),
            "use": lambda fields: handlers.usage(),
        },
    )
