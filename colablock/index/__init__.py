"""Where candidates come from: package indexes, find-links folders, archives and builds.

In: a project name.  Out: a `Candidate` or a `Rejection` per file, and the metadata of a candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.index.candidates import Candidate, CandidateSource, Metadata, Rejection
    from colablock.index.core_metadata import CoreMetadata, parse_core_metadata
    from colablock.index.evaluator import judge_files
    from colablock.index.finder import IndexSource
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "candidates": "Candidate CandidateSource Metadata Rejection",
            "core_metadata": "CoreMetadata parse_core_metadata",
            "evaluator": "judge_files",
            "finder": "IndexSource",
        },
    )

__all__ = [
    "Candidate",
    "CandidateSource",
    "CoreMetadata",
    "IndexSource",
    "Metadata",
    "Rejection",
    "judge_files",
    "parse_core_metadata",
]
