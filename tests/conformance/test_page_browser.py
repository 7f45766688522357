"""The page in a real, headless browser: its layout, legibility and use."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reports
from magma_conformance.report.page import write_page
from magma_conformance.report.read import read_report
from required import find

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE, DESKTOP = 375, 1280  # pixels


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests; it and its driver are those of the system, and nothing is downloaded."""
    required = {"variable": "MAGMA_BROWSER", "remedy": "apt-get install chromium chromium-driver"}
    browser = find("chromium", "chromium-browser", "google-chrome", **required)
    driver = find("chromedriver", **required)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield chromium
    chromium.quit()


@pytest.fixture
def show(chromium, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of some reports; afterwards, the browser must have had nothing to complain of."""

    def show(*shown: dict[str, Any], width: int = DESKTOP, scheme: str = "light", media: str = "screen") -> Any:
        write_page(shown, tmp_path / "page.html")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        chromium.get((tmp_path / "page.html").as_uri())
        return chromium

    chromium.get_log("browser")  # of another test
    yield show
    assert chromium.get_log("browser") == []


def texts(parent: Any, selector: str) -> list[str]:
    """What a reader sees of each element."""
    return [" ".join(element.text.split()) for element in parent.find_elements("css selector", selector)]


def test_matrix_is_there(show):
    browser = show(reports.mixed(), reports.equal())
    first, second = browser.find_elements("css selector", ".matrix")
    heads = ["Mode", "Verdict", "sgd", "adamw", "steps", "Run", "Seconds"]
    assert texts(first, "thead th[scope=col]") == heads
    assert texts(first, "tbody th[scope=row]") == ["mine eager", "yours jit", "their jit"]
    assert [texts(row, "td") for row in first.find_elements("css selector", "tbody tr")] == [
        ["✓ equal", "✓ 6/6", "✓ 1/1 2 not run", "1 not run", "7", "5.0"],
        ["✗ different", "✓ 6/6", "✗ 0/4", "· no case", "10", "5.0"],
        ["– not run: no device cuda", "0", "–"],
    ]
    assert texts(second, "tbody td") == ["✓ equal", "✓ 6/6", "6", "3.0"]
    assert "no bfloat16" in first.find_element("css selector", "td a[title]").get_attribute("title")


def test_red_cell_shows_the_first_difference(show):
    browser = show(reports.mixed())
    details = [one for one in browser.find_elements("css selector", "details") if "yours jit" in one.text]
    (problem, *others) = details[0].find_elements("css selector", ".problem")
    assert len(others) == 3
    assert not problem.is_displayed()
    (cell,) = browser.find_elements("css selector", ".matrix td.bad > a")
    cell.click()
    assert problem.is_displayed()
    place = problem.rect["y"] - browser.execute_script("return scrollY")
    assert 0 <= place < 800  # one need not look for it
    text = " ".join(problem.text.split())
    for said in (
        "step 3 of 12",
        "w/second_moment",
        "[1, 0]",
        "1 ulp",
        "3.0 0x40400000",
        "3.000000238418579 0x40400001",
    ):
        assert said in text
    assert sum(one.get_attribute("open") is not None for one in browser.find_elements("css selector", "details")) == 1


def test_every_cell_leads_to_its_cases(show):
    browser = show(read_report(reports.COMMITTED[0]))
    dead = """return [...document.querySelectorAll('a[href^="#"]')]
        .filter(a => !document.getElementById(a.getAttribute("href").slice(1))).length"""
    assert browser.execute_script(dead) == 0
    doubled = "const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length - new Set(ids).size"
    assert browser.execute_script(doubled) == 0
    cells = "return document.querySelectorAll('.matrix td > a').length"
    assert browser.execute_script(cells) == len(
        {(r["mode"], r["column"]) for r in read_report(reports.COMMITTED[0])["results"]}
    )


def test_cases_open_with_the_keyboard(show):
    browser = show(reports.mixed())
    browser.find_element("css selector", "summary").send_keys("\ue007")  # enter
    assert browser.find_element("css selector", "details").get_attribute("open") is not None


def _long() -> dict[str, Any]:
    """Names as long as nobody would make them, without a place to break a line."""
    report = reports.mixed()
    return reports.extended(report, "x" * 300)


def _wide() -> dict[str, Any]:
    """More columns than fit, some without cases."""
    report = reports.mixed()
    sample = report["results"][0]
    return report | {"results": report["results"] + [sample | {"column": f"column{i}"} for i in range(20)]}


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("make", [reports.mixed, _long, _wide], ids=["mixed", "long", "wide"])
def test_nothing_is_wider_than_the_window(show, width, make):
    browser = show(make(), reports.equal(), width=width)
    for state in ("closed", "open"):
        content, room, window = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth, innerWidth]"
        )
        assert window == width
        assert content <= room, state
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")


CONTRASTS = """
const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a] }
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  return 0.2126 * x + 0.7152 * y + 0.0722 * z
}
const behind = element => {
  for (let one = element; one; one = one.parentElement) {
    const colour = parse(getComputedStyle(one).backgroundColor)
    if (colour[3] === 1) return colour
    if (colour[3] !== 0) throw Error("translucent: " + one.outerHTML.slice(0, 80))
  }
  throw Error("no background")
}
document.querySelectorAll("details").forEach(one => one.open = true)
return [...document.body.querySelectorAll("*")]
  .filter(one => [...one.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()))
  .map(one => {
    const style = getComputedStyle(one)
    const [a, b] = [luminance(parse(one.closest("svg") ? style.fill : style.color)), luminance(behind(one))]
    const cell = one.closest("td")
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), cell ? cell.className : "", one.outerHTML.slice(0, 120)]
  })
"""
"""For each element with text of its own: contrast as WCAG 2 defines it, the class of its cell, and what it is."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(show, scheme):
    contrasts = show(reports.mixed(), reports.equal(), scheme=scheme).execute_script(CONTRASTS)
    assert {"equal", "bad", "idle", "none"} <= {cell for _, cell, _ in contrasts}
    assert [text for ratio, _, text in contrasts if ratio < 4.5] == []


def test_light_and_dark_differ(show):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = show(reports.equal(), scheme="light").execute_script(paper)
    dark = show(reports.equal(), scheme="dark").execute_script(paper)
    assert light != dark


def test_print_shows_what_is_closed_on_the_screen(show):
    seen = "return [...document.querySelectorAll('details .problem')].map(one => one.checkVisibility())"
    assert show(reports.mixed()).execute_script(seen) == [False] * 4
    assert show(reports.mixed(), media="print").execute_script(seen) == [True] * 4


def test_hostile_names_run_nothing(show):
    browser = show(reports.spoilt(reports.mixed()))
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [0, 0]
    assert "<script>alert(1)</script>" in browser.find_element("css selector", ".matrix").text
