"""Trusted certificates: those that the usual environment variables name, or the system's."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from colablock._common.fs import expanded
from colablock.errors import InvalidInput

__all__ = ["ssl_context", "trust_advice"]

_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts the certificates in SSL_CERT_FILE and SSL_CERT_DIR.

    Without those it trusts REQUESTS_CA_BUNDLE, a file or a folder, and else the
    certificates of the system.  A path that does not exist is ignored, as other
    tools do; `trust_advice` reports it.  Raises InvalidInput for a file without
    certificates.
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
    """Return the hint for an untrusted certificate."""
    for variable in _VARIABLES:
        missing = [path for path in _paths(environ, variable) if not path.exists()]
        if missing:
            return f"Correct {variable}: `{missing[0]}` does not exist"
    named = [variable for variable in _VARIABLES if environ.get(variable)]
    if named:
        return f"Add the certificate of its issuer to {named[0]} (`{environ[named[0]]}`)"
    return (
        "Set SSL_CERT_FILE to a file with the certificate of its issuer: "
        "the proxy or index of a company often has its own one"
    )


def _paths(environ: Mapping[str, str], variable: str) -> list[Path]:
    text = environ.get(variable, "")
    parts = text.split(os.pathsep) if variable == "SSL_CERT_DIR" else [text]
    return [expanded(part, variable) for part in parts if part]


def _load(context: ssl.SSLContext, variable: str, path: Path) -> None:
    try:
        if variable == "SSL_CLIENT_CERT":
            context.load_cert_chain(path)
        else:
            context.load_verify_locations(**{"capath" if path.is_dir() else "cafile": str(path)})
    except OSError as error:
        why = "it contains no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        message = f"`{path}` in {variable} cannot be used: {why}"
        hint = "Name a file of certificates in PEM format, or unset the variable"
        raise InvalidInput(message, hint=hint) from error
