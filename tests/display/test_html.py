from __future__ import annotations

import json
from dataclasses import replace

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock.display.html import STYLE, text_to_html, to_html
from colablock.display.plan_view import plan_document
from colablock.display.report_view import report_document
from colablock.display.view import (
    Bar,
    Block,
    Bullets,
    Document,
    FactLine,
    Grid,
    GridRow,
    Headline,
    Item,
    Items,
    Names,
    Note,
    Pair,
    Pairs,
    Picture,
    Preformatted,
    Sample,
    Section,
    Span,
    Tone,
)
from colablock.planning.plan import Action, Breakage, Plan, Remedy, Step, Target
from colablock.transaction.serialise import report_from_json
from colablock.verification.verify import Check, Report
from tests.support.html import body, read
from tests.support.paths import DATA
from tests.support.plans import plan_from_json

CASES = DATA / "display"
PLANS = sorted(path.stem for path in CASES.glob("plan-*.json"))
REPORTS = sorted(path.stem for path in CASES.glob("report-*.json"))
ALLOWED = {
    *("b", "code", "details", "div", "li", "p", "pre", "span", "style", "summary", "ul"),
    *("br", "table", "tbody", "td", "th", "thead", "time", "tr"),
}
HOSTILE = '<script>alert("1")</script>&amp;\'"><img src=x onerror=y>'


def view_of(name: str) -> Document:
    value = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return plan_document(plan_from_json(value)) if name in PLANS else report_document(report_from_json(value))


@pytest.mark.parametrize("name", [*PLANS, *REPORTS])
def test_page_is_well_formed_and_loads_nothing(name: str) -> None:
    html = to_html(view_of(name))
    elements = read(html).all()
    assert {one.tag for one in elements} <= ALLOWED
    assert {attribute for one in elements for attribute in one.attributes} <= {"class", "colspan", "open"}
    assert "url(" not in html
    assert "@import" not in html


def test_every_style_rule_starts_at_our_own_class() -> None:
    assert all(rule.startswith(".colablock.colablock") for rule in STYLE.splitlines())


@pytest.mark.parametrize(
    ("block", "html"),
    [
        (Note(text="a `b` c"), "<p>a <code>b</code> c</p>"),
        (
            Note(label="next", text=Span("x -> y", Tone.CODE), tone=Tone.SOFT),
            '<p class="cl-soft"><span class="cl-tag">next</span><code>x -&gt; y</code></p>',
        ),
        (
            Pairs((Pair(lead="memory", text="1 -> 2", more=("hidden",)),)),
            (
                '<ul class="cl-short"><li><span><span class="cl-soft">memory</span></span>'
                "<span>1 → 2</span></li></ul>"
            ),
        ),
        (
            Pairs((Pair(lead=(Span("a-very-long-name", Tone.STRONG), " 1.0"), text="why"),)),
            (
                '<ul class="cl-pairs"><li><span><b>a-very-long-name</b> 1.0</span>'
                '<span class="cl-soft">why</span></li></ul>'
            ),
        ),
        (
            Items((Item(text="x", outcome=Span("removed", Tone.BAD), notes=(Span("why", Tone.SOFT),)),)),
            (
                '<ul><li><span>x</span><span><span class="cl-tag cl-bad">removed</span>'
                '<span class="cl-soft">why</span></span></li></ul>'
            ),
        ),
        (
            Items((Item(text=(Span("env", Tone.WARN), ": a"), notes=("one", "two")),)),
            (
                '<ul><li><span><span class="cl-tag cl-warn">env</span>a</span>'
                "<span>one<br>two</span></li></ul>"
            ),
        ),
        (
            Grid(rows=(GridRow(cells=("a", "CPU 2026-11-29*", "x-2026-11-29")),)),
            (
                "<table><tbody><tr><td>a</td><td>CPU <time>2026-11-29</time>*</td><td>x-2026-11-29</td>"
                "</tr></tbody></table>"
            ),
        ),
        (Names(("a 1", "b 2")), '<div class="cl-many"><span>a 1</span> <span>b 2</span></div>'),
        (
            Grid(
                rows=(GridRow(cells=("a", "", "c"), below=Preformatted(lines=("<x>",), tail=1)),),
                header=("A", "B", "C"),
            ),
            (
                "<table><thead><tr><th>A</th><th>C</th></tr></thead><tbody><tr><td>a</td><td>c</td></tr>"
                '<tr><td colspan="2"><pre>&lt;x&gt;</pre></td></tr></tbody></table>'
            ),
        ),
        (Bullets(title="do", bullets=("x",)), '<p><b>do:</b></p><ul class="cl-bullets"><li>x</li></ul>'),
        (
            FactLine((("loss", "1"), ("", "step 2"))),
            (
                '<div class="cl-facts"><span><span class="cl-soft">loss</span> 1</span>'
                "<span>step 2</span></div>"
            ),
        ),
        (Bar(0.25), '<progress max="1" value="0.250"></progress>'),
        (Bar(None), "<progress></progress>"),
        (Picture(alt="x", svg="<svg></svg>"), '<div class="cl-picture"><svg></svg></div>'),
        (
            Picture(alt='"x"', png=b"png"),
            '<div class="cl-picture"><img alt="&quot;x&quot;" src="data:image/png;base64,cG5n"></div>',
        ),
        (
            Sample(pieces=(("masked", "a\n"), ("trained", "b")), marked="trained"),
            ("<p><span>masked</span> <mark>trained</mark></p><pre><span>a\n</span><mark>b</mark></pre>"),
        ),
        (
            Section(title="T", body=(Note(text="all"),), brief=(), is_open=False, tone=Tone.WARN),
            ('<details><summary><span class="cl-tag cl-warn">T</span></summary><p>all</p></details>'),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_block_as_html(block: Block, html: str) -> None:
    assert to_html(Document(blocks=(block,))).partition("</style>")[2] == f"{html}</div>"


def test_headline_has_a_badge_and_an_aside() -> None:
    headline = Headline(text="tiny", tone=Tone.GOOD, badge="DONE", aside="in 3 s")
    block = body(to_html(Document(headline=headline)))
    assert block.one("p", "cl-head").text == "DONEtiny in 3 s"
    assert block.one("span", "cl-good").text == "DONE"


def test_arrow_in_code_is_left_alone() -> None:
    assert text_to_html("1 -> 2 `a -> b`") == "1 → 2 <code>a -&gt; b</code>"


def test_hidden_characters_reach_the_page_as_escapes() -> None:
    blocks = (
        Note(text="a\x1b[2Jb\x07\u202e"),
        Preformatted(lines=("a\x1b[2Jb\x07\u202e",)),
        Sample(pieces=(("x", "a\x1b[2Jb\x07\u202e"),), marked="x"),
    )
    html = to_html(Document(blocks=blocks))
    assert html.count(r"a\x1b[2Jb\x07\u202e") == 3
    assert not any(ord(character) < 0x20 and character != "\n" for character in html)
    assert "\u202e" not in html


def test_hostile_text_stays_text() -> None:
    step = Step(
        action=Action.INSTALL, name=NormalizedName(HOSTILE), reason=HOSTILE, version=HOSTILE, previous=HOSTILE
    )
    breakage = Breakage(
        name=NormalizedName(HOSTILE),
        version=HOSTILE,
        requirement=HOSTILE,
        direct=True,
        because=(HOSTILE, "x"),
        remedy=Remedy.LEAVE,
    )
    plan = Plan(
        matrix=HOSTILE,
        matrix_digest="",
        variant=HOSTILE,
        target=Target.KERNEL,
        why_target=HOSTILE,
        python=HOSTILE,
        python_version=HOSTILE,
        steps=(step, replace(step, action=Action.REMOVE)),
        breakages=(breakage,),
        restart={NormalizedName(HOSTILE): (HOSTILE,)},
        notes=(HOSTILE,),
    )
    check = Check(kind=HOSTILE, subject=HOSTILE, passed=False, detail=HOSTILE)
    report = Report(
        matrix=HOSTILE,
        variant=HOSTILE,
        target=HOSTILE,
        python=HOSTILE,
        python_version=HOSTILE,
        checks=(check, replace(check, passed=True)),
        notes=(HOSTILE,),
    )
    for view in (plan_document(plan), report_document(report)):
        elements = read(to_html(view)).all()
        assert {one.tag for one in elements} <= ALLOWED
        assert HOSTILE in body(to_html(view)).text
