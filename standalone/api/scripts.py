"""From the API's `script_name`, `script_args` and `alwayson_scripts` to the arguments of a ScriptRunner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from standalone.engine.names import folded, shown
from standalone.host.scripts import loading
from standalone.host.scripts.runner import ScriptRunner
from standalone.host.scripts.script import Script

from .errors import BadRequest

WEBUI_SCRIPTS = ("comments", "extra options", "hypertile", "refiner", "sampler", "seed", "soft inpainting")
"""Always-on scripts of the WebUI v1.10.1 that are no scripts here; programs that replay a page's values send them."""


def runner_for(is_img2img: bool) -> ScriptRunner:
    """The runner of a tab."""
    return loading.scripts_img2img if is_img2img else loading.scripts_txt2img


def _titles(found: Sequence[Script]) -> str:
    names = ", ".join(sorted(str(script.name) for script in found if script.name))
    return f"There is: {names}." if names else "There is none."


def find_selectable(runner: ScriptRunner, name: str | None) -> int:
    """The number (from 1) of the script that `script_name` chooses, 0 for none. BadRequest if there is none such."""
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
