from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

import pytest

from colablock.display.compat_page import render_page
from tests.support.checks import MATRICES, RUNTIMES, check_of, checks
from tests.support.html import Element, read

WORDS = {"kernel": "Kernel", "env": "Env", "none": "No", "unknown": "Unknown"}
NEWEST = "colab-2026.08-gpu"


def rendered(found: Sequence[Mapping[str, Any]] | None = None, matrices: Mapping[str, str] = MATRICES) -> str:
    return render_page(checks() if found is None else found, matrices=matrices, runtimes=RUNTIMES)


def results_of(matrix: str, runtime: str = NEWEST) -> list[dict[str, Any]]:
    return [result for result in check_of(matrix)["results"] if result["runtime"] == runtime]


def only(*results: Mapping[str, Any], **more: object) -> Element:
    """Return a page with these results of one cell, and no others."""
    return read(rendered([{"matrix": "qlora-2026", "results": results, **more}]))


def one_cell(**values: object) -> Element:
    """Return the details of one result, with *values* in it."""
    return only({**results_of("qlora-2026")[0], **values}).named(f"qlora-2026/{NEWEST}")


def entries(details: Element) -> dict[str, str]:
    return {name.text: text.text for name, text in zip(details.all("dt"), details.all("dd"), strict=True)}


@pytest.fixture(scope="module")
def page() -> Element:
    return read(rendered())


# The evidence


def test_the_second_table_shows_what_is_proven_and_when() -> None:
    new, old = {"date": "2026-11-29", "old": False, "earlier": False}, {"date": "2026-08-01", "old": True}
    cpu = {"card": "CPU", **new}
    cards = [{"card": "NVIDIA <H100>", **new}, {"card": "Tesla T4", **old, "earlier": True}]
    found = {
        "full": {
            "resolved": new,
            "planned": {"kernel": 10, "env": 4},
            "applied": new,
            "imported": new,
            "trained": [cpu, *cards],
        },
        "empty": {**dict.fromkeys(("resolved", "applied", "imported")), "planned": {}, "trained": []},
    }
    page = read(render_page(checks(), matrices=MATRICES, runtimes=RUNTIMES, evidence=found))
    table = page.named("evidence")
    heads = ["Matrix", "Resolved", "Planned", "Applied", "Imported", "CPU", "Card"]
    assert [head.text for head in table.one("thead").all("th")] == heads
    full, empty = ([cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr"))
    dates = ["2026-11-29"] * 4
    assert full[:5] == [dates[0], "10 kernel, 4 env", *dates[1:]]
    assert "NVIDIA <H100> 2026-11-29" in full[5]
    assert "Tesla T4 2026-08-01 (older than 90 days; earlier matrix)" in full[5]
    assert empty == [""] * 6
    assert [cell.attributes["data-step"] for cell in table.one("tbody").all("td")][:6] == heads[1:]
    assert 'id="evidence"' not in rendered()


# The grid


def test_newest_runtime_is_the_first_column(page: Element) -> None:
    heads = page.one("thead").all("th")[1:]
    assert [head.one("b").text for head in heads] == [
        f"{one.label} {one.flavour.upper()}" for one in reversed(RUNTIMES)
    ]
    newest = next(head for head in heads if head.one("b").text == "2026.08 GPU")
    assert [fact.text for fact in newest.all("small")] == ["Python 3.13", "torch 2.11.0"]


def test_each_matrix_has_a_row_with_its_summary(page: Element) -> None:
    rows = page.one("tbody").all("tr")
    assert [row.one("th").one("b").text for row in rows] == list(MATRICES)
    assert [row.one("th").one("small").text for row in rows] == list(MATRICES.values())
    assert {len(row.all("td")) for row in rows} == {len(RUNTIMES)}


def test_every_result_is_readable_without_a_script(page: Element) -> None:
    """Each cell links to its `<details>`, and each verdict is a word."""
    links = {
        unquote(link.attributes["href"]).removeprefix("#"): link
        for cell in page.one("tbody").all("td")
        for link in cell.all("a")
    }
    assert len(links) == len(MATRICES) * len(RUNTIMES)
    for check in checks():
        for result in check["results"]:
            where, on = f"{check['matrix']}/{result['runtime']}", result["accelerator"]
            details = page.named(where)
            assert details.tag == "details"
            assert shown_for(on, links[where]) == shown_for(on, details.one("summary")) == result["verdict"]
            (group,) = (one for one in details.all("div", "group") if one.has("data-on", on))
            assert group.one("h4").one("span").text == WORDS[result["verdict"]]
            assert reason(page, group) == result["reason"].replace("`", "")


def shown_for(accelerator: str, part: Element) -> str:
    """Return the verdict that a cell shows for one accelerator; its word and its colour must agree."""
    (shown,) = (one for one in part.all("b") if one.has("data-on", accelerator))
    (verdict,) = (verdict for verdict, word in WORDS.items() if shown.text.split()[0] == word)
    assert shown.has("class", verdict)
    return verdict


def reason(page: Element, group: Element) -> str:
    """Return the full reason of a group, which may be in another group."""
    shown = group.one("p")
    whole = shown.attributes.get("data-as")
    if whole is None:
        return shown.text
    assert shown.one("a").attributes["href"] == f"#{whole}"
    return page.named(whole).text


@pytest.mark.parametrize(
    ("verdicts", "shown"),
    [
        ({}, ["Kernel"]),
        ({"P100": "none"}, ["Kernel", "No P100"]),
        ({"P100": "none", "none": "none", "G4": "env"}, ["Kernel", "Env G4", "No P100, no GPU"]),
        ({"L4": "none", "A100": "none", "H100": "none"}, ["Kernel", "No 3 of 7"]),
    ],
)
def test_cell_shows_the_best_verdict_and_the_exceptions(verdicts: dict[str, str], shown: list[str]) -> None:
    results = [{**one, "verdict": "kernel"} for one in results_of("qlora-2026")]
    for result in results:
        result["verdict"] = verdicts.get(result["accelerator"], "kernel")
    link = only(*results).one("tbody").one("a")
    assert [word.text for word in link.all("b")] == shown


def test_cell_without_a_result_is_marked() -> None:
    cells = only(results_of("qlora-2026")[0]).one("tbody").all("td")
    assert Counter(cell.text for cell in cells) == {"Kernel": 1, "not checked": len(RUNTIMES) - 1}


def test_unknown_runtime_is_the_last_column() -> None:
    page = only({**results_of("qlora-2026")[0], "runtime": "colab-2020.01-gpu"})
    assert page.one("thead").all("th")[-1].text == "colab-2020.01-gpu"
    assert page.one("tbody").all("td")[-1].text == "Kernel"
    assert "colab-2020.01-gpu" in page.named("qlora-2026/colab-2020.01-gpu").text


# The details of a cell


def test_details_show_every_fact() -> None:
    details = one_cell(
        removes=["torchao 0.10.0", "ray 2.4"],
        breaks=["tensorflow: tensorboard~=2.19.0", "a: b"],
        replaces=3,
        restart=True,
        claims={"nf4": "holds", "bf16": "not known: no card", "llama3-rope": "does not hold: too old"},
    )
    facts = details.one("p", "facts").text
    assert facts == f"{NEWEST}, Python 3.13.15, torch 2.11.0+cu128, driver 580.82.07, recorded 2026-08-19"
    assert [(one.tag, one.text) for one in details.one("dl").all() if one.tag in {"dt", "dd"}] == [
        ("dt", "Stack"),
        ("dd", "variant cuda, Python 3.13.15"),
        ("dt", "Changes"),
        (
            "dd",
            (
                "installs 2, replaces 3, removes torchao 0.10.0, ray 2.4; 45 MB to fetch; "
                "restart if the kernel has loaded a replaced package"
            ),
        ),
        ("dt", "Breaks"),
        ("dd", "tensorflow: tensorboard~=2.19.0a: b"),
        ("dt", "Capabilities"),
        ("dd", "nf4 holdsbf16 not known: no cardllama3-rope does not hold: too old"),
        ("dt", "Lock file"),
        ("dd", "pylock.qlora-2026--colab-2026_08-gpu.toml"),
        ("dt", "Command"),
        ("dd", "colablock apply qlora-2026"),
    ]


def test_unknown_facts_are_left_out() -> None:
    details = one_cell(
        verdict="none", variant=None, lock=None, claims={}, removes=[], **{"fetch-bytes": None}
    )
    assert entries(details) == {"Command": f"colablock plan qlora-2026 --runtime {NEWEST}"}


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, "installs 2, removes torchao 0.10.0; 45 MB to fetch; no restart"),
        ({"verdict": "env", "removes": []}, "installs 2; 45 MB to fetch"),
        ({"installs": 0, "removes": [], "fetch-bytes": 0}, "none; 0 bytes to fetch; no restart"),
        (
            {"fetch-unknown": ["a", "b"]},
            "installs 2, removes torchao 0.10.0; 45 MB and a, b of unknown size to fetch; no restart",
        ),
        ({"fetch-bytes": None}, "installs 2, removes torchao 0.10.0; no restart"),
    ],
)
def test_changes_are_one_line(values: dict[str, object], changes: str) -> None:
    assert entries(one_cell(**values))["Changes"] == changes


def test_shared_facts_of_accelerators_are_shown_once() -> None:
    first, second, third = results_of("qlora-2026")[:3]
    page = only(first, second, {**third, "variant": "cu121"})
    (group,) = page.named(f"qlora-2026/{NEWEST}").all("div", "group")
    assert group.one("h4").text == "Kernel T4, L4, A100"
    *own, same = group.all("dl")
    assert [entries(one) for one in own] == [
        {"For": "T4, L4", "Stack": "variant cuda, Python 3.13.15"},
        {"For": "A100", "Stack": "variant cu121, Python 3.13.15"},
    ]
    assert [one.attributes["data-on"] for one in own] == ["T4 L4", "A100"]
    assert entries(same)["Command"] == "colablock apply qlora-2026"


def test_results_without_different_facts_share_a_part() -> None:
    refused = {**results_of("qlora-2026")[5], "verdict": "none", "variant": None}
    page = only(refused, {**refused, "accelerator": "T4", "variant": "cuda"})
    (group,) = page.named(f"qlora-2026/{NEWEST}").all("div", "group")
    assert group.one("h4").text == "No T4, P100"
    assert group.all("dl") == []


def test_long_reason_is_written_once_per_matrix() -> None:
    long = " ".join(["because this needs that;"] * 20)
    found = [
        {**check, "results": [{**one, "reason": long} for one in check["results"]]} for check in checks()
    ]
    assert rendered(found).count(long) == len(MATRICES)


def test_row_links_to_the_import_findings(page: Element) -> None:
    links = {link.text: link.attributes["href"] for link in page.one("tbody").all("a")}
    assert links["2 import findings, 1 error"] == "#qlora-2024/imports"
    first, second = page.named("qlora-2024/imports").all("li")
    assert first.text == (
        "error axolotl 0.4.0: missing gradio.Blocks in axolotl/cli/train.py:12"
        "imported at module level, and no requirement of axolotl leads to gradio"
    )
    assert second.text.startswith("warning axolotl 0.4.0: missing mlflow in ")
    assert not [link for link in links.values() if link.startswith("#qlora-2026/imports")]


# The page as a whole


def test_the_same_arguments_give_the_same_bytes() -> None:
    shuffled = [
        {
            **{key: check[key] for key in reversed(check)},
            "results": [{key: one[key] for key in reversed(one)} for one in check["results"]],
        }
        for check in checks()
    ]
    assert rendered() == rendered(shuffled)


def test_page_has_a_language_a_title_and_headings(page: Element) -> None:
    assert page.one("html").attributes["lang"] == "en"
    assert page.one("title").text == "colablock: what works on which runtime"
    assert page.one("h1").text == "What works on which runtime"
    assert {head.attributes["scope"] for head in page.all("th")} == {"row", "col"}
    assert all(control.attributes.get("name") for control in [*page.all("input"), *page.all("select")])
    assert [word.text for word in page.named("legend").all("b")] == list(WORDS.values())


def test_controls_that_need_the_script_are_hidden_without_it(page: Element) -> None:
    assert "hidden" in page.named("filters").attributes
    assert [option.text for option in page.one("form").all("select")[0].all("option")] == [
        "any",
        "T4",
        "L4",
        "A100",
        "H100",
        "G4",
        "P100",
        "no GPU",
    ]


def test_ids_are_unique_and_every_link_has_a_target(page: Element) -> None:
    ids = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert max(Counter(ids).values()) == 1
    assert {unquote(link.attributes["href"]) for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_page_loads_nothing(page: Element) -> None:
    assert not re.search(r"https?:|url\(|@import", rendered())
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    assert not [one for one in page.all() if one.attributes.keys() & {"src", "srcset", "style", "onclick"}]


def test_policy_allows_only_our_style_and_script(page: Element) -> None:
    policy = next(one for one in page.all("meta") if "http-equiv" in one.attributes).attributes["content"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        digest = hashlib.sha256(page.one(tag).text.encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"


@pytest.mark.parametrize(
    "hostile",
    [
        "</script><img src=x onerror=alert(1)>",
        '"\' onmouseover=alert(1) x="',
        "<!--",
        "`</style><b>`",
        "&#60;b>",
    ],
)
def test_text_of_the_checks_is_escaped(hostile: str) -> None:
    def worse(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: worse(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [worse(one) for one in value]
        is_closed = key in {"verdict", "severity", "accelerator", "runtime"}
        return f"{value}{hostile}" if isinstance(value, str) and not is_closed else value

    names = {f"{name}{hostile}": f"{summary}{hostile}" for name, summary in MATRICES.items()}
    found: Any = worse(checks())
    for result in found[0]["results"]:
        result["accelerator"] += hostile.replace(" ", "")
        result["runtime"] += hostile
    harmless = only({**results_of("qlora-2026")[0], "runtime": "`colab-2020.01-gpu`"})
    assert shape(read(rendered(found, names))) <= shape(read(rendered())) | shape(harmless)
    page = read(rendered(found, names))
    assert page.one("script").text == script()
    assert [one.text for one in page.all("h3")] == list(names)
    assert f"{MATRICES['qlora-2026']}{hostile}".replace("`", "") in page.one("tbody").text.replace("`", "")


def script() -> str:
    return files("colablock.display").joinpath("compat_page.js").read_text(encoding="utf-8")


def shape(page: Element) -> set[tuple[str, tuple[str, ...]]]:
    """Return the elements of a page, each with the names of its attributes."""
    return {(one.tag, tuple(one.attributes)) for one in page.all()}


def test_control_characters_do_not_reach_the_page() -> None:
    assert "\x1b" not in rendered([{**check_of("qlora-2026"), "matrix": "a\x1b[31m"}])


def test_ten_matrices_on_twenty_runtimes_take_less_than_300_kilobytes() -> None:
    runtimes = tuple(
        replace(one, name=f"colab-20{number}.01-gpu", label=f"20{number}.01", flavour="gpu")
        for number, one in enumerate([*RUNTIMES, *RUNTIMES[:6]], start=10)
    )
    names = list(MATRICES)
    found = [{**check_of(names[number % 4], runtimes), "matrix": f"qlora-{number}"} for number in range(10)]
    assert len({one["accelerator"] for one in found[0]["results"]}) == 7
    summaries = dict.fromkeys((one["matrix"] for one in found), "QLoRA with trl on the runtime's own torch")
    text = render_page(found, matrices=summaries, runtimes=runtimes)
    assert len(read(text).one("tbody").all("td")) == 200
    assert len(text.encode()) < 300_000


# Colours


def colours(scheme: str) -> dict[str, str]:
    text = files("colablock.display").joinpath("compat_page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in text.split("@media")[:2])
    return light if scheme == "light" else {**light, **dark}


def luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2)."""
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    """The contrast is at least 4.5 to 1 (WCAG 2.2, 1.4.3, level AA)."""
    palette = colours(scheme)
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in ("page", "surface")]
    pairs += [(verdict, f"{verdict}-paper") for verdict in WORDS]
    for ink, ground in pairs:
        one, other = sorted((luminance(palette[ink]), luminance(palette[ground])), reverse=True)
        assert (one + 0.05) / (other + 0.05) >= 4.5, (ink, ground)
