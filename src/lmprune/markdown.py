"""Words of strangers in Markdown and HTML: they are shown, and not obeyed. Cards and reports write names with these."""

from __future__ import annotations

import re
from html import escape

from .errors import one_line, spelt_out

_ENTITIES = {"<": "&lt;", ">": "&gt;", "|": "&#124;"}
_MARKUP = re.compile(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)|&(?=#|\w)|^[#+-]")


def inline(text: object) -> str:
    """In running text, headings and cells: one line, in which nothing is markup.

    >>> inline("top_v [a](b) <b>|\\n# x")
    'top_v \\\\[a\\\\](b) &lt;b&gt;&#124; # x'
    """
    found = one_line(str(text))
    return _MARKUP.sub(lambda sign: _ENTITIES.get(sign[0], "&amp;" if sign[0] == "&" else "\\" + sign[0]), found)


def code(text: object) -> str:
    """In backticks, which it can't end."""
    return f"`{one_line(str(text)).replace('`', chr(39))}`"


def fenced(text: str, kind: str) -> str:
    """A block that nothing in it can end."""
    text = spelt_out(text, keep="\n\t")
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{kind}\n{text}\n{fence}"


def in_html(text: str) -> str:
    r"""In HTML and SVG, attributes too: no tag, and nothing that turns a line around, or is no character there.

    >>> in_html("<b>\x1b\u202e")
    '&lt;b&gt;\\x1b\\u202e'
    """
    return escape(spelt_out(text, keep="\n\t"))
