"""The page as a visitor uses it, in a real browser, with the small model of shapes."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

pytest.importorskip("gradio", reason="the page needs Gradio: pip install jmceln[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright: pip install it")

from modeling_jmceln import JMCELNModel  # noqa: E402
from processing import JMCELNProcessor  # noqa: E402
from processing.app.examples import read_examples  # noqa: E402
from processing.app.page import build_page, launch  # noqa: E402
from processing.app.predictions import Segmenter  # noqa: E402
from processing.data.masks import decode_mask  # noqa: E402
from processing.shapes.dataset import shapes_row  # noqa: E402
from processing.shipped_models import CHECKPOINTS  # noqa: E402


BROWSER = shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 60_000  # milliseconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not Path(BROWSER).is_file(), reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Counter[str]]]:
    """The address of the page, and how often each part of the model ran."""
    folder = CHECKPOINTS / "jmceln-shapes"
    model = JMCELNModel.from_pretrained(folder).eval()
    runs: Counter[str] = Counter()
    model.backbone.register_forward_hook(lambda *_: runs.update(["image"]))
    model.cascade.register_forward_hook(lambda *_: runs.update(["expressions"]))
    segmenter = Segmenter(model, JMCELNProcessor.from_pretrained(folder))
    blocks = build_page(segmenter, "jmceln-shapes", read_examples(folder))
    _, address, _ = launch(blocks, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address, runs
    blocks.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, served: tuple[str, Counter[str]]) -> Iterator[Any]:
    opened = open_page(browser, served[0], 1280, 900)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "my scene.png"
    shapes_row("test", 9, image_size=300)["image"].resize((400, 300)).save(path)
    return path


def open_page(browser: Any, address: str, width: int, height: int) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#find").wait_for()
    return page


def upload(page: Any, path: Path) -> None:
    page.locator("#photo input[type=file]").set_input_files(path)
    page.locator("#photo img").first.wait_for(state="attached")  # one that is no picture takes no room


def ask(page: Any, text: str) -> None:
    page.locator("#expressions textarea").fill(text)
    page.locator("#find").click()


def overlay(page: Any) -> np.ndarray:
    """The pixels of the shown result."""
    address = page.locator("#result img").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB"), dtype=int)


def download(page: Any, kind: str) -> Path:
    with page.expect_download() as started:
        page.locator(f"#save-{kind}").click()
    return Path(started.value.path())


def set_slider(page: Any, name: str, value: str) -> None:
    number = page.locator(f"#{name} input[type=number]")
    number.fill(value)
    number.press("Enter")


def test_upload_ask_move_the_threshold_and_download(page: Any, served: tuple[str, Counter[str]], scene: Path) -> None:
    runs = served[1]
    runs.clear()
    upload(page, scene)
    ask(page, "the leftmost heart\nthe large diamond with dots\nthe purple bicycle")
    page.locator("#legend li").nth(2).wait_for()
    rows = page.locator("#legend li").all_inner_texts()
    assert "of the image" in rows[0]
    assert "not in the image" in rows[1]
    assert "does not know the word “bicycle”" in rows[2]

    original = np.asarray(Image.open(scene).convert("RGB"), dtype=int)
    shown = overlay(page)
    assert shown.shape == original.shape
    changed = (shown != original).any(-1)
    assert 0.001 < changed.mean() < 0.5

    assert runs == {"image": 1, "expressions": 1}
    before = page.locator("#result img").first.get_attribute("src")
    set_slider(page, "mask-threshold", "0.02")
    page.wait_for_function(f"document.querySelector('#result img').getAttribute('src') != {json.dumps(before)}")
    assert (overlay(page) != original).any(-1).sum() > changed.sum()
    assert runs == {"image": 1, "expressions": 1}, "another threshold must not run the model"

    with Image.open(download(page, "mask")) as mask:
        assert (mask.size, mask.mode) == ((400, 300), "L")
        area = int((np.asarray(mask) > 0).sum())
    assert area > 100
    with Image.open(download(page, "cut-out")) as cut:
        assert (cut.size, cut.mode) == ((400, 300), "RGBA")
        assert int((np.asarray(cut)[..., 3] > 0).sum()) == area
    entries = json.loads(download(page, "rle").read_text(encoding="utf-8"))
    assert entries[0]["expression"] == "the leftmost heart"
    assert decode_mask(entries[0]["segmentation"]).sum() == area

    ask(page, "the leftmost heart")
    page.wait_for_function("document.querySelectorAll('#legend li').length == 1")
    assert runs == {"image": 1, "expressions": 2}, "a photo is encoded once"


def test_an_example_runs_with_one_click_and_shows_the_cascade(page: Any) -> None:
    set_slider(page, "threshold", "1")
    page.locator("#examples .gallery-item").first.click()
    page.locator("#legend li").nth(2).wait_for()
    assert page.locator("#threshold input[type=number]").input_value() == "0.5"
    assert "not in the image" not in page.locator("#legend").inner_text()
    page.get_by_text("Look inside the cascade").click()
    pictures = page.locator("#stages img")
    pictures.first.wait_for()
    assert pictures.count() == 11  # three stages of four pictures, the first without a filter
    first = pictures.first.get_attribute("src")
    page.locator("#choice input").click()
    page.get_by_role("option", name="the spotted circles").click()
    page.wait_for_function(f"document.querySelector('#stages img').getAttribute('src') != {json.dumps(first)}")


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        (None, "the star", "Choose a photo first"),
        ("a scene", " ", "Say what to find"),
        ("a scene", "\n".join("abcdefgh"), "8 expressions"),
        (b"this is no picture", "the star", "Cannot read the image 'notes.png'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    page: Any, scene: Path, tmp_path: Path, content: str | bytes | None, text: str, said: str
) -> None:
    if isinstance(content, bytes):
        path = tmp_path / "notes.png"
        path.write_bytes(content)
        upload(page, path)
    elif content is not None:
        upload(page, scene)
    ask(page, text)
    message = page.locator("#legend [role=alert]")
    message.wait_for()
    assert said in message.inner_text()
    assert "/tmp" not in message.inner_text()
    assert "Traceback" not in page.inner_text("body")


def test_a_file_that_is_no_picture_by_its_name_is_refused(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("this is no picture", encoding="utf-8")
    page.locator("#photo input[type=file]").set_input_files(path)
    page.get_by_text("Invalid file type").first.wait_for()


def test_it_fits_a_phone_and_loads_nothing_from_elsewhere(browser: Any, served: tuple[str, Counter[str]]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((served[0], "data:", "blob:")) else elsewhere.append(request.url)
        ),
    )
    page.goto(served[0])
    page.locator("#examples .gallery-item").first.click()
    page.locator("#legend li").nth(2).wait_for()
    page.get_by_text("Look inside the cascade").click()
    page.locator("#stages img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#result").bounding_box()["width"] > 300
    assert not elsewhere
    page.close()
