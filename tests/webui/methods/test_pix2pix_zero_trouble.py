"""pix2pix-zero in the real WebUI: switched off, with impossible requests, interrupted, beside LoRAs."""

from __future__ import annotations

import json
import re

import pytest

from tests.webui.client import JSON, ApiError
from tests.webui.edits import ERROR, IMG2IMG, SHORT, TITLE, TXT2IMG, edited, half, stopped
from tests.webui.host.test_lora import tagged, with_loras
from tests.webui.jobs import Runs, generate
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "pix2pix_zero.py").is_file(), reason="the script is not there"),
]
CASES: dict[str, JSON] = {
    "img2img, Euler": {**IMG2IMG, **SHORT},
    "img2img, DDIM": {**IMG2IMG, **SHORT, "sampler_name": "DDIM"},
    "img2img, Euler a": {**IMG2IMG, **SHORT, "sampler_name": "Euler a"},
    "txt2img, Euler a": {**TXT2IMG, **SHORT, "sampler_name": "Euler a"},
    "img2img, LCM": {**IMG2IMG, **SHORT, "sampler_name": "LCM"},
    "inpainting": {**IMG2IMG, **SHORT, "mask": half(0, 255)},
    "txt2img, UniPC": {**TXT2IMG, **SHORT, "sampler_name": "UniPC"},
    "Hires.fix": {
        **TXT2IMG,
        **SHORT,
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
    },
}
LONG: JSON = {"steps": 16}
INVERTS = "Finding the noise"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_off_the_image_is_that_of_no_pack(with_pack: WebUI, without_pack: WebUI, runs: Runs, case: JSON) -> None:
    plain = runs.first(without_pack, case)
    runs.first(with_pack, edited(case))  # a job with it must leave nothing behind
    assert generate(with_pack, case).pixels == plain.pixels
    off = generate(with_pack, edited(case, enabled=False))
    assert off.pixels == plain.pixels
    assert TITLE not in off.infotexts[0]


@pytest.mark.parametrize("case", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])
@pytest.mark.parametrize("sampler", ["LCM", "DPM fast", "DPM adaptive", "Restart"])
def test_samplers_that_cannot_be_edited_are_told(with_pack: WebUI, runs: Runs, case: JSON, sampler: str) -> None:
    job = {**case, **SHORT, "sampler_name": sampler}
    if sampler == "Restart":  # from 20 steps on
        job = {**job, "steps": 20, "denoising_strength": 1.0}
    answer = runs.first(with_pack, edited(job))
    assert answer.pixels == runs.first(with_pack, job).pixels
    _, _, sentence = answer.infotexts[0].partition(ERROR)
    assert re.search("Choose (another|Euler)", sentence)
    assert f"{TITLE} source" not in answer.infotexts[0]


NOISY: dict[str, JSON] = {
    name: {"sampler_name": name}
    for name in ("Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE")
} | {
    "Heun with churn": {"sampler_name": "Heun", "override_settings": {"s_churn": 2.0}},
    "DDIM with eta": {"sampler_name": "DDIM", "override_settings": {"eta_ddim": 0.5}},
    "another eta": {"sampler_name": "Euler a", "override_settings": {"eta_ancestral": 0.5}},
}


@pytest.mark.parametrize("name", NOISY)
def test_samplers_with_noise_of_their_own_run_without(with_pack: WebUI, runs: Runs, name: str) -> None:
    """As with eta and churn set to 0 by hand; the user's settings are there again in the next job."""
    job = {**IMG2IMG, **SHORT, **NOISY[name]}
    before = runs.first(with_pack, job)
    answer = runs.first(with_pack, edited(job))
    told = answer.infotexts[0]
    assert f"{TITLE} note" in told and "without the noise" in told
    assert ERROR not in told
    assert not re.search(r"\b(Eta|Eta DDIM|Sigma churn): ", told)
    by_hand = {**job, "override_settings": {"eta_ancestral": 0.0, "eta_ddim": 0.0, "s_churn": 0.0}}
    steady = runs.first(with_pack, edited(by_hand))
    assert f"{TITLE} note" not in steady.infotexts[0]
    assert answer.pixels == steady.pixels
    after = generate(with_pack, job)
    assert after.pixels == before.pixels
    assert after.infotexts == before.infotexts


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask_mode": "by word", "mask_word": "horse"}, 'word "horse" is not in the caption'),
        ({"directions": "nobody made this"}, "nobody made this"),
    ],
)
def test_what_is_known_only_when_the_job_runs_is_told(
    with_pack: WebUI, runs: Runs, fields: JSON, sentence: str
) -> None:
    job = {**IMG2IMG, **SHORT}
    answer = runs.first(with_pack, edited(job, **fields))
    assert ERROR in answer.infotexts[0]
    assert sentence in answer.infotexts[0].replace('\\"', '"')
    assert answer.pixels == runs.first(with_pack, job).pixels


def test_nothing_says_what_the_picture_shows(with_pack: WebUI, runs: Runs) -> None:
    job = {**IMG2IMG, **SHORT, "prompt": "  "}
    answer = runs.first(with_pack, edited(job))
    assert "Describe the image" in answer.infotexts[0]
    assert answer.pixels == runs.first(with_pack, job).pixels
    told = runs.first(with_pack, edited(job, caption="green circles"))
    assert ERROR not in told.infotexts[0]
    assert told.pixels[0] != answer.pixels[0]


BAD: dict[str, tuple[object, str]] = {
    "no such field": ([{"sorce": "green"}], "source"),
    "nothing asked": ([{}], "empty"),
    "no target": ([{"source": "green"}], "target is empty"),
    "the same": ([{"source": "green", "target": "Green"}], "nothing to change"),
    "too strong": ([{"source": "a", "target": "b", "strength": 99}], "Strength"),
    "not a number": ([{"source": "a", "target": "b", "structure": "much"}], "Structure"),
    "start after end": ([{"source": "a", "target": "b", "start": 0.9, "end": 0.1}], "Swap"),
    "a path for a mask": ([{"source": "a", "target": "b", "mask": "/etc/passwd"}], "mask"),
    "an unknown mask": ([{"source": "a", "target": "b", "mask": "0" * 64}], "not on this machine"),
    "no mask": ([{"source": "a", "target": "b", "mask_mode": "keep white"}], "mask"),
    "a guidance that is not there": ([{"source": "a", "target": "b", "guidance": "soft"}], "soft blend"),
    "words in place of a list": ("green to red", "list"),
    "too many values": ([True] * 99, "controls"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_sentence(with_pack: WebUI, name: str) -> None:
    arguments, word = BAD[name]
    with pytest.raises(ApiError) as refused:
        with_pack.client.generate({**TXT2IMG, **SHORT, "alwayson_scripts": {TITLE: {"args": arguments}}})
    assert refused.value.status == 422
    detail = json.loads(refused.value.body)["detail"]
    assert detail.startswith(f"{TITLE}: ")
    assert word in detail
    assert len(detail.split()) > 4, "not a sentence"
    assert str(with_pack.data) not in detail


@pytest.mark.parametrize(
    ("sampler", "path", "stage"),
    [
        ("Euler", "interrupt", "inversion"),
        ("Euler", "interrupt", "sampling"),
        ("DDIM", "interrupt", "sampling"),
        ("DDIM", "skip", "inversion"),
    ],
)
def test_stopped_in_the_middle_the_host_is_clean(
    with_pack: WebUI, runs: Runs, sampler: str, path: str, stage: str
) -> None:
    plain = {**IMG2IMG, **SHORT, "sampler_name": sampler}
    short = edited(plain)
    before, edit_before = runs.first(with_pack, plain), runs.first(with_pack, short)
    # its own caption: no other job may have left the inversion behind
    long = edited({**IMG2IMG, **LONG, "sampler_name": sampler}, caption=f"{stage} {path} green circles")

    def when(progress: JSON) -> bool:
        if INVERTS in (progress["textinfo"] or ""):
            step = int(progress["textinfo"].split("step ")[1].split()[0])
            return stage == "inversion" and step > 3
        return stage == "sampling" and progress["state"]["sampling_step"] > 3

    answer = stopped(with_pack, long, when, path)
    assert len(answer.images) >= 1
    assert generate(with_pack, plain).pixels == before.pixels
    assert generate(with_pack, short).pixels == edit_before.pixels
    whole = generate(with_pack, long)  # the inversion continues where it was left
    assert ERROR not in whole.infotexts[0]
    assert whole.pixels[0] != answer.pixels[0]


def test_an_interrupt_between_the_batches_of_a_job(with_pack: WebUI, runs: Runs) -> None:
    plain = {**TXT2IMG, **SHORT}
    before = runs.first(with_pack, plain)
    several = edited({**TXT2IMG, **LONG, "n_iter": 3})
    # until the job begins, some hosts tell how the last one ended
    second = lambda state: state["job_count"] == 3 and state["job_no"] == 1  # noqa: E731
    answer = stopped(with_pack, several, lambda progress: second(progress["state"]))
    assert len(answer.images) < 6
    assert generate(with_pack, plain).pixels == before.pixels


def test_a_lora_counts_and_leaves_nothing_behind(with_pack: WebUI, runs: Runs) -> None:
    server = with_loras(with_pack)
    case = {**IMG2IMG, **SHORT}
    jobs = [
        edited(tagged(case, tag)) for tag in ("", "<lora:half:1>", "<lora:half:0.5>", "<lora:text:1>", "<lora:unet:1>")
    ]
    answers = [runs.first(server, job) for job in jobs]
    assert all(ERROR not in answer.infotexts[0] for answer in answers)
    assert len({answer.pixels[0] for answer in answers}) == len(jobs)
    # in another order, and with inversions that are kept
    for job, answer in reversed(list(zip(jobs, answers))):
        assert generate(server, job).pixels == answer.pixels
