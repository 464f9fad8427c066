"""What mkdocs does not do by itself.

Formulas become MathML while the site is built, so that no script has to. SECURITY.md and deploy/, which lie beside
docs/, are part of the site.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_OPERATORS = re.compile(r"<mi>([−·∩∈∑⌊⌋≤≥]|&#x02032;)</mi>")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Take in what pages link to and lies beside docs/."""
    root = Path(config.docs_dir).parent
    for path in (root / "SECURITY.md", *sorted((root / "deploy").iterdir())):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Make links to it, and its own, fit."""
    return markdown.replace("](docs/" if page.file.src_path == "SECURITY.md" else "](../", "](")


def on_page_content(content: str, **_: Any) -> str:
    """Replace what the extension arithmatex made of ``$…$`` and ``$$…$$``."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    kind, formula = found.groups()
    text = html.unescape(formula).strip()
    made = convert(text, display="inline" if kind == "span" else "block")
    made = _OPERATORS.sub(r"<mo>\1</mo>", made)  # which latex2mathml takes for letters
    return made if kind == "span" else f'<div class="formula">{made}</div>'
