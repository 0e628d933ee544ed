"""The small real data sets that live in the repository, under `data/`.

Each loader returns a frozen dataclass of CPU tensors and plain tuples. Splits are fixed in the files. The SHA-256 of a
file is checked when it is first read in a process; a missing or changed file raises `DataError`, which names the file
and the command that restores it. Every call returns tensors of its own: changing them changes nothing for others.
`data/<set>/README.md` holds source and licence of each set. The environment variable SSLREF_DATA names another folder.
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class DataError(RuntimeError):
    """An embedded file is missing or is not the one that was recorded."""


def root() -> Path:
    """The folder of the embedded sets: SSLREF_DATA, or `data/` of the checkout that holds this package."""
    return Path(os.environ.get("SSLREF_DATA") or Path(__file__).resolve().parents[2] / "data")


def _check(value: object, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


@functools.cache
def _recorded(folder: Path) -> dict[str, str]:
    path = folder / "checksums.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected the recorded SHA-256 of the embedded files, got {error}. Set SSLREF_DATA to the data/ "
            "folder of a checkout, or restore it there: git checkout -- data/checksums.json"
        ) from error


def _read(folder: Path, name: str) -> bytes:
    """Content of a file of the data folder, with its SHA-256 checked."""
    path, expected = folder / name, _recorded(folder)[name]
    content = path.read_bytes() if path.is_file() else None
    found = "no file" if content is None else hashlib.sha256(content).hexdigest()
    if found != expected:
        set_name = name.split("/")[0]
        raise DataError(
            f"{path}: expected SHA-256 {expected}, found {found}. Restore it in the checkout: "
            f"git checkout -- data/{set_name} (or rebuild it: python data/prepare.py {set_name})"
        )
    return content


@functools.cache
def _arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(_read(folder, name)), allow_pickle=False) as archive:
        return dict(archive)


@functools.cache
def _rows(folder: Path, name: str) -> list[dict]:
    return json.loads(_read(folder, name))


def _take(array: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Tensor:
    """A tensor with a copy of the chosen rows."""
    return torch.from_numpy(np.array(array[rows], order="C"))


def _composite(rgba: Tensor, background: float | Tensor) -> Tensor:
    """(..., 4, H, W) uint8 with straight alpha over a background -> (..., 3, H, W) float32."""
    rgba = rgba.float() / 255
    return torch.lerp(torch.as_tensor(background, dtype=torch.float32), rgba[..., :3, :, :], rgba[..., 3:, :, :])


# -------------------------------------------------------------------------------------------------------------- emoji

SPLITS = ("train", "test", "all")
VENDORS = ("google", "twitter")


@dataclass(frozen=True, eq=False)
class Emoji:
    """Drawings of the base emoji (no skin tones) by one vendor, in the order of Unicode.

    `emoji("train").names == emoji("train", vendor="twitter").names`: index i is the same emoji for both vendors.
    The split is by emoji; emoji that a vendor draws alike or mirrored (flags, families) are on one side.
    """

    rgba: Tensor  #: (N, 4, 32, 32) uint8; straight alpha (colours are not multiplied by it), 0 where alpha is 0
    labels: Tensor  #: (N,) int64, index into `categories`
    sublabels: Tensor  #: (N,) int64, index into `subcategories`
    categories: tuple[str, ...]  #: 9 names, in the order of Unicode
    subcategories: tuple[str, ...]  #: 99 names
    names: tuple[str, ...]  #: N Unicode names in capitals, "RED APPLE"
    captions: tuple[str, ...]  #: N short names of the CLDR, "red apple"
    tags: tuple[tuple[str, ...], ...]  #: N tuples of English keywords
    codes: tuple[str, ...]  #: N code points, "1F34E"; sequences are joined by "-"
    split: str  #: "train", "test" or "all"
    vendor: str  #: "google" (Noto) or "twitter" (Twemoji)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, background: float | Tensor = 1.0) -> Tensor:
        """The drawings over a background.

        Args:
            background: grey level in [0, 1], or a tensor that broadcasts to (N, 3, 32, 32).

        Returns:
            (N, 3, 32, 32) float32 in [0, 1].
        """
        return _composite(self.rgba, background)


def emoji(split: str = "train", *, vendor: str = "google") -> Emoji:
    """The emoji of one split as one vendor draws them.

    Args:
        split: "train" (1,400 emoji), "test" (511) or "all" (1,911).
        vendor: "google" (Noto Emoji, Apache-2.0) or "twitter" (Twemoji, CC BY 4.0).

    Raises:
        ValueError: unknown split or vendor.
        DataError: a file is missing or changed.
    """
    _check(split, "split", SPLITS)
    _check(vendor, "vendor", VENDORS)
    rows = _rows(root(), "emoji/emoji.json")
    keep = np.array([i for i, row in enumerate(rows) if split in ("all", row["split"])])
    categories, subcategories = (tuple(dict.fromkeys(r[key] for r in rows)) for key in ("category", "subcategory"))
    chosen = [rows[i] for i in keep]
    return Emoji(
        rgba=_take(_arrays(root(), f"emoji/{vendor}.npz")["rgba"].transpose(0, 3, 1, 2), keep),
        labels=torch.tensor([categories.index(r["category"]) for r in chosen]),
        sublabels=torch.tensor([subcategories.index(r["subcategory"]) for r in chosen]),
        categories=categories,
        subcategories=subcategories,
        names=tuple(r["name"] for r in chosen),
        captions=tuple(r["caption"] for r in chosen),
        tags=tuple(tuple(r["tags"]) for r in chosen),
        codes=tuple(r["code"] for r in chosen),
        split=split,
        vendor=vendor,
    )


# --------------------------------------------------------------------------------------------------------- animations


@dataclass(frozen=True, eq=False)
class Animations:
    """Moving emoji (Fluent, by Microsoft) with an exact mask in every frame. The split is that of `emoji`."""

    rgba: Tensor  #: (N, 16, 4, 32, 32) uint8, straight alpha; 16 frames evenly spaced over the loop
    names: tuple[str, ...]  #: N Unicode names, as in `Emoji.names`
    captions: tuple[str, ...]  #: N short names, as in `Emoji.captions`
    codes: tuple[str, ...]  #: N code points, as in `Emoji.codes`
    split: str

    def __len__(self) -> int:
        return len(self.names)

    def videos(self, background: float | Tensor = 1.0) -> Tensor:
        """(N, 16, 3, 32, 32) float32 in [0, 1]: the frames over a grey level or a tensor that broadcasts."""
        return _composite(self.rgba, background)


def animations(split: str = "train") -> Animations:
    """The animated emoji of one split: "train" (48), "test" (16) or "all" (64), in the order of Unicode.

    Raises:
        ValueError: unknown split.
        DataError: a file is missing or changed.
    """
    _check(split, "split", SPLITS)
    arrays = _arrays(root(), "animations/animations.npz")
    rows = {row["code"]: row for row in _rows(root(), "emoji/emoji.json")}
    codes = [str(code) for code in arrays["codes"]]
    keep = np.array([i for i, code in enumerate(codes) if split in ("all", rows[code]["split"])])
    chosen = [rows[codes[i]] for i in keep]
    return Animations(
        rgba=_take(arrays["rgba"].transpose(0, 1, 4, 2, 3), keep),
        names=tuple(r["name"] for r in chosen),
        captions=tuple(r["caption"] for r in chosen),
        codes=tuple(r["code"] for r in chosen),
        split=split,
    )


# -------------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images."""

    images: Tensor  #: (N, C, H, W) float32 in [0, 1]
    labels: Tensor  #: (N,) int64, index into `classes`
    classes: tuple[str, ...]
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.labels)


def mnist(split: str = "train") -> Images:
    """5,000 handwritten digits of MNIST, (N, 1, 28, 28): "train" (400 a class), "test" (100 a class) or "all".

    Raises:
        ValueError: unknown split.
        DataError: a file is missing or changed.
    """
    _check(split, "split", SPLITS)
    arrays = _arrays(root(), "mnist/mnist.npz")
    keep = np.ones(5000, bool) if split == "all" else arrays["test"] == (split == "test")
    return Images(
        images=_take(arrays["images"], keep).unsqueeze(1).float() / 255,
        labels=_take(arrays["labels"], keep).long(),
        classes=tuple("0123456789"),
        name="mnist",
        split=split,
    )


def photographs(names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Twelve photographs by name, or those named, each (3, H, W) float32 in [0, 1] with a short side of 240 px.

    Four of them (brick, camera, grass, gravel) are grey and have three equal channels.

    Raises:
        ValueError: a name that is not there.
        DataError: the file is missing or changed.
    """
    arrays = _arrays(root(), "photographs/photographs.npz")
    names = tuple(arrays) if names is None else tuple(names)
    for name in names:
        _check(name, "names", tuple(arrays))
    return {n: (_take(arrays[n].transpose(2, 0, 1)).float() / 255).expand(3, -1, -1).contiguous() for n in names}


def photo_patches(split: str = "train", *, size: int = 32, stride: int = 8, per_photo: int | None = 200) -> Images:
    """Patches of the photographs; the class is the photograph.

    Training patches come from the left 55 % of a photograph, test patches from the right 40 %, so no pixel is in both.
    They lie on a grid (and overlap where stride < size); `per_photo` of them are taken, evenly spread over it.

    Args:
        split: "train" or "test".
        size: side of a patch in pixels, at most 96 (the width of the test part of a square photograph).
        stride: step of the grid in pixels.
        per_photo: patches a photograph; None takes the whole grid, whose size differs between photographs.

    Returns:
        Images of (12 * per_photo, 3, size, size), ordered by photograph.

    Raises:
        ValueError: unknown split, or a size, stride or number that does not fit.
        DataError: the file is missing or changed.
    """
    _check(split, "split", SPLITS[:2])
    if not 1 <= size <= 96:
        raise ValueError(f"size: expected 1 to 96 pixels, got {size}")
    if stride < 1:
        raise ValueError(f"stride: expected a positive number of pixels, got {stride}")
    patches, pictures = [], photographs()
    for name, picture in pictures.items():
        width = picture.shape[2]
        part = picture[:, :, : int(0.55 * width)] if split == "train" else picture[:, :, -int(0.4 * width) :]
        grid = part.unfold(1, size, stride).unfold(2, size, stride).permute(1, 2, 0, 3, 4).flatten(0, 1)
        if per_photo is not None:
            if not 1 <= per_photo <= len(grid):
                raise ValueError(f"per_photo: expected 1 to {len(grid)} (the {split} grid of {name}), got {per_photo}")
            grid = grid[torch.linspace(0, len(grid) - 1, per_photo).round().long()]
        patches.append(grid)
    labels = torch.repeat_interleave(torch.arange(len(patches)), torch.tensor([len(p) for p in patches]))
    return Images(images=torch.cat(patches), labels=labels, classes=tuple(pictures), name="photo_patches", split=split)


# -------------------------------------------------------------------------------------------------------------- series


@dataclass(frozen=True, eq=False)
class Series:
    """Labelled time series with the split that their authors published."""

    x: Tensor  #: (N, C, T) float32; a series shorter than T repeats its last value
    y: Tensor  #: (N,) int64, index into `classes`
    lengths: Tensor  #: (N,) int64, steps of each series before padding or resampling
    classes: tuple[str, ...]
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.y)


def series_names() -> tuple[str, ...]:
    """Names of the embedded time series."""
    return tuple(sorted(Path(key).stem for key in _recorded(root()) if key.startswith("series/")))


def series(name: str, split: str = "train", *, length: int | None = None) -> Series:
    """One data set of the UCR or UEA archive.

    Args:
        name: one of `series_names()`.
        split: "train" or "test" (the official ones), or "all" (training series first).
        length: None keeps the steps as they are and pads shorter series on the right with their last value, up to the
            longest of both splits. A number resamples every series from its own length to this one: linear
            interpolation where it grows, averages over the steps where it shrinks.

    Raises:
        ValueError: unknown name or split, or a length below 1.
        DataError: the file is missing or changed.
    """
    _check(name, "name", series_names())
    _check(split, "split", SPLITS)
    if length is not None and length < 1:
        raise ValueError(f"length: expected at least 1, got {length}")
    arrays = _arrays(root(), f"series/{name}.npz")
    lengths = arrays["lengths"]
    keep = np.flatnonzero(np.ones(len(lengths), bool) if split == "all" else arrays["test"] == (split == "test"))
    ends = np.cumsum(lengths)
    values = [_take(arrays["values"], slice(ends[i] - lengths[i], ends[i])).T for i in keep]
    return Series(
        x=stack_series(values, int(lengths.max())) if length is None else stack_series(values, length, resample=True),
        y=_take(arrays["labels"], keep),
        lengths=_take(lengths, keep),
        classes=tuple(str(c) for c in arrays["classes"]),
        name=name,
        split=split,
    )


def stack_series(values: list[Tensor], length: int, *, resample: bool = False) -> Tensor:
    """Series (C, T_i) as one tensor (N, C, length): resampled, or padded on the right with their last value."""

    def one(x: Tensor) -> Tensor:
        if not resample:
            return functional.pad(x, (0, length - x.shape[1]), mode="replicate")
        if length > x.shape[1]:
            return functional.interpolate(x[None], length, mode="linear", align_corners=False)[0]
        return functional.interpolate(x[None], length, mode="area")[0]

    return torch.stack([one(x) for x in values])


# -------------------------------------------------------------------------------------------------------------- graphs


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with labelled nodes, in the conventions of PyTorch Geometric."""

    x: Tensor  #: (N, F) float32 node features
    edge_index: Tensor  #: (2, E) int64, undirected: both directions of every edge, no self loops, sorted
    y: Tensor  #: (N,) int64, index into `classes`
    classes: tuple[str, ...]
    name: str
    directed: Tensor | None = None  #: (2, A) int64, the arcs as they were measured (connectome only)
    weight: Tensor | None = None  #: (A,) float32, synapses of each arc (connectome only)
    train_mask: Tensor | None = None  #: (N,) bool, with `val_mask` and `test_mask`, where a split is part of the data
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.y)

    def to(self, device: str | torch.device) -> "Graph":
        """The same graph on a device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def to_pyg(self):
        """The same as `torch_geometric.data.Data` (needs PyTorch Geometric)."""
        from torch_geometric.data import Data

        masks = {"train_mask": self.train_mask, "val_mask": self.val_mask, "test_mask": self.test_mask}
        return Data(x=self.x, edge_index=self.edge_index, y=self.y, **{k: m for k, m in masks.items() if m is not None})


CELLS = {"K": "Kenyon cell", "I": "input neuron", "O": "output neuron", "P": "projection neuron"}


def connectome(side: str = "right") -> Graph:
    """Every neuron of one mushroom body (the centre of smell and learning) of a fruit-fly larva.

    Nodes are neurons, labels their four types; an arc of `directed` runs from the neuron that sends to the one that
    receives, its weight is the number of synapses, and `edge_index` forgets direction and weight. The ten features
    tell nothing of the label but what the wiring tells: logarithm of the synapses received and sent (standardised),
    and the eight first non-constant eigenvectors of the normalised Laplacian of the undirected graph, times sqrt(N),
    with the sign that makes their largest entry positive.

    Args:
        side: "right" (213 neurons) or "left" (209).

    Raises:
        ValueError: unknown side.
        DataError: a file is missing or changed.
    """
    _check(side, "side", ("right", "left"))
    arrays = _arrays(root(), f"connectome/{side}.npz")
    synapses = _take(arrays["synapses"]).double()
    adjacency = ((synapses + synapses.T) > 0).double().fill_diagonal_(0)
    scale = adjacency.sum(1).rsqrt()
    laplacian = torch.eye(len(adjacency), dtype=torch.float64) - scale[:, None] * adjacency * scale
    vectors = torch.linalg.eigh(laplacian).eigenvectors[:, 1:9] * len(adjacency) ** 0.5
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    strength = torch.stack([synapses.sum(0), synapses.sum(1)], dim=1).log1p()
    strength = (strength - strength.mean(0)) / strength.std(0)
    arcs = synapses.nonzero().T.contiguous()
    return Graph(
        x=torch.cat([strength, vectors], dim=1).float(),
        edge_index=adjacency.nonzero().T.contiguous(),
        y=torch.tensor([list(CELLS).index(cell) for cell in arrays["cells"]]),
        classes=tuple(CELLS.values()),
        name=f"connectome-{side}",
        directed=arcs,
        weight=synapses[arcs[0], arcs[1]].float(),
    )


def digits_graph(
    num_nodes: int = 600,
    *,
    neighbours: int = 6,
    rewired: float = 0.2,
    noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> Graph:
    """The optical digits of scikit-learn (8×8 pixels, 10 classes) as a graph, drawn anew for each generator state.

    Each of `num_nodes` random images points to its nearest neighbours by cosine of the clean pixels; a share of these
    arcs then gets a random end; arcs count as edges. The features are the 64 pixels in [0, 1] plus Gaussian noise, so
    that neither the graph nor the features suffice.

    Args:
        num_nodes: images drawn of the 1,797.
        neighbours: arcs that leave each image, less than `num_nodes`.
        rewired: share of the arcs with a random end, in [0, 1].
        noise: standard deviation of the noise on the features, at least 0.
        generator: source of the images, the rewiring and the noise (a CPU generator).

    Raises:
        ValueError: an argument out of its range.
    """
    if not 2 <= num_nodes <= 1797:
        raise ValueError(f"num_nodes: expected 2 to 1797, got {num_nodes}")
    if not 1 <= neighbours < num_nodes:
        raise ValueError(f"neighbours: expected 1 to num_nodes - 1 = {num_nodes - 1}, got {neighbours}")
    if not 0 <= rewired <= 1:
        raise ValueError(f"rewired: expected a share in [0, 1], got {rewired}")
    if noise < 0:
        raise ValueError(f"noise: expected at least 0, got {noise}")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(labels), generator=generator)[:num_nodes]
    x = torch.from_numpy(pixels)[chosen].float() / 16
    unit = functional.normalize(x.double(), dim=1)
    # sorting (not topk) so that ties go to the lower index on every machine
    order = (unit @ unit.T).fill_diagonal_(-2).sort(dim=1, descending=True, stable=True).indices
    source = torch.arange(num_nodes).repeat_interleave(neighbours)
    target = order[:, :neighbours].reshape(-1).clone()
    moved = torch.randperm(len(target), generator=generator)[: round(rewired * len(target))]
    step = torch.randint(1, num_nodes, (len(moved),), generator=generator)  # never 0: no self loop
    target[moved] = (source[moved] + step) % num_nodes
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    adjacency[source, target] = True
    return Graph(
        x=x + noise * torch.randn(x.shape, generator=generator),
        edge_index=(adjacency | adjacency.T).nonzero().T.contiguous(),
        y=torch.from_numpy(labels)[chosen].long(),
        classes=tuple("0123456789"),
        name="digits",
    )


# --------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, eq=False)
class Clip:
    """A short real video without a cut."""

    video: Tensor  #: (60, 3, 64, 112) uint8
    fps: float  #: frames a second
    name: str


def clip_names() -> tuple[str, ...]:
    """Names of the embedded clips."""
    return tuple(sorted(Path(key).stem for key in _recorded(root()) if key.startswith("clips/")))


def clips(name: str | None = None) -> Clip | tuple[Clip, ...]:
    """One clip by name, or all three as a tuple: "bigbuckbunny", "bikes", "carphone".

    Raises:
        ValueError: unknown name.
        DataError: a file is missing or changed.
    """
    if name is None:
        return tuple(clips(n) for n in clip_names())
    _check(name, "name", clip_names())
    arrays = _arrays(root(), f"clips/{name}.npz")
    return Clip(video=_take(arrays["video"].transpose(0, 3, 1, 2)), fps=arrays["fps"].item(), name=name)


# ------------------------------------------------------------------------------------------------------------- medical


@dataclass(frozen=True, eq=False)
class Brain:
    """The average of 152 adult brains, without the skull, 2 mm a voxel: slices upwards, rows from the forehead back."""

    t1: Tensor  #: (94, 116, 98) float32 in [0, 1], T1-weighted; 0 outside of the brain
    grey: Tensor  #: (94, 116, 98) float32 in [0, 1], share of grey matter
    white: Tensor  #: (94, 116, 98) float32 in [0, 1], share of white matter


def brain() -> Brain:
    """The ICBM 152 template of 2009. Raises DataError: a file is missing or changed."""
    arrays = _arrays(root(), "medical/brain.npz")
    return Brain(*(_take(arrays[name]).float() / 255 for name in ("t1", "gm", "wm")))


def microaneurysms() -> tuple[Tensor, Tensor]:
    """A detail of a diabetic retina, green channel, with two microaneurysms (dark dots, the first sign of the disease).

    Returns:
        The picture (1, 102, 102) float32 in [0, 1]; and (row, column) of the middle of each lesion, (2, 2) int64, as
        this project marked them by eye.

    Raises:
        DataError: a file is missing or changed.
    """
    image = _take(_arrays(root(), "medical/microaneurysms.npz")["image"])
    return image[None].float() / 255, torch.tensor([[22, 16], [71, 49]])


# ----------------------------------------------------------------------------------------------------------- catalogue


class Entry(NamedTuple):
    """What the data page of the book says of a set, from the head of its datasheet."""

    name: str
    title: str
    licence: str
    source: str
    sizes: str
    folder: str


def catalogue() -> list[Entry]:
    """Every embedded set, in the order of its name, read from `data/<set>/README.md`.

    Raises:
        DataError: a datasheet lacks one of the entries.
    """
    entries = []
    for sheet in sorted(root().glob("*/README.md")):
        head = sheet.read_text(encoding="utf-8").split("---\n")[1]
        fields = dict(line.split(": ", 1) for line in head.splitlines())
        try:
            entries.append(Entry(*(fields[f] for f in Entry._fields[:-1]), folder=f"data/{sheet.parent.name}"))
        except KeyError as error:
            raise DataError(f"{sheet}: expected an entry {error} between the two lines '---'") from error
    return entries
