"""What `make docs` adds to the pages of docs/: the README as the first one, and files beside docs/ that they link to.

    README.md             -> index.md
    docs/rules.md         -> rules.md
    configs/nginx.conf    -> tree/configs/nginx.conf, and so each file outside of docs/ that a link names

The pages are written to be read in the tree; links are bent here, so that they hold in the site too. A link to a file
that is not there is left alone: mkdocs names it, and ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
FIRST: Final = "README.md"
LINK: Final = re.compile(r"\]\(([^)#:]+)((?:#[^)]*)?)\)")
"""A link or a picture within this tree, and its fragment."""


def in_site(path: str) -> str:
    """The place in the site of a file of the tree."""
    if path == FIRST:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"tree/{path}"


def in_tree(place: str) -> str:
    """The reverse of `in_site`."""
    if place == "index.md":
        return FIRST
    return place.removeprefix("tree/") if place.startswith("tree/") else f"docs/{place}"


def linked(path: str, markdown: str) -> list[str]:
    """The files of the tree to which the page `path` links."""
    return [
        posixpath.normpath(posixpath.join(posixpath.dirname(path), to)) for to, _ in LINK.findall(markdown)
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page and all that is linked from one page or another and lies outside of docs/."""
    todo = [FIRST, *(in_tree(file.src_uri) for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if files.get_file_from_path(in_site(path)) is None and (ROOT / path).is_file():
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md") and (ROOT / path).is_file():
            new = set(linked(path, (ROOT / path).read_text("utf-8"))) - seen
            seen |= new
            todo.extend(sorted(new))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Bend the links of one page."""
    here = page.file.src_uri
    path = in_tree(here)

    def bent(match: re.Match[str]) -> str:
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        place = in_site(to)
        if files.get_file_from_path(place) is None:
            return match[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{match[2]})"

    return LINK.sub(bent, markdown)
