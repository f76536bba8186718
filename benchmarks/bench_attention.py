"""Three exact ways to weigh reference tokens, timed side by side: `python run.py bench attention --out DIR`.

The top layers of SD1.5 at 512x512: 4096 own tokens and 4096 for each liked image, 8 heads of 40 channels.

- merge: own and reference tokens attended to separately, merged by their log-sum-exp (what FABRIC uses);
- channel: one more head channel, sqrt(d) in the query and log w in the key, in one fused attention;
- bias: log w as a dense additive bias, as the first extension has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.harness.full_size import PeakMemory, settle
from benchmarks.harness.report import write_json
from lib_methods.fabric.attention import attention_with_lse, merge, reference_attention

HEADS, CHANNELS = 8, 40


def by_merge(query: Tensor, key: Tensor, value: Tensor, own: int, log_weight: float) -> Tensor:
    """Shapes (1, H, T, d) and (1, H, S, d), the first `own` of S being own tokens."""
    images = (key.shape[2] - own) // own
    keys, values = (t[:, :, own:].unflatten(2, (images, own))[0].transpose(0, 1) for t in (key, value))
    out, lse = attention_with_lse(query, key[:, :, :own], value[:, :, :own])
    return merge(out, lse, *reference_attention(query, keys, values, [log_weight] * images))[0]


def by_channel(query: Tensor, key: Tensor, value: Tensor, own: int, log_weight: float) -> Tensor:
    """The same with one more channel, padded to a multiple of 8 for the kernels that want one."""
    scale, extra = CHANNELS**-0.5, 8 - CHANNELS % 8
    wide_query, wide_key = pad(query, (0, extra)), pad(key, (0, extra))
    wide_query[..., CHANNELS] = 1 / scale
    wide_key[:, :, own:, CHANNELS] = log_weight
    return scaled_dot_product_attention(wide_query, wide_key, pad(value, (0, extra)), scale=scale)[..., :CHANNELS]


def by_bias(query: Tensor, key: Tensor, value: Tensor, own: int, log_weight: float) -> Tensor:
    """The same with a bias of shape (T, S)."""
    bias = query.new_zeros(query.shape[2], key.shape[2])
    bias[:, own:] = log_weight
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, int, float], Tensor]] = {
    "merge": by_merge,
    "channel": by_channel,
    "bias": by_bias,
}


def main(out: Path, quick: bool) -> int:
    """Write bench.json into `out`; 0 when done, 1 if the forms disagree."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    own, counts, repeats = (1024, (1, 4), 3) if quick else (4096, (1, 2, 4, 6), 5)
    figures: dict[str, float] = {}
    for count in counts:
        torch.manual_seed(count)
        query = torch.randn(1, HEADS, own, CHANNELS, device=device, dtype=dtype)
        key, value = (torch.randn(1, HEADS, own * (1 + count), CHANNELS, device=device, dtype=dtype) for _ in range(2))
        times: dict[str, list[float]] = {name: [] for name in FORMS}
        results = {}
        for _ in range(repeats + 1):  # the first round warms up
            for name, form in FORMS.items():
                with PeakMemory(device) as memory:
                    started = time.perf_counter()
                    results[name] = form(query, key, value, own, -0.5)
                    settle()
                    times[name].append(time.perf_counter() - started)
                figures[f"peak_bytes_{name}_{count}"] = float(memory.peak or 0)
        tolerance = 1e-5 if dtype == torch.float32 else 5e-3
        if any((results[name] - results["merge"]).abs().max() > tolerance for name in FORMS):
            print("The three forms do not agree.")
            return 1
        for name in FORMS:
            figures[f"ms_{name}_{count}"] = round(1000 * statistics.median(times[name][1:]), 2)
        for name in ("channel", "bias"):
            ratios = [a / b for a, b in zip(times[name][1:], times["merge"][1:])]
            figures[f"ratio_{name}_over_merge_{count}"] = round(statistics.median(ratios), 3)
        print("  " + ", ".join(f"{name} {figures[f'ms_{name}_{count}']:.1f} ms" for name in FORMS), f"at {count}")
    write_json(out / "bench.json", figures, {"device": str(device), "dtype": str(dtype), "own_tokens": own})
    return 0
