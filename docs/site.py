"""What ``make docs`` needs beside mkdocs.yml: the documents of all folders as pages, and an API page a room of common/.

The documents are pages under the paths that they have in the repository, so that their links hold there as well.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"""\]\(([^)\s#]+)|(?:src|href)="([^"#]+)""")
EQUATION = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
ROLE = re.compile(r":(?:func|class|data|attr|meth|mod):(?=<code>|`)")


def documents() -> list[Path]:
    """The repository's own Markdown files, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in listed.stdout.splitlines()]


def linked(page: Path) -> set[Path]:
    """Files of the repository that a document links to or shows, relative to the root."""
    targets = ((ROOT / page).parent / (a or b) for a, b in LINK.findall((ROOT / page).read_text(encoding="utf-8")))
    files = {target.resolve() for target in targets if target.is_file()}
    return {file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)}


def rooms() -> dict[str, str]:
    """The text of an API page for each room of common/: its modules, by their docstrings."""
    pages = {}
    for place in sorted((ROOT / "common").iterdir()):
        modules = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in modules if file.suffix == ".py"]
        names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
        if names and place.stem != "__init__":
            pages[place.stem] = "\n\n".join([f"# {place.stem}", *(f"::: {name}" for name in names)])
    return pages


def on_config(config: Any) -> Any:
    """The API's pages join the navigation."""
    config.nav.append({"API": [{name: f"api/{name}.md"} for name in rooms()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """All documents, and what they link to, in place of the files of docs/ alone."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = documents()
    for path in sorted({*pages, *(file for page in pages for file in linked(page))}):
        files.append(File.generated(config, path.as_posix(), abs_src_path=str(ROOT / path)))
    for name, text in rooms().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw themselves."""
    from latex2mathml.converter import convert

    return EQUATION.sub(lambda match: convert(match[1], display="block"), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings as the code that they mark."""
    return ROLE.sub("", html)
