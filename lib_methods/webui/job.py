"""The life of a method in a host's job: keeps settings, reports refusals, supports the X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_methods.checks import SettingsError
from lib_methods.webui.gradio_compat import warn

if TYPE_CHECKING:
    from lib_methods.denoiser import Part, Sampling


NO_PART = "It had no part in this generation, because another script or extension replaces the sampling."


@dataclass(frozen=True)
class MethodJobs:
    """One method's part in the host's jobs (`p`, a `StableDiffusionProcessing`). All state is on the job.

    title: the script's; it stands in front of every sentence.
    name: of the job's attributes: `p.<name>_settings`, None where the job goes without the method, and `p.<name>_axes`.
    keys: the infotext keys of the settings.
    error_key: the infotext key of the sentence why a job went on without the method.
    subject: what "stopped at an internal error"; the title if empty.
    undo: called before settings are dropped: returns what the method took from the job.
    """

    title: str
    name: str
    keys: Collection[str]
    error_key: str
    subject: str = ""
    undo: Callable[[Any], None] | None = None

    def settings_of(self, p: Any) -> Any:
        """What `use` was given for this job, or None."""
        return getattr(p, f"{self.name}_settings", None)

    def use(self, p: Any, settings: Any, infotext: Mapping[str, str]) -> None:
        """Let these settings guide the job, and its infotext name them."""
        setattr(p, f"{self.name}_settings", settings)
        setattr(p, f"{self.name}_infotext", dict(infotext))
        p.extra_generation_params.update(infotext)

    def forget(self, p: Any) -> None:
        """The job as it was before the method: a job object may be used again (X/Y/Z plot, upscaling one image of a
        batch)."""
        if self.undo is not None and self.settings_of(p) is not None:
            self.undo(p)
        setattr(p, f"{self.name}_settings", None)
        setattr(p, f"{self.name}_paused", None)
        setattr(p, f"{self.name}_parts", [])
        self._unlist(p)

    def pause(self, p: Any) -> None:
        """The next batch goes without the method."""
        if (settings := self.settings_of(p)) is not None:
            setattr(p, f"{self.name}_paused", settings)
            setattr(p, f"{self.name}_settings", None)
            self._unlist(p)

    def resume(self, p: Any) -> None:
        """The next batch has the method again."""
        if (settings := getattr(p, f"{self.name}_paused", None)) is not None:
            setattr(p, f"{self.name}_paused", None)
            setattr(p, f"{self.name}_settings", settings)

    def _unlist(self, p: Any) -> None:
        for key in (*self.keys, self.error_key, *getattr(p, f"{self.name}_infotext", ())):
            p.extra_generation_params.pop(key, None)

    def remark(self, p: Any, sentence: str) -> None:
        """Say it under the image."""
        p.comment(f"{self.title}: {sentence}")

    def tell(self, p: Any, sentence: str) -> None:
        """Say it under the image, and in the page if the job is a page's."""
        self.remark(p, sentence)
        if not getattr(p, "is_api", False):
            warn(f"{self.title}: {sentence}")

    def give_up(self, p: Any, sentence: str) -> None:
        """The job continues without the method, and says so everywhere."""
        self.forget(p)
        p.extra_generation_params[self.error_key] = sentence
        self.tell(p, sentence)

    @contextmanager
    def refusal(self, p: Any) -> Iterator[None]:
        """Around the reading of a request: where that ends with a `SettingsError`, the method is given up with its
        sentence."""
        try:
            yield
        except SettingsError as error:
            self.give_up(p, str(error))

    def guide(self, p: Any, latent: Any, attach: Callable[[Sampling, Any], Part | None], noise: Any = None) -> None:
        """Before a sampling: `attach(sampling, settings)` if there are settings, where `sampling` is the seam of
        `lib_methods.denoiser`. It returns what `settle` asks afterwards. What goes wrong ends the method and not the
        job; a sentence for the user is shown as it is, anything else is raised again for the host's console.

        latent, noise: the `x` and the `noise` that the host passes, shape (batch, channels, h, w), or None. Only
        methods that change what the sampler starts from need the noise.
        """
        settings = self.settings_of(p)
        if settings is None:
            return
        from lib_methods import hosts  # here, so that the controls appear on hosts that sampling cannot be reached on
        from lib_methods.denoiser import Unsupported

        try:
            sampling = hosts.sampling_of(p, latent, noise)
            with sampling.registering():
                part = attach(sampling, settings)
        except (SettingsError, Unsupported) as error:
            self._leave_out(p, str(error))
        except Exception:
            self._leave_out(
                p,
                f"{self.subject or self.title} stopped because of an internal error, "
                "and the image was generated without it. "
                "The console has the details.",
            )
            raise
        else:
            if part is not None:
                self._parts(p).append((part, sampling))
            if not _is_second_pass(p):  # a batch before this one may have gone without
                p.extra_generation_params.pop(self.error_key, None)
                p.extra_generation_params.update(getattr(p, f"{self.name}_infotext", {}))

    def _leave_out(self, p: Any, sentence: str) -> None:
        """This pass goes without the method. If the first pass of Hires.fix had it, the image still names it."""
        if not (_is_second_pass(p) and any(part.acted for part, _ in self._parts(p))):
            self.give_up(p, sentence)
            return
        sentence = f"Left out of the second pass of Hires.fix. {sentence}"
        p.extra_generation_params[self.error_key] = sentence
        self.tell(p, sentence)

    def _parts(self, p: Any) -> list[tuple[Part, Sampling]]:
        parts: list[tuple[Part, Sampling]] = getattr(p, f"{self.name}_parts", [])
        setattr(p, f"{self.name}_parts", parts)
        return parts

    def settle(self, p: Any) -> None:
        """After a batch, before its infotext is written: a method that had no part in it, or ended half-way, is not
        named there, and says why. The next batch tries again."""
        parts = self._parts(p)
        setattr(p, f"{self.name}_parts", [])
        if self.settings_of(p) is None:
            return
        from lib_methods import hosts

        failures = [failure for part, sampling in parts if (failure := sampling.failure(part))]
        used = [part for part, sampling in parts if part.acted and not sampling.failure(part)]
        notes = dict.fromkeys([*(part.missed for part in used if part.missed), *failures])
        if not used:
            self._unlist(p)
            if hosts.is_stopped() and not failures:
                return
            notes = notes or dict.fromkeys([parts[0][0].idle if parts else NO_PART])
        if notes:
            p.extra_generation_params[self.error_key] = " ".join(notes)
            self.tell(p, " ".join(notes))

    def axes(self, p: Any) -> dict[str, Any]:
        """The fields that the X/Y/Z plot has set for this job."""
        return dict(getattr(p, f"{self.name}_axes", None) or {})

    def set_axes(self, p: Any, **fields: Any) -> None:
        """Set fields for one cell of the plot; cells are copies of each other and share what they do not set."""
        setattr(p, f"{self.name}_axes", {**self.axes(p), **fields})


def _is_second_pass(p: Any) -> bool:
    return bool(getattr(p, "is_hr_pass", False))
