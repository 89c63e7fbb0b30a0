"""Every public name stands in the API reference, and every link, picture and command is there."""

import importlib
import importlib.util
import inspect
import re
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

import wasserstein_adv

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FACES = (
    "attacks", "data", "defenses", "evidence", "geometry", "metrics", "models", "parallel",
    "projections",
)  # fmt: skip
MODULES = ("data.perturbations", "fitting", "processes", "recipes", "training")


def text_of(path: Path) -> str:
    """A page without its code, in which brackets and hashes mean something else."""
    text = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def anchors(path: Path) -> set[str]:
    """The headings of a page, as the site and GitHub turn them into anchors."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    plain = (unicodedata.normalize("NFKD", h).encode("ascii", "ignore").decode() for h in headings)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in plain}


def found(identifier: str) -> object:
    """What a page's `::: identifier` stands for: a module, or a name in one."""
    try:
        return importlib.import_module(identifier)
    except ModuleNotFoundError:
        module, name = identifier.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)


IDENTIFIERS = [
    identifier
    for page in sorted(DOCS.rglob("*.md"))
    for identifier in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


def documented(name: str, value: object) -> bool:
    """Whether a page has this very object under this name."""
    return any(i.endswith(f".{name}") and found(i) is value for i in IDENTIFIERS)


@pytest.mark.parametrize("face", FACES)
def test_every_name_of_a_package_is_in_the_reference(face):
    package = importlib.import_module(f"wasserstein_adv.{face}")
    missing = [n for n in package.__all__ if not documented(n, getattr(package, n))]
    assert not missing, f"add to docs/reference/{face}.md"


@pytest.mark.parametrize("name", MODULES)
def test_every_function_and_class_of_a_module_is_in_the_reference(name):
    module = importlib.import_module(f"wasserstein_adv.{name}")
    missing = [
        n
        for n, value in vars(module).items()
        if not n.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not documented(n, value)
    ]
    assert not missing, f"add to docs/reference/{name}.md"


def test_every_name_of_the_library_is_in_the_reference():
    overview = (DOCS / "reference" / "index.md").read_text()
    for name in wasserstein_adv.__all__:
        value = getattr(wasserstein_adv, name)
        if isinstance(value, ModuleType):
            assert f"]({name}.md)" in overview
        elif name.startswith("__"):
            continue
        else:
            assert documented(name, value), name


def test_no_name_stands_twice():
    assert sorted(IDENTIFIERS) == sorted(set(IDENTIFIERS))


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_lead_somewhere(page):
    text = text_of(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target
    for identifier in re.findall(r"\]\[(wasserstein_adv[\w.]*)\]", text):
        assert identifier in IDENTIFIERS, identifier


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist(page):
    for module in re.findall(r"python -m ((?:experiments|benchmarks)[\w.]*\w)", page.read_text()):
        assert importlib.util.find_spec(module) is not None, module


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation
