"""What the cache keeps where there is room for more."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from lib_methods.attention import self_attentions
from lib_methods.fabric.apply import attach
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache
from lib_methods.fabric.settings import FabricSettings
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import small_unet
from tests.fabric.test_promises import CONTEXT, ROWS, X, album_of


def test_keys_and_values_are_kept_where_there_is_room_and_are_the_same_to_the_last_bit() -> None:
    unet = small_unet()
    album, ids = album_of(3)
    asked = FabricSettings(likes=tuple(map(FeedbackImage, ids[:2])), dislikes=(FeedbackImage(ids[2]),))
    roomy, tight = FeatureCache(), FeatureCache()
    results = []
    for cache, megabytes in ((roomy, 1024), (tight, 1)):
        calls: list[int] = []
        sampling = BareSampling(unet)
        attach(sampling, replace(asked, cache_limit_mb=megabytes), album.load, cache)
        results.append(sampling.denoise(X, CONTEXT, ROWS))
        watched = cast(nn.Module, self_attentions(unet)[0].module.to_k)
        handle = watched.register_forward_hook(lambda _, inputs, out, calls=calls: calls.append(len(inputs[0])))
        try:
            results.append(sampling.denoise(X, CONTEXT, ROWS))
        finally:
            handle.remove()
        assert calls == ([len(ROWS)] if megabytes > 1 else [len(ROWS), 3])  # the references once more where not kept
    assert all(torch.equal(result, results[0]) for result in results)
    assert roomy.size == 2 * tight.size > 0
