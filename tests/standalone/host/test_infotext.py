"""Infotext: what is written can be read, in text and in files, and in galleries of any gradio."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from lib_methods.errors import UserError
from standalone.infotext import user_comment

LINES = st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=40).map(str.strip)
PROPERTY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_what_is_written_can_be_read(sd1: Any) -> None:
    from modules.infotext_utils import parse_generation_parameters

    result = sd1.generate(
        prompt="a (red:1.2) circle,\nsecond line: yes",
        negative_prompt="grey, x: y",
        enable_hr=True,
        hr_upscaler="Latent",
        hr_prompt='say "hi", twice',
        hr_scale=1.5,
        sampler_name="Euler",
        scheduler="Karras",
        steps=2,
        seed=77,
        override_settings={"CLIP_stop_at_last_layers": 2},
        width=72,
    )
    fields = parse_generation_parameters(result.info)
    expected = {
        "Prompt": "a (red:1.2) circle,\nsecond line: yes",
        "Negative prompt": "grey, x: y",
        "Steps": "2",
        "Sampler": "Euler",
        "Schedule type": "Karras",
        "CFG scale": "3.0",
        "Seed": "77",
        "Size-1": "72",
        "Size-2": "64",
        "Clip skip": "2",
        "Hires upscale": "1.5",
        "Hires upscaler": "Latent",
        "Hires prompt": 'say "hi", twice',
        "RNG": "CPU",
        "Model": sd1.host.model.sd_checkpoint_info.name_for_extra,
        "Model hash": sd1.host.model.sd_model_hash,
        "Emphasis": "Original",
        "Denoising strength": "0.75",
    }
    assert {key: fields.get(key) for key in expected} == expected


@given(prompt=LINES, negative=LINES, extra=LINES)
@PROPERTY
def test_any_text_survives(sd1: Any, prompt: str, negative: str, extra: str) -> None:
    from modules.infotext_utils import parse_generation_parameters, quote

    if prompt.startswith("Negative prompt:"):
        return  # a prompt that says so itself cannot be told from a negative prompt
    numbers = "Steps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    text = f"{prompt}\nNegative prompt: {negative}\n{numbers}, My field: {quote(extra)}"
    fields = parse_generation_parameters(text)
    assert fields["Prompt"] == prompt.strip()
    assert fields["Negative prompt"] == negative
    assert fields["Seed"] == "1"
    if '"' not in extra or any(char in extra for char in ",:"):
        assert fields.get("My field", "") == extra


@given(st.text(max_size=200))
@PROPERTY
def test_any_text_can_be_pasted(sd1: Any, text: str) -> None:
    from modules.infotext_utils import get_override_settings, parse_generation_parameters

    get_override_settings(parse_generation_parameters(text))


def test_fields_that_are_settings(sd1: Any) -> None:
    from modules.infotext_utils import create_override_settings_dict, get_override_settings, parse_generation_parameters

    assert create_override_settings_dict(["Clip skip: 2", "ENSD: 31337", "Nonsense: 1", "no colon"]) == {
        "CLIP_stop_at_last_layers": 2,
        "eta_noise_seed_delta": 31337,
    }
    fields = parse_generation_parameters("x\nSteps: 1, Sampler: Euler, Seed: 1, Clip skip: 2, ENSD: lots")
    assert ("Clip skip", "CLIP_stop_at_last_layers", 2) in get_override_settings(fields)
    assert not any(label == "ENSD" for label, _, _ in get_override_settings(fields))
    assert get_override_settings(fields, skip_fields=["Clip skip", "RNG"]) == []


def test_own_fields_of_scripts(sd1: Any) -> None:
    from modules import processing

    p = sd1.make(batch_size=2)
    p.extra_generation_params.update(
        {
            "Text": "a, b",
            "Each": ["first", "second"],
            "Asked": lambda index, prompt_text, **kwargs: f"{index} {prompt_text}",
            "Nothing": None,
            "Broken": lambda: 1,
        }
    )
    result = sd1.host.queue.run(processing.process_images, p)
    p.close()
    assert 'Text: "a, b", Each: first, Asked: 0 a red circle' in result.infotexts[0]
    assert "Each: second, Asked: 1 a red circle" in result.infotexts[1]
    assert "Nothing" not in result.info
    assert "Broken" not in result.info


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", *(["avif"] if features.check("avif") else [])])
@pytest.mark.parametrize("prompt", ["ein Käse 🧀, 東京", "東京", "🧀", "Привет"])
def test_files_keep_the_text(sd1: Any, tmp_path: Path, suffix: str, prompt: str) -> None:
    from modules import images

    text = f"{prompt}\nNegative prompt: x\nSteps: 1"
    path, _ = images.save_image(Image.new("RGB", (16, 8)), tmp_path, "", 5, "p", suffix, info=text)
    with Image.open(path) as saved:
        assert images.read_info_from_image(saved)[0] == text
    assert images.image_data(Path(path).read_bytes())[0] == text
    assert images.image_data(text.encode())[0] == text
    assert images.image_data(b"\xff\xfe\x00binary")[0] == ""
    assert images.read_info_from_image(Image.new("RGB", (2, 2)))[0] is None


def test_the_own_text_of_a_png_wins_over_exif(sd1: Any, tmp_path: Path) -> None:
    from modules import images

    image, target = Image.new("RGB", (16, 8)), tmp_path / "both.png"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "the text of the file")
    image.save(target, pnginfo=chunks, exif=user_comment.exif_of("a camera's comment"))
    with Image.open(target) as saved:
        assert images.read_info_from_image(saved)[0] == "the text of the file"


def test_gallery_values_of_any_gradio(sd1: Any, tmp_path: Path) -> None:
    from modules.infotext_utils import image_from_url_text

    image = Image.new("RGB", (5, 4), (10, 200, 30))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    allowed = sd1.host.output_dir / "inside.png"
    image.save(allowed)
    values = [
        image,
        (image, "caption"),
        [image],
        [(image, None)],
        data,
        f"data:image/png;base64,{data}",
        str(allowed),
        {"name": str(allowed), "is_file": True},
        [{"name": f"{allowed}?123", "is_file": True}],
        {"path": str(allowed)},
        {"image": {"path": str(allowed)}, "caption": None},
    ]
    for value in values:
        found = image_from_url_text(value)
        assert found is not None
        assert found.convert("RGB").getpixel((2, 2)) == (10, 200, 30), value
    assert image_from_url_text(None) is None
    assert image_from_url_text([]) is None


def test_files_elsewhere_and_what_is_no_image_are_refused(sd1: Any) -> None:
    from modules.infotext_utils import image_from_url_text

    # beside the output folder, not in it; and not under the temporary folder's own gradio directory
    outside = sd1.host.data_dir / "secret.png"
    Image.new("RGB", (2, 2)).save(outside)
    sneaky = sd1.host.output_dir / ".." / "secret.png"
    for value in (str(outside), {"path": str(outside)}, str(sneaky), {"name": str(sneaky), "is_file": True}):
        with pytest.raises(UserError, match="outside") as caught:
            image_from_url_text(value)
        assert str(sd1.host.data_dir) not in str(caught.value)
    broken: list[Any] = [
        "nonsense!",
        "data:image/png;base64,AAAA",
        5,
        "data:nothing",
        base64.b64encode(b"no image").decode(),
    ]
    for value in broken:
        with pytest.raises(UserError):
            image_from_url_text(value)


def test_old_sampler_names(sd1: Any) -> None:
    from modules.sd_samplers import get_hr_sampler_and_scheduler, get_sampler_and_scheduler

    assert get_sampler_and_scheduler("DPM++ 2M Karras", None) == ("DPM++ 2M", "Automatic")
    assert get_sampler_and_scheduler("DPM++ 2M Karras", None, convert_automatic=False) == ("DPM++ 2M", "Karras")
    assert get_sampler_and_scheduler("Euler a", "karras") == ("Euler a", "Karras")
    assert get_sampler_and_scheduler("DPM++ SDE SGMUniform", None) == ("DPM++ SDE", "SGM Uniform")
    assert get_sampler_and_scheduler("DDIM", None) == ("DDIM", "Automatic")
    assert get_sampler_and_scheduler(None, "nothing")[1] == "Automatic"
    assert get_hr_sampler_and_scheduler({"Sampler": "Euler", "Schedule type": "Karras"}) == (
        "Use same sampler",
        "Use same scheduler",
    )
    assert get_hr_sampler_and_scheduler({"Sampler": "Euler", "Hires sampler": "DDIM"})[0] == "DDIM"
