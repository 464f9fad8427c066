"""What mkdocs does not do by itself.

Formulas become MathML while the site is built, so that no script has to. SECURITY.md, which lies beside docs/, is a
page, too.
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
    """Take SECURITY.md in."""
    path = Path(config.docs_dir).with_name("SECURITY.md")
    files.append(File.generated(config, "security.md", abs_src_path=str(path)))


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Make links to it, and its own, fit."""
    if page.file.src_path == "security.md":
        return markdown.replace("](docs/", "](")
    return markdown.replace("](../SECURITY.md", "](security.md")


def on_page_content(content: str, **_: Any) -> str:
    """Replace what the extension arithmatex made of ``$…$`` and ``$$…$$``."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    kind, formula = found.groups()
    text = html.unescape(formula).strip()
    made = convert(text, display="inline" if kind == "span" else "block")
    made = _OPERATORS.sub(r"<mo>\1</mo>", made)  # which latex2mathml takes for letters
    return made if kind == "span" else f'<div class="formula">{made}</div>'
