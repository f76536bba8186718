"""Dynamic thresholding in the WebUI: controls, infotext, arguments, life cycle. What it does is in
lib_methods/thresholding.

API: `"alwayson_scripts": {"Steer Dynamic thresholding": {"args": [...]}}`, values in the order of `request.CONTROLS`,
or one object of those names in the first place: `{"mimic_scale": 5, "threshold_percentile": 99.5}`.

A request that cannot be used is answered with 422 before its job starts. A job of the page runs without dynamic
thresholding then, as the host offers scripts no way to refuse it; the sentence is shown in the page, under the picture
and as "Dynamic thresholding error" in the infotext. At CFG scale 1, and with settings that change nothing, it is an
ordinary job: nothing is written to the infotext.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import script_callbacks, scripts, ui_components

from lib_methods.thresholding import infotext, page
from lib_methods.thresholding.formulas import SCHEDULES, STARTPOINTS, VARIABILITIES
from lib_methods.thresholding.request import CONTROLS, TITLE, parse_request
from lib_methods.thresholding.settings import METHODS, MIMIC, NUMBERS, RESCALE, ThresholdSettings
from lib_methods.webui.api_guard import guard_method, namesake, own_title
from lib_methods.webui.axes import NumberAxis, add_axes
from lib_methods.webui.gradio_compat import follow, hidden_row, unsaved
from lib_methods.webui.job import MethodJobs

DEFAULTS = ThresholdSettings()
PEER = "Dynamic Thresholding (CFG Scale Fix)"
JOBS = MethodJobs(TITLE, "thresholding", infotext.KEYS.values(), infotext.ERROR_KEY, subject="It")


class DynamicThresholdingScript(scripts.Script):
    """Always visible, in txt2img and img2img. State of a job is on the job, state of a page is in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def title(self) -> str:
        return own_title(TITLE)

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def after_component(self, component: Any, **kwargs: Any) -> None:
        for name in ("cfg_scale", "steps"):
            if kwargs.get("elem_id") == f"{self._tab()}_{name}":
                self.found[name] = component

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = self._tab()
        found, self.found = self.found, {}  # hosts call ui() again outside of the page
        with hidden_row():
            cfg_scale = found.get("cfg_scale") or unsaved(gr.Number(value=7, label="CFG scale"))
            steps = found.get("steps") or unsaved(gr.Number(value=20, label="Steps"))
        made: dict[str, Any] = {}
        elem_id = f"dynamic_thresholding_{tab}"
        with ui_components.InputAccordion(False, label=TITLE, elem_id=elem_id) as made["enabled"]:
            status = gr.HTML(
                page.status(False, *(getattr(DEFAULTS, name) for name in CONTROLS[1:]), cfg_scale.value, steps.value),
                elem_id=f"{elem_id}_status",
            )
            made["method"] = gr.Radio(
                list(METHODS),
                value=DEFAULTS.method,
                label="Method",
                info=f"{MIMIC}: the range that a lower CFG scale gives. {RESCALE}: the contrast that no guidance gives",
            )
            with gr.Row():
                made["mimic_scale"] = _slider("mimic_scale", "Mimic scale", 0.5, "the CFG scale whose range is taken")
                made["rescale"] = _slider("rescale", "Rescale", 0.05, f"how much of it, for {RESCALE}")
            with gr.Accordion("More", open=False, elem_id=f"{elem_id}_more"):
                with gr.Row():
                    made["threshold_percentile"] = _slider(
                        "threshold_percentile", "Threshold percentile", 0.05, "values beyond it are clipped"
                    )
                    made["interpolate_phi"] = _slider(
                        "interpolate_phi", "Interpolate phi", 0.01, "how much of the effect"
                    )
                for which, label in (("mimic", "Mimic scale"), ("cfg", "CFG scale")):
                    with gr.Row():
                        made[f"{which}_mode"] = gr.Dropdown(
                            list(SCHEDULES), value=getattr(DEFAULTS, f"{which}_mode"), label=f"{label} schedule"
                        )
                        made[f"{which}_scale_min"] = _slider(
                            f"{which}_scale_min", f"{label} minimum", 0.5, "where the schedule is lowest"
                        )
                made["schedule_value"] = _slider(
                    "schedule_value", "Schedule value", 0.5, "the power, or the number of repeats"
                )
                with gr.Row():
                    made["separate_feature_channels"] = gr.Checkbox(
                        DEFAULTS.separate_feature_channels, label="Separate feature channels"
                    )
                    made["scaling_startpoint"] = gr.Radio(
                        list(STARTPOINTS), value=DEFAULTS.scaling_startpoint, label="Scaling startpoint"
                    )
                    made["variability_measure"] = gr.Radio(
                        list(VARIABILITIES), value=DEFAULTS.variability_measure, label="Variability measure"
                    )
        controls = [made[name] for name in CONTROLS]
        for component in (*controls, cfg_scale, steps):
            follow(component.change, page.status, [*controls, cfg_scale, steps], [status])
        keys = infotext.paste_keys(lambda: not _peer_is_here())
        self.infotext_fields = list(zip(controls, keys))
        self.paste_field_names = list(keys)
        return controls

    def before_process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)

    def process(self, p: Any, *args: Any) -> None:
        JOBS.forget(p)
        with JOBS.refusal(p):
            settings = parse_request(args, JOBS.axes(p))
            if settings is None:
                return
            scales = [float(scale) for scale in (p.cfg_scale, getattr(p, "hr_cfg", None)) if scale is not None]
            if any(settings.acts_at(scale) for scale in scales):
                JOBS.use(p, settings, infotext.to_infotext(settings))
            else:
                p.comment(f"{TITLE}: {settings.describe(max(scales), p.steps)}")

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def attach(sampling: Any, settings: ThresholdSettings) -> Any:
            from lib_methods.thresholding import apply

            return apply.attach(sampling, settings)

        JOBS.guide(p, kwargs.get("x"), attach)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        JOBS.settle(p)

    def _tab(self) -> str:
        return "img2img" if self.is_img2img else "txt2img"


def _slider(name: str, label: str, step: float, info: str) -> Any:
    _, low, high = NUMBERS[name]
    return gr.Slider(low, high, value=getattr(DEFAULTS, name), step=step, label=label, info=info)


def _peer_is_here() -> bool:
    """Whether the extension whose infotext fields we read is installed, too: then they are meant for that one."""
    return namesake(scripts.scripts_txt2img.scripts, PEER) is not None


def _switching(name: str, method: str) -> Any:
    """An axis that also switches the method on, and at 0 off."""

    def apply(p: Any, value: float) -> None:
        JOBS.set_axes(p, **({"enabled": True, "method": method, name: value} if value else {"enabled": False}))

    return apply


def _percentile(p: Any, value: float) -> None:
    switched = JOBS.axes(p).get("enabled", True)  # by another axis of the plot
    JOBS.set_axes(p, threshold_percentile=value, enabled=switched)


def _add_axes() -> None:
    axes = [
        NumberAxis("Mimic scale (0 is off)", *NUMBERS["mimic_scale"][1:], _switching("mimic_scale", MIMIC)),
        NumberAxis("Percentile", *NUMBERS["threshold_percentile"][1:], _percentile),
        NumberAxis("CFG rescale (0 is off)", *NUMBERS["rescale"][1:], _switching("rescale", RESCALE)),
    ]
    add_axes(scripts.scripts_data, TITLE, axes)


def _guard_api(demo: Any, app: Any) -> None:
    guard_method(app, scripts.scripts_txt2img, TITLE, parse_request)


script_callbacks.on_before_ui(_add_axes)
script_callbacks.on_app_started(_guard_api)
