"""Infotext: what is written comes back, what others write is read as they meant it, and hostile text costs no time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.infotext import foreign, text

HOSTILE = (
    'say "hi"',
    '"quoted"',
    '"',
    '\\"',
    "\\",
    "a\\",
    "a, b",
    "a: b",
    "a\nb",
    "a\r\nb",
    "a\r",
    " a ",
    "\n a\t",
    "🧀 東京",
    "4x4",
    "64x64",
    '{"a": 1}',
    "[1, 2",
    "[a|b]",
    "Steps: 20, Sampler: Euler, Seed: 1",
    "x\nSteps: 1, Seed: 2, Size: 8x8",
    "Negative prompt: no",
    "a\nNegative prompt: no",
    "a\n  Negative prompt: no\nNegative prompt: never",
    "Template: x",
    "x\nTemplate: {a|b}\nNegative Template: y",
    "Prompt: a",
    "a\u2028b\x85c",
    "\ufeffa",
    "\x00",
    "Version: steer-1",
    "a|b",
    "<lora:a:1>, (b:1.2)",
    "",
    ",",
    ":",
    "a,",
    "Size: 8x8",
    "Hires prompt",
    "Negative prompt:",
    '": "',
    '","',
    "&#10;",
)
ANY = st.text(max_size=60)
TEXTS = st.one_of(st.sampled_from(HOSTILE), ANY, st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join))
USUAL: dict[str, Any] = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7.0, "Seed": 1, "Size": "512x768"}
LAST = {"Version": "steer-0.1.0"}
OURS = {**USUAL, "Seed": 5, "Model hash": "abc", **LAST}
HEAD = "a cat, sitting\nNegative prompt: ugly, bad"
STANDARD = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: abc"


@given(
    TEXTS, TEXTS, st.dictionaries(st.sampled_from(("Hires prompt", "Any method target", "Note")), TEXTS), st.booleans()
)
@settings(max_examples=500, deadline=None)
def test_what_is_written_comes_back(prompt: str, negative: str, extra: dict[str, str], version: bool) -> None:
    found = text.read(text.write(prompt, negative, {**USUAL, **extra, **(LAST if version else {})}))
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert {key: found.fields[key] for key in extra} == extra
    assert (found.fields["Size-1"], found.fields["Size-2"], found.fields["Seed"]) == ("512", "768", "1")


@pytest.mark.parametrize("prompt", [" a ", "a\n", "a, b: c", "a\r\nb", 'say "hi"', "64x64"])
def test_a_usual_prompt_is_written_once(prompt: str) -> None:
    assert "Prompt:" not in text.write(prompt, "x", {**USUAL, **LAST})


FORMS = {
    "the WebUI's": f"{HEAD}\n{STANDARD}",
    "CRLF": f"a cat, sitting\r\nNegative prompt: ugly, bad\r\n{STANDARD}\r\n",
    "CR": f"a cat, sitting\rNegative prompt: ugly, bad\r{STANDARD}",
    "blanks and empty lines": f"\n  a cat, sitting \n\n Negative prompt: ugly, bad\n\n{STANDARD}\n\n",
    "parameters over two lines": f"{HEAD}\n{STANDARD.replace('Seed', chr(10) + 'Seed')}",
    "the last lines short": f"{HEAD}\n{STANDARD.replace(', Model', ',' + chr(10) + 'Model')}",
    "one line": f"a cat, sitting Negative prompt: ugly, bad {STANDARD}",
    "one line of a forum": f"Prompt: a cat, sitting | Negative prompt: ugly, bad | {STANDARD.replace(', ', ' | ')}",
    "bars in the parameters": f"{HEAD}\n{STANDARD.replace(', ', ' | ')}",
    "semicolons in the parameters": f"{HEAD}\n{STANDARD.replace(', ', '; ')}",
    "a list": f"{HEAD}\n- {STANDARD.replace(', ', chr(10) + '- ')}",
    "a title in front": f"{HEAD}\nSettings: {STANDARD}",
    "blanks of HTML": f"{HEAD}\n{STANDARD}".replace("CFG scale", "CFG\xa0scale").replace("Model hash", "Model\xa0hash"),
    "a zero at the end": f"{HEAD}\n{STANDARD}\0",
    "one parameter a line": f"Prompt: a cat, sitting\nNegative prompt: ugly, bad\n{STANDARD.replace(', ', chr(10))}",
    "in another order": "a cat, sitting\nNegative Prompt: ugly, bad\nSampler: Euler a\nSteps: 20\nCFG: 7\nSeed: 5\n"
    "Resolution: 512x768\nModel hash: abc",
    "Easy Diffusion's": "Prompt: a cat, sitting\nWidth: 512\nHeight: 768\nSeed: 5\nSteps: 20\nGuidance Scale: 7\n"
    "Sampler: Euler a\nNegative Prompt: ugly, bad\nModel hash: abc",
    "Draw Things'": f"a cat, sitting\n-ugly, bad\n{STANDARD}, Seed Mode: Scale Alike",
    "in a fence": f"```\n{HEAD}\n{STANDARD}\n```",
    "quoted": "\n".join(f"> {line}" for line in f"{HEAD}\n{STANDARD}".split("\n")),
    "bold names": "**Prompt:** a cat, sitting\n**Negative prompt**: ugly, bad\n"
    + STANDARD.replace("Steps:", "**Steps:**").replace("Size:", "**Size**:"),
    "line breaks of HTML": f"{HEAD}\n{STANDARD}".replace("\n", "<br />"),
    "steps after the seed": f"{HEAD}\nSeed: 5, {STANDARD.replace('Seed: 5, ', '')}",
    "size by hand": f"{HEAD}\n{STANDARD.replace('512x768', '512 × 768')}",
    "a decimal comma": f"{HEAD}\n{STANDARD.replace('scale: 7', 'scale: 7,0')}",
    "full-width punctuation": f"{HEAD}\n{STANDARD}".replace(":", "：").replace(", S", "，S").replace("7,", "7，0，"),
    "full-width punctuation in one line": f"a cat, sitting Negative prompt： ugly, bad {STANDARD}".replace(
        "Steps: 20, ", "Steps：20，"
    ),
    "templates": f"{HEAD}\n{STANDARD}\nTemplate: a {{cat|dog}}, sitting: now\n"
    "and here\nNegative Template: ugly, {bad|worse}",
    "a remark below": f"{HEAD}\n{STANDARD}\n\nMade in Krita, with love",
    "ours": text.write("a cat, sitting", "ugly, bad", OURS),
    "ours through a mail": text.write("a cat, sitting", "ugly, bad", OURS).replace("\n", "\r\n"),
    "ours in one line": text.write("a cat, sitting", "ugly, bad", OURS).replace("\n", " "),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_text_is_read(form: str) -> None:
    found = text.read(FORMS[form])
    assert (found.prompt, found.negative_prompt) == ("a cat, sitting", "ugly, bad")
    wanted = {"Steps": "20", "Sampler": "Euler a", "Seed": "5", "Size-1": "512", "Size-2": "768", "Model hash": "abc"}
    assert {key: found.fields.get(key) for key in wanted} == wanted
    assert float(found.fields["CFG scale"]) == 7


def test_only_a_decimal_comma_joins_two_numbers() -> None:
    fields = text.read('a\nSteps: 20, Denoising strength: 0,55, Sizes: 1, 2, Seed: 1,234,567, Note: "2,5"').fields
    assert (fields["Denoising strength"], fields["Sizes"], fields["Note"]) == ("0.55", "1", "2,5")
    assert fields["Seed"] != "1.234"
    assert text.read(f"一只猫，坐着：好\n{STANDARD}").prompt == "一只猫，坐着：好"


def test_templates_are_fields() -> None:
    fields = text.read(FORMS["templates"]).fields
    assert fields["Template"] == "a {cat|dog}, sitting: now\nand here"
    assert fields["Negative Template"] == "ugly, {bad|worse}"


def test_resources_of_civitai_are_one_field() -> None:
    resources = '[{"type":"checkpoint","modelVersionId":1,"modelName":"a: b, c"}]'
    line = f"{STANDARD}, Created Date: 2024-01-02T03:04:05.6Z, Civitai resources: {resources}, Civitai metadata: {{}}"
    fields = text.read(f"a\n{line}").fields
    assert json.loads(fields["Civitai resources"])[0]["modelName"] == "a: b, c"
    assert fields["Civitai metadata"] == "{}"
    assert fields["Created Date"] == "2024-01-02T03:04:05.6Z"


@pytest.mark.parametrize(
    "words",
    [
        "photo, style: oil, mood: dark, light: soft",
        "a cat",
        "Prompt: a cat",
        "a: b",
        '{"a": 1}, a cat',
        "{a|b}",
        "Steps: 20",
        "",
        "Steps: 1, a: b\nc",
    ],
)
def test_a_text_without_parameters_is_a_prompt(words: str) -> None:
    assert text.read(words) == (words, "", {})


FLAT = {"steps": 20, "seed": 5, "width": 512, "height": 768}
JSON = {
    "InvokeAI's": {
        **FLAT,
        "positive_prompt": "a cat",
        "negative_prompt": "ugly",
        "cfg_scale": 7,
        "scheduler": "euler_a",
    },
    "SwarmUI's": {
        "sui_image_params": {
            **FLAT,
            "prompt": "a cat",
            "negativeprompt": "ugly",
            "cfgscale": 7,
            "sampler": "euler_ancestral",
        }
    },
    "Fooocus'": {
        "prompt": "a cat",
        "negative_prompt": "ugly",
        "steps": 20,
        "seed": "5",
        "resolution": "(512, 768)",
        "guidance_scale": 7.0,
        "sampler": "euler_ancestral",
        "full_prompt": ["a cat"],
    },
    "Civitai's": {
        "resource-stack": {},
        "extraMetadata": json.dumps(
            {**FLAT, "prompt": "a cat", "negativePrompt": "ugly", "cfgScale": 7, "sampler": "Euler a"}
        ),
    },
}


@pytest.mark.parametrize("program", JSON)
def test_parameters_in_json_are_read(program: str) -> None:
    found = text.read(json.dumps(JSON[program], indent=2))
    assert (found.prompt, found.negative_prompt, float(found.fields.pop("CFG scale"))) == ("a cat", "ugly", 7)
    assert found.fields == {"Steps": "20", "Seed": "5", "Size-1": "512", "Size-2": "768", "Sampler": "Euler a"}
    assert (
        text.read(str(text.infotext_of(None, {"invokeai_metadata": json.dumps(JSON[program])}))).fields["Seed"] == "5"
    )


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ('{"3": {"class_type": "KSampler", "inputs": {"seed": 5}}}', "ComfyUI"),
        ('{"last_node_id": 3, "nodes": [{"id": 1', "ComfyUI"),
        ('[{"prompt": "a cat"}]', "another program"),
        ('{"prompt": ["a cat"], "steps": 1, "seed": 2}', "another program"),
        ('{"a": ' * 50_000, "another program"),
        (f'{{"seed": {"9" * 6000}}}', "another program"),
    ],
)
def test_other_json_is_never_a_prompt(words: str, program: str) -> None:
    assert text.read(words) == ("", "", {foreign.UNREAD: program})


def test_images_of_novelai_have_an_infotext() -> None:
    comment = {
        **FLAT,
        "prompt": "a {cat}",
        "uc": "ugly",
        "scale": 11.0,
        "sampler": "k_dpmpp_2m",
        "strength": 0.7,
        "noise_schedule": "karras",
        "request_type": "PromptGenerateRequest",
    }
    items = {"Software": "NovelAI", "Description": "a {cat}", "Comment": json.dumps(comment)}
    written = str(text.infotext_of(None, items))
    assert written.startswith("a {cat}\nNegative prompt: ugly\nSteps: 20, ")
    fields = text.read(written).fields
    assert (fields["Sampler"], fields["Schedule type"], fields["Size-2"]) == ("DPM++ 2M", "Karras", "768")
    assert (fields["Clip skip"], fields["ENSD"]) == ("2", "31337") and "Denoising strength" not in fields
    assert text.infotext_of(None, {**items, "Comment": "broken"}) is None
    del comment["prompt"]  # as in the images of its first years
    assert text.infotext_of(None, {**items, "Comment": json.dumps(comment)}) == written


@given(st.one_of(TEXTS, st.text(alphabet='ab1,:"\\\n\r |{[]}-/x', max_size=200)))
def test_any_text_can_be_read(words: str) -> None:
    text.read(words)
    text.read(f"{words}\n{STANDARD}{words}")


BAD = (
    "a",
    "a ",
    "a:",
    "aa:",
    "a,",
    '"',
    '\\"',
    "\\",
    "\n",
    "\r",
    " ",
    "1",
    "aa:[",
    'aa:["',
    "aa:{",
    '{"a":',
    "[ ",
    'aa:"',
    'aa:"\\",',
    "|",
    "Steps: 1,",
    "Steps: 1 |",
    "\nSteps: 1\n",
    "\nNegative prompt:",
    "\n  ",
    "x\nTemplate: a",
    "Steps:",
    "Steps：",
    "aa:1,",
    ": ",
)


@pytest.mark.parametrize("unit", BAD)
def test_reading_and_writing_take_linear_time(unit: str) -> None:
    """Quadratic work takes minutes here, linear work a second."""
    hostile = unit * (100_000 // len(unit))
    started = time.process_time()
    for words in (hostile, f"{hostile}\n{STANDARD}", f"{STANDARD}, Note: {hostile}", f"Steps: 1, {hostile}"):
        text.read(words)
    text.write(hostile, hostile, {**USUAL, "Note": hostile, **LAST})
    assert time.process_time() - started < 20
