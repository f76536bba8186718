"""What every method does at a host's job: settings, sentences and axes, without any host."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lib_methods import hosts
from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.webui import gradio_compat, job
from lib_methods.webui.job import MethodJobs

METHOD = MethodJobs("The method", "method", ("The method strength",), "The method error")


class Job(SimpleNamespace):
    """What a host's job offers to a script."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(extra_generation_params={"Other": "1"}, said=[], is_api=True, **fields)

    def comment(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page would show."""
    shown: list[str] = []
    monkeypatch.setattr(job, "warn", shown.append)
    return shown


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a seam, every job gets what a seam is made of."""

    def made(*given: Any) -> SimpleNamespace:
        return SimpleNamespace(given=given, registering=nullcontext, failure=lambda part: "")

    monkeypatch.setattr(hosts, "sampling_of", made)


def test_settings_stay_until_they_are_forgotten() -> None:
    p = Job()
    assert METHOD.settings_of(p) is None
    METHOD.use(p, "settings", {"The method strength": "2"})
    assert METHOD.settings_of(p) == p.method_settings == "settings"
    assert p.extra_generation_params == {"Other": "1", "The method strength": "2"}
    METHOD.forget(p)
    assert METHOD.settings_of(p) is None
    assert p.extra_generation_params == {"Other": "1"}


@pytest.mark.parametrize("is_api", [True, False])
def test_giving_up_is_said_everywhere(warnings: list[str], is_api: bool) -> None:
    p = Job()
    p.is_api = is_api
    METHOD.use(p, "settings", {"The method strength": "2"})
    with METHOD.refusal(p):
        raise SettingsError("It cannot be.")
    assert METHOD.settings_of(p) is None
    assert p.extra_generation_params == {"Other": "1", "The method error": "It cannot be."}
    assert p.said == ["The method: It cannot be."]
    assert warnings == ([] if is_api else ["The method: It cannot be."])


def test_only_refusals_are_sentences() -> None:
    p = Job()
    with pytest.raises(KeyError), METHOD.refusal(p):
        raise KeyError("secret")
    assert p.said == []


def test_what_was_taken_from_the_job_is_given_back_once() -> None:
    given: list[Any] = []
    method = MethodJobs("M", "m", (), "M error", undo=lambda p: given.append(p.m_settings))
    p = Job()
    method.forget(p)
    assert given == []
    method.use(p, "settings", {})
    method.give_up(p, "No.")
    method.forget(p)
    assert given == ["settings"]


def test_a_sampling_is_guided_only_where_there_are_settings(sampling: None) -> None:
    p, seen = Job(), []
    METHOD.guide(p, "x", lambda *given: seen.append(given))
    assert seen == []
    METHOD.use(p, "settings", {})

    def note(sampling: Any, settings: Any) -> None:
        seen.append((sampling.given, settings))

    METHOD.guide(p, "x", note, "noise")
    assert seen == [((p, "x", "noise"), "settings")]


@pytest.mark.parametrize("error", [Unsupported("Not with this."), SettingsError("Not with this.")])
def test_what_cannot_be_guided_is_told_as_it_is(sampling: None, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    p = Job()
    METHOD.use(p, "settings", {})
    METHOD.guide(p, None, fail)
    assert p.said == ["The method: Not with this."]
    METHOD.guide(p, None, fail)  # the second pass of the same job: given up for good
    assert p.said == ["The method: Not with this."]


@pytest.mark.parametrize(("subject", "named"), [("", "The method"), ("It", "It")])
def test_other_errors_are_told_without_detail_and_raised_again(sampling: None, subject: str, named: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    method = MethodJobs("The method", "method", (), "The method error", subject)
    p = Job()
    method.use(p, "settings", {})
    with pytest.raises(RuntimeError, match="secret detail"):
        method.guide(p, None, fail)
    sentence = (
        f"{named} stopped because of an internal error, and the image was generated without it. "
        "The console has the details."
    )
    assert p.extra_generation_params["The method error"] == sentence
    assert p.said == [f"The method: {sentence}"]


class Part(SimpleNamespace):
    """What a method has attached to a pass."""

    def __init__(self, acted: bool = False, idle: str = "Nothing asked for it.", missed: str = "") -> None:
        super().__init__(acted=acted, idle=idle, missed=missed)


LISTED = {"Other": "1", "The method strength": "2"}


def drawn(p: Job, *passes: Any) -> dict[str, str]:
    """One batch: what is attached in each pass, an exception for one that fails. Returns the infotext's parameters."""
    for number, part in enumerate(passes):
        p.is_hr_pass = number > 0

        def attach(*_: Any, part: Any = part) -> Any:
            if isinstance(part, Exception):
                raise part
            return part

        METHOD.guide(p, "x", attach)
    METHOD.settle(p)
    return dict(p.extra_generation_params)


@pytest.mark.parametrize(
    ("passes", "why"),
    [
        ([Part()], "Nothing asked for it."),
        ([Part(), Part(idle="Nor here.")], "Nothing asked for it."),
        ([None], job.NO_PART),
        ([], job.NO_PART),  # a script that samples in its own way
    ],
)
def test_a_method_that_did_nothing_is_not_named_as_used(sampling: None, passes: list[Any], why: str) -> None:
    p = Job()
    METHOD.use(p, "settings", {"The method strength": "2"})
    assert drawn(p, *passes) == {"Other": "1", "The method error": why}
    assert p.said == [f"The method: {why}"]
    assert drawn(p, Part(acted=True)) == LISTED  # the next batch stands for itself


@pytest.mark.parametrize("passes", [[Part(acted=True)], [Part(acted=True), Part()], [Part(), Part(acted=True)]])
def test_a_method_that_had_a_part_in_one_pass_is_named(sampling: None, passes: list[Any]) -> None:
    p = Job()
    METHOD.use(p, "settings", {"The method strength": "2"})
    assert drawn(p, *passes) == LISTED
    assert p.said == []


def test_what_a_method_could_not_reach_is_said_beside_its_settings(sampling: None) -> None:
    p = Job()
    METHOD.use(p, "settings", {"The method strength": "2"})
    assert drawn(p, Part(acted=True, missed="Half of it.")) == {**LISTED, "The method error": "Half of it."}


def test_a_second_pass_that_fails_does_not_deny_the_first(sampling: None) -> None:
    p = Job()
    METHOD.use(p, "settings", {"The method strength": "2"})
    told = drawn(p, Part(acted=True), Unsupported("No memory."))
    assert told == {**LISTED, "The method error": "Left out of the second pass of Hires.fix. No memory."}
    assert drawn(p, Part(acted=True)) == LISTED


def test_a_job_that_was_stopped_before_it_began_is_no_fault(sampling: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "is_stopped", lambda: True)
    p = Job()
    METHOD.use(p, "settings", {"The method strength": "2"})
    assert drawn(p, Part()) == {"Other": "1"}
    assert p.said == []


def test_cells_of_a_plot_share_only_what_they_were_copied_from() -> None:
    cell = Job()
    assert METHOD.axes(cell) == {}
    METHOD.set_axes(cell, strength=0.5)
    other = copy.copy(cell)
    METHOD.set_axes(other, start=0.1)
    METHOD.set_axes(other, strength=1.0)
    METHOD.axes(cell)["strength"] = 9.0
    assert METHOD.axes(cell) == {"strength": 0.5}
    assert METHOD.axes(other) == {"strength": 1.0, "start": 0.1}


def test_no_toast_takes_html_from_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradio renders HTML in toasts: names of files and foreign infotexts come without it."""
    shown: list[str] = []
    monkeypatch.setattr(gradio_compat.gr, "Warning", shown.append)
    gradio_compat.warn("<img src=x onerror=alert(1)>.safetensors & more")
    assert shown == ["‹img src=x onerror=alert(1)›.safetensors & more"]
    plain = re.compile(r"gr\.(?:Warning|Info|Error)\((?![\"\')]|as_toast\(|[A-Z_]+\))")
    root = Path(__file__).resolve().parents[2]
    files = [path for folder in ("standalone", "lib_methods", "scripts") for path in (root / folder).rglob("*.py")]
    assert [path.name for path in files if plain.search(path.read_text(encoding="utf-8"))] == []
