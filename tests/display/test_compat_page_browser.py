"""The compatibility page in a real browser: ``nox -s browser``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from colablock.display.compat_page import render_page
from colablock.display.html import to_html
from colablock.display.info_view import list_document
from tests.support.checks import MATRICES, RUNTIMES, checks
from tests.support.timing import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The sandbox needs user namespaces, which most containers lack; the other options prevent network traffic.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = (1280, 900), (390, 844)

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    reason = "playwright is not installed: `nox -s browser` has it"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium found: none of {', '.join(NAMES)}")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "page.html"
    text = render_page(checks(), matrices=MATRICES, runtimes=RUNTIMES)
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Open the page at a fragment; at the end, check that it made no request and logged no error."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def opened(
        fragment: str = "", *, size: tuple[int, int] = DESKTOP, script: bool = True, dark: bool = False
    ) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            java_script_enabled=script,
            color_scheme="dark" if dark else "light",
        )
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url.partition("#")[0] for url in asked} <= {address, "data:,"}


def cell(matrix: str, runtime: str) -> str:
    return f'#grid a[href="#{matrix}/{runtime}"]'


def fragment(page: Page) -> str:
    url: str = page.url
    return url.partition("#")[2]


def test_click_on_a_cell_shows_its_reason(open_page: Open) -> None:
    page = open_page()
    page.locator("#grid td .none:visible").first.click()
    panel = page.locator(".panel")
    assert panel.locator("h3").inner_text() == "qlora-2024: 2026.08 GPU"
    reason = panel.get_by_text("no variant takes a G4: cuda wants a compute capability that it does not have")
    assert reason.is_visible()
    assert panel.get_by_text("and 31 distributions that work would break").is_visible()
    assert fragment(page) == "qlora-2024/colab-2026.08-gpu"
    page.locator(cell("qlora-2024", "colab-2026.08-gpu")).click()
    assert panel.count() == 0
    assert "#" not in page.url


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_proven_fits_a_phone(browser: Browser, tmp_path: Path, *, dark: bool) -> None:
    proof = {"date": "2026-11-29", "old": True, "earlier": True}
    found = {
        "a-matrix-with-a-long-name-of-somebody": {
            **dict.fromkeys(("resolved", "applied", "imported"), proof),
            "planned": {"kernel": 10, "env": 4},
            "trained": [{"card": "CPU", **proof}, {"card": "NVIDIA H200 with 141 GB", **proof}],
        },
        "empty": {**dict.fromkeys(("resolved", "applied", "imported")), "planned": {}, "trained": []},
    }
    file = tmp_path / "page.html"
    file.write_text(render_page(checks(), matrices=MATRICES, runtimes=RUNTIMES, evidence=found))
    page = browser.new_page(viewport={"width": 400, "height": 844}, color_scheme="dark" if dark else "light")
    page.goto(file.as_uri())
    inner = "one => one.scrollWidth <= one.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('#evidence > div, #evidence td')].every({inner})")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    filters, cards, proven = (
        page.locator(f"#{name}").bounding_box() for name in ("filters", "cards", "evidence")
    )
    assert filters is not None
    assert cards is not None
    assert proven is not None
    assert filters["y"] < cards["y"] < proven["y"]  # what is filtered follows the filters
    cells = page.locator("#evidence td:visible")
    assert cells.count() == 6
    assert page.evaluate("getComputedStyle(document.querySelector('#evidence td'), '::before').content") == (
        '"Resolved"'
    )
    page.close()


def test_script_shows_every_long_reason_in_full(open_page: Open) -> None:
    page = open_page("#qlora-2024/colab-2025.07-cpu")
    assert page.locator(".panel").get_by_text("and 31 distributions that work would break").is_visible()
    assert page.get_by_text("full reason").count() == 0


def test_accelerator_filter_changes_cells_columns_and_the_panel(open_page: Open) -> None:
    page = open_page("#qlora-2024/colab-2026.08-gpu")
    here = page.locator(cell("qlora-2024", "colab-2026.08-gpu"))
    assert here.inner_text().split() == ["Env", "No", "G4"]
    page.get_by_label("Accelerator").select_option("G4")
    assert here.inner_text() == "No"
    assert page.locator(".panel .group:visible h4").inner_text().split() == ["No", "G4"]
    assert page.locator("thead th:visible").count() == 1 + sum(one.flavour == "gpu" for one in RUNTIMES)
    assert page.locator("output").inner_text() == "28 cells"
    assert fragment(page) == "qlora-2024/colab-2026.08-gpu/G4"
    page.get_by_label("Accelerator").select_option("")
    assert here.inner_text().split() == ["Env", "No", "G4"]
    assert page.locator("thead th:visible").count() == 1 + len(RUNTIMES)


def test_panel_closes_if_a_filter_hides_its_cell(open_page: Open) -> None:
    page = open_page("#qlora-2024/colab-2026.08-cpu")
    assert page.locator(".panel").count() == 1
    page.get_by_label("Accelerator").select_option("T4")
    assert page.locator(".panel").count() == 0
    assert "#" not in page.url


def test_link_with_an_accelerator_opens_its_cell(open_page: Open) -> None:
    page = open_page("#qlora-2026/colab-2026.08-gpu/P100")
    assert page.get_by_label("Accelerator").input_value() == "P100"
    assert page.locator(cell("qlora-2026", "colab-2026.08-gpu")).inner_text() == "No"
    assert page.locator(".panel").get_by_text("no variant takes a P100").is_visible()


@pytest.mark.parametrize(
    "wrong", ["#none/of-these", "#qlora-2026/colab-2026.08-gpu/V100", "#/", "#a/b/c/d", "#%", "#%ff/a"]
)
def test_invalid_link_is_ignored(open_page: Open, wrong: str) -> None:
    page = open_page(wrong)
    assert page.get_by_label("Accelerator").input_value() == ""
    assert page.locator("output").inner_text() == "56 cells"


@pytest.mark.parametrize(
    ("words", "rows", "count"),
    [
        ("torchao", ["qlora-2026"], "2 of 56 cells match"),
        ("AXOLOTL 0.18", ["qlora-2026-axolotl"], "14 of 56 cells match"),
        ("jax 2026.04", ["qlora-2024"], "2 of 56 cells match"),
        ("no such thing", [], "0 of 56 cells match"),
    ],
)
def test_search(open_page: Open, words: str, rows: list[str], count: str) -> None:
    page = open_page()
    page.get_by_label("Search").fill(words)
    assert page.locator("tbody tr:visible th b").all_inner_texts() == rows
    assert page.locator("output").inner_text() == count
    assert page.get_by_text("Nothing matches.").is_visible() is (not rows)


def test_verdict_filter_applies_to_the_selected_accelerator(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Verdict").select_option("none")
    assert page.locator("output").inner_text() == "26 of 56 cells match"
    page.get_by_label("Accelerator").select_option("T4")
    assert page.locator("output").inner_text() == "0 of 28 cells match"
    page.get_by_label("Verdict").select_option("kernel")
    assert page.locator("tbody tr:visible th b").all_inner_texts() == ["qlora-2025", "qlora-2026"]


@pytest.mark.parametrize("size", [PHONE, (320, 640), (600, 900), (768, 1024), DESKTOP])
def test_page_never_scrolls_horizontally(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page("#qlora-2024/colab-2025.07-gpu", size=size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_phone_shows_a_card_for_each_matrix(open_page: Open) -> None:
    page = open_page(size=PHONE)
    assert not page.locator("#grid").is_visible()
    assert page.locator("article:visible h3").all_inner_texts() == list(MATRICES)
    page.get_by_label("Accelerator").select_option("T4")
    card = page.locator("article").nth(2)
    newest = card.locator("details:visible").first
    assert newest.locator("summary").inner_text().split() == ["2026.08", "GPU", "Kernel"]
    assert card.locator("details:visible").count() == 7
    newest.locator("summary").click()
    assert newest.get_by_text("bitsandbytes and trl come, torchao goes").is_visible()
    tall = newest.locator("summary").bounding_box()
    assert tall is not None
    assert tall["height"] >= 44  # a finger's breadth (WCAG 2.2, 2.5.5)


def test_phone_opens_the_target_of_a_link(open_page: Open) -> None:
    page = open_page("#qlora-2024/colab-2025.07-gpu/G4", size=PHONE)
    reason = page.get_by_text("no variant takes a G4").filter(visible=True)
    assert reason.count() == 1
    box = reason.bounding_box()
    assert box is not None
    assert 0 <= box["y"] <= PHONE[1]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_reason_is_reachable_without_a_script(open_page: Open, size: tuple[int, int]) -> None:
    page = open_page(size=size, script=False)
    assert not page.locator("#filters").is_visible()
    details = page.locator('details[id="qlora-2026/colab-2026.08-gpu"]')
    reason = details.get_by_text("no variant takes a P100")
    assert not reason.is_visible()
    if size == DESKTOP:
        page.locator(cell("qlora-2026", "colab-2026.08-gpu")).click()
    else:
        details.locator("summary").click()
    assert reason.is_visible()
    assert details.get_by_text("bitsandbytes and trl come, torchao goes").is_visible()


def test_keyboard_reaches_everything(open_page: Open) -> None:
    page = open_page()
    page.locator(cell("qlora-2024", "colab-2026.08-gpu")).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    heading = page.locator(".panel h3")
    assert heading.inner_text() == "qlora-2026: 2026.08 GPU"
    assert heading.evaluate("one => one === document.activeElement")
    page.keyboard.press("Escape")
    assert page.locator(".panel").count() == 0
    assert page.evaluate("document.activeElement.hash") == "#qlora-2026/colab-2026.08-gpu"


def test_arrow_keys_skip_hidden_columns(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Accelerator").select_option("T4")
    page.locator(cell("qlora-2024", "colab-2026.08-gpu")).focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.hash") == "#qlora-2024/colab-2026.07-gpu"


def test_import_findings_open_in_the_panel(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("link", name="2 import findings, 1 error").click()
    assert page.locator(".panel h3").inner_text() == "qlora-2024: 2 import findings, 1 error"
    assert page.locator(".panel").get_by_text("no requirement of axolotl leads to gradio").is_visible()


def test_a_table_of_a_notebook_fits_a_phone(browser: Browser) -> None:
    proof = {"date": "2026-11-29", "old": False, "earlier": False}
    trained = [{"card": card, **proof} for card in ("CPU", "NVIDIA H200")]
    evidence = {**dict.fromkeys(("resolved", "applied", "imported"), proof), "trained": trained}
    matrix = {"name": "qlora-2026-12-axolotl", "summary": "Train", "evidence": evidence}
    runtime = {"name": "colab-2026.08-gpu", "python": "3.12.13", "torch": "2.11.0+cu128"}
    facts = {"matrices": [matrix], "runtimes": [{**runtime, "distributions": 703, "date": "2026-08-19"}]}
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.set_content(to_html(list_document(facts)))
    widths = "[...document.querySelectorAll('table')].map(one => one.scrollWidth - one.clientWidth)"
    assert page.evaluate(widths) == [0, 0, 0]
    # A date is in one line.
    lines = "[...document.querySelectorAll('time')].map(one => one.getClientRects().length)"
    assert page.evaluate(lines) == [1] * 6


def test_dark_mode_follows_the_browser(open_page: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert open_page(dark=True).evaluate(ground) == "rgb(20, 22, 26)"
    assert open_page().evaluate(ground) == "rgb(247, 248, 249)"


def test_print_has_every_verdict_and_the_open_details(open_page: Open) -> None:
    page = open_page("#qlora-2024/colab-2026.08-gpu", dark=True)
    page.emulate_media(media="print")
    assert page.locator("details.cell > summary:visible").count() == len(MATRICES) * len(RUNTIMES)
    assert page.locator("article").get_by_text("no variant takes a G4").filter(visible=True).count() == 1
    assert not page.locator("#grid").is_visible()


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_clipped(open_page: Open, width: int, dark: bool) -> None:
    """At 1200 px all runtimes are beside each other; at 400 px the cards are."""
    page = open_page(size=(width, 900), dark=dark)
    parts = "[...document.querySelectorAll('#grid, #cards, body')]"
    assert page.evaluate(f"{parts}.filter(one => one.scrollWidth > one.clientWidth).length") == 0
