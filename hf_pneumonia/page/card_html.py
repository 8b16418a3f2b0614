"""Markdown of a model's repository -> HTML that can do nothing but be read.

Anybody may write a card. None of its own HTML is kept, so that no script, style or form of it works, and no
picture comes from elsewhere: who looks at the page tells nobody.
"""

import base64
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Neither looks further than the next opening of its kind: a card of nothing but openings takes no longer.
_UNSEEN = re.compile(
    r"<(script|style)\b[^<]*(?:<(?!/?\1)[^<]*)*</\1\s*>|<!--(?:(?!<!--|-->).)*-->",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LARGEST = 100_000  # characters, of which the worst take two seconds; a card of ours has 18,000

# Where the window is narrow these scroll by themselves, by keyboard too.
_SCROLLING = {
    "<table>": '<div class="scrolling" tabindex="0" role="region" aria-label="Table"><table>',
    "</table>": "</table></div>",
    "<pre>": '<pre tabindex="0">',
}


def card_html(text: str, pictures: Mapping[str, str], prefix: str = "card") -> str:
    """A text in Markdown, without its front matter.

    Headings come one level lower, since the page has its own first one. Links lead to http(s) addresses and
    to headings of the text; of others the words are left.

    Args:
        text: Markdown of anybody.
        pictures: HTML by the names that the text has for its pictures; of others the words are left.
        prefix: of the headings' ids, which are those of no other text of the page then.
    """
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = markdown.parse(_UNSEEN.sub("", _FRONT_MATTER.sub("", text[:_LARGEST])))
    anchors = _lower_headings(tokens, prefix)
    for token in tokens:
        if token.children:
            _disarm_links(token.children, anchors)
    markdown.add_render_rule(
        "html_block", lambda _, tokens, at, *__: f"<p>{_words(tokens[at].content)}</p>\n"
    )
    markdown.add_render_rule("html_inline", lambda _, tokens, at, *__: _words(tokens[at].content))
    markdown.add_render_rule("image", lambda _, tokens, at, *__: _picture(tokens[at], pictures))
    html = markdown.renderer.render(tokens, markdown.options, {})
    # What the text says is escaped: a <table> is the renderer's.
    for tag, more in _SCROLLING.items():
        html = html.replace(tag, more)
    return html


def picture_html(file: Path, description: str) -> str:
    """A PNG file as HTML that needs no other request.

    Raises:
        OSError: it can't be read.
    """
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def _words(html: str) -> str:
    return escape(_TAG.sub(" ", html).strip())


def _picture(token: Token, pictures: Mapping[str, str]) -> str:
    return pictures.get(str(token.attrGet("src")), escape(token.content))


def _lower_headings(tokens: list[Token], prefix: str) -> dict[str, str]:
    """Give headings their ids; the ids by the anchors that the Hub makes of the same headings."""
    anchors = {}
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        if token.type == "heading_open":
            anchor = re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", tokens[place + 1].content.lower()).strip())
            anchors[f"#{anchor}"] = f"{prefix}-{anchor}"
            token.attrSet("id", f"{prefix}-{anchor}")
    return anchors


def _disarm_links(tokens: list[Token], anchors: Mapping[str, str]) -> None:
    # A link holds no other link.
    tag = "a"
    for token in tokens:
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            if target in anchors:
                tag, token.attrs = "a", {"href": f"#{anchors[target]}"}
            elif re.match(r"https?://", target):
                tag, token.attrs = "a", {"href": target, "target": "_blank", "rel": "noopener noreferrer"}
            else:
                tag, token.attrs = "span", {}
        if token.type in ("link_open", "link_close"):
            token.tag = tag
