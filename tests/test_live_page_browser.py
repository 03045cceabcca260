"""The page of a server in a real browser, at the width of a desk and of a phone."""

import io
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from test_live_page import TOKEN, desk_of, serving

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not BROWSER or sync_playwright is None, reason="needs Chromium and Playwright"
)
WIDTHS = (1366, 390)
LANGUAGE = pytest.param("llama3_tiny", marks=pytest.mark.slow)
CONTRAST = """() => {
  // the lowest contrast (WCAG 2.2, 1.4.3) of any visible text, and that text
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const parts = [...rgba(colour)].slice(0, 3).map((value) => value / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest(".hidden, noscript, title")) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    let behind = element;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) {
      behind = behind.parentElement;
    }
    const back = behind ? getComputedStyle(behind).backgroundColor : "white";
    const [high, low] = [light(ink), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, text];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@contextmanager
def opened(browser, name="resnet50_tiny", width=1366, token=None, wait=True, **context):
    """A server and its page in a fresh window; nothing may go wrong in the page's script."""
    with serving(name, token=token) as ask:
        window = browser.new_context(viewport={"width": width, "height": 900}, **context)
        window.set_default_timeout(30_000)
        page = window.new_page()
        told = []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(ask.url)
        if wait:
            page.wait_for_selector("html[data-state=ready]")
        yield page
        assert not told and page.evaluate("document.documentElement.dataset.errors") == ""
        window.close()


def bytes_told(page):
    return int(re.sub(r"\D", "", page.locator("#bytes").inner_text()))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["resnet50_tiny", "dinov2_tiny", LANGUAGE])
def test_the_page_is_whole_and_fits(browser, name, width):
    """Every rate is drawn, every picture is there, and nothing sticks out."""
    with opened(browser, name, width) as page:
        count = len(desk_of(name).ladder)
        assert page.locator(".plot").count() == 2
        assert page.locator(".plot .dot").count() == 2 * count
        page.locator("summary").click()
        assert page.locator("#figures tbody tr").count() == count
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(beyond) == 0
        assert page.get_by_role("slider", name="Rate").count() == 1
        assert page.locator("#places rect, #places .strip span").count() > 40


def test_the_keyboard_moves_the_rate(browser):
    """Figures, pictures and what a screen reader is told follow the slider."""
    desk = desk_of("dinov2_tiny")
    given = desk.take(0, b"")["input"]
    with opened(browser, "dinov2_tiny") as page:
        slider = page.get_by_role("slider", name="Rate")
        page.locator("summary").click()
        slider.focus()
        pictures = []
        for key, step in (("Home", 0), ("ArrowRight", 1), ("End", 40)):
            page.keyboard.press(key)
            told = desk.code(given, step)
            assert bytes_told(page) == told["bytes"]
            spoken = slider.get_attribute("aria-valuetext")
            assert f"{told['bytes']} bytes" in spoken and told["answer"]["words"] in spoken
            pictures.append(page.get_by_alt_text("the decoded answer").get_attribute("src"))
            assert pictures[-1] == told["answer"]["picture"]
        assert len(set(pictures)) > 1
        # one region speaks, once the slider rests
        expect(page.get_by_role("status")).to_contain_text(f"{told['bytes']} bytes")
        assert page.locator("#figures tr[aria-current]").count() == 1


def test_every_control_has_a_name(browser):
    with opened(browser) as page:
        assert page.get_by_role("heading", level=1).count() == 1
        radios = page.get_by_role("group", name="A sample").get_by_role("radio")
        assert radios.count() == 8
        assert [radio.get_attribute("aria-label")[:6] for radio in radios.all()] == ["Sample"] * 8
        for name in ("Input", "Rate", "Answer", "Where the error is", "What more bytes buy"):
            assert page.get_by_role("region", name=name, exact=True).count() == 1
        assert page.get_by_label("Drop a picture").count() == 1
        assert page.get_by_role("img", name="against bits per point").count() == 2
        unnamed = "[...document.images].filter((image) => !image.hasAttribute('alt')).length"
        assert page.evaluate(unnamed) == 0


def test_focus_is_seen(browser):
    """Tab reaches each control, and the control or what stands for it has an outline."""
    with opened(browser) as page:
        seen = []
        for _ in range(5):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate("""() => {
                  const active = document.activeElement;
                  const outlined = [active, active.nextElementSibling].filter(Boolean)
                    .map((each) => getComputedStyle(each))
                    .some(({ outlineStyle, outlineWidth }) =>
                      outlineStyle === "solid" && parseFloat(outlineWidth) >= 2);
                  return [active.id || active.name || active.className || active.tagName, outlined];
                }""")
            )
        assert all(outlined for _, outlined in seen), seen
        assert [name for name, _ in seen] == ["skip", "sample", "file", "quality", "SUMMARY"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["resnet50_tiny", LANGUAGE])
def test_text_has_contrast(browser, name, scheme):
    with opened(browser, name, color_scheme=scheme) as page:
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, (ratio, text)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (min(map(int, re.findall(r"\d+", back))) > 128) == (scheme == "light")


@pytest.mark.slow
def test_motion_can_be_less(browser):
    moving = "getComputedStyle(document.querySelector('.plot .now')).transitionDuration"
    with opened(browser) as page:
        assert page.evaluate(moving) != "0s"
    with opened(browser, reduced_motion="reduce") as page:
        assert page.evaluate(moving) == "0s"


@pytest.mark.slow
def test_inputs_of_ones_own(browser, tmp_path):
    """A sample by keyboard, a picture of too many bytes, a file that is none, and a sound one again."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 1 << 20
    (tmp_path / "none.png").write_bytes(b"no picture")
    with opened(browser) as page:
        before = page.get_by_alt_text("the input").get_attribute("src")
        page.get_by_role("radio").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "(old) => document.querySelector('.ranked img').src !== old", arg=before
        )
        second = page.get_by_alt_text("the input").get_attribute("src")
        assert second == desk_of("resnet50_tiny").offers[1].shown["picture"]
        page.locator("#file").set_input_files(tmp_path / "large.png")
        page.wait_for_function(
            "(old) => document.querySelector('.ranked img').src !== old", arg=second
        )
        assert page.locator("input[name=sample]:checked").count() == 0
        page.locator("#file").set_input_files(tmp_path / "none.png")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("frame: expected a picture")
        page.get_by_role("radio").first.check()
        expect(alert).to_be_hidden()
        page.wait_for_selector("html[data-state=ready]")
        assert page.get_by_alt_text("the input").get_attribute("src") == before


@pytest.mark.slow
def test_a_text_of_ones_own(browser):
    with opened(browser, "llama3_tiny") as page:
        page.get_by_label("Your own text").fill("A picture shows <b>one</b>\na red disk")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".strip")).to_contain_text("<b>one</b>↵")
        page.wait_for_selector("html[data-state=ready]")
        page.get_by_role("slider").focus()
        page.keyboard.press("Home")
        assert page.locator(".strip .changed").count() > 0
        assert page.locator(".then .other").count() > 0


def test_a_locked_server_asks_for_its_token(browser):
    with opened(browser, token=TOKEN, wait=False) as page:
        field = page.get_by_label("This server asks for a token")
        expect(field).to_be_focused()
        assert page.locator("#main").is_hidden()
        field.fill("another token, not this one")
        page.get_by_role("button", name="Unlock").click()
        expect(page.get_by_role("alert")).to_contain_text("token: this server asks for a token")
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-state=ready]")
        assert page.locator("#lock").is_hidden() and bytes_told(page) > 0


def test_a_server_that_goes_is_told_of(browser):
    with opened(browser) as page:
        page.route("**/page/input*", lambda route: route.abort())
        page.get_by_role("radio").nth(2).check()
        expect(page.get_by_role("alert")).to_contain_text("the server does not answer")


@pytest.mark.slow
def test_a_forgotten_input_is_sent_again(browser):
    with opened(browser) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))

        refusal = {"type": "refusal", "code": "gone", "reason": "as if"}
        page.route("**/page/code*", lambda route: route.fulfill(status=410, json=refusal), times=1)
        page.get_by_role("radio").nth(2).check()
        page.wait_for_selector("html[data-state=ready][data-coded='41']")
        assert sum("/page/input?sample=2" in url for url in asked) == 2
        assert page.get_by_role("alert").is_hidden()


def io_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_a_picture_is_dropped(browser):
    """Dragged from elsewhere anywhere onto the page."""
    picture = io_png(np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8))
    with opened(browser) as page:
        before = page.get_by_alt_text("the input").get_attribute("src")
        page.evaluate(
            """(data) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(data)], "a.png", { type: "image/png" }));
              const how = { dataTransfer: transfer, bubbles: true, cancelable: true };
              document.body.dispatchEvent(new DragEvent("drop", how));
            }""",
            list(picture),
        )
        page.wait_for_function(
            "(old) => document.querySelector('.ranked img').src !== old", arg=before
        )
