from __future__ import annotations

import re

import pytest

from colablock.display.progress import TerminalReporter
from colablock.display.text import error_text, render, render_error, to_text
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
from colablock.errors import ColablockError, Fault, InvalidMatrix, NoSolution, NotRestored, Refused
from tests.support.screens import console, stripped, written

pytestmark = pytest.mark.requirements


def lines(*blocks: Block, width: int = 40, verbose: bool = False) -> list[str]:
    return to_text(Document(blocks=blocks), width=width, verbose=verbose).splitlines()


# Blocks


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (Note(text="a note"), ["a note"]),
        (
            Note(label="note", text="words that need more than a line"),
            ["note: words that need more", "      than a line"],
        ),
        (
            Note(text="all the checks have passed in 7 s or so"),
            ["all the checks have passed in", "  7 s or so"],
        ),
        (
            Note(label="next", text=Span("a command that is copied whole", Tone.CODE)),
            ["next: a command that is copied whole"],
        ),
        (
            Pairs((Pair(lead="one", text="1"), Pair(lead="three", text="words that go on and on"))),
            ["  one    1", "  three  words that go on and", "         on"],
        ),
        (
            Pairs((Pair(lead="a", text="1"), Pair(lead="a-name-longer-than-24", text="2"))),
            ["  a                      1", "  a-name-longer-than-24  2"],
        ),
        (
            Pairs((Pair(lead="a", text="1"), Pair(lead="a-name-longer-than-24-columns", text="2"))),
            ["  a                         1", "  a-name-longer-than-24-columns  2"],
        ),
        (
            Items((Item(text="it needs x", outcome=Span("removed", Tone.BAD), notes=("because y",)),)),
            ["it needs x: removed", "  because y"],
        ),
        (
            Names(("torch 2.4.0", "numpy 1.26.4", "peft 0.12")),
            ["  torch 2.4.0, numpy 1.26.4,", "  peft 0.12"],
        ),
        (
            Grid(
                rows=(
                    GridRow(cells=("PASS", "0.4 s", "", "torch")),
                    GridRow(cells=("FAIL", "12 s", "", "numpy"), below=Preformatted(lines=("  why", "so"))),
                ),
                right=frozenset({1}),
            ),
            ["PASS  0.4 s  torch", "FAIL   12 s  numpy", "          why", "        so"],
        ),
        (Bullets(title="what to do", bullets=("this", "that")), ["what to do:", "  - this", "  - that"]),
        (FactLine((("", "step 3"), ("loss", "5.9"))), ["  step 3; loss 5.9"]),
        (Bar(0.5), []),
        (Picture(alt="x", svg="<svg/>"), []),
        (
            Sample(pieces=(("masked", "ask\n"), ("trained", "def f():\n    pass")), marked="trained"),
            ["  masked   ask", "  trained  def f():", "               pass"],
        ),
        (Section(title="Title (1)", body=(Note(text="in it"),)), ["Title (1)", "  in it"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_block_as_text(block: Block, shown: list[str]) -> None:
    assert lines(block, width=30) == shown


def test_sections_and_tables_with_a_header_stand_apart() -> None:
    section = Section(title="Title", body=(Note(text="in it"),))
    document = Document(
        headline=Headline(text="Head", aside="aside"), blocks=(section, section, Note(text="end"))
    )
    shown = ["Head: aside", "", "Title", "  in it", "", "Title", "  in it", "", "end"]
    assert to_text(document).splitlines() == shown
    grid = Grid(rows=(GridRow(cells=("x",)),), header=("head",))
    assert lines(grid, Bar(None), Note(text="end")) == ["head", "x", "", "end"]


def test_brief_text_shows_the_brief_of_a_section() -> None:
    nested = Section(title="and 2 more", body=(Note(text="all"),), brief=())
    section = Section(title="Title", body=(Note(text="all"), nested), brief=(Note(text="some"), nested))
    extra = Section(title="Extra", body=(Note(text="more"),), is_extra=True)
    assert lines(section, extra) == ["Title", "  some", "  and 2 more"]
    every = ["Title", "  all", "  and 2 more:", "    all", "", "Extra", "  more"]
    assert lines(section, extra, verbose=True) == every


def test_further_lines_of_a_pair_are_for_verbose_text() -> None:
    pairs = Pairs((Pair(lead="a", text="1", more=("from a file",)),))
    assert lines(pairs) == ["  a  1"]
    assert lines(pairs, verbose=True) == ["  a  1", "    from a file"]


@pytest.mark.parametrize(
    "code",
    ["colablock apply mine --into env --python 3.12", "/home/of some/body/mine.toml", "pip install mine"],
)
def test_a_command_or_a_path_is_in_one_line(code: str) -> None:
    text = f"after some words `{code}`, and a few more"
    note, item = Note(label="next", text=text), Items((Item(text=text, notes=(text,)),))
    shown = to_text(Document(blocks=(note, item)), width=40)
    failed = error_text(Refused(f"{text}\n{text}", hint=text), width=40)
    assert (shown.count(f"`{code}`"), failed.count(f"`{code}`")) == (3, 3)
    said = "the index says `that it is closed for a long time, as many others are today, too`"
    lines = to_text(Document(blocks=(Note(text=said),)), width=40).splitlines()
    assert max(map(len, lines)) <= 40


def test_last_column_is_wrapped_or_cut() -> None:
    row = GridRow(cells=("name", "a text that is longer than the room for it"))
    assert lines(Grid(rows=(row,))) == ["name  a text that is longer than the", "      room for it"]
    assert lines(Grid(rows=(row,), may_cut=True)) == ["name  a text that is longer than the …"]
    assert lines(Grid(rows=(row,), may_cut=True), width=15) == ["name"]


@pytest.mark.parametrize(
    ("reason", "first", "second"),
    [
        ("fits into one line", "fits into one line", None),
        (
            "needs the 1.x client of it, and takes 2.x, too",
            "needs the 1.x client of it, and",
            "takes 2.x, too",
        ),
        (
            "the newest, for it is the best; places and trains quantised models of others",
            "the newest, for it is the best …",
            None,
        ),
        (
            "the build of that torch which the image had in the summer of two years",
            "the build of that torch which the",
            "image had in the summer of …",
        ),
    ],
)
def test_a_reason_is_wrapped_or_cut_at_the_end_of_a_clause(
    reason: str, first: str, second: str | None
) -> None:
    grid = Grid(rows=(GridRow(cells=("name", reason)),), may_cut=True, most=2)
    assert lines(grid) == [f"name  {first}", *([f"      {second}"] if second else [])]


def test_unit_stays_with_its_number() -> None:
    assert lines(Note(text="the memory of it has 14.6 GiB"), width=26) == [
        "the memory of it has",
        "  14.6 GiB",
    ]


def test_hidden_characters_reach_the_terminal_as_escapes() -> None:
    evil = "a\x1b[2Jb\x07\x9b\u202e\u200b"
    document = Document(
        headline=Headline(text=evil, aside=evil),
        blocks=(
            Note(label=evil, text=(evil, Span(evil, Tone.CODE))),
            Pairs((Pair(lead=evil, text=evil, more=(evil,)),)),
            Items((Item(text=evil, outcome=Span(evil), notes=(evil,)),)),
            Names((evil,)),
            Grid(rows=(GridRow(cells=(evil,), below=Preformatted(lines=(evil,))),), header=(evil,)),
            Bullets(title=evil, bullets=(evil,)),
            FactLine(((evil, evil),)),
            Sample(pieces=(("x", evil),), marked="x"),
            Section(title=evil, body=(Note(text=evil),)),
        ),
    )
    shown = to_text(document, verbose=True)
    assert shown.count(r"a\x1b[2Jb\x07\x9b\u202e\u200b") == 22
    assert not any(
        ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in shown.replace("\n", "")
    )


def test_colour_adds_nothing_else() -> None:
    blocks = (
        Note(label="note", text="a `note`", tone=Tone.WARN),
        Section(
            title="Failed", body=(Items((Item(text="x", outcome=Span("removed", Tone.BAD)),)),), tone=Tone.BAD
        ),
    )
    document = Document(headline=Headline(text="Head", tone=Tone.GOOD), blocks=blocks)
    to = console(colour=True)
    render(document, to)
    assert "\x1b[1;31mFailed\x1b[0m" in written(to)
    assert "\x1b[31mremoved\x1b[0m" in written(to)
    assert re.sub(r"\x1b\[[0-9;]*m", "", written(to)) == to_text(document) + "\n"


# Errors

ERRORS: list[tuple[ColablockError, str]] = [
    (
        NoSolution(
            "no candidate fits `example-kernels>=0.4`",
            because=(
                "example-kernels 0.4.0 and 0.4.1 need torch>=2.8",
                "the matrix keeps the preinstalled torch 2.6.0+cu124",
            ),
            hint="Let `torch` be replaced with `--replace torch`, or ask for `example-kernels<0.4`",
        ),
        """\
error: no candidate fits `example-kernels>=0.4`                    [no-solution]
  because example-kernels 0.4.0 and 0.4.1 need torch>=2.8
  and the matrix keeps the preinstalled torch 2.6.0+cu124

hint: Let `torch` be replaced with `--replace torch`, or ask for
`example-kernels<0.4`
""",
    ),
    (
        InvalidMatrix(
            "m.toml",
            [
                Fault(path="packages.torch.verison", message="unknown key", hint="did you mean `version`?"),
                Fault(path="schema", message="is missing"),
            ],
        ),
        """\
error: the matrix `m.toml` has 2 faults                         [invalid-matrix]
  packages.torch.verison: unknown key (did you mean `version`?)
  schema: is missing
""",
    ),
    (
        Refused(
            "the plan was made for another state of this environment, which has changed since then: numpy"
        ),
        """\
error: the plan was made for another state of this environment, which  [refused]
       has changed since then: numpy
""",
    ),
    (
        NotRestored("3 files could not be put back", stash="/site/.stash/1"),
        """\
error: 3 files could not be put back                              [not-restored]
  the files that were moved away are in `/site/.stash/1`
""",
    ),
]


@pytest.mark.parametrize(("error", "shown"), ERRORS, ids=lambda value: getattr(value, "reference", ""))
def test_error_as_text(error: ColablockError, shown: str) -> None:
    to = console()
    render_error(error, to)
    assert stripped(to) == shown
    assert error_text(error) + "\n" == shown


@pytest.mark.parametrize("colour", [False, True])
def test_a_document_above_a_live_line_keeps_its_lines(colour: bool) -> None:
    to = console(terminal=True, colour=colour)
    document = Document(
        headline=Headline(text="QLoRA of tiny", tone=Tone.GOOD, badge="DONE"),
        blocks=(
            Note(label="note", text=("training in ", Span("fp32", Tone.CODE), " here")),
            Pairs((Pair(lead="rows", text="12"), Pair(lead="tokens", text="340"))),
        ),
    )
    with TerminalReporter(to) as reporter:
        reporter.stage("Tokenising the data")
        render(document, to)
        render_error(Refused("no room", hint="Free some"), to)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written(to)).replace("\r", "")
    error = written_once(Refused("no room", hint="Free some"))
    assert f"{to_text(document)}\n" in plain
    assert error in plain


def written_once(error: ColablockError) -> str:
    to = console()
    render_error(error, to)
    return written(to)


@pytest.mark.parametrize(("length", "indent"), [(74, 6), (77, 3), (80, 0), (95, 6)])
def test_a_long_url_stays_on_one_line_of_the_terminal(length: int, indent: int) -> None:
    url = "https://example.org/".ljust(length, "x")
    lines = to_text(Document(blocks=(Note(label="note", text=f"variant cu118: {url} is away"),))).splitlines()
    assert lines == ["note: variant cu118:", f"{' ' * indent}{url}", "      is away"]
