"""The formulas once more, plain and slow: numpy in double precision, image by image and channel by channel."""

from __future__ import annotations

import math

import numpy as np


def mimic(
    guided: np.ndarray,
    model: np.ndarray,
    share: float,
    separate: bool,
    startpoint: str,
    variability: str,
    phi: float,
) -> np.ndarray:
    """The mimic scale's threshold of latents (batch, channels, h, w)."""
    out = np.empty_like(guided)
    for i in range(len(guided)):
        centred = [channel - channel.mean() for channel in guided[i]]
        like = [channel - channel.mean() for channel in model[i]]
        for c in range(len(guided[i])):
            here = [c] if separate else range(len(guided[i]))
            values = np.concatenate([centred[k].ravel() for k in here])
            wished = np.concatenate([like[k].ravel() for k in here])
            if variability == "STD":
                wanted, found = wished.std(ddof=1), values.std(ddof=1)
            else:
                wanted, found = np.abs(wished).max(), np.quantile(np.abs(values), share)
            if startpoint == "ZERO":
                result = guided[i, c] * wanted / found
            elif variability == "STD":
                result = centred[c] / found * wanted + guided[i, c].mean()
            else:
                top = max(wanted, found)
                result = np.clip(centred[c], -top, top) / top * wanted + guided[i, c].mean()
            out[i, c] = phi * result + (1 - phi) * guided[i, c]
    return out


def schedule(scale: float, name: str, minimum: float, step: int, steps: int, value: float) -> float:
    """A scale over the steps, as the field's extension documents it."""
    share = step / (steps - 1) if steps > 1 else 0.0
    if name == "Constant":
        return scale
    if name.startswith("Linear Repeating"):
        part = math.fmod(share * value, 1.0)
        factor = (0.5 - part) * 2 if part < 0.5 else (part - 0.5) * 2
    elif name == "Cosine Repeating":
        factor = 0.5 * math.cos(2 * math.pi * share * value) + 0.5
    elif name == "Sawtooth":
        factor = math.fmod(share * value, 1.0)
    elif name.startswith("Linear"):
        factor = share if name.endswith("Up") else 1 - share
    elif name.startswith("Power"):
        factor = math.pow(share, value) if name.endswith("Up") else 1 - math.pow(share, value)
    else:
        down = math.cos(share) if name.startswith("Half") else math.cos(share * math.pi / 2)
        factor = 1 - down if name.endswith("Up") else down
    return minimum + (scale - minimum) * factor


def skim(base: np.ndarray, cond: np.ndarray, scale: float, skimming: float) -> np.ndarray:
    """Skimmed CFG, value by value."""
    out = np.empty_like(base)
    for place in np.ndindex(*base.shape):
        u, c = base[place], cond[place]
        full, low = (u + w * (c - u) for w in (scale, min(scale, skimming)))
        outward = np.sign(c - u) == np.sign(c) and np.sign(full) == np.sign(c)
        out[place] = low if outward else full
    return out


def mahiro(base: np.ndarray, cond: np.ndarray, scale: float) -> np.ndarray:
    """MaHiRo, image by image and position by position, in the order of ComfyUI's node."""
    out = np.empty_like(base)
    for i in range(len(base)):
        leap, guided = scale * cond[i], base[i] + scale * (cond[i] - base[i])
        merge, start = (leap + guided) / 2, scale * base[i]
        cosines = []
        for y, x in np.ndindex(*merge.shape[1:]):
            one, two = (np.sign(v[:, y, x]) * np.sqrt(np.abs(v[:, y, x])) for v in (start, merge))
            cosines.append(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))
        share = 2 * (np.mean(cosines) + 1)
        out[i] = (share * guided + (4 - share) * leap) / 4
    return out
