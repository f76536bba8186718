"""What a host adapter answers whose sampler's latents are out of reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from torch import Tensor

from lib_methods.denoiser import Conditioning, DenoiserCall, Editor, OwnNoise, Position, Unsupported

NO_EDITING = (
    "Editing an image while it is generated does not work in Forge. Use AUTOMATIC1111's WebUI, or python run.py."
)


class NoEditing:
    """The members of `lib_methods.denoiser.EditSampling`, all of which raise `Unsupported`."""

    def _refuse(self) -> NoReturn:
        raise Unsupported(NO_EDITING)

    @property
    def sigmas(self) -> Tensor:
        self._refuse()

    @property
    def is_stochastic(self) -> bool:
        self._refuse()

    @property
    def needs_noise(self) -> bool:
        self._refuse()

    def without_noise(self) -> None:
        self._refuse()

    @property
    def own_noise(self) -> OwnNoise | None:
        self._refuse()

    def draw_noise(self) -> Tensor:
        self._refuse()

    def give_noise(self, noise: Callable[[], Tensor]) -> None:
        self._refuse()

    def own_latent(self) -> Tensor | None:
        self._refuse()

    def start_latent(self) -> Tensor:
        self._refuse()

    def start_from(self, latents: Tensor) -> None:
        self._refuse()

    def at_end(self, latents: Tensor) -> Tensor:
        self._refuse()

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        self._refuse()

    def tokenize(self, text: str) -> list[int]:
        self._refuse()

    def decode(self, latents: Tensor) -> Tensor:
        self._refuse()

    def predict(self, x: Tensor, sigma: float, cond: Conditioning, gradients: bool = False) -> Tensor:
        self._refuse()

    def differentiable(self) -> AbstractContextManager[None]:
        self._refuse()

    def position(self, call: DenoiserCall) -> Position:
        self._refuse()

    def add_editor(self, editor: Editor) -> None:
        self._refuse()
