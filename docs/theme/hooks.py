"""What mkdocs does not do by itself: formulas become MathML while the site is built, so that no script has to."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_OPERATORS = re.compile(r"<mi>([−·∩∈∑⌊⌋≤≥]|&#x02032;)</mi>")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what the extension arithmatex made of ``$…$`` and ``$$…$$``."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    kind, formula = found.groups()
    text = html.unescape(formula).strip()
    made = convert(text, display="inline" if kind == "span" else "block")
    made = _OPERATORS.sub(r"<mo>\1</mo>", made)  # which latex2mathml takes for letters
    return made if kind == "span" else f'<div class="formula">{made}</div>'
