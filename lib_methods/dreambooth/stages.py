"""Which of a cascade's stages DreamBooth can train, by their configurations alone, so that any host can say it."""

from __future__ import annotations

from lib_methods.cascade.folder import Cascade, Stage
from lib_methods.dreambooth.settings import SIDES, TrainingSettings
from lib_methods.errors import UserError

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}


def check_stages(asked: TrainingSettings, cascade: Cascade) -> None:
    """Raises UserError for a stage that is missing or cannot be trained, and for settings that do not apply."""
    first, second = cascade.stage(1), cascade.stage(2)
    name = asked.base.name
    if first is None:
        raise UserError(
            f"{name} holds no stage I (text to image), which DreamBooth needs: stage II learns from images of stage "
            "I's size. Choose a folder that holds both stages as folders."
        )
    if asked.stages == "2" and second is None:
        raise UserError(f"{name} holds no stage II (super-resolution). Choose a folder that holds both stages.")
    refused = {
        "resolution": (asked.resolution, "a cascade's stages have their own sizes. Leave it at 0"),
        "train_text": (asked.train_text, "a cascade's T5 is not trained. Turn it off"),
        "continue_from": (asked.continue_from, "a cascade's LoRA is part of its result. Use that as the base model"),
    }
    for setting, (is_set, why) in refused.items():
        if is_set:
            raise UserError(f"The setting {setting.replace('_', ' ')} does not apply: {why}.")
    for stage in (first, second):
        if stage is not None and asked.stages in ("both", str(stage.number)):
            _check_stage(stage)


def _check_stage(stage: Stage) -> None:
    prediction_of(stage)
    least, multiple = SIDES
    if stage.side < least or stage.side % multiple:
        raise UserError(
            f"{stage.folder.name} makes images of {stage.side} pixels. DreamBooth trains stages of {least} pixels or "
            f"more, in multiples of {multiple}. Choose another cascade."
        )


def prediction_of(stage: Stage) -> str:
    """ "eps" or "v". Raises UserError for a stage that predicts the image itself."""
    kind = str(stage.scheduler.get("prediction_type", "epsilon"))
    if kind not in _PREDICTIONS:
        raise UserError(
            f"{stage.folder.name} predicts the image itself (prediction type {kind!r}), which DreamBooth cannot train. "
            "Choose a cascade that predicts noise or velocity."
        )
    return _PREDICTIONS[kind]
