"""Settings of NAG: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass

from lib_methods.webui.controls import check, slider, text
from lib_methods.webui.table import Table


@dataclass(frozen=True)
class NagSettings:
    """Settings of normalized attention guidance (arXiv 2505.21179) for one job.

    Raises `SettingsError` with a sentence for the user.
    """

    scale: float = slider(
        3.0, 1.0, 20.0, 0.5, "Scale", "how far away from the negative prompt, 1 is off",
        about="how far each layer moves away from the negative prompt. 1 is off; the paper uses 3 for SDXL, 5 and more "
        "for few-step models",
        important=True, always=True, axis="Scale (1 is off)",
    )  # fmt: skip
    tau: float = slider(
        2.5, 1.0, 10.0, 0.1, "Tau", "limit of the change",
        about="limit: the attention's L1 norm may grow by this factor. Lower it where images break",
        axis="Tau",
    )  # fmt: skip
    alpha: float = slider(
        0.5, 0.0, 1.0, 0.05, "Alpha", "how much of the effect",
        about="amount of the effect; 1 is all of it",
        axis="Alpha",
    )  # fmt: skip

    negative_prompt: str = text(
        "NAG's own negative prompt", "empty: the page's", longest=4000, lines=2, important=True, kept=False,
        subject="Negative prompt",
        about="what to avoid; empty: the job's negative prompt. Of use above CFG scale 1, where the job's counts in "
        "the guidance, too",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)

    @property
    def active(self) -> bool:
        """Whether anything can change."""
        return self.scale > 1 and self.alpha > 0

    @property
    def unused(self) -> tuple[str, ...]:
        """The controls that change nothing with these settings: all of them, or none."""
        return () if self.active else CONTROLS.names

    def describe(self) -> str:
        """What will happen, in one plain line."""
        if not self.active:
            return f"{'Alpha is 0' if self.scale > 1 else 'Scale is 1'}, so nothing changes."
        whose = "NAG's own" if self.negative_prompt else "The"
        return (
            f"{whose} negative prompt works inside attention, at any CFG scale: scale {self.scale:g}, tau {self.tau:g}"
        )


CONTROLS = Table("NAG", NagSettings, main="scale")
