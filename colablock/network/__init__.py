"""HTTP: requests, retries, TLS, credentials, the cache on disk, and the settings for them.

In: a URL without credentials.  Out: bytes or a file, checked; what fails is a `FetchFailed`.
"""
