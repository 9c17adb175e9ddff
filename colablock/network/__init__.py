"""HTTP requests: retries, TLS, credentials, the cache on disk, and the settings for them.

In: a URL without credentials.  Out: bytes or a file, checked; what fails is a `FetchFailed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.network.auth import Credentials
    from colablock.network.cache import Cache
    from colablock.network.fetcher import Fetcher
    from colablock.network.settings import Settings, read_settings
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "auth": "Credentials",
            "cache": "Cache",
            "fetcher": "Fetcher",
            "settings": "Settings read_settings",
        },
    )

__all__ = ["Cache", "Credentials", "Fetcher", "Settings", "read_settings"]
