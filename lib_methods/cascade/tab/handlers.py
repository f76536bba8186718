"""What the tab's buttons and the REST routes do: values in, values out. All state is on disk.

- `GET /cascade/v1/status`: the last run, how far it is, what it told.
- `POST /cascade/v1/start` with {"prompt", "stages": [names of folders], ...}: the controls of the table. "image" and
  "mask" are base64; "resume_from" are names of images, as "images" answers them, which bring the image and the mask
  that they were made from.
- `GET /cascade/v1/images`, perhaps with `?run=NAME`: the names of a run's images, their stages and infotexts.
- `GET /cascade/v1/image?name=NAME`: one of them, as base64.
- `GET /cascade/v1/stages`: the names of the folders there are.
- `POST /cascade/v1/cancel`, `/resume`.

What cannot be done is answered with 422 and a sentence. The host's logins are asked for, and other websites refused.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.cascade.candidate import newest, read_candidate
from lib_methods.cascade.folder import Cascade, find_folders, read_cascade
from lib_methods.cascade.settings import CONTROLS, CascadeRequest, name_from, to_json
from lib_methods.cascade.tab import page
from lib_methods.cascade.tab.page import NAMES
from lib_methods.checks import SettingsError
from lib_methods.errors import UserError, reason
from lib_methods.files import is_file_name
from lib_methods.jobs import routes
from lib_methods.jobs.files import all_records, read_json
from lib_methods.jobs.job import Jobs
from lib_methods.pictures.convert import open_image, to_mask, to_rgb
from lib_methods.webui.door import Door
from lib_methods.webui.widgets import status_html

MOST_SENT = 8
_IMAGE = re.compile(r"([^/\\]+)/(\d{3}-stage([123])\.png)")
_NO_PROMPT = "Write a prompt first."
_NO_TICK = "Tick the images first."


class TabHandlers:
    """Event handlers of the tab, and what the REST routes do."""

    def __init__(self, jobs: Jobs, places: Callable[[], Sequence[Path]], paths: bool = False) -> None:
        """places: where folders of stages are looked for. paths: whether any other may be named by its path."""
        self.jobs, self.places, self.paths = jobs, places, paths
        self._beginning = threading.Lock()

    # -- the stages' folders

    def stages(self) -> list[str]:
        """The names of the folders there are."""
        return list(find_folders(self.places()))

    def usual(self) -> list[str]:
        """What is meant where none is chosen: all of the first place that has any."""
        return next((list(found) for place in self.places() if (found := find_folders([place]))), [])

    def refreshed(self, chosen: Any) -> Any:
        """The list of folders as it is on the disk now."""
        return gr.update(choices=self.stages(), value=chosen or self.usual())

    def _folders(self, chosen: Any) -> tuple[list[Path], Cascade]:
        """Folders by name, in the stages' order whatever the order they were chosen in; the usual ones where none were.

        Raises UserError.
        """
        known = find_folders(self.places())
        chosen = self.usual() if chosen is None or chosen == [] else chosen
        if not isinstance(chosen, (list, tuple)) or not all(isinstance(name, str) for name in chosen):
            raise SettingsError("The stages must be a list of folders.")
        if not chosen:
            raise UserError(
                "There are no stages of a cascade yet. Download DeepFloyd IF's folders into models/cascade, then press "
                "the button beside the list."
            )
        found = []
        for name in chosen[:10]:
            folder = known.get(name) or (Path(name).expanduser() if self.paths else None)
            if folder is None:
                raise UserError(f'There is no folder "{name[:80]}" in models/cascade. Choose one of the list.')
            found.append((read_cascade([folder]).stages[0].number, folder))
        folders = [folder for _, folder in sorted(found, key=lambda each: each[0])]
        return folders, read_cascade(folders)

    def _folders_of(self, run: str) -> list[Path]:
        """Those that an earlier run used. Raises UserError."""
        kept = read_json(self.jobs.files(run).settings).get("folders")
        return [Path(folder) for folder in kept] if isinstance(kept, list) and kept else self._folders(None)[0]

    def _sources(self, taken_up: Sequence[Path]) -> dict[str, Path]:
        """The image and the mask that candidates were made from, as far as they are still there. Raises UserError."""
        kept = [read_json(self.jobs.files(run).settings) for run in {file.parent.name for file in taken_up}]
        found = [{key: Path(each[key]) for key in ("image", "mask") if isinstance(each.get(key), str)} for each in kept]
        if any(each != found[0] for each in found):
            raise UserError("The images were made from different images or masks. Tick those of one run.")
        return found[0] if found and all(file.is_file() for file in found[0].values()) else {}

    # -- buttons

    def take(self, usage: str) -> list[Any]:
        """A cascade of DreamBooth's, no other paths, the prompt of its subject, and the line below the form."""
        taken = json.loads(usage)
        chosen = gr.update(choices=self.stages(), value=[taken["cascade"]])
        return [chosen, "", taken["prompt"], status_html(f"{taken['cascade']} is chosen. {page.NEXT}")]

    def generate(self, stages: Any, paths: str, image: Any, mask: Any, *values: Any) -> list[Any]:
        """Candidates of the first stage there is; the line below the form and `look`'s outputs. paths: of stages in
        other folders, one per line, instead of the listed ones."""
        stages = _lines(paths) or stages
        return self._pressed(lambda: self._candidates(stages, image, mask, dict(zip(NAMES, values))))

    def _candidates(self, stages: Any, image: Any, mask: Any, wanted: dict[str, Any]) -> None:
        _, cascade = self._folders(stages)
        first = cascade.stages[0].number
        self.begin({**wanted, "stages": stages, "image": image, "mask": mask, "last_stage": first})

    def upscale(self, ticked: str, stages: Any, paths: str, *values: Any) -> list[Any]:
        """The later stages of the images that are ticked, with their own prompts."""
        stages = _lines(paths) or stages
        wanted = {**dict(zip(NAMES, values)), "prompt": "", "negative_prompt": ""}
        return self._pressed(lambda: self.begin({**wanted, "stages": stages, "resume_from": self._ticked(ticked)}))

    def begin(self, wanted: Mapping[str, Any]) -> str:
        """A new run; its name. wanted: values by the table's names, and "stages", "image", "mask" and "resume_from".

        Raises UserError; then nothing was begun.
        """
        wanted = dict(wanted)
        with self._beginning:  # a second press of the button
            self.jobs.check_free()
            chosen = wanted.pop("stages", None)
            images = {name: wanted.pop(name, None) for name in ("image", "mask")}
            taken_up = self._images(wanted.pop("resume_from", None) or [])
            folders = self._folders(chosen)[0] if chosen or not taken_up else self._folders_of(taken_up[0].parent.name)
            settings = CONTROLS.settings_from(wanted)
            if not settings.prompt and not taken_up:
                raise UserError(_NO_PROMPT)
            base = f"{taken_up[0].parent.name}-up" if taken_up else name_from(settings.prompt)
            name = self.jobs.free_name(base)
            files = self.jobs.files(name)
            places = {key: files.root / "sources" / name / f"{key}.png" for key, value in images.items() if value}
            sources = places or self._sources(taken_up)
            request = CascadeRequest(
                tuple(folders), files.out, name, settings, sources.get("image"), sources.get("mask"), tuple(taken_up)
            )
            for key, place in places.items():
                _keep(images[key], place, is_mask=key == "mask")
            self.jobs.start(name, "cascade", to_json(request))
            return name

    def cancel(self) -> list[Any]:
        return self._pressed(self.jobs.cancel)

    def resume(self) -> list[Any]:
        return self._pressed(self.jobs.resume)

    def _pressed(self, action: Callable[[], object]) -> list[Any]:
        """The line below the form and `look`'s outputs."""
        told = status_html(page.NEXT)
        try:
            action()
        except UserError as error:
            told = status_html(str(error), problem=True)
        return [told, *self.look("")]

    def send(self, ticked: str) -> list[str]:
        """The line, and for the page's script the images that are ticked, as JSON; "" where there are none."""
        try:
            files = self._images(self._ticked(ticked))[:MOST_SENT]
            prompt = read_candidate(files[0]).settings.prompt
            encoded = [f"data:image/png;base64,{_base64(file)}" for file in files]
        except UserError as error:
            return [status_html(str(error), problem=True), ""]
        return [status_html(page.NEXT), json.dumps({"images": encoded, "prompt": prompt})]

    def _ticked(self, ticked: Any) -> list[str]:
        names = str(ticked or "").split("\n")
        if not names[0]:
            raise UserError(_NO_TICK)
        return names

    # -- images

    def _images(self, names: Any) -> list[Path]:
        """Images by their names, "RUN/FILE". Raises UserError: one is no longer there, or they are of several
        stages."""
        if not isinstance(names, (list, tuple)):
            raise SettingsError('"resume_from" must be a list of names such as "a-red-cat/000-stage1.png".')
        found = [self.image_file(name) for name in names]
        if len({file.stem[-1] for file in found}) > 1:
            raise UserError("The images are of different stages. Tick those of one stage.")
        return found

    def image_file(self, name: Any) -> Path:
        """The file of an image. Raises UserError."""
        parts = _IMAGE.fullmatch(name) if isinstance(name, str) else None
        if parts is None or not is_file_name(parts[1]):
            raise SettingsError('Images have names such as "a-red-cat/000-stage1.png".')
        file = self.jobs.files(parts[1]).folder / parts[2]
        if not file.is_file():
            raise UserError(f"The image {name[:120]} is no longer there.")
        return file

    def images(self, run: str = "") -> list[Path]:
        """The images of a run, of each the largest; by default those of the last run. Raises UserError."""
        record = self.jobs.state(run if is_file_name(run) else "").record
        if record is None or (run and record.name != run):
            if not run:
                return []
            raise UserError("There is no run of this name.")
        return newest(self.jobs.files(record.name).folder)

    def sheets(self) -> list[list[Path]]:
        """The candidates that the last run made or came from, by run, and before them what was made from these."""
        record = self.jobs.state().record
        if record is None:
            return []
        parents = {each.name: self._parent(each.name) for each in all_records(self.jobs.root)[:200]}

        def first(name: str) -> str:
            seen = {name}
            while (above := parents.get(name, "")) and above not in seen:
                seen.add(above)
                name = above
            return name

        root = first(record.name)
        family = [name for name in parents if first(name) == root and name != root]
        found = [newest(self.jobs.files(name).folder) for name in (*family, root)]
        return [files for files in found if files]

    def _parent(self, name: str) -> str:
        """The run whose images a run has taken up; "" for none."""
        taken_up = read_json(self.jobs.files(name).settings).get("resume_from")
        return Path(taken_up[0]).parent.name if isinstance(taken_up, list) and taken_up else ""

    # -- what is going on

    def look(self, seen: str) -> list[Any]:
        """The panel, the sheet, Generate, Cancel, Resume, the buttons below the sheet and what was seen; nothing new
        where that is `seen`."""
        state = self.jobs.state()
        record, progress = state.record, state.progress
        shown = told = "none"
        if record is not None:
            told = f"{record.name}/{record.started}/{record.status}/{state.stopping}/{progress.version}"
            made = [len(sample.files) for sample in progress.samples]
            shown = f"{record.name}/{record.started}/{record.status}/{made}"
        if seen == f"{told}|{shown}":
            return [gr.update() for _ in range(7)]
        same = bool(seen) and seen.rpartition("|")[2] == shown
        sheets = [] if same else self.sheets()
        return [
            page.state_html(state),
            gr.update() if same else page.sheets_html(sheets),
            gr.update(interactive=not state.is_running),
            gr.update(visible=state.is_running),
            gr.update(visible=state.can_resume),
            gr.update() if same else gr.update(visible=bool(sheets)),
            f"{told}|{shown}",
        ]

    def status(self) -> dict[str, Any]:
        """What there is to know, for programs: names, never where files are."""
        state = self.jobs.state()
        progress = state.progress
        plan = progress.of("plan")
        return {
            "job": None if state.record is None else asdict(state.record),
            "running": state.is_running,
            "stopping": state.stopping,
            "stage": progress.of("step").get("stage"),
            "step": progress.step,
            "steps": progress.steps,
            "seconds_left": progress.seconds_left,
            "phase": progress.of("phase").get("text", ""),
            "plan": {key: value for key, value in plan.items() if key not in ("event", "time")},
            "warnings": list(progress.warnings),
        }


def _lines(text: str) -> list[str]:
    """The lines of a text box, without the quotes that Windows copies paths with."""
    return [line for each in text.splitlines() if (line := each.strip().strip('"'))]


def _base64(file: Path) -> str:
    try:
        return base64.b64encode(file.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{file.name} cannot be read. {reason(error)}") from error


def _keep(given: Any, place: Path, is_mask: bool) -> None:
    """Stores an image of the page or of a request. Raises UserError."""
    image = given if isinstance(given, Image.Image) else None
    if image is None:
        if not isinstance(given, str):
            raise SettingsError('"image" and "mask" must be images in base64.')
        image = open_image(given)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        (to_mask(image) if is_mask else to_rgb(image)).save(place)
    except OSError as error:
        raise UserError(f"The image cannot be stored. {reason(error)}") from error


# -- for programs

PREFIX = "/cascade/v1"


def add_routes(app: Any, handlers: TabHandlers, door: Door | None = None) -> None:
    """Adds the routes to a FastAPI application. door: whom they answer."""

    def images(fields: Mapping[str, Any]) -> dict[str, Any]:
        found = []
        for file in handlers.images(str(fields.get("run", ""))):
            candidate = read_candidate(file)
            name = f"{file.parent.name}/{file.name}"
            found.append({"name": name, "stage": candidate.stage, "info": candidate.infotext()})
        return {"images": found}

    routes.add_routes(
        app,
        PREFIX,
        door or Door(),
        asking={
            "status": lambda fields: handlers.status(),
            "stages": lambda fields: {"stages": handlers.stages()},
            "images": images,
            "image": lambda fields: {"image": _base64(handlers.image_file(fields.get("name")))},
        },
        doing={
            "start": lambda fields: {"name": handlers.begin(fields)},
            "cancel": lambda fields: handlers.jobs.cancel(),
            "resume": lambda fields: handlers.jobs.resume(),
        },
    )
