"""Compatibility matrices: the TOML file, its schema, and where matrices are found.

In: a name or a path.  Out: a `Matrix`, checked as a whole, with every fault reported at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.matrix.catalog import find_matrix, list_matrices
    from colablock.matrix.model import Matrix, Variant, select_variant
    from colablock.matrix.reader import load_matrix
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "catalog": "find_matrix list_matrices",
            "model": "Matrix Variant select_variant",
            "reader": "load_matrix",
        },
    )

__all__ = ["Matrix", "Variant", "find_matrix", "list_matrices", "load_matrix", "select_variant"]
