"""Write a lock as a software bill of materials: CycloneDX 1.6 in JSON.  No I/O here.

Package URLs follow the purl specification, type ``pypi``.  The same lock gives
the same bytes: the serial number is a UUID of the content, and there is a
timestamp only if the caller gives one.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from colablock._common.toml import in_utc
from colablock._common.urls import redacted
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageSdist, PackageWheel, Pylock
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._version import __version__
from colablock.environment.requirements import parse_requirement
from colablock.lockfile.pins import applicable_packages
from colablock.lockfile.tool_table import CREATED_BY, table_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["cyclonedx_text"]

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_ROOT = "lock"  # bom-ref of the lock itself
#: hashlib's names of the algorithms that CycloneDX 1.6 knows, with the number of hex digits.
_ALGORITHMS = {
    "md5": ("MD5", 32),
    "sha1": ("SHA-1", 40),
    "sha256": ("SHA-256", 64),
    "sha384": ("SHA-384", 96),
    "sha512": ("SHA-512", 128),
    "sha3_256": ("SHA3-256", 64),
    "sha3_384": ("SHA3-384", 96),
    "sha3_512": ("SHA3-512", 128),
    "blake2b": ("BLAKE2b-512", 128),
}
#: Keys of the table of a lock that become properties of the bill.
_FACTS = ("kind", "variant", "python", "platform", "runtime", "index", "matrix-digest", "exclude-newer")
#: Files of PyPI itself: `DEFAULT_INDEX` lists them.
_FILES_OF_PYPI = "https://files.pythonhosted.org/"


def cyclonedx_text(lock: Pylock, *, moment: datetime | None = None) -> str:
    """Return *lock* as a CycloneDX document, with the timestamp *moment* if given.

    Each package of the lock is a component, with the URL and the hashes of each
    of its files.  The distributions that a delta assumes are components, too,
    with the property ``colablock:assumed`` and without files.
    """
    packages = sorted(applicable_packages(lock), key=lambda package: (package.name, str(package.version)))
    components, refs = _components(lock, packages)
    bill: dict[str, Any] = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": _metadata(lock),
        "components": components,
        "dependencies": _dependencies(lock, packages, refs),
    }
    content = json.dumps(bill, sort_keys=True)
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    if moment is not None:
        bill["metadata"]["timestamp"] = in_utc(moment).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps(bill, indent=2) + "\n"


def _metadata(lock: Pylock) -> dict[str, Any]:
    table = table_of(lock)
    about = {key: table.get(key) for key in _FACTS}
    cutoff = about["exclude-newer"]
    about["exclude-newer"] = in_utc(cutoff).isoformat() if isinstance(cutoff, datetime) else None
    about["index"] = redacted(str(about["index"])) if about["index"] else None
    matrix = table.get("matrix")
    return {
        "tools": {"components": [{"type": "application", "name": CREATED_BY, "version": __version__}]},
        "component": {
            "type": "application",
            "bom-ref": _ROOT,
            "name": str(matrix or "lock"),
            **({"description": f"lock file made by {lock.created_by}"} if matrix is None else {}),
        },
        "properties": _properties(about),
    }


# -- components


def _components(
    lock: Pylock, packages: Iterable[Package]
) -> tuple[list[dict[str, Any]], dict[NormalizedName, list[str]]]:
    """Return the components, and the references by project."""
    found: list[dict[str, Any]] = []
    refs: dict[NormalizedName, list[str]] = {}
    taken = {_ROOT}

    def add(name: NormalizedName, component: dict[str, Any]) -> None:
        plain = ref = component.get("purl") or f"{name}@{component.get('version', '')}"
        count = 1
        while ref in taken:  # a lock may list a release twice, with different markers
            count += 1
            ref = f"{plain}#{count}"
        taken.add(ref)
        refs.setdefault(name, []).append(ref)
        found.append({"bom-ref": ref, **component})

    for package in packages:
        add(package.name, _component(package))
    assumed = table_of(lock).get("assumes", {})
    for name in sorted(assumed.keys() - refs.keys()):
        add(NormalizedName(name), _assumed(name, str(assumed[name])))
    return found, refs


def _component(package: Package) -> dict[str, Any]:
    table = table_of(package)
    files = _files(package)
    component: dict[str, Any] = {"type": "library", "name": package.name}
    if package.version is not None:
        component["version"] = str(package.version)
    if package.directory is None:
        component["purl"] = _purl(package, files)
    if len(files) == 1 and (hashes := _hashes(files[0].hashes)):
        component["hashes"] = hashes
    if links := list(_links(package, files)):
        component["externalReferences"] = links
    extras = table.get("extras")
    made_from = table.get("made-from", {}).get("url")
    facts = {
        "index": redacted(package.index) if package.index else None,
        "marker": package.marker,
        "extras": ", ".join(extras) if extras else None,
        "repair": "true" if table.get("repair") else None,
        "made-from": redacted(made_from) if made_from else None,
    }
    if properties := _properties(facts):
        component["properties"] = properties
    return component


def _assumed(name: str, version: str) -> dict[str, Any]:
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": _with_qualifiers(name, version, {}),
        "properties": _properties({"assumed": "true"}),
    }


def _files(package: Package) -> list[PackageWheel | PackageSdist | PackageArchive]:
    listed = (*(package.wheels or ()), package.sdist, package.archive)
    return [file for file in listed if file is not None]


def _links(
    package: Package, files: Iterable[PackageWheel | PackageSdist | PackageArchive]
) -> Iterator[dict[str, Any]]:
    """Yield a reference for each file, and for the repository or folder of a package that has one."""
    for file in files:
        url = redacted(file.url) if file.url else quote(str(file.path or ""))
        if url:
            hashes = _hashes(file.hashes)
            yield {"type": "distribution", "url": _iri(url), **({"hashes": hashes} if hashes else {})}
    if package.vcs is not None and package.vcs.url:
        commit = package.vcs.commit_id
        yield {"type": "vcs", "url": _iri(redacted(package.vcs.url)), "comment": f"commit {commit}"}
    if package.directory is not None:
        yield {"type": "source-distribution", "url": _iri(quote(package.directory.path))}


def _hashes(hashes: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the hashes in the names of CycloneDX, without those that it does not know."""
    found = []
    for name, digest in sorted(hashes.items()):
        known, digits = _ALGORITHMS.get(name.lower(), ("", 0))
        if known and re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", digest):
            found.append({"alg": known, "content": digest.lower()})
    return found


def _iri(url: str) -> str:
    """Return *url* with the characters percent-encoded that no IRI has."""
    return quote(url, safe="!#$%&'()*+,/:;=?@[]~")


def _properties(facts: Mapping[str, object]) -> list[dict[str, str]]:
    named = ((f"{CREATED_BY}:{key}", value) for key, value in sorted(facts.items()))
    return [{"name": name, "value": str(value)} for name, value in named if value is not None]


# -- package URLs


def _purl(package: Package, files: Sequence[PackageWheel | PackageSdist | PackageArchive]) -> str:
    """Return the package URL, with qualifiers that say where a package that is not on PyPI comes from."""
    qualifiers = {}
    made_from = table_of(package).get("made-from", {}).get("url")
    urls = [made_from] if made_from else [file.url for file in files if file.url]
    if package.vcs is not None and package.vcs.url:
        commit = package.vcs.commit_id
        qualifiers["vcs_url"] = f"{package.vcs.type}+{redacted(package.vcs.url)}@{commit}"
    elif package.index is not None:
        if package.index.rstrip("/") != DEFAULT_INDEX.rstrip("/"):
            qualifiers["repository_url"] = redacted(package.index)
    elif urls and not urls[0].startswith(_FILES_OF_PYPI):
        qualifiers["download_url"] = redacted(urls[0])
    return _with_qualifiers(package.name, str(package.version or ""), qualifiers)


def _with_qualifiers(name: str, version: str, qualifiers: Mapping[str, str]) -> str:
    at = f"@{_encoded(version)}" if version else ""
    pairs = "&".join(f"{key}={_encoded(value)}" for key, value in sorted(qualifiers.items()))
    return f"pkg:pypi/{_encoded(canonicalize_name(name))}{at}{'?' if pairs else ''}{pairs}"


def _encoded(text: str) -> str:
    """Return *text* percent-encoded; the specification leaves `:` and `/` of a value as they are."""
    return quote(text, safe=":/")


# -- dependencies


def _dependencies(
    lock: Pylock, packages: Iterable[Package], refs: Mapping[NormalizedName, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return who depends on whom: the lock on its roots, packages on what they require in the lock."""
    edges: dict[str, set[str]] = {_ROOT: set()}
    required = set()
    seen: dict[NormalizedName, int] = {}
    for package in packages:
        ref = refs[package.name][seen.setdefault(package.name, 0)]
        seen[package.name] += 1
        needed = {name for name in _needed(package) if name in refs and name != package.name}
        required |= needed
        edges[ref] = {other for name in needed for other in refs[name]}
    roots = {_project(line) for line in table_of(lock).get("requirements", ())} & refs.keys()
    if not roots:  # another tool's lock does not name its roots
        roots = set(refs) - required
    edges[_ROOT] = {ref for name in roots for ref in refs[name]}
    every = (ref for listed in refs.values() for ref in listed)
    return [{"ref": ref, "dependsOn": sorted(edges.get(ref, ()))} for ref in sorted({_ROOT, *every})]


def _needed(package: Package) -> set[NormalizedName]:
    lines = table_of(package).get("requires-dist")
    if lines is None:
        lines = [str(needed.get("name", "")) for needed in package.dependencies or ()]
    return {_project(line) for line in lines}


def _project(line: str) -> NormalizedName:
    requirement = parse_requirement(line)
    return canonicalize_name(requirement.name if requirement else line)
