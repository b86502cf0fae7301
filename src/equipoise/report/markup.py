"""HTML and SVG by function calls: whatever is not markup already is escaped."""

from __future__ import annotations

import re
from html import escape

VOID = {"input"}
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """Text that is safe to put into a page as it stands."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """``element("td", 3, class_="number")`` is ``<td class="number">3</td>``.

    Children are escaped unless they are `Markup`. In attribute names a final underscore is dropped and the
    others become hyphens; True writes the bare name, None and False leave it out.
    """
    inside = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{inside}>")
    return Markup(f"<{name}{inside}>{join(children)}</{name}>")


def join(children: object) -> Markup:
    """Markup of all children in a row; nested tuples and lists are flattened."""
    if isinstance(children, Markup):
        return children
    if isinstance(children, (tuple, list)):
        return Markup("".join(join(child) for child in children))
    return Markup("" if children is None else escape(_clean(str(children)), quote=False))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_clean(str(value)))}"'


def _clean(text: str) -> str:
    """Without the control characters and lone surrogates that no page may hold."""
    return FORBIDDEN.sub("\ufffd", text)
