"""New matrices: a commented template, or one made from requirement files of other tools.

In: requirement files, freezes or a project file.  Out: a matrix file, and notes on what was left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.authoring.new import NewMatrix, NewMatrixOptions, write_new
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "new": "NewMatrix NewMatrixOptions write_new",
        },
    )

__all__ = ["NewMatrix", "NewMatrixOptions", "write_new"]
