"""What the tests of the interactive explorers share: a page to try them on, and what a reader could stumble over."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
EXPLORERS = ROOT / "_static" / "explorers"
sys.path.insert(0, str(ROOT / "_ext"))
import book_extension  # noqa: E402


def theme_styles():
    """Style sheets of the book's theme, as installed."""
    for package, name in (
        ("pydata_sphinx_theme", "pydata-sphinx-theme.css"),
        ("sphinx_book_theme", "sphinx-book-theme.css"),
    ):
        folder = Path(find_spec(package).origin).parent
        yield folder / "theme" / package / "static" / "styles" / name


def page_html(name, dark=False, themed=True):
    """A page as the book's: theme, explorer, and a still picture in its place for readers without scripts."""
    styles = [*(theme_styles() if themed else ()), EXPLORERS / "explorer.css"]
    links = "".join(f'<link rel="stylesheet" href="{style.as_uri()}">' for style in styles)
    sources = [EXPLORERS / script for script in book_extension.explorer_scripts(name)]
    scripts = "".join(f'<script defer src="{source.as_uri()}"></script>' for source in sources)
    return f"""<!doctype html><html lang="en" data-theme="{"dark" if dark else "light"}"><head>
    <meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Test</title>{links}
    {scripts}</head><body><article class="bd-article"><div class="explorer" id="explorer-{name}">
    <p id="still">still</p></div></article></body></html>"""


# Run in a page: what is cut off, too small, on top of something else or too wide.
LAYOUT = """() => {
    const root = document.documentElement;
    const findings = root.scrollWidth > root.clientWidth ? [`page ${root.scrollWidth} > ${root.clientWidth}`] : [];
    for (const image of document.querySelectorAll(".explorer svg")) {
        const frame = image.getBoundingClientRect();
        const texts = [...image.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect(), t]);
        for (const [words, box, node] of texts) {
            const size = parseFloat(getComputedStyle(node).fontSize) * image.getScreenCTM().a;
            if (size < 12) findings.push(`small: ${words} ${size}`);
            const across = box.left < frame.left || box.right > frame.right + 1;
            if (across || box.top < frame.top || box.bottom > frame.bottom) findings.push(`outside: ${words}`);
        }
        texts.forEach(([words, a], i) => texts.slice(i + 1).forEach(([others, b]) => {
            const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (across > 0 && down > 4) findings.push(`overlap: ${words} | ${others}`);
        }));
    }
    for (const part of document.querySelectorAll(".explorer, .explorer *:not(svg *)"))
        if (part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).display !== "inline")
            findings.push(`wide: ${part.className} ${part.textContent.slice(0, 40)}`);
    return findings;
}"""

# Run in a page: [words, colour, ground] of every text; [selector, colour, ground] of the named strokes and fills.
COLOURS = """([strokes, fills]) => {
    const ground = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return /, 0\\)$/.test(colour) ? ground(node.parentElement) : colour;
    };
    const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const shown = (node) => own(node) && !node.closest("desc,title");
    const texts = [...document.querySelectorAll(".explorer *")].filter(shown);
    return {
        texts: texts.map((node) => [node.textContent, getComputedStyle(node)[node.closest("svg") ? "fill" : "color"],
            ground(node)]),
        shapes: [...strokes.map((name) => [name, getComputedStyle(document.querySelector(`.explorer ${name}`)).stroke]),
            ...fills.map((name) =>
                [name, getComputedStyle(document.querySelector(`.explorer ${name}`)).fill])]
            .map(([name, colour]) => [name, colour, ground(document.querySelector(".explorer"))]),
    };
}"""


def luminance(colour):
    """Relative luminance (WCAG 2) of an opaque rgb(…) colour."""
    channels = np.array(re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups(), dtype=float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def check_contrast(found, dark):
    """Words 4.5 : 1 and shapes 3 : 1 against their ground, as WCAG 2 asks; the ground is dark where it should be."""
    assert (luminance(found["texts"][0][2]) < 0.1) == dark
    for said, colour, ground in found["texts"]:
        assert contrast(colour, ground) >= 4.5, f"{said}: {colour} on {ground}"
    for name, colour, ground in found["shapes"]:
        assert contrast(colour, ground) >= 3, f"{name}: {colour} on {ground}"


def still_is_seen_without_scripts(browser, path, explorer):
    """Whether a page with the explorer, written to `path`, shows the still picture where no script runs."""
    path.write_text(page_html(explorer), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    seen = tab.locator("#still").is_visible()
    context.close()
    return seen
