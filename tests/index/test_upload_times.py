"""The first upload of a version decides whether its files are read at all."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from colablock._vendor.packaging.version import Version
from colablock.index.candidates import File
from colablock.index.evaluator import FilesByVersion
from colablock.index.simple_api import FileRow, Listing, first_upload, microseconds

TEXTS = [
    (),
    (None,),
    ("",),
    ("2024-01-02T03:04:05Z",),
    ("2024-01-02T03:04:05.000006Z", "2024-01-02T03:04:05.000005Z"),
    ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05.5Z"),  # of two lengths, whose texts have another order
    ("2024-01-01-23:00:00Z", "2024-01-01T00:00:00Z"),  # what comes between date and time orders the texts
    ("20240101T230000Z", "2024-01-01T0000Z"),
    ("2024-01-02T03:04:05+09:00", "2024-01-02T01:04:05+00:00"),
    ("2024-13-02T03:04:05Z", "2024-01-02T03:04:06Z"),
    ("0000-00-00T00:00:00Z", "2024-01-02T03:04:06Z"),
    ("2000-99-00T00:00:00Z", "2024-01-02T03:04:06Z"),
    ("1969-12-31T23:59:59Z", "2024-01-02T03:04:06Z"),
    ("2024-01-02", "2023-01-02T00:00:00"),
    ("soon", None, "2031-01-02T03:04:06Z"),
]


@pytest.mark.parametrize("texts", TEXTS)
def test_the_first_upload_is_that_of_the_files(texts: tuple[str | None, ...]) -> None:
    rows = [
        FileRow(f"a-1-{place}.whl", "https://x.example/a", {}, None, text) for place, text in enumerate(texts)
    ]
    times = [file.upload_time for file in Listing(rows=rows).files(None)]
    known = [microseconds(one) for one in times if one is not None]
    assert first_upload(rows) == min(known, default=None)


def test_only_versions_from_before_the_cut_off_are_read() -> None:
    cutoff = datetime(2024, 1, 2, 3, 4, 5, 7, tzinfo=timezone.utc)
    last = microseconds(cutoff)
    versions = [Version(text) for text in ("5", "4", "3", "2", "1")]
    read: list[Version] = []

    def files(version: Version) -> list[File]:
        read.append(version)
        return []

    found = FilesByVersion(
        versions=versions, read=files, others=list, uploaded=[None, last + 1, last, last - 1, 0]
    )
    assert [str(one) for one in found.before(cutoff)] == ["2", "1"]
    assert list(found.before(None)) == versions
    assert read == []
