"""Random valid FABRIC settings."""

from __future__ import annotations

from hypothesis import strategies as st

from lib_methods.fabric.settings import DETAILS, HIRES_MODES, WEIGHTINGS, FabricSettings, FeedbackImage

_weights = st.one_of(st.just(1.0), st.floats(0.0, 4.0))
_lists = st.lists(st.builds(FeedbackImage, st.text("0123456789abcdef", min_size=64, max_size=64), _weights), max_size=4)


@st.composite
def fabric_settings(draw: st.DrawFn) -> FabricSettings:
    start, end = sorted((draw(st.floats(0.0, 1.0)), draw(st.floats(0.0, 1.0))))
    strengths = st.floats(0.0, 2.0)
    return FabricSettings(
        likes=tuple(draw(_lists)),
        dislikes=tuple(draw(_lists)),
        strength=draw(strengths),
        start=start,
        end=end,
        negative_weight=draw(strengths),
        min_strength=draw(strengths),
        weighting=draw(st.sampled_from(WEIGHTINGS)),
        colour_correction=draw(st.booleans()),
        detail=draw(st.sampled_from(DETAILS)),
        hires=draw(st.sampled_from(HIRES_MODES)),
        hires_strength=draw(strengths),
        cache_limit_mb=draw(st.integers(0, 10**6)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
