"""The part of a script that all methods share: controls, a job's life cycle, infotext, plot and API guard."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gradio as gr

from lib_methods.checks import SettingsError
from lib_methods.pictures.store import ImageStore
from lib_methods.webui import compare
from lib_methods.webui.api_guard import guard_method, namesake, own_title
from lib_methods.webui.controls import Control
from lib_methods.webui.gradio_compat import TAB_BOXES, follow_changes, hidden_row, recheck, tab_image, unsaved
from lib_methods.webui.job import MethodJobs
from lib_methods.webui.table import Table
from lib_methods.webui.widgets import Widgets, status_html

if TYPE_CHECKING:
    from lib_methods.denoiser import LoadedModel, Part, Sampling


@dataclass(frozen=True)
class Tab:
    """What the page's own controls say, for the line about what will happen.

    is_empty: img2img's own box is known to hold no image. steps, cfg_scale, sampler: where a method follows them.
    """

    is_img2img: bool
    is_empty: bool = False
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = ""


@dataclass(frozen=True)
class Host:
    """The host's modules that a script needs, as `scripts/` imports them."""

    scripts: Any
    ui_components: Any


class MethodScript:
    """Mixed into the host's `scripts.Script`: always visible, in txt2img and img2img. State of a job is on the job,
    state of a page is in the page.

    A method's script says:
        table: its controls. key: the prefix of its ids on the page and of what it keeps on a job.
        room: the package of its `apply.py`, which has `attach` and perhaps `unsuited` and `unsuited_sampler`. Loaded
            when first needed, so that the controls appear on hosts whose sampling cannot be reached.
        subject: what "stopped at an internal error", the title if empty.
        extra_keys: what it writes into the infotext besides its settings.
        follows: the page's own controls that its line depends on: "steps", "cfg_scale", "sampling".
        needs_picture: whether it needs a checkpoint whose UNet sees an image beside the latents.
        sees_tab_image: whether its line depends on the image in img2img's own box, too.
        store: where its images are.
        peer: the title of another extension whose infotexts it reads as long as that one is not installed.
        ui_config: the host's file of saved defaults, of a method that has had another name.
    and overrides `summary` and `layout`; the others where it does more than its table.

    `start` connects the class to the host.
    """

    table: ClassVar[Table]
    key: ClassVar[str]
    room: ClassVar[str]
    subject: ClassVar[str] = ""
    extra_keys: ClassVar[Sequence[str]] = ()
    follows: ClassVar[Sequence[str]] = ()
    needs_picture: ClassVar[bool] = False
    sees_tab_image: ClassVar[bool] = False
    store: ClassVar[ImageStore | None] = None
    peer: ClassVar[str] = ""
    ui_config: ClassVar[str | None] = None
    host: ClassVar[Host]
    jobs: ClassVar[MethodJobs]
    is_img2img: bool
    infotext_fields: Any
    paste_field_names: Any

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    @classmethod
    def start(cls, scripts: Any, script_callbacks: Any, ui_components: Any) -> None:
        """Connect the class to the host's modules of these names."""
        cls.host = Host(scripts, ui_components)
        keys = (*cls.table.keys.values(), *cls.extra_keys)
        cls.jobs = MethodJobs(cls.table.title, cls.key, keys, cls.table.error_key, cls.subject, cls.give_back)
        script_callbacks.on_ui_settings(cls.add_settings)
        script_callbacks.on_before_ui(cls.add_axes)
        script_callbacks.on_app_started(cls.guard)

    @classmethod
    def add_settings(cls) -> None:
        """Adds what belongs into the host's settings."""
        from lib_methods.hosts.settings import add_show  # here, as in `MethodJobs.guide`

        add_show(cls.key, cls.table.title)

    # What a method may override

    def attach(self, p: Any, sampling: Sampling, settings: Any) -> Part | None:
        """Let the method guide a sampling; returns its part, None where it has none. See `MethodJobs.guide`."""
        images = () if self.store is None else (self.store.load,)
        part: Part | None = self._apply().attach(sampling, settings, *images)
        return part

    def summary(self, settings: Any, enabled: bool, tab: Tab) -> str:
        """What will happen, in one plain line. Raises `SettingsError` with a line that shows as a problem."""
        raise NotImplementedError

    def hidden(self, widgets: Widgets) -> None:
        """Place components that only scripts of the page use, before the accordion."""

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        """Place the controls in the method's accordion: the important ones, and the others in an accordion below.

        status: the line, for handlers that change it. found: the page's own components that the method follows, and
        img2img's boxes, by name.
        """
        visible = [control for control in self.table.controls if control.images is None]
        for control in visible:
            if control.important:
                widgets.add(control.name)
        if not all(control.important for control in visible):
            with widgets.accordion("More"):
                for control in visible:
                    if not control.important:
                        widgets.add(control.name)

    @classmethod
    def read(cls, arguments: Sequence[Any], overrides: Mapping[str, Any] | None = None) -> Any:
        """The settings of a request, None where the method is off. Raises `SettingsError` with a sentence."""
        return cls.table.request(arguments, cls.store, overrides=overrides)

    @classmethod
    def check(cls, arguments: Sequence[Any]) -> None:
        """Refuse a request before its job starts: raise `SettingsError` with a sentence."""
        cls.read(arguments)

    def begin(self, p: Any, settings: Any) -> None:
        """A job has these settings: use them, or say why not."""
        self.jobs.use(p, settings, self.table.to_infotext(settings, self.store))

    @classmethod
    def give_back(cls, p: Any) -> None:
        """Restores what the method took from a job that continues without it."""

    @classmethod
    def axis_fields(cls, name: str, value: float, before: Mapping[str, Any]) -> dict[str, Any]:
        """What a value on the plot's axis of a control sets; `before`: what other axes have set."""
        return {name: value}

    @classmethod
    def unsuited(cls, model: LoadedModel) -> str:
        """Why the method cannot work with the loaded checkpoint, in one sentence; empty where it can."""
        if model.transformer:
            return cls.needs_unet(model.transformer)
        why = getattr(cls._apply(), "unsuited", None)
        return "" if why is None else str(why(model))

    @classmethod
    def unsuited_sampler(cls, settings: Any, tab: Tab) -> str:
        """Why the method cannot work with the tab's sampler, in a sentence; empty where it can."""
        why = getattr(cls._apply(), "unsuited_sampler", None)
        if why is None or not tab.sampler:
            return ""
        from lib_methods.hosts.models import chosen_sampler  # here, as in `MethodJobs.guide`

        sampler = chosen_sampler(tab.sampler, 0 if tab.is_img2img else tab.steps)
        return "" if sampler is None else str(why(sampler, settings, tab.is_img2img))

    @classmethod
    def needs_unet(cls, transformer: str) -> str:
        """Says that the method does not support a transformer of this name."""
        return f"{cls.table.title} does not support {transformer}. Choose an SD1, SD2 or SDXL checkpoint."

    @classmethod
    def _apply(cls) -> Any:
        return importlib.import_module(f"{cls.room}.apply")

    # The page

    def title(self) -> str:
        return own_title(self.table.title)

    def show(self, is_img2img: bool) -> Any:
        return self.host.scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        elem_id = str(kwargs.get("elem_id"))
        name = elem_id.removeprefix(f"{self.tab()}_")
        if self.is_img2img and elem_id in TAB_BOXES:
            self.found[elem_id] = component
        elif name in self.follows:
            self.found[name] = component

    def ui(self, is_img2img: bool) -> list[Any]:
        found, self.found = self.found, {}  # hosts call ui() again outside of the page
        elem_id = f"{self.key}_{self.tab()}"
        former = self.table.former
        saved = former.saved(self.table, Path(self.ui_config), self.tab()) if former and self.ui_config else {}
        widgets = Widgets(self.table, elem_id, saved)
        followed = []
        with hidden_row():
            for control in self.table.controls:
                if control.images is not None:
                    widgets.add(control.name)
            self.hidden(widgets)
            for name, value, label in (("cfg_scale", Tab.cfg_scale, "CFG scale"), ("steps", Tab.steps, "Steps")):
                if name in self.follows:
                    followed.append(found.get(name) or unsaved(gr.Number(value=value, label=label)))
            if "sampling" in self.follows:
                followed.append(found.get("sampling") or unsaved(gr.Textbox(value="", label="Sampler")))
            if self.sees_tab_image:
                boxes = {name: found[name] for name in TAB_BOXES if name in found}
                followed.append(tab_image(boxes, f"{elem_id}_holds"))
        is_on = bool(saved.get("enabled"))
        with self.host.ui_components.InputAccordion(is_on, label=self.label(), elem_id=elem_id) as enabled:
            widgets.made["enabled"] = enabled
            shown = {"enabled": is_on, **self.table.defaults, **saved}
            first = [*shown.values(), *(part.value for part in followed)]
            status = gr.HTML(self.line(*first), elem_id=f"{elem_id}_status")
            self.layout(widgets, status, found)
        controls = widgets.controls()
        follow_changes([*followed, *controls], self.line, [*controls, *followed], [status])
        with hidden_row():
            recheck(self.line, [*controls, *followed], [status], f"{elem_id}_recheck")
        keys = self.table.paste_keys(self.store, lambda: not self.peer_is_here())
        self.infotext_fields = list(zip(controls, keys))
        self.paste_field_names = list(keys)
        return controls

    def line(self, *values: Any) -> str:
        """The line about what will happen, as HTML: from the values of all controls, and of the page's own that it
        depends on: CFG scale, steps, sampler, whether the tab holds an image ("yes", "no" or unknown)."""
        enabled, *controls = values[: len(self.table.names)]
        followed = iter(values[len(self.table.names) :])
        tab = Tab(
            self.is_img2img,
            cfg_scale=float((next(followed, None) or 0) if "cfg_scale" in self.follows else Tab.cfg_scale),
            steps=int((next(followed, None) or 0) if "steps" in self.follows else Tab.steps),
            sampler=str((next(followed, None) or "") if "sampling" in self.follows else ""),
            is_empty=self.sees_tab_image and next(followed, None) == "no",
        )
        return self.status(bool(enabled), controls, tab)

    def status(self, enabled: bool, controls: Sequence[Any], tab: Tab) -> str:
        """The line as HTML, from the values of all controls but the switch."""
        from lib_methods.hosts.models import obstacle, suited_checkpoint  # here, as in `MethodJobs.guide`

        if enabled and (why := obstacle(self.unsuited)):
            return status_html(why, problem=True, checkpoint=suited_checkpoint(self.needs_picture))
        try:
            settings = self.read([True, *controls])
            if enabled and (why := self.unsuited_sampler(settings, tab)):
                return status_html(why, problem=True)
            return status_html(self.summary(settings, enabled, tab))
        except SettingsError as error:
            return status_html(str(error), problem=enabled)

    def label(self) -> str:
        """The accordion's."""
        return self.table.title

    @classmethod
    def peer_is_here(cls) -> bool:
        """Whether the extension whose infotext fields we read is installed, too: then they are meant for that one."""
        return bool(cls.peer) and namesake(cls.host.scripts.scripts_txt2img.scripts, cls.peer) is not None

    def tab(self) -> str:
        return "img2img" if self.is_img2img else "txt2img"

    # A job

    def before_process(self, p: Any, *args: Any) -> None:
        compare.undouble(p)
        self.jobs.forget(p)

    def process(self, p: Any, *args: Any) -> None:
        self.jobs.forget(p)
        with self.jobs.refusal(p):
            settings = self.read(args, self.jobs.axes(p))
            if settings is None:
                return
            if transformer := self._transformer(p):  # said, but not written into an infotext that others may read
                self.jobs.tell(p, self.needs_unet(transformer))
            else:
                self.begin(p, settings)
                if getattr(settings, "compare", False) and self.jobs.settings_of(p) and not self.jobs.axes(p):
                    compare.double(p)

    def process_batch(self, p: Any, *args: Any, batch_number: int = 0, **kwargs: Any) -> None:
        if compare.is_without(p, batch_number) and getattr(self.jobs.settings_of(p), "compare", False):
            self.jobs.pause(p)
        else:
            self.jobs.resume(p)

    @staticmethod
    def _transformer(p: Any) -> str:
        from lib_methods.hosts.models import transformer_name  # here, as in `MethodJobs.guide`

        try:
            return transformer_name(p.sd_model)
        except AttributeError:  # no model of a kind that we know: the sampling will tell
            return ""

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def attach(sampling: Sampling, settings: Any) -> Part | None:
            return self.attach(p, sampling, settings)

        self.jobs.guide(p, kwargs.get("x"), attach, kwargs.get("noise"))

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.jobs.settle(p)

    # X/Y/Z plot and API

    @classmethod
    def add_axes(cls) -> None:
        """Add axes named "[title] label" to the X/Y/Z plot, once. The plot's module is loaded by path, so it is found
        among the host's loaded scripts."""
        loaded = cls.host.scripts.scripts_data
        grid = next((data.module for data in loaded if Path(data.path).name == "xyz_grid.py"), None)
        if grid is None or any(axis.label.startswith(f"[{cls.table.title}]") for axis in grid.axis_options):
            return
        for control in cls.table.controls:
            if control.axis:
                name = f"[{cls.table.title}] {control.axis}"
                choices: Any = {"choices": partial(list, control.choices)} if control.choices else {}
                kind = str if control.choices else float
                confirm = _confirm(replace(control, subject=name))
                axis = grid.AxisOption(name, kind, cls._on_axis(control.name), confirm=confirm, **choices)
                grid.axis_options.append(axis)

    @classmethod
    def _on_axis(cls, name: str) -> Callable[[Any, Any, Any], None]:
        """Sets a cell's job up; the plot also passes all values of the axis."""
        return lambda p, value, values: cls.jobs.set_axes(p, **cls.axis_fields(name, value, cls.jobs.axes(p)))

    @classmethod
    def guard(cls, demo: Any, app: Any) -> None:
        """Refuse requests that cannot be used before their job starts."""
        guard_method(app, cls.host.scripts.scripts_txt2img, cls.table.title, cls.check, cls.table.former)


def _confirm(control: Control) -> Callable[[Any, list[Any]], None]:
    """Refuses values that an axis's control does not take, before the plot starts. Forge Classic has no such check."""

    def confirm(_p: Any, values: list[Any]) -> None:
        for value in values:
            control.check(value)

    return confirm


def switched_off(text: str, enabled: bool) -> str:
    """The line, which says so where the method is off."""
    return text if enabled else f"Switched off ({text.rstrip('.')})."
