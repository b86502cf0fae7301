"""The frame of every HTML page: no network, no scripts, light, dark, phone and paper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template

from .. import __version__
from .looks import DARK, LIGHT, LINE_WIDTH, style_rules, style_variables
from .markup import Markup, element, join


def framed(
    kind: str,
    heading: str,
    intro: object,
    sections: Sequence[Markup],
    links: Sequence[tuple[str, str]],
    notice: str = "",
    rules: str = "",
) -> str:
    """A page as text.

    Parameters
    ----------
    kind : what it is a page of, as "Equipoise replay"
    heading, intro : what stands above everything
    sections : the page, from top to bottom
    links : (id, text) of what the contents name
    notice : what the reader has to know before anything else
    rules : style of this page alone
    """
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        version=join(__version__),
        light=style_variables(LIGHT),
        dark=style_variables(DARK),
        looks=style_rules(),
        line=LINE_WIDTH,
        kind=join(kind),
        title=join(f"{heading} · {kind}"),
        heading=join(heading),
        intro=join(intro),
        notice=element("p", notice, class_="notice", role="note") if notice else "",
        contents=element(
            "nav",
            element("ul", [element("li", element("a", text, href=f"#{name}")) for name, text in links]),
            aria_label="Contents",
        ),
        sections=join(list(sections)),
        rules=rules,
    )


def section(name: str, heading: str, *parts: object, first: bool = False) -> Markup:
    """A part of a page under a heading, which the contents may name."""
    return element(
        "section",
        element("h2", heading, id=f"{name}-head", class_="first" if first else "near"),
        parts,
        id=name,
        aria_labelledby=f"{name}-head",
    )
