"""The page of lm-serve in a real browser, Debian's chromium: what it shows is what the runtime says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import lm_runtime
from conftest import FIXTURE
from lm_runtime.models.onnx import OnnxModel
from lm_runtime.sampling.params import SamplingParams
from served import Server, serving

CHROMIUM = shutil.which("chromium")
PATIENCE = 30_000
"""Milliseconds, with other work on the machine."""
PHONE = {"width": 360, "height": 740}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return lm_runtime.load(FIXTURE, provider="cpu")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--max-text", 100) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, which asks nobody else and has no complaints."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server.address)
    expect(opened.locator("#model")).to_have_value(FIXTURE.name)
    yield opened
    assert {url for url in asked if not url.startswith((server.address, "data:"))} == set()
    # An answer of 400 is a complaint of the browser's own.
    assert [text for text in complaints if "status of 400" not in text] == []
    context.close()


def greedy(model: OnnxModel, prompt: str, tokens: int) -> str:
    return "".join(lm_runtime.generate(model, prompt, SamplingParams(temperature=0, max_tokens=tokens)))


def slide(page: Page, **values: float) -> None:
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def shown(page: Page) -> str:
    """The generated text, without its prompt."""
    return "".join(page.locator("#text .token").all_text_contents())


def generate(page: Page, prompt: str, tokens: int = 20, **sliders: float) -> None:
    page.locator("#prompt").fill(prompt)
    slide(page, max_tokens=tokens, **sliders)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#said")).to_have_text(f"{tokens} tokens generated")


def test_it_generates_and_tells_of_each_token(page: Page, model: OnnxModel) -> None:
    generate(page, "the keeper", temperature=0, top_p=1)
    assert shown(page) == greedy(model, "the keeper", 20)
    expect(page.locator("#text .prompt")).to_have_text("the keeper")
    first = page.locator("#text .token").first
    first.hover()
    (value,) = [p for text, p in lm_runtime.suggest(model, "the keeper", 200) if text == first.text_content()]
    expect(page.locator("#details")).to_contain_text(f"{100 * value:.1f}"[:3])
    shares = page.locator("#text .token").evaluate_all(
        "tokens => tokens.map((token) => Number(token.style.getPropertyValue('--share')))"
    )
    assert all(0 <= share <= 0.75 for share in shares)
    assert len(set(shares)) > 5


def test_words_are_suggested_as_one_types(page: Page, model: OnnxModel) -> None:
    prompt = page.locator("#prompt")
    prompt.press_sequentially("the ke")
    words = page.locator("#words button")
    expect(words.first).to_have_text("keeper")
    prompt.press("Alt+1")
    expect(prompt).to_have_value("the keeper")
    prompt.press_sequentially(" ")
    expected = [word for word, _ in lm_runtime.complete_word(model, "the keeper ", k=5)]
    expect(words).to_have_text(expected)
    words.nth(1).click()
    expect(prompt).to_have_value(f"the keeper {expected[1]}")


def test_a_text_is_forked_and_rewound_at_any_token(page: Page, model: OnnxModel) -> None:
    generate(page, "the", tokens=30, temperature=0, top_p=1)
    whole = greedy(model, "the", 60)
    text = page.locator("#text")
    text.focus()
    for _ in range(11):
        text.press("ArrowRight")
    page.get_by_role("button", name="Rewind to here").click()
    expect(page.locator("#text .token")).to_have_count(10)
    page.get_by_role("button", name="More").click()
    expect(page.locator("#text .token")).to_have_count(40)
    assert whole.startswith(shown(page))  # from a state and ten tokens, and still the very text
    before = page.locator("#text .token").all_text_contents()
    slide(page, temperature=1.5)
    page.locator("#text .token").nth(5).click()
    page.get_by_role("button", name="Fork here").click()
    expect(page.locator("#text .token")).to_have_count(35)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    after = page.locator("#text .token").all_text_contents()
    assert after[:5] == before[:5]
    assert after != before[:35]
    page.get_by_role("button", name="Branch 1").click()
    expect(page.locator("#text .token")).to_have_text(before)


def test_a_text_has_its_perplexity(page: Page, model: OnnxModel) -> None:
    text = "the keeper of the lamp\nis old"
    page.locator("#sample").fill(text)
    page.get_by_role("button", name="Measure").click()
    (score,) = lm_runtime.score_texts(model, [text])
    expect(page.locator("#figures")).to_contain_text(f"{score.perplexity:.5g}")
    expect(page.locator("#scored .token")).to_have_count(score.tokens)
    assert "".join(page.locator("#scored .token").all_text_contents()) == text + "\n"
    page.locator("#sample").fill("a zebra")
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#figures")).to_contain_text("1 of them unknown")


def test_an_error_is_shown_and_goes_away(page: Page) -> None:
    page.locator("#prompt").fill("the")
    slide(page, max_tokens=300)
    page.get_by_role("button", name="Generate").click()
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("max_tokens must be from 0 to 100, got 300")
    slide(page, max_tokens=5)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#said")).to_have_text("5 tokens generated")
    expect(alert).to_be_hidden()


def test_it_asks_for_a_key_where_one_is_needed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("open-sesame-open-sesame\n")
    with serving("--api-key-file", tmp_path / "keys") as server:
        opened = browser.new_page()
        opened.goto(server.address)
        opened.get_by_label("This server needs a key").fill("open-sesame-open-sesame")
        opened.locator("#key").press("Enter")
        expect(opened.locator("#model")).to_have_value(FIXTURE.name)
        generate(opened, "the", tokens=3)
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1100, "height": 800}, PHONE], ids=["desk", "phone"])
def test_it_fits_and_can_be_read(
    browser: Browser, server: Server, tmp_path: Path, scheme: Any, size: Any
) -> None:
    """No text is wider than the screen, and each control has a name; the picture is for people."""
    opened = browser.new_page(viewport=size, color_scheme=scheme)
    opened.goto(server.address)
    expect(opened.locator("#model")).to_have_value(FIXTURE.name)
    opened.locator("#seed").fill("3")
    generate(opened, "the keeper of the ", tokens=60)
    opened.locator("#text .token").nth(8).click()
    opened.locator("#sample").fill("the keeper of the lamp is old")
    opened.get_by_role("button", name="Measure").click()
    expect(opened.locator("#scored .token").first).to_be_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") <= size["width"]
    nameless = opened.locator("button, input, select, textarea").evaluate_all(
        "all => all.filter((one) => !one.labels?.length && !one.textContent.trim()).map(({ id }) => id)"
    )
    assert nameless == []
    opened.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    opened.close()
