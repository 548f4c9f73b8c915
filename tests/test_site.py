"""The built pages: nothing from elsewhere, no broken link, nothing unrendered. Run after `make book`."""

import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "_ext"))
import book_extension  # noqa: E402

HTML = ROOT / "_build" / "html"
pytestmark = pytest.mark.html

OUTSIDE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
# What a browser fetches by itself. <a href> and <meta> are not in it: a reader follows the one, nobody the other.
FETCHED = {
    "script": ["src"], "img": ["src", "srcset"], "source": ["src", "srcset"], "iframe": ["src"], "embed": ["src"],
    "object": ["data"], "video": ["src", "poster"], "audio": ["src"], "track": ["src"], "input": ["src"],
    "use": ["href", "xlink:href"], "image": ["href", "xlink:href"],
}  # fmt: skip
LINKS_NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "author", "license", "alternate", "top", "up"}
CSS_FETCH = re.compile(r"""(?:url\(|@import)\s*['"]?\s*(?:https?:)?//[^'")\s]*""", re.IGNORECASE)
SCRIPT_FETCH = re.compile(
    r"""(?:import|fetch|importScripts|\.open|\.src\s*=|\.href\s*=|getScript)[^;\n]{0,40}['"`](?:https?:)?//""",
    re.IGNORECASE,
)
RAW_TEX = re.compile(r"\$\$|\\[a-zA-Z]{2,}|\\[()\[\]]")
RAW_MYST = re.compile(r"\{[a-z]+(?::[a-z]+)*\}`|`{3,}\{|:{3,}\{|(?<!\w)%%[a-z]")


def outside_resources(html):
    """What a page would fetch from another host."""
    page = BeautifulSoup(html, "html.parser")
    found = []
    for tag, attributes in FETCHED.items():
        for element in page.find_all(tag):
            values = [part for a in attributes for part in element.get(a, "").split(",")]
            found += [f"<{tag}> {value}" for value in values if OUTSIDE.match(value)]
    for element in page.find_all("link"):
        if not LINKS_NOT_FETCHED & set(element.get("rel", [])) and OUTSIDE.match(element.get("href", "")):
            found.append(f"<link> {element['href']}")
    for element in page.find_all(style=True):
        found += CSS_FETCH.findall(element["style"])
    for element in page.find_all("style"):
        found += CSS_FETCH.findall(element.text)
    for element in page.find_all("script", src=False):
        found += SCRIPT_FETCH.findall(element.text)
    return found


def visible_text(html):
    """The words a reader sees, without code and formulas (MathJax sets those)."""
    page = BeautifulSoup(html, "html.parser")
    for element in page.select("script, style, code, pre, .math, noscript, textarea"):
        element.decompose()
    return page.get_text("\n")


@cache
def pages():
    """Path and parsed text of every page of the book."""
    if not (HTML / "index.html").is_file():
        pytest.fail("no built book in _build/html: run `make book` first", pytrace=False)
    return {
        path: path.read_text(encoding="utf-8") for path in sorted(HTML.rglob("*.html")) if "_static" not in path.parts
    }


@cache
def anchors(path):
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return {element.get("id") for element in page.find_all(id=True)} | {
        a["name"] for a in page.find_all("a", attrs={"name": True})
    }


def name(path):
    return path.relative_to(HTML).as_posix()


def test_no_page_names_anything_on_another_host():
    assert {name(path): found for path, html in pages().items() if (found := outside_resources(html))} == {}


def test_no_style_sheet_names_anything_on_another_host():
    pages()
    css = list(HTML.rglob("*.css"))
    assert css
    assert {name(path): found for path in css if (found := CSS_FETCH.findall(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<img alt="a" src="//cdn.example/x.png">',
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preload" as="font" href="http://fonts.example/a.woff2">',
        '<iframe src="https://video.example"></iframe>',
        "<style>@import 'https://fonts.example/css';</style>",
        '<p style="background: url(//cdn.example/a.png)">a</p>',
        '<script type="module">import x from "https://cdn.example/x.mjs"</script>',
        '<script>fetch("https://api.example/")</script>',
    ],
)
def test_the_scan_finds_what_it_should(html):
    assert outside_resources(html)


@pytest.mark.parametrize(
    "html", ['<a href="https://arxiv.org">paper</a>', '<meta property="og:url" content="https://a.example">']
)
def test_the_scan_lets_ordinary_links_pass(html):
    assert outside_resources(html) == []


def test_every_image_has_words_for_those_who_do_not_see_it():
    missing = [
        f"{name(path)}: {image.get('src')}"
        for path, html in pages().items()
        for image in BeautifulSoup(html, "html.parser").find_all("img")
        if not image.get("alt", "").strip() or image["alt"].startswith(("../", "_images/"))
    ]
    assert missing == []


def test_nothing_is_left_unrendered():
    found = {}
    for path, html in pages().items():
        text = visible_text(html)
        if raw := RAW_TEX.findall(text) + RAW_MYST.findall(text):
            found[name(path)] = raw
    assert found == {}


@pytest.mark.parametrize(
    "text", ["$$x$$", r"\begin{align}", r"so \alpha is", r"\(x\)", "see {numref}`fig`", "{cite:t}`a`", "```{note}"]
)
def test_unrendered_text_is_noticed(text):
    seen = visible_text(f"<p>{text}</p>")
    assert RAW_TEX.search(seen) or RAW_MYST.search(seen)


def test_links_within_the_book_lead_somewhere():
    broken = []
    for path, html in pages().items():
        page = BeautifulSoup(html, "html.parser")
        targets = [e["href"] for e in page.select("a[href], link[href]")] + [e["src"] for e in page.select("[src]")]
        for target in targets:
            url = urlsplit(target)
            if url.scheme or url.netloc or target in ("", "#"):
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not file.is_file():
                broken.append(f"{name(path)} -> {target}")
            elif url.fragment and file.suffix == ".html" and unquote(url.fragment) not in anchors(file):
                broken.append(f"{name(path)} -> {target}: no such anchor")
    assert broken == []


def test_colab_buttons_open_notebooks():
    """Only a build that knows its repository has such buttons, as that of the workflow does."""
    opened = {path for html in pages().values() for path in re.findall(r"/blob/colab/([^\"?#]+)", html)}
    assert [path for path in sorted(opened) if not (path.endswith(".ipynb") and (ROOT / path).is_file())] == []


def test_explorers_are_loaded_where_they_stand_and_nowhere_else():
    for path, html in pages().items():
        page = BeautifulSoup(html, "html.parser")
        placed = sorted({e["id"].removeprefix("explorer-") for e in page.select("div.explorer")})
        loaded = [Path(urlsplit(e["src"]).path).name for e in page.select('script[src*="/explorers/"]')]
        # Each with what it needs before it, and once: in this order they run.
        needed = dict.fromkeys(script for n in placed for script in book_extension.explorer_scripts(n))
        assert list(needed) == loaded, name(path)
        assert bool(page.select('link[href*="explorers/explorer.css"]')) == bool(placed), name(path)
        assert len(page.select("noscript a.reference")) >= len(placed), name(path)


def test_in_a_browser_pages_fetch_nothing_from_elsewhere_and_fit_a_phone(browser):
    """Every page, opened from disk as a reader does, 420 pixels wide: formulas set, no error, no sideways scrolling."""
    problems = []
    tab = browser.new_page(viewport={"width": 420, "height": 900})
    tab.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(f"fetches {r.url}"),
    )
    tab.on("requestfailed", lambda r: problems.append(f"cannot fetch {r.url}"))
    tab.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    for path, html in pages().items():
        if 'http-equiv="Refresh"' in html:  # index.html only leads on to the first page
            continue
        tab.goto(path.as_uri(), wait_until="load")
        tab.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        seen = tab.evaluate(
            """() => ({
                errors: [...document.querySelectorAll("mjx-merror")].map(e => e.textContent),
                formulas: document.querySelectorAll(".math").length,
                set: document.querySelectorAll("mjx-container").length,
                wide: document.documentElement.scrollWidth})"""
        )
        if seen["errors"] or seen["set"] < seen["formulas"]:
            problems.append(f"{name(path)}: {seen['set']} of {seen['formulas']} formulas set, errors {seen['errors']}")
        if seen["wide"] > 420:
            problems.append(f"{name(path)} is {seen['wide']} pixels wide on a screen of 420")
    tab.close()
    assert problems == []


# Run in a page: the visible tables that a cell printed and of which a part is hidden, by how many pixels.
HIDDEN_COLUMNS = """() => [...document.querySelectorAll(".cell_output table")].map((t) => {
    let hidden = 0;
    for (let part = t.parentElement; part.tagName !== "ARTICLE"; part = part.parentElement)
        hidden = Math.max(hidden, part.scrollWidth - part.clientWidth);
    return [t.innerText.slice(0, 60).replace(/\\s+/g, " "), hidden];
}).filter(([words, hidden]) => words.trim() && hidden > 2)"""


@pytest.mark.parametrize("path", sorted(HTML.glob("chapters/*.html")), ids=lambda path: path.stem)
def test_no_table_hides_a_column_on_a_small_laptop(browser, path):
    """Regression: at 1,300 pixels the verdicts of some tables were out of sight, and nothing said so."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(path.as_uri(), wait_until="load")
    assert page.locator(".cell_output table").count() > 3
    found = page.evaluate(HIDDEN_COLUMNS)
    page.close()
    assert found == []
