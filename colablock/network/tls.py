"""Which certificates are trusted: what the environment variables of this trade name, else the system's."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from colablock.errors import InvalidInput

__all__ = ["ssl_context", "trust_advice"]

_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts what SSL_CERT_FILE and SSL_CERT_DIR name.

    Without those it trusts what REQUESTS_CA_BUNDLE names, a file or a folder, and
    without that what the system does.  What is not there counts as not named, as
    elsewhere; `trust_advice` tells of it.  Raises InvalidInput for a file that
    holds no certificates.
    """
    named = [(variable, path) for variable in _VARIABLES for path in _paths(environ, variable)]
    there = [(variable, path) for variable, path in named if path.exists()]
    own = [(variable, path) for variable, path in there if variable != "REQUESTS_CA_BUNDLE"] or there
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if own else ssl.create_default_context()
    own += [("SSL_CLIENT_CERT", path) for path in _paths(environ, "SSL_CLIENT_CERT")]
    for variable, path in own:
        _load(context, variable, path)
    return context


def trust_advice(environ: Mapping[str, str]) -> str:
    """Return what to do where a certificate is not trusted."""
    for variable in _VARIABLES:
        gone = [path for path in _paths(environ, variable) if not path.exists()]
        if gone:
            return f"correct {variable}: it names `{gone[0]}`, which is not there"
    named = [variable for variable in _VARIABLES if environ.get(variable)]
    if named:
        return f"add the certificate of who signed it to what {named[0]} names (`{environ[named[0]]}`)"
    return (
        "name a file with the certificate of who signed it in SSL_CERT_FILE: "
        "a company's proxy or index often has one of its own"
    )


def _paths(environ: Mapping[str, str], variable: str) -> list[Path]:
    text = environ.get(variable, "")
    parts = text.split(os.pathsep) if variable == "SSL_CERT_DIR" else [text]
    return [Path(part).expanduser() for part in parts if part]


def _load(context: ssl.SSLContext, variable: str, path: Path) -> None:
    try:
        if variable == "SSL_CLIENT_CERT":
            context.load_cert_chain(path)
        else:
            context.load_verify_locations(**{"capath" if path.is_dir() else "cafile": str(path)})
    except OSError as error:
        why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
        message = f"`{path}` in {variable} cannot be used: {why}"
        hint = "Name a file of certificates in PEM form, or leave it out"
        raise InvalidInput(message, hint=hint) from error
