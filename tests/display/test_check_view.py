from __future__ import annotations

from pathlib import Path
from typing import Any

from colablock.check.outcomes import Difference, Outcome, Verdict
from colablock.check.results_file import MatrixCheck
from colablock.display.check_view import check_document
from colablock.display.text import to_text

LONG = Path("/home/of-somebody/with-a-long-name/matrices-of-a-team/that-keeps-many/good.checks.json")
NONE = Difference(text="there are no committed results in `x`", advice="`--update` writes them")


def outcome(runtime: str, verdict: str, accelerator: str = "T4", **facts: Any) -> Outcome:
    usual = {"variant": None, "reason": f"because {verdict}\nand so on"}
    return Outcome(runtime=runtime, accelerator=accelerator, verdict=Verdict(verdict), **{**usual, **facts})


def check(*outcomes: Outcome, **facts: Any) -> MatrixCheck:
    usual: dict[str, Any] = {"matrix": "good", "summary": "Shapes", "digest": "d", "path": LONG}
    return MatrixCheck(outcomes=outcomes, **{**usual, **facts})


def test_check_as_text() -> None:
    checked = check(
        outcome("colab-1-cpu", "kernel", "none"),
        outcome("colab-1-gpu", "kernel", fetch_bytes=44_000_000),
        outcome("colab-1-gpu", "kernel", "L4", fetch_bytes=43_000_000),
        outcome("colab-1-gpu", "none", "P100"),
        outcome("colab-2-gpu", "env", python="3.12.1", capabilities={"nf4": "holds", "rope": "too old"}),
        outcome("colab-2-gpu", "env", "L4", python="3.11.9", capabilities={"rope": "holds"}),
        outcome("colab-2-gpu", "none", "P100"),
        imports=[{"severity": "error", "package": "own", "detail": "imports colours"}],
        differences=(Difference(text="new\nand more", runtime="colab-1-cpu"),),
    )
    assert to_text(check_document(checked)).splitlines() == [
        "good: Shapes",
        "",
        "runtime      no GPU  T4 L4   P100",
        "colab-2-gpu          env     no",
        "colab-1-gpu          kernel  no",
        "colab-1-cpu  kernel",
        "",
        "Reasons",
        "  kernel: 1-cpu, 1-gpu (T4 L4); fetch 44 MB",
        "    because kernel; and so on",
        "  no: 1-gpu, 2-gpu (P100)",
        "    because none; and so on",
        "  env: 2-gpu (T4 L4); Python 3.11.9, 3.12.1",
        "    because env; and so on",
        "    rope: too old (T4)",
        "",
        "Worse since",
        "  colab-2-gpu, kernel -> env (T4 L4)",
        "",
        "Imports",
        "  error: imports of own: imports colours",
        "",
        "Drift",
        "  colab-1-cpu: new; and more",
        "",
        "next: if that is meant, `--update` writes the new results",
    ]
    assert "    because env\n    and so on\n" in to_text(check_document(checked), verbose=True)


def test_a_download_of_unknown_size_is_named() -> None:
    known = outcome("colab-1-cpu", "env", "none", fetch_bytes=3_300_000_000)
    unsized = outcome("colab-1-gpu", "env", fetch_bytes=2_500_000_000, unsized=("torch",))
    for outcomes, said in (
        ((known, unsized), "fetch 3.3 GB, or 2.5 GB and torch of unknown size"),
        ((unsized,), "fetch 2.5 GB and torch of unknown size"),
        ((known,), "fetch 3.3 GB"),
    ):
        assert said in " ".join(to_text(check_document(check(*outcomes))).split())


def test_path_of_the_results_is_not_broken() -> None:
    text = to_text(check_document(check(differences=(Difference(text="a drift"),)), updated=True), width=60)
    assert f"\nWritten to\n  {LONG}\n  a drift" in text


def test_the_same_difference_is_told_once() -> None:
    found = [
        Difference(text="kernel -> unknown: no lock", runtime=f"colab-{at}-gpu", accelerator=card)
        for at in (1, 2)
        for card in ("none", "T4", "L4")
    ]
    found.append(Difference(text="no longer recorded", runtime="colab-3-gpu"))
    found.append(Difference(text="the findings about imports differ"))
    checked = check(differences=tuple(found))
    assert checked.drift[1] == "colab-1-gpu with T4: kernel -> unknown: no lock"
    text = to_text(check_document(checked))
    assert text.split("Drift\n")[1].split("\n\n")[0].splitlines() == [
        "  colab-1-gpu, colab-2-gpu (T4 L4): kernel -> unknown: no lock",
        "  colab-3-gpu: no longer recorded",
        "  the findings about imports differ",
    ]


def test_first_results_are_no_drift_once_they_are_written() -> None:
    first = check(differences=(NONE,), is_first=True)
    assert "there are no committed results" in to_text(check_document(first))
    text = to_text(check_document(first, updated=True), width=60)
    assert text.endswith(f"Written to\n  {LONG}\n  these are the first results: commit them")


def test_the_verdict_is_said_also_where_nothing_has_changed() -> None:
    same = check(outcome("colab-1-cpu", "kernel", "none"), before="the shipped ones of 2026-11-29")
    last = "unchanged: the results are the shipped ones of 2026-11-29"
    assert to_text(check_document(same)).splitlines()[-1] == last
    dated = " ".join(to_text(check_document(same, updated=True)).split())
    assert dated.endswith(f"{last}, now with the date of today in `{LONG}`")


def test_what_has_no_results_is_not_called_drift() -> None:
    text = to_text(check_document(check(differences=(NONE,), is_first=True)))
    assert "there are no committed results in `x`: `--update` writes them" in text
    assert "next:" not in text
    assert "Nothing to compare with\n" in text
    assert "Drift" not in text


def test_a_difference_names_only_the_pairs_that_have_it() -> None:
    found = tuple(
        Difference(text="env, was kernel", runtime=f"colab-{at}-gpu", accelerator=card)
        for at, card in ((1, "T4"), (2, "T4"), (3, "L4"))
    )
    text = to_text(check_document(check(differences=found)))
    assert text.split("Drift\n")[1].split("\n\n")[0].splitlines() == [
        "  colab-1-gpu, colab-2-gpu (T4): env, was kernel",
        "  colab-3-gpu (L4): env, was kernel",
    ]
