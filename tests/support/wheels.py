"""Real wheels and sdists, made in memory, with the same bytes each time."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "make_sdist",
    "make_wheel",
    "metadata_text",
    "sdist_bytes",
    "tar_bytes",
    "wheel_bytes",
    "wheel_filename",
]

_PYPROJECT = """\
[build-system]
requires = {requires}
build-backend = "backend"
backend-path = ["."]
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    extras: Iterable[str] = (),
    tag: str = "py3-none-any",
    modules: Mapping[str, str] | None = None,
    import_names: Sequence[str] | None = None,
    scripts: Mapping[str, str] | None = None,
    data_files: Mapping[str, str] | None = None,
    build: str | None = None,
    metadata_version: str = "2.1",
    filename: str | None = None,
) -> Path:
    """Write a wheel into *folder* and return its path.

    *modules* maps paths to source; without it there is one stub package for each of *import_names*
    (default: one named after the project).  *scripts* maps console scripts to entry points, and
    *data_files* paths under the wheel's ``.data`` folder (``data/share/x``) to text.  *filename*
    replaces the name that follows from the rest; its project and version name the dist-info folder.
    """
    filename = filename or wheel_filename(name, version, tag=tag, build=build)
    content = wheel_bytes(
        filename,
        name=name,
        version=version,
        metadata=metadata_text(
            name,
            version,
            requires=requires,
            requires_python=requires_python,
            extras=extras,
            metadata_version=metadata_version,
        ),
        modules=modules,
        import_names=import_names,
        scripts=scripts,
        data_files=data_files,
    )
    return _written(folder, filename, content)


def make_sdist(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    extras: Iterable[str] = (),
    static: bool = True,
    modules: Mapping[str, str] | None = None,
    import_names: Sequence[str] | None = None,
    scripts: Mapping[str, str] | None = None,
    fails: str | None = None,
    legacy_name: bool = False,
    build_requires: Sequence[str] = (),
) -> Path:
    """Write an sdist with an in-tree backend into *folder* and return its path.

    *static*: PKG-INFO is of metadata 2.2 and may be believed; else it is of 2.1 without the
    requirements, which only a build tells.  *fails* makes the build stop with that message.
    *legacy_name* keeps the name as written in the file name, as old tools did.
    """
    content = sdist_bytes(
        name,
        version,
        requires=requires,
        requires_python=requires_python,
        extras=extras,
        static=static,
        modules=modules,
        import_names=import_names,
        scripts=scripts,
        fails=fails,
        legacy_name=legacy_name,
        build_requires=build_requires,
    )
    return _written(folder, f"{_sdist_stem(name, version, legacy_name=legacy_name)}.tar.gz", content)


def wheel_filename(name: str, version: str, *, tag: str = "py3-none-any", build: str | None = None) -> str:
    """Return the file name of a wheel (Binary distribution format, file name convention)."""
    parts = [_escaped(name), version.replace("-", "_"), *([build] if build else []), tag]
    return "-".join(parts) + ".whl"


def metadata_text(
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    extras: Iterable[str] = (),
    metadata_version: str = "2.1",
) -> str:
    """Return core metadata."""
    lines = [f"Metadata-Version: {metadata_version}", f"Name: {name}", f"Version: {version}"]
    if requires_python is not None:
        lines.append(f"Requires-Python: {requires_python}")
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    return "\n".join(lines) + "\n"


def wheel_bytes(
    filename: str,
    *,
    name: str,
    version: str,
    metadata: str,
    modules: Mapping[str, str] | None = None,
    import_names: Sequence[str] | None = None,
    scripts: Mapping[str, str] | None = None,
    data_files: Mapping[str, str] | None = None,
) -> bytes:
    """Return the wheel called *filename*; see `make_wheel` for the rest."""
    info, files = _wheel_files(
        filename,
        metadata=metadata,
        modules=_stubs(name, version, modules, import_names),
        scripts=scripts or {},
        data_files=data_files or {},
    )
    return backend.wheel_bytes(info, files)


def sdist_bytes(
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    requires_python: str | None = None,
    extras: Iterable[str] = (),
    static: bool = True,
    modules: Mapping[str, str] | None = None,
    import_names: Sequence[str] | None = None,
    scripts: Mapping[str, str] | None = None,
    fails: str | None = None,
    legacy_name: bool = False,
    zipped: bool = False,
    build_requires: Sequence[str] = (),
) -> bytes:
    """Return an sdist, *zipped* as a ``.zip`` of old; see `make_sdist`."""
    requires, extras = tuple(requires), tuple(extras)
    full = metadata_text(name, version, requires=requires, requires_python=requires_python, extras=extras)
    known = metadata_text(
        name,
        version,
        requires=requires if static else (),
        requires_python=requires_python,
        extras=extras if static else (),
        metadata_version="2.2" if static else "2.1",
    )
    wheel = wheel_filename(name, version)
    info, files = _wheel_files(
        wheel,
        metadata=full,
        modules=_stubs(name, version, modules, import_names),
        scripts=scripts or {},
        data_files={},
    )
    described = {"filename": wheel, "info": info, "fails": fails}
    tree = {
        "PKG-INFO": known.encode(),
        "pyproject.toml": _PYPROJECT.format(requires=json.dumps(list(build_requires))).encode(),
        "backend.py": Path(backend.__file__).read_bytes(),
        "wheel.json": json.dumps(described, sort_keys=True).encode(),
        **{f"tree/{path}": data for path, data in files.items()},
    }
    pack = backend.zip_bytes if zipped else tar_bytes
    root = _sdist_stem(name, version, legacy_name=legacy_name)
    return pack({f"{root}/{path}": data for path, data in tree.items()})


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return a ``.tar.gz`` of *files*."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _wheel_files(
    filename: str,
    *,
    metadata: str,
    modules: Mapping[str, str],
    scripts: Mapping[str, str],
    data_files: Mapping[str, str],
) -> tuple[str, dict[str, bytes]]:
    parts = filename.removesuffix(".whl").split("-")
    stem = "-".join(parts[:2])
    build = parts[2] if len(parts) == 6 else None
    info = f"{stem}.dist-info"
    files = {path: source.encode() for path, source in modules.items()}
    files |= {f"{stem}.data/{path}": text.encode() for path, text in data_files.items()}
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = _wheel_text("-".join(parts[-3:]), build).encode()
    if scripts:
        lines = ["[console_scripts]", *(f"{name} = {target}" for name, target in scripts.items())]
        files[f"{info}/entry_points.txt"] = ("\n".join(lines) + "\n").encode()
    names = sorted({re.split(r"[/.]", path)[0] for path in modules})
    files[f"{info}/top_level.txt"] = "".join(f"{name}\n" for name in names).encode()
    return info, files


def _wheel_text(tag: str, build: str | None) -> str:
    pythons, abis, platforms = (part.split(".") for part in tag.split("-"))
    pure = "true" if platforms == ["any"] else "false"
    lines = ["Wheel-Version: 1.0", "Generator: colablock-tests", f"Root-Is-Purelib: {pure}"]
    lines += [f"Tag: {p}-{a}-{platform}" for p in pythons for a in abis for platform in platforms]
    if build:
        lines.append(f"Build: {build}")
    return "\n".join(lines) + "\n"


def _stubs(
    name: str,
    version: str,
    modules: Mapping[str, str] | None,
    import_names: Sequence[str] | None,
) -> Mapping[str, str]:
    if modules is not None:
        return modules
    stub = f'__version__ = "{version}"\n'
    return {f"{top}/__init__.py": stub for top in import_names or (_escaped(name),)}


def _escaped(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _sdist_stem(name: str, version: str, *, legacy_name: bool) -> str:
    return f"{name if legacy_name else _escaped(name)}-{version}"


def _written(folder: Path, filename: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / filename
    path.write_bytes(content)
    return path
