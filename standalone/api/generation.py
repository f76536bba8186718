"""txt2img and img2img: from a request and its scripts' arguments to a job, and from its result to the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from PIL import Image

from standalone.engine.names import folded, shown
from standalone.host import pasting, shared
from standalone.host.jobs.img2img import StableDiffusionProcessingImg2Img
from standalone.host.jobs.result import Processed
from standalone.host.jobs.run import process_images
from standalone.host.jobs.txt2img import StableDiffusionProcessingTxt2Img
from standalone.host.sampling import registry
from standalone.host.scripts import loading
from standalone.host.scripts.runner import ScriptRunner
from standalone.host.scripts.script import Script
from standalone.infotext.fields import IMG2IMG, TXT2IMG, job_fields
from standalone.infotext.text import MAX_LENGTH

from .checks import check_request, check_setting, rounded
from .codec import check_encoded, decode_opened, encode_image
from .errors import BadRequest
from .models import GenerationRequest, GenerationResponse, ImageToImageRequest, TextToImageRequest

WEBUI_SCRIPTS = ("comments", "extra options", "hypertile", "refiner", "sampler", "seed", "soft inpainting")
"""Always-on scripts of the WebUI v1.10.1 that are no scripts here; programs that replay a page's values send them."""


def _titles(found: Sequence[Script]) -> str:
    names = ", ".join(sorted(str(script.name) for script in found if script.name))
    return f"There is: {names}." if names else "There is none."


def find_selectable(runner: ScriptRunner, name: str | None) -> int:
    """The number (from 1) of the script that `script_name` chooses, 0 for none. BadRequest if there is no such
    script."""
    if not name or folded(name) in ("", "none"):
        return 0
    for number, script in enumerate(runner.selectable_scripts, start=1):
        if folded(script.title()) == folded(name):
            return number
    raise BadRequest(f"script_name: there is no script named '{shown(name)}'. {_titles(runner.selectable_scripts)}")


def find_always_on(runner: ScriptRunner, name: str) -> Script:
    """The always-on script with this title, in any case. BadRequest if there is no such script."""
    for script in runner.scripts:
        if folded(script.title()) == folded(name):
            if not script.alwayson:
                raise BadRequest(f"alwayson_scripts: '{shown(name)}' is chosen with script_name, it is not always on.")
            return script
    raise BadRequest(f"alwayson_scripts: there is no script named '{shown(name)}'. {_titles(runner.alwayson_scripts)}")


def without_webui_scripts(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of `alwayson_scripts` that are for this host, and those for scripts that only the WebUI has."""
    foreign = {name: entry for name, entry in given.items() if folded(name) in WEBUI_SCRIPTS}
    return {name: entry for name, entry in given.items() if name not in foreign}, foreign


def _args_of(script: Script, given: Any) -> list[Any]:
    """The list of arguments in one entry of `alwayson_scripts`."""
    title = script.title()
    if not isinstance(given, Mapping):
        raise BadRequest(f'alwayson_scripts: for {title}, give {{"args": [...]}}.')
    args = given.get("args", [])
    if isinstance(args, Mapping):  # named fields, for scripts that read them
        args = [dict(args)]
    if not isinstance(args, list):
        raise BadRequest(f"alwayson_scripts: the args of {title} are not a list.")
    room = script.args_to - script.args_from
    if len(args) > room:
        raise BadRequest(f"alwayson_scripts: {title} takes {room} arguments, not {len(args)}: see script-info.")
    return args


def build_args(
    runner: ScriptRunner,
    *,
    script_name: str | None,
    script_args: Sequence[Any] | None,
    always_on: Mapping[str, Any] | None,
    mentioned: Mapping[int, Any] | None = None,
) -> tuple[Any, ...]:
    """All scripts' arguments: the controls' defaults, over them `mentioned` (from an infotext), then the request's."""
    args = runner.default_args()
    for index, value in (mentioned or {}).items():
        args[index] = value
    number = find_selectable(runner, script_name)
    if number:
        script = runner.selectable_scripts[number - 1]
        given = list(script_args or [])
        room = script.args_to - script.args_from
        if len(given) > room:
            raise BadRequest(f"script_args: {script.title()} takes {room} arguments, not {len(given)}.")
        args[script.args_from : script.args_from + len(given)] = given
    args[0] = number
    for name, entry in without_webui_scripts(always_on or {})[0].items():
        script = find_always_on(runner, name)
        given = _args_of(script, entry)
        args[script.args_from : script.args_from + len(given)] = given
    return tuple(args)


# Fields of a request that steer the API itself and are no arguments of the processing classes.
_NOT_FOR_PROCESSING = (
    "sampler_index script_name script_args send_images save_images alwayson_scripts infotext init_images mask "
    "latent_mask firstpass_image include_init_images"
).split()


def apply_infotext(
    request: GenerationRequest, runner: ScriptRunner
) -> tuple[GenerationRequest, dict[int, Any], list[str]]:
    """Fills fields that the request leaves open from its `infotext`.

    Also the scripts' arguments that it names, and sentences about what of it was left out.
    """
    if not request.infotext:
        return request, {}, []
    if len(request.infotext) > MAX_LENGTH:
        raise BadRequest(f"infotext: longer than {MAX_LENGTH} characters.")
    params = pasting.parse_generation_parameters(request.infotext)
    table = TXT2IMG if isinstance(request, TextToImageRequest) else IMG2IMG
    values, left_out = job_fields(params, table)
    given = request.model_dump(exclude_unset=True)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in given or name not in type(request).model_fields:
            continue
        try:
            type(request).model_validate({name: value})
            found[name] = value
        except ValueError:
            left_out.append(f"{name} '{shown(value)}' does not fit and was left out.")
    settings: dict[str, Any] = {}
    for label, name, value in pasting.get_override_settings(params, left_out=left_out):
        try:
            check_setting(name, value, "infotext")
            settings[name] = value
        except BadRequest:
            left_out.append(f"{label} '{shown(value)}' does not fit and was left out.")
    found["override_settings"] = {**settings, **(request.override_settings or {})}
    filled = type(request).model_validate({**given, **found})
    while (refused := _refused(filled)) in found and refused != "override_settings":
        left_out.append(f"{refused} '{shown(found.pop(refused))}' does not fit and was left out.")
        filled = type(request).model_validate({**given, **found})
    left_out = [f"Infotext: {sentence}" for sentence in left_out]
    return filled, script_args_from_infotext(params, runner), left_out


def _refused(request: GenerationRequest) -> str:
    """The first field of `request` that cannot be done, "" where all can."""
    try:
        check_request(request)
    except BadRequest as error:
        return str(error.detail).partition(":")[0]
    return ""


def script_args_from_infotext(params: Mapping[str, Any], runner: ScriptRunner) -> dict[int, Any]:
    """Places and values of the scripts' arguments that parsed infotext `params` mention."""
    places = {id(control): index for index, control in enumerate(runner.inputs) if control is not None}
    args: dict[int, Any] = {}
    for field in runner.infotext_fields:
        paste_field = hasattr(field, "component")
        component, source = (field.component, field.function or field.label) if paste_field else field[:2]
        index = places.get(id(component))
        if index is None or index == 0:
            continue
        value = source(params) if callable(source) else params.get(source)
        if isinstance(value, dict) and value.get("__type__") in ("update", "generic_update"):
            value = value.get("value")
        if value is None:
            continue
        default = getattr(component, "value", None)
        if isinstance(default, bool) and isinstance(value, str):
            value = value.strip().lower() not in ("false", "0", "")
        elif isinstance(default, (int, float)) and not isinstance(default, bool) and isinstance(value, str):
            try:
                value = type(default)(float(value))
            except ValueError:
                continue
        args[index] = value
    return args


def _processing_fields(request: GenerationRequest) -> dict[str, Any]:
    fields = {name: value for name, value in request.known().items() if name not in _NOT_FOR_PROCESSING}
    fields["sampler_name"], fields["scheduler"] = registry.resolve(
        request.sampler_name or request.sampler_index, request.scheduler
    )
    fields["width"], fields["height"] = rounded(int(request.width or 512)), rounded(int(request.height or 512))
    fields["prompt"], fields["negative_prompt"] = request.prompt or "", request.negative_prompt or ""
    fields["do_not_save_samples"] = fields["do_not_save_grid"] = not request.save_images
    fields["comments"] = None
    return fields


def run_processing(p: Any, args: tuple[Any, ...], *, is_img2img: bool, is_api: bool) -> Processed:
    """Gives `p` its scripts and arguments and does the job. Call it on the job queue's thread."""
    runner = loading.runner_of(is_img2img)
    tab = "img2img" if is_img2img else "txt2img"
    p.is_api = is_api
    p.scripts = runner
    p.outpath_samples = getattr(shared.opts, f"outdir_{tab}_samples")
    p.outpath_grids = getattr(shared.opts, f"outdir_{tab}_grids")
    p.script_args = args
    processed = runner.run(p, *args)
    return process_images(p) if processed is None else processed


def _decoded(given: Any, name: str) -> Any:
    if isinstance(given, list):
        return [_decoded(image, f"{name}[{number}]") for number, image in enumerate(given)]
    return decode_opened(given, name)


class Generation:
    """One job of txt2img or img2img, checked and ready to run. BadRequest if it cannot be done.

    `request` must have passed check_request; `args` are all scripts' arguments in the runner's layout; `init_images`
    and `mask` may be images of which only the header is read.
    """

    def __init__(
        self,
        request: GenerationRequest,
        args: tuple[Any, ...],
        *,
        init_images: list[Image.Image] | None = None,
        mask: Image.Image | None = None,
        is_api: bool = True,
    ) -> None:
        self.is_img2img = isinstance(request, ImageToImageRequest)
        self.request = request
        self.args = args
        self.is_api = is_api
        self.remarks: list[str] = []
        self.fields = _processing_fields(request)
        if self.is_img2img:
            self.fields |= {"init_images": init_images, "mask": mask}

    @classmethod
    def from_api(cls, given: GenerationRequest) -> Generation:
        """The job that an API request asks for."""
        runner = loading.runner_of(isinstance(given, ImageToImageRequest))
        request, mentioned, remarks = apply_infotext(given, runner)
        check_request(request)
        args = build_args(
            runner,
            script_name=request.script_name,
            script_args=request.script_args,
            always_on=request.alwayson_scripts,
            mentioned=mentioned,
        )
        images: list[Image.Image] | None = None
        mask: Image.Image | None = None
        if isinstance(request, ImageToImageRequest):
            texts = {f"init_images[{number}]": text for number, text in enumerate(request.init_images or [])}
            opened = check_encoded(texts | ({"mask": request.mask} if request.mask else {}))
            mask = opened.pop("mask", None)
            images = list(opened.values())
        made = cls(request, args, init_images=images, mask=mask)
        made.remarks = remarks
        return made

    def run(self) -> Processed:
        """Does the job on the calling thread."""
        # decoded not before its turn and kept no longer than the job: images are large
        given = {name: self.fields.pop(name) for name in ("init_images", "mask") if self.fields.get(name)}
        decoded = {name: _decoded(value, name) for name, value in given.items()}
        kind = StableDiffusionProcessingImg2Img if self.is_img2img else StableDiffusionProcessingTxt2Img
        with closing(kind(sd_model=shared.sd_model, **self.fields, **decoded)) as p:
            for remark in self.remarks:
                p.comment(remark)
            _, foreign = without_webui_scripts(self.request.alwayson_scripts or {})
            p.note_ignored({**self.request.left_out(), **foreign})
            return run_processing(p, self.args, is_img2img=self.is_img2img, is_api=self.is_api)

    def answer(self, processed: Processed) -> GenerationResponse:
        """The API's answer. Input images are sent back only when the request asks for that."""
        parameters = self.request.known()
        parameters.pop("include_init_images", None)
        if isinstance(self.request, ImageToImageRequest) and not self.request.include_init_images:
            parameters["init_images"] = parameters["mask"] = None
        images = [encode_image(image) for image in processed.images] if self.request.send_images else []
        return GenerationResponse(images=images, parameters=parameters, info=processed.js())
