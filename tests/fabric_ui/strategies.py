"""Random valid FABRIC settings."""

from __future__ import annotations

from hypothesis import strategies as st

from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from tests.shared.any_settings import any_settings

_weights = st.one_of(st.just(1.0), st.floats(0.0, 4.0))
_images = st.builds(FeedbackImage, st.text("0123456789abcdef", min_size=64, max_size=64), _weights)
_lists = st.lists(_images, max_size=4).map(tuple)


@st.composite
def fabric_settings(draw: st.DrawFn) -> FabricSettings:
    start, end = sorted((draw(st.floats(0.0, 1.0)), draw(st.floats(0.0, 1.0))))
    chosen = {"likes": _lists, "dislikes": _lists, "start": st.just(start), "end": st.just(end)}
    settings: FabricSettings = draw(any_settings(CONTROLS, **chosen))
    return settings
