"""The files around the book: licences, citation, lock, table of contents, workflow, and the build's extension."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import conftest
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lsbook import notebooks

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "_ext"))
import book_extension  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# --- citation and licences ---------------------------------------------------------------------------------------


def validate_citation(text):
    """Raise if `text` is not a CITATION.cff by the schema of CFF 1.2.0 (whose dates and versions are strings)."""
    schema = json.loads(read("tests/data/cff-1.2.0.schema.json"))
    citation = yaml.load(text, Loader=yaml.BaseLoader)
    jsonschema.validators.validator_for(schema)(schema).validate(_numbers(citation))
    return citation


def _numbers(value):
    """BaseLoader leaves all as text, which dates need; give the year and volume of a reference their numbers back."""
    for reference in value.get("references", []):
        reference.update({k: int(v) for k, v in reference.items() if k in ("year", "volume") and v.isdigit()})
    return value


def test_citation_validates_and_names_this_version():
    import lsbook

    citation = validate_citation(read("CITATION.cff"))
    assert citation["version"] == lsbook.__version__
    assert f"## {lsbook.__version__} ({citation['date-released']})" in read("CHANGELOG.md")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cff-version: 1.2.0", ""),
        ("2026-11-20", "20 November"),
        ("authors:\n  - name", "author:\n  - name"),
        ("- MIT", "- MITT"),
    ],
)
def test_a_wrong_citation_is_refused(old, new):
    text = read("CITATION.cff")
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        validate_citation(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "phrases"),
    [
        ("LICENSE", ["MIT License", "The label-smoothing book authors", "WITHOUT WARRANTY OF ANY KIND"]),
        (
            "LICENSE-TEXT",
            ["Attribution 4.0 International", "Section 1 -- Definitions.", "Section 8 -- Interpretation."],
        ),
        ("_static/mathjax/LICENSE", ["Apache License", "Version 2.0"]),
    ],
)
def test_licences_are_whole(file, phrases):
    text = read(file)
    assert [phrase for phrase in phrases if phrase not in text] == []


# --- the lock ----------------------------------------------------------------------------------------------------


def locked():
    """Package -> version, as pinned in requirements.txt for this Python and system."""
    lines = [line.strip() for line in read("requirements.txt").splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier) for pin in pins if not pin.marker or pin.marker.evaluate()}


def reachable():
    """Every installed distribution that lsbook with its extras needs, directly or not (torch's CUDA packages apart)."""
    project = PYPROJECT["project"]
    todo = [Requirement(r) for r in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]]
    left_out = {canonicalize_name(name) for name in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
    found = {}
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name in left_out or (name in found and need.extras <= found[name]):
            continue
        found[name] = found.get(name, set()) | need.extras
        for line in importlib.metadata.distribution(name).requires or []:
            more = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *need.extras)]
            if not more.marker or any(more.marker.evaluate(e) for e in environments):
                todo.append(more)
    return set(found)


def test_lock_is_complete():
    needed = reachable()
    assert {"torch", "sphinx", "pytest", "sympy", "pybtex"} <= needed  # direct ones and theirs
    assert sorted(needed - set(locked())) == []


def test_lock_holds_exact_versions_and_no_address():
    lines = [line for line in read("requirements.txt").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[0-9][^ @/+]*( ; .+)?", line)] == []
    assert locked()["torch"] == "==2.13.0"


def test_lock_agrees_with_pyproject():
    for line in [
        *PYPROJECT["project"]["dependencies"],
        *sum(PYPROJECT["project"]["optional-dependencies"].values(), []),
    ]:
        need = Requirement(line)
        version = locked()[canonicalize_name(need.name)].removeprefix("==")
        assert need.specifier.contains(version), f"{need} against {version} in requirements.txt: run `make lock`"


# --- table of contents, commands, workflow -----------------------------------------------------------------------


def test_every_page_of_the_contents_exists():
    contents = yaml.safe_load(read("_toc.yml"))
    files = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    missing = [file for file in files if not any((ROOT / f"{file}{suffix}").is_file() for suffix in (".md", ".ipynb"))]
    assert missing == []


def test_every_chapter_is_in_the_contents():
    contents = read("_toc.yml")
    pages = [
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in [*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("appendix/*.*")]
    ]
    assert [page for page in pages if f"file: {page}\n" not in contents] == []


def test_ci_is_what_a_reader_runs():
    assert re.search(r"^make test$", read(".ci/run"), re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflow = yaml.safe_load(read(".github/workflows/book.yml"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    branch = book_extension.theme_options("owner/name")["repository_branch"]
    assert any(f"git push --force origin {branch}\n" in f"{step}\n" for step in steps)
    assert f"--branch {branch} " in notebooks.setup_cell()
    assert "deploy-pages" in workflow["jobs"]["publish"]["steps"][-1]["uses"]  # after the branch its buttons open


def test_make_test_runs_every_kind_of_check():
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for part in (
        "ruff check",
        "ruff format --check",
        '-m "not html"',
        "--nbval --nbval-current-env",
        "jupyter-book build",
        "-m html",
    ):
        assert part in shown, part


def test_make_looks_for_the_browsers_of_the_tests():
    assert [name for name in conftest.BROWSERS if not re.search(rf'[ "]{re.escape(name)}[ ";]', read("Makefile"))] == []


def test_an_environment_that_was_moved_is_made_afresh(tmp_path):
    """Seen from the shell commands that make would run: with this checkout's own stamp there are none."""
    for file in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / file).write_text(read(file), encoding="utf-8")
    (tmp_path / ".venv").mkdir()

    def shown(path):
        (tmp_path / ".venv" / ".complete").write_text(f"{path}\n")
        return subprocess.run(["make", "-n", "env"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "pip install" in shown("/elsewhere")
    assert "pip install" not in shown(tmp_path.resolve())


def test_an_old_python_is_told_so(tmp_path):
    fake = tmp_path / "python3.9"
    fake.write_text('#!/bin/sh\n[ "$1" = "-V" ] && echo "Python 3.9.0" && exit 0\nexit 1\n')
    fake.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text(read(name), encoding="utf-8")
    done = subprocess.run(["make", "book", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout and "Python 3.9.0" in done.stdout
    assert not (tmp_path / ".venv").exists()


# --- the extension -----------------------------------------------------------------------------------------------


def test_without_a_repository_there_is_no_button():
    assert book_extension.repository({}) == ""
    assert book_extension.repository({"BOOK_REPOSITORY": " "}) == ""
    assert book_extension.theme_options("") == {}


def test_the_repository_of_the_book_goes_before_that_of_the_workflow():
    environ = {"GITHUB_REPOSITORY": "someone/fork", "BOOK_REPOSITORY": "lab/book.of-2026"}
    assert book_extension.repository(environ) == "lab/book.of-2026"
    assert book_extension.repository({"GITHUB_REPOSITORY": "someone/fork"}) == "someone/fork"
    options = book_extension.theme_options("someone/fork")
    assert options["repository_url"] == "https://github.com/someone/fork"
    assert options["launch_buttons"]["colab_url"] == "https://colab.research.google.com"


@pytest.mark.parametrize(("source", "kept"), [("chapters/logit_gap.ipynb", True), ("intro.md", False)])
def test_the_launch_button_stands_on_notebooks_alone(source, kept):
    app = SimpleNamespace(env=SimpleNamespace(doc2path=lambda page: f"/book/{source}"))
    launch, other = {"label": "launch-buttons", "buttons": []}, {"type": "group", "buttons": []}
    context = {"header_buttons": [launch, other]}
    book_extension.keep_launch_on_notebooks(app, "page", "page.html", context, None)
    assert context["header_buttons"] == ([launch, other] if kept else [other])


@pytest.mark.parametrize("wrong", ["book", "https://github.com/a/b", "a/b/c", "a b/c", "/b", "a/", 'a/b"><script>'])
def test_a_malformed_repository_is_refused(wrong):
    with pytest.raises(ValueError, match="BOOK_REPOSITORY must be .* owner/name"):
        book_extension.repository({"BOOK_REPOSITORY": wrong})


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "lsbook").mkdir()
    (tmp_path / "data" / "runs").mkdir(parents=True)
    (tmp_path / "lsbook" / "theory.py").write_text("x = 1\n")
    (tmp_path / "data" / "runs" / "metrics.json").write_text("{}")
    return tmp_path


def test_the_cache_knows_code_data_device_and_libraries(checkout):
    def digest(device="cpu", versions=("torch==2.13.0",), settings=("LSBOOK_RETRAIN=",)):
        return book_extension.cache_digest(checkout, device, versions, settings)

    first = digest()
    assert digest() == first
    (checkout / "README.md").write_text("not looked at")
    (checkout / "lsbook" / "notes.txt").write_text("not looked at")
    for folder in (".locks", ".checkpoints"):  # of runs in progress
        (checkout / "data" / "runs" / folder).mkdir()
        (checkout / "data" / "runs" / folder / "a.safetensors").write_text("not looked at")
    assert digest() == first
    seen = {
        first,
        digest(device="NVIDIA H200"),
        digest(versions=("torch==2.14.0",)),
        digest(settings=("LSBOOK_RETRAIN=1",)),
    }
    (checkout / "lsbook" / "theory.py").write_text("x = 2\n")
    seen.add(digest())
    (checkout / "data" / "runs" / "metrics.json").write_text('{"a": 1}')
    seen.add(digest())
    (checkout / "lsbook" / "theory.py").rename(checkout / "lsbook" / "theories.py")
    seen.add(digest())
    assert len(seen) == 7


def test_caches_that_nothing_reads_again_are_removed(checkout, monkeypatch):
    monkeypatch.setattr(book_extension, "ROOT", checkout)
    monkeypatch.setattr(book_extension, "device_name", lambda: "cpu")
    config = type("Config", (), {})()
    book_extension.set_cache(None, config)
    first = Path(config.nb_execution_cache_path)
    first.mkdir(parents=True)
    (checkout / "lsbook" / "theory.py").write_text("x = 2\n")
    book_extension.set_cache(None, config)
    assert Path(config.nb_execution_cache_path) != first
    assert not first.exists()


def test_the_device_is_the_gpu_that_cuda_may_use(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert book_extension.device_name() == "NVIDIA H200"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert book_extension.device_name() == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert book_extension.device_name() == "cpu"
