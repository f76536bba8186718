"""The tab Extras: an image from a gallery, the history or a file is enlarged, saved and found again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.page.conftest import Browser

pytestmark = pytest.mark.browser

SHOWN = (
    "const i = document.querySelector('#extras_image img'); return uiOpenTab === 'tab_extras' && i && i.naturalWidth"
)
TOLD = "return Array.from(document.querySelectorAll('.toast-body')).some((t) => t.textContent.includes(arguments[0]))"


@pytest.fixture
def out(page_data: Path) -> Path:
    """Where the results are saved; empty at first."""
    folder = page_data / "outputs" / "extras-images"
    for path in folder.glob("*"):
        path.unlink()
    return folder


def test_an_image_of_the_gallery_is_upscaled_saved_and_in_the_history(browser: Browser, out: Path, screenshot) -> None:
    browser.open()
    browser.type("#txt2img_prompt textarea", "a walrus")
    browser.generate()
    browser.click("#txt2img_send_to_extras")
    browser.until(SHOWN)
    browser.set_number("extras_upscaling_resize", 3)
    browser.generate("extras")
    browser.until("return document.querySelector('#extras_gallery img')?.naturalWidth === 192")
    told = browser.text("#html_info_extras")
    assert told.startswith("a walrus") and "Postprocess upscale by: 3, Postprocess upscaler: Lanczos" in told
    screenshot("extras")
    (path,) = out.iterdir()
    with Image.open(path) as saved:
        assert saved.size == (192, 192)
        assert saved.info["parameters"].startswith("a walrus\nSteps: 4")
        assert saved.info["postprocessing"].startswith("Postprocess upscale by: 3")

    browser.js("openLightbox('extras')")
    browser.until("return document.getElementById('lightboxModal').classList.contains('can-compare')")
    browser.js("closeLightbox()")
    browser.click("#extras_send_to_img2img")
    browser.until(
        "return uiOpenTab === 'tab_img2img' && document.querySelector('#img2img_image img')?.naturalWidth === 192"
    )
    assert browser.js("return document.querySelector('#img2img_prompt textarea').value") == "a walrus"

    browser.open(fresh=False)
    browser.js("openTab('tab_extras')")
    browser.until("return document.querySelector('#extras_gallery img')?.naturalWidth === 192")  # after a reload, too

    browser.js("openTab('tab_history')")
    browser.type(".history-search", '"postprocess upscale by: 3"')
    browser.until("return document.querySelector('.history-status').textContent === '1 image'")
    browser.until("return document.querySelectorAll('#history .history-tile img').length === 1")
    browser.click("#history [data-place='0'] .history-open")
    browser.until("return document.querySelector('.history-panel-text').textContent.includes('Postprocess upscaler')")
    browser.js("document.querySelector('.history-panel [title^=\"Send the image to Extras\"]').click()")
    browser.until(f"return (() => {{ {SHOWN} }})() === 192")
    assert browser.errors() == []


def test_several_files_and_a_folder(browser: Browser, out: Path, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a seal\nSteps: 3, Sampler: Euler, Seed: 7, Size: 40x32")
    for name in ("seal one.png", "seal two.png"):
        Image.effect_noise((40, 32), 60).convert("RGB").save(tmp_path / name, pnginfo=info)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    browser.open()
    browser.js("openTab('tab_extras'); clickTab('mode_extras', 'Batch Process')")
    browser.until("return document.querySelector('#extras_image_batch input[type=file]')?.offsetParent !== undefined")
    files = "\n".join(str(tmp_path / name) for name in ("seal one.png", "seal two.png"))
    browser.find("#extras_image_batch input[type=file]").send_keys(files)
    browser.until("return document.querySelector('#extras_image_batch').textContent.includes('seal two')")
    assert len(browser.generate("extras")) == 2
    assert sorted(path.name for path in out.iterdir()) == ["seal one.png", "seal two.png"]
    with Image.open(out / "seal two.png") as saved:
        assert saved.size == (80, 64) and saved.info["parameters"].startswith("a seal")

    browser.click("#save_zip_extras")
    link = browser.until("return document.querySelector('#download_files_extras a')?.href")
    kept = next(path for path in out.parents[1].joinpath("tmp", "page").glob("*.zip"))
    assert kept.name.replace("[", "").split("_")[0] in link
    assert zipfile.ZipFile(kept).namelist() == ["seal one.png", "seal two.png"]

    browser.js("clickTab('mode_extras', 'Batch from Directory')")
    browser.until("return document.querySelector('#extras_batch_input_dir :is(input, textarea)')?.offsetParent")
    browser.type("#extras_batch_input_dir :is(input, textarea)", str(tmp_path))
    assert len(browser.generate("extras")) == 2
    assert "1 of 3 images could not be read: broken.png" in browser.text("#html_log_extras")
    assert len(list(out.iterdir())) == 4
    browser.type("#extras_batch_input_dir :is(input, textarea)", str(tmp_path / "nothing"))
    browser.generate("extras")
    assert browser.text("#html_log_extras .error") == "There is no such folder. Check the path."
    assert browser.errors() == []


def test_save_keeps_a_copy_of_the_selected_image(browser: Browser, page_data: Path) -> None:
    browser.open()
    browser.click("#save_txt2img")
    browser.until(TOLD, "There is no image to save yet")
    browser.type("#txt2img_prompt textarea", "a puffin")
    browser.type("#txt2img_seed input", "31")
    browser.set_number("txt2img_batch_size", 2)
    browser.generate()
    browser.click("#save_txt2img")
    browser.until(TOLD, "Saved: saved/")
    (path,) = (page_data / "outputs" / "saved").glob("*-31.png")  # the first one, not the grid
    with Image.open(path) as saved:
        assert saved.size == (64, 64) and saved.info["parameters"].startswith("a puffin")
    assert browser.errors() == []
