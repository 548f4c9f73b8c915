"""What the book's build knows about this machine and this checkout, and the `explorer` directive.

Sphinx calls `setup`; the functions above it are plain, and tests call them by themselves.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger(__name__)

# --- The cache of executed notebooks -----------------------------------------------------------------------------
# jupyter-cache looks at a notebook's cells only. What else decides its outputs goes into the name of the cache's
# folder: the package, the stored data, the libraries, the device. Any of them changed: an empty cache, all runs anew.

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib", "seaborn")
SETTINGS = ("LSBOOK_RETRAIN", "LSBOOK_RUNS_DATA", "LSBOOK_DEVICE")


def device_name():
    """Names of the GPUs that CUDA may use on this machine, else "cpu"; without importing torch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return "cpu"
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return "cpu"
    names = ", ".join(name.strip() for name in names if name.strip())
    return f"{names} [{visible}]" if names and visible else names or "cpu"


def library_versions():
    """name==version of the libraries that outputs depend on, as far as they are installed."""
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return versions


def cache_digest(root, device, versions=(), settings=()):
    """Hex digest of lsbook/**/*.py, data/** and the given device, library versions and settings.

    Locks and checkpoints of runs in progress, in folders whose names start with a dot, are no data.
    """
    data = [path for path in (root / "data").rglob("*") if path.is_file()]
    files = [path for path in data if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    files += (root / "lsbook").rglob("*.py")
    digest = hashlib.sha256()
    for text in (device, *versions, *settings):
        digest.update(f"{text}\0".encode())
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def set_cache(app, config):
    """Point myst-nb to the cache of this digest, and remove the caches of others: they are never read again."""
    settings = [f"{name}={os.environ.get(name, '')}" for name in SETTINGS]
    digest = cache_digest(ROOT, device_name(), library_versions(), settings)
    caches = ROOT / "_build" / ".jupyter_cache"
    for old in caches.glob("*"):
        if old.name != digest:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    config.nb_execution_cache_path = str(caches / digest)


def set_kernel_environment(app, config):
    """Let chapters and API page import lsbook from this checkout, installed or not, and draw no progress bars."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if str(ROOT) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("LSBOOK_PROGRESS", "0")


# --- Where this copy of the book lives ---------------------------------------------------------------------------


def repository(environ):
    """The GitHub repository as "owner/name" from BOOK_REPOSITORY or GITHUB_REPOSITORY; "" if neither is set.

    Raises ValueError if it has another form.
    """
    for variable in ("BOOK_REPOSITORY", "GITHUB_REPOSITORY"):
        name = environ.get(variable, "").strip()
        if name:
            if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", name):
                raise ValueError(f"{variable} must be the GitHub repository as owner/name, got {name!r}")
            return name
    return ""


def theme_options(name):
    """Options of the theme for the buttons of repository `name`; with "" there is no button at all.

    Colab opens the branch `colab`, on which the workflow has written the repository into the set-up cells.
    """
    if not name:
        return {}
    return {
        "repository_url": f"https://github.com/{name}",
        "repository_branch": "colab",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


def set_address(app, config):
    """Buttons from the repository; link previews and canonical links from BOOK_URL, where the book is published."""
    config.html_theme_options = {**config.html_theme_options, **theme_options(repository(os.environ))}
    if config.html_baseurl:
        config.ogp_site_url = config.html_baseurl
        config.ogp_site_name = config.html_title  # else a preview would show Sphinx's name for a project without one
        config.ogp_social_cards = {"enable": False}


def keep_launch_on_notebooks(app, pagename, templatename, context, doctree):
    """Take the launch button off pages whose source is no .ipynb: Colab cannot open intro.md, a notebook as text."""
    if context.get("header_buttons") and Path(app.env.doc2path(pagename)).suffix != ".ipynb":
        buttons = context["header_buttons"]
        context["header_buttons"] = [button for button in buttons if button.get("label") != "launch-buttons"]


def set_static(app, config):
    """Load the house CSS alone: Jupyter Book puts every .css and .js file below _static on every page."""
    config.html_css_files = ["book.css"]
    config.html_js_files = []


# --- Interactive explorers ---------------------------------------------------------------------------------------


EXPLORERS = ROOT / "_static" / "explorers"


class explorer(nodes.General, nodes.Element):
    """The place on a page that _static/explorers/<name>.js fills."""


class Explorer(SphinxDirective):
    """```{explorer} name``` with `:still: label`, the figure that readers without scripts are sent to."""

    required_arguments = 1
    option_spec = {"still": directives.unchanged_required}

    def run(self):
        name = self.arguments[0]
        if not (EXPLORERS / f"{name}.js").is_file():
            raise self.error(f"no explorer {name!r}: _static/explorers/{name}.js does not exist")
        if "still" not in self.options:
            raise self.error(f"explorer {name!r} needs `:still: label`, a figure for readers without scripts")
        label = self.options["still"]
        link = addnodes.pending_xref(
            "", nodes.inline("", "the figure"), refdomain="std", reftype="numref", reftarget=label,
            refdoc=self.env.docname, refexplicit=False, refwarn=True,
        )  # fmt: skip
        self.set_source_info(link)
        sentence = nodes.paragraph("", "", nodes.Text("This explorer needs JavaScript; without it, see "), link)
        sentence += nodes.Text(".")
        return [
            explorer(name=name),
            nodes.raw("", "<noscript>", format="html"),
            sentence,
            nodes.raw("", "</noscript>", format="html"),
        ]


def visit_explorer(translator, node):
    translator.body.append(f'<div class="explorer" id="explorer-{node["name"]}"></div>\n')
    raise nodes.SkipNode


def skip_explorer(translator, node):
    raise nodes.SkipNode


def explorer_scripts(name):
    """Scripts of an explorer in the order in which they must run: shared.js if it uses that, its data, and itself."""
    shared = ["shared.js"] if "window.lsbook.shared" in (EXPLORERS / f"{name}.js").read_text(encoding="utf-8") else []
    data = [f"{name}-data.js"] if (EXPLORERS / f"{name}-data.js").is_file() else []
    return [*shared, *data, f"{name}.js"]


def load_explorers(app, pagename, templatename, context, doctree):
    """Put the scripts and the style of a page's explorers on that page."""
    names = sorted({node["name"] for node in doctree.findall(explorer)}) if doctree else []
    if names:
        app.add_css_file("explorers/explorer.css")
    for script in dict.fromkeys(script for name in names for script in explorer_scripts(name)):
        app.add_js_file(f"explorers/{script}", loading_method="defer")  # deferred scripts keep their order


def setup(app):
    if os.environ.get("BOOK_URL"):
        # Only a published book has an address, and previews of links need one.
        app.setup_extension("sphinxext.opengraph")
        app.config.html_baseurl = os.environ["BOOK_URL"].rstrip("/") + "/"
    for function in (set_kernel_environment, set_cache, set_address, set_static):
        app.connect("config-inited", function)
    ignore = (skip_explorer, None)
    app.add_node(explorer, html=(visit_explorer, None), latex=ignore, text=ignore, man=ignore, texinfo=ignore)
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", load_explorers)
    app.connect("html-page-context", keep_launch_on_notebooks, priority=600)  # after the theme, which adds them at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
