"""Pages and files of the repository outside `docs/` in the site, and links as GitHub has them.

A link in a Markdown file is relative to its place in the repository. In the site `docs/` is the
root and everything else lies below it as in the repository, so that links across that border
change. Any file that a page links to is part of the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = (
    "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/*/README.md",
    "experiments/*.md", "experiments/*/*.md",
)  # fmt: skip
FOLDER_PAGE = "folder.md"
_LINK = re.compile(r"(\]\()(?!#|[a-z]+:)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> None:
    """Put every page of `docs/howto` into the navigation, at the end those not named there."""
    section = next(item["How to"] for item in config.nav or () if "How to" in item)
    pages = sorted(p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/howto/*.md"))
    section += [page for page in pages if page not in section]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of `PAGES`, and whatever a page of the site links to."""
    pages = {path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern)}
    waiting = sorted(pages | {f"docs/{f.src_uri}" for f in files if f.src_uri.endswith(".md")})
    seen = set(waiting)
    while waiting:
        place = waiting.pop()
        path = ROOT / place
        if path.is_file():
            text = path.read_text(encoding="utf-8") if place.endswith(".md") else ""
            added = File.generated(config, place, abs_src_path=str(path))
        elif path.parent.is_dir() and path.name == FOLDER_PAGE:
            text = folder_page(path.parent)
            hidden = InclusionLevel.NOT_IN_NAV
            added = File.generated(config, place, content=text, inclusion=hidden)
        else:
            continue  # made by another hook
        if not place.startswith("docs/"):
            files.append(added)
        links = {resolve(place, found[2]) for found in _LINK.finditer(text)}
        waiting += sorted(links - seen)
        seen |= links


def folder_page(folder: Path) -> str:
    """The files of a folder that has no README."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    title = folder.relative_to(ROOT)
    return "\n".join([f"# {title}", "", *(f"- [{name}]({name})" for name in names), ""])


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    place = repository_place(page.file.src_uri)
    if not (ROOT / place).is_file():
        return markdown

    def rewritten(found: re.Match[str]) -> str:
        target = resolve(place, found[2])
        known = (ROOT / target).exists() or target.startswith("docs/reference/")
        if not known and posixpath.basename(target) != FOLDER_PAGE:
            raise PluginError(f"{place} links to {found[2]}, which is not there")
        there = posixpath.relpath(site_place(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{there}{found[3] or ''}"

    return _LINK.sub(rewritten, markdown)


def resolve(place: str, link: str) -> str:
    """Where a link of a file of the repository leads to, a folder's README for a folder."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    if (ROOT / target).is_dir():
        readme = (ROOT / target / "README.md").is_file()
        target = f"{target}/{'README.md' if readme else FOLDER_PAGE}"
    return "docs/index.md" if target == "README.md" else target


def repository_place(place: str) -> str:
    """Of a file of the site, in the repository."""
    return f"docs/{place}" if (ROOT / "docs" / place).is_file() else place


def site_place(place: str) -> str:
    return place.removeprefix("docs/")
