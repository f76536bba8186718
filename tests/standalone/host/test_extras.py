"""Extras: images are enlarged to the size that was asked for, keep their infotext, and bad ones cost a sentence."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lib_methods.errors import UserError
from lib_methods.pictures.convert import MAX_PIXELS, MAX_SIDE, ImageError, open_image
from standalone import host as standalone_host

standalone_host.import_modules()

from standalone.host import extras, images, shared, upscalers  # noqa: E402
from standalone.host.scripts import loading, upscale  # noqa: E402
from standalone.host.scripts.postprocessing import PostprocessedImage, ScriptPostprocessingRunner  # noqa: E402
from standalone.host.scripts.script import ScriptClassData  # noqa: E402

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZE = st.tuples(st.integers(1, 70), st.integers(1, 70))
LANCZOS, NEAREST = (upscalers.find_upscaler(name) for name in ("Lanczos", "Nearest"))
PROBE = Path(__file__).resolve().parents[2] / "api" / "extension" / "scripts" / "postprocessing_probe.py"
PARAMETERS = "a red circle\nSteps: 3, Sampler: Euler, Seed: 7, Size: 24x16"


@given(size=SIZE, by=st.floats(0.05, 6), longest=st.sampled_from([0, 8, 50, 200]))
@PROPERTY
def test_scaled_by_a_factor_an_image_has_that_size_in_multiples_of_eight(
    size: tuple[int, int], by: float, longest: int
) -> None:
    wanted = upscale.Upscale(LANCZOS, by=by, longest=longest)
    image = Image.new("RGB", size, (90, 20, 20))
    if min(size) * wanted.scale(size) < 1:
        with pytest.raises(UserError, match="smaller than a pixel"):
            wanted.apply(image)
        return
    result, done = wanted.apply(image)
    assert result.size == wanted.size(size)
    exact = [side * min(by, longest / max(size)) if longest else side * by for side in size]
    assert list(result.size) == [max(8, math.floor(side + 1e-6) // 8 * 8) for side in exact]
    assert done["Postprocess upscale by"] == by and done["Postprocess upscaler"] == "Lanczos"
    assert ("Max side length" in done) == (longest > 0 and max(size) * by > longest)
    assert result.getextrema() == ((90, 90), (20, 20), (20, 20)), "one colour stays one colour"


@given(size=SIZE, target=SIZE, crop=st.booleans(), alpha=st.booleans())
@PROPERTY
def test_scaled_to_a_size_an_image_covers_it(
    size: tuple[int, int], target: tuple[int, int], crop: bool, alpha: bool
) -> None:
    wanted = upscale.Upscale(NEAREST, mode=upscale.TO, width=target[0], height=target[1], crop=crop)
    colour = (90, 20, 20, 128)[: 4 if alpha else 3]
    image = Image.new("RGBA" if alpha else "RGB", size, colour)
    if min(size) * wanted.scale(size) < 1:
        return
    result, done = wanted.apply(image)
    colours = np.asarray(result, dtype=int).reshape(-1, len(colour))
    assert np.abs(colours - colour).max() <= 1, "covered to the edge"
    text = f"{target[0]}x{target[1]}"
    if crop:
        assert result.size == target
        assert done["Postprocess crop to"] == text
    else:
        assert all(side % 8 == 0 and side > goal - 8 for side, goal in zip(result.size, target))
    assert done["Postprocess upscale to"] == text


def test_two_upscalers_are_blended_by_visibility() -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (4, 0, 8, 8))
    one, other = (upscale.Upscale(upscaler, by=4).apply(image)[0] for upscaler in (LANCZOS, NEAREST))
    both, done = upscale.Upscale(LANCZOS, NEAREST, 0.25, by=4).apply(image)
    assert both.tobytes() == Image.blend(one, other, 0.25).tobytes() != one.tobytes()
    assert done["Postprocess upscaler 2"] == "Nearest"
    assert upscale.Upscale(LANCZOS, NEAREST, 0, by=4).apply(image)[0].tobytes() == one.tobytes()


def test_without_an_upscaler_the_image_stays() -> None:
    image = Image.new("RGB", (5, 7))
    assert upscale.Upscale(None, NEAREST, 1).apply(image) == (image, {})


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((4096, 4096), {"by": 4}),
        ((MAX_SIDE, 8), {"by": 2}),
        ((MAX_SIDE, 1), {"mode": upscale.TO, "width": 8192, "height": 8192}),
    ],
)
def test_a_result_that_is_too_large_is_refused_before_it_is_made(size: tuple[int, int], fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{MAX_PIXELS // 2**20} megapixels. Choose a smaller size"):
        upscale.Upscale(LANCZOS, **fields).size(size)


NUMBERS = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=5), st.booleans(), st.lists(st.integers()))


@given(
    st.fixed_dictionaries(
        {"upscaler_1_name": st.sampled_from(["Lanczos", "nearest"])},
        optional={
            **dict.fromkeys((*upscale._LABELS, "upscale_mode", "upscale_crop"), NUMBERS),
            "upscaler_2_name": st.one_of(NUMBERS, st.just("Nearest")),
        },
    )
)
@settings(max_examples=200, deadline=None)
def test_any_arguments_give_an_image_or_a_sentence(args: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        found = upscale.upscale_of(args)
        if math.prod(found.size((9, 5))) < 2**20:
            found.apply(Image.new("RGB", (9, 5)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., extras.Extras]:
    """Makes a run with the host's own script and an extension's, which saves into `out` of the test's folder."""
    module = loading.load_module(str(PROBE))
    classes = [upscale.ScriptPostprocessingUpscale, module.Broken, module.Mirror]
    runner = ScriptPostprocessingRunner()
    runner.initialize_scripts([ScriptClassData(one, str(PROBE), str(PROBE.parent), module) for one in classes])
    monkeypatch.setattr(loading, "scripts_postproc", runner)
    shared.state.begin("extras")

    def make(sources: list[extras.Source], *, to: str | None = "out", **scripts: dict[str, Any]) -> extras.Extras:
        upscale_args = {"upscale_enabled": True, "upscaler_1_name": "Lanczos", "upscale_by": 2}
        args = runner.create_args_for_run({"Upscale": upscale_args, **scripts})
        return extras.Extras(sources, args, None if to is None else str(tmp_path / to))

    return make


@pytest.fixture
def option(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    return lambda key, value: monkeypatch.setitem(shared.opts.data, key, value)


def picture(path: Path, parameters: str = PARAMETERS) -> Path:
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((24, 16), 60).convert("RGB").save(path, pnginfo=info)
    return path


DONE = "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"


def test_a_png_keeps_its_infotext_and_says_what_was_done(run: Any, tmp_path: Path) -> None:
    (result,) = run([extras.file_source(picture(tmp_path / "a.png"))]).results()
    assert (result.infotext, result.done) == (PARAMETERS, DONE)
    with Image.open(tmp_path / "out" / "00000.png") as saved:
        assert saved.size == (48, 32)
        assert saved.info == {"parameters": PARAMETERS, "postprocessing": DONE, "extras": DONE}


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_a_format_with_room_for_one_text_has_both_in_it(run: Any, tmp_path: Path, option: Any, extension: str) -> None:
    option("samples_format", extension)
    list(run([extras.file_source(picture(tmp_path / "a.png"))]).results())
    found, _ = images.read_info_from_image(open_image(tmp_path / "out" / f"00000.{extension}"))
    assert found == f"{PARAMETERS}, {DONE}"


def test_files_keep_their_names_and_none_is_written_over(run: Any, tmp_path: Path, option: Any) -> None:
    source = extras.file_source(picture(tmp_path / "my cat.old.png"), keeps_name=True)
    for _ in range(2):
        list(run([source, source]).results())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["my cat.old-1.png", "my cat.old-2.png", "my cat.old-3.png", "my cat.old.png"]
    hostile = [extras.Source(source.open, name, keeps_name=True) for name in ("../a\n.png", "con.png", ".png", "..")]
    list(run(hostile, to="hostile").results())
    names = sorted(path.name for path in (tmp_path / "hostile").iterdir())
    assert names == ["_con.png", "a_.png", "image.png", "png.png"]
    option("use_original_name_batch", False)
    list(run([source], to="numbered").results())
    assert [path.name for path in (tmp_path / "numbered").iterdir()] == ["00000.png"]


def test_an_extensions_script_runs_as_it_is_and_a_broken_one_costs_nothing(run: Any, tmp_path: Path) -> None:
    source = extras.file_source(picture(tmp_path / "a.png", ""), keeps_name=True)
    plain = next(run([source], to=None).results())
    mirrored, copy = run([source], Mirror={"enable": True, "copy": True}).results()
    assert mirrored.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == plain.image.tobytes()
    assert copy.image.tobytes() == plain.image.tobytes()
    assert mirrored.done == f"{DONE}, Mirrored" and copy.done == DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-plain.png", "a.png"]


def test_of_several_images_bad_ones_are_left_out_and_named(run: Any, tmp_path: Path) -> None:
    good = extras.file_source(picture(tmp_path / "good.png"))
    bad = []
    for name in ("b1.png", "b2.png", "b3.png", "b4.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        bad.append(extras.file_source(tmp_path / name))
    large = extras.Source(lambda: Image.new("L", (MAX_SIDE, 8)), "large.png")
    made = run([*bad, good, large])
    assert len(list(made.results())) == 1
    assert made.problems[0].startswith("large.png: The result would be 32768x16, larger than")
    assert made.problems[1] == "4 of 6 images could not be read: b1.png, b2.png, b3.png ..."
    with pytest.raises(ImageError):
        list(run([bad[0]]).results())


def test_a_run_can_be_interrupted_and_an_image_skipped(run: Any, tmp_path: Path) -> None:
    source = extras.file_source(picture(tmp_path / "a.png"))
    results = run([source] * 3).results()
    next(results)
    shared.state.interrupted = True
    assert list(results) == []

    def skip() -> Image.Image:
        shared.state.skipped = True
        return source.open()

    shared.state.interrupted = False
    assert len(list(run([source, extras.Source(skip), source]).results())) == 2


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b10.png", "b2.JPG", "a.webp", ".hidden.png", "notes.txt", "page.svg"):
        (tmp_path / name).touch()
    (tmp_path / "inner.png").mkdir()
    assert [source.name for source in extras.folder_sources(f' "{tmp_path}" ')] == ["a.webp", "b2.JPG", "b10.png"]


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("", "whole path"),
        ("pictures", "whole path"),
        ("{}/nothing", "There is no such folder"),
        ("{}/file", "There is no such folder"),
        ("{}/empty", "There are no images"),
        ("{}/\0", "The folder cannot be read|There is no such folder"),
    ],
)
def test_a_folder_that_cannot_be_used_costs_a_sentence(tmp_path: Path, folder: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=told):
        extras.folder_sources(folder.format(tmp_path))


def test_suffixes_are_never_the_same() -> None:
    used: dict[str, Any] = {}
    pp = PostprocessedImage(None)
    pp.nametags = ["a", "b"]
    assert [pp.get_suffix(used) for _ in range(3)] == ["-a-b", "-a-b-1", "-a-b-2"]
    assert pp.get_suffix() == "-a-b"
