"""The user's own data: image folders, CIFAR-10, STL-10, videos, the UCR archive, Planetoid graphs.

Nothing is downloaded. Every reader takes a path and, when files are missing, raises `DataError` that says which files
it expected under which path. Images stay uint8 in memory or on disk and are decoded a batch at a time.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sslref.data.embedded import DataError, Graph, Series, stack_series

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")


def _folder(path: str | os.PathLike, expected: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: expected a folder with {expected}, found {found}")
    return folder


def _files(folder: Path, names: Sequence[str], what: str) -> list[Path]:
    """The named files of a folder, or an error that lists those that are missing."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: expected {what} with the files {', '.join(names)}; missing: {', '.join(missing)}")
    return [folder / name for name in names]


# ------------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class Pictures:
    """Labelled pictures that are read a batch at a time."""

    read: Callable[[Tensor], Tensor]  #: indices (B,) int64 on `device` -> (B, C, H, W) uint8
    labels: Tensor  #: (N,) int64, index into `classes`; -1 where there is no label
    classes: tuple[str, ...]
    name: str
    device: str | torch.device = "cpu"  #: where the bytes are

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1], on the device of the indices (B,)."""
        return self.read(indices.to(self.device)).to(indices.device).float() / 255  # bytes travel, not floats

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images and their labels (B,), on the device of the indices (B,)."""
        return self.images(indices), self.labels.to(indices.device)[indices]

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `batch`, for `count` indices drawn with replacement, on the generator's device."""
        return self.batch(torch.randint(len(self), (count,), generator=generator, device=generator.device))


def _classes(folder: Path, suffixes: Sequence[str], what: str) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Class names, files in sorted order and their labels, of a folder with one subfolder a class."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    files = [sorted(f for f in (folder / c).rglob("*") if f.suffix.lower() in suffixes) for c in classes]
    if not any(files):
        raise DataError(
            f"{folder}: expected one subfolder a class with {what} ({', '.join(suffixes)}) in each, "
            f"found {len(classes)} subfolders without any"
        )
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(f) for f in files]))
    return classes, [file for group in files for file in group], labels


def image_folder(path: str | os.PathLike, size: int) -> Pictures:
    """Images in one subfolder a class, `path/<class>/**/<image>`; needs Pillow.

    Each is cut to its central square and resized to `size` (bicubic with antialiasing), at the time it is read.

    Raises:
        ValueError: size below 1.
        DataError: no such folder, no image in it, or a file that is no image.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 pixel, got {size}")
    from PIL import Image, ImageOps, UnidentifiedImageError

    folder = _folder(path, "one subfolder of images a class")
    classes, files, labels = _classes(folder, IMAGES, "images")

    def decode(index: int) -> np.ndarray:
        try:
            with Image.open(files[index]) as image:
                image.draft("RGB", (2 * size, 2 * size))  # JPEG files decode faster near the size that is needed
                return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{files[index]}: expected an image, got {error}") from error

    def read(indices: Tensor) -> Tensor:
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter's lock
            images = list(pool.map(decode, indices.tolist()))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    return Pictures(read=read, labels=labels, classes=classes, name=folder.name)


def _records(path: Path, length: int) -> np.ndarray:
    """A binary file of equal records as a memory-mapped (N, length) array of bytes."""
    size = path.stat().st_size
    if size == 0 or size % length:
        raise DataError(f"{path}: expected a multiple of {length} bytes (one record), got {size} bytes")
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(size // length, length))


def _within(path: str | os.PathLike, inner: str) -> Path:
    """The folder, or the folder that the official archive makes inside it."""
    folder = _folder(path, f"the files of {inner}")
    return folder / inner if (folder / inner).is_dir() else folder


def cifar10(path: str | os.PathLike, split: str = "train") -> Pictures:
    """CIFAR-10 from its official binary version: (3, 32, 32), 50,000 "train" and 10,000 "test" images.

    `path` holds `data_batch_1.bin` … `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt`, or the folder
    `cifar-10-batches-bin` with them.

    Raises:
        ValueError: unknown split.
        DataError: a file is missing or has a wrong size.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    folder = _within(path, "cifar-10-batches-bin")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    *files, meta = _files(folder, [*names, "batches.meta.txt"], "the binary version of CIFAR-10")
    records = np.concatenate([_records(file, 3073) for file in files])
    images = torch.from_numpy(records[:, 1:]).unflatten(1, (3, 32, 32))
    return Pictures(
        read=images.__getitem__,
        labels=torch.from_numpy(records[:, 0].astype(np.int64)),
        classes=tuple(meta.read_text(encoding="ascii").split()),
        name="cifar10",
    )


def pictures(path: str | os.PathLike, size: int, *, device: str | torch.device = "cpu") -> Pictures:
    """What lies there: `cifar10` (32 pixels, kept on `device`, 150 MB) or else an `image_folder` (`size` pixels)."""
    if not any((Path(path) / inner / "data_batch_1.bin").is_file() for inner in ("", "cifar-10-batches-bin")):
        return image_folder(path, size)
    found = cifar10(path)
    return replace(found, read=found.read(torch.arange(len(found))).to(device).__getitem__, device=device)


def stl10(path: str | os.PathLike, split: str = "train") -> Pictures:
    """STL-10 from its official binary version, memory-mapped: (3, 96, 96), 5,000 "train", 8,000 "test" and 100,000
    "unlabeled" images (label -1).

    `path` holds `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin`, `unlabeled_X.bin` and `class_names.txt`, or
    the folder `stl10_binary` with them; only the files of the split are needed.

    Raises:
        ValueError: unknown split.
        DataError: a file is missing or has a wrong size.
    """
    if split not in ("train", "test", "unlabeled"):
        raise ValueError(f"split: expected 'train', 'test' or 'unlabeled', got {split!r}")
    names = [f"{split}_X.bin", *([] if split == "unlabeled" else [f"{split}_y.bin"]), "class_names.txt"]
    pixels, *labels, meta = _files(_within(path, "stl10_binary"), names, "the binary version of STL-10")
    records = _records(pixels, 3 * 96 * 96)
    y = torch.full((len(records),), -1)
    if labels:
        y = torch.from_numpy(_records(labels[0], 1)[:, 0].astype(np.int64)) - 1
    if len(y) != len(records):
        raise DataError(f"{labels[0]}: expected {len(records)} labels, one an image of {pixels.name}, got {len(y)}")

    def read(indices: Tensor) -> Tensor:  # the file stores columns, not rows
        return torch.from_numpy(records[indices.numpy()]).unflatten(1, (3, 96, 96)).transpose(2, 3)

    return Pictures(read=read, labels=y, classes=tuple(meta.read_text(encoding="ascii").split()), name="stl10")


# ------------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True, eq=False)
class Videos:
    """Video files, decoded when a clip is asked for; needs PyAV."""

    files: tuple[Path, ...]
    labels: Tensor  #: (N,) int64, index into `classes`; -1 for files that lie in no subfolder
    classes: tuple[str, ...]
    frames: int  #: frames of a clip
    size: int  #: side of a frame in pixels
    step: int  #: a clip takes every step-th frame

    def __len__(self) -> int:
        return len(self.files)

    def clip(self, index: int, start: float = 0.5) -> Tensor:
        """One clip of a file, (frames, 3, size, size) uint8.

        Args:
            index: number of the file.
            start: where the clip begins, from 0 (first frame) to 1 (so that it ends with the last).

        Raises:
            ValueError: start outside [0, 1].
            DataError: the file is no video or too short.
        """
        if not 0 <= start <= 1:
            raise ValueError(f"start: expected a position in [0, 1], got {start}")
        import av

        path, span = self.files[index], (self.frames - 1) * self.step + 1
        room = _frame_count(path) - span
        if room < 0:
            raise DataError(f"{path}: expected {span} frames at least, found {room + span}")
        first, pictures, i = round(start * room), [], -1
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                # frames are counted from the start: seeking by time is inexact where the frame rate varies
                for i, frame in enumerate(container.decode(stream)):
                    if i >= first and (i - first) % self.step == 0:
                        pictures.append(self._square(torch.from_numpy(frame.to_ndarray(format="rgb24"))))
                        if len(pictures) == self.frames:
                            return torch.stack(pictures)
        except av.FFmpegError as error:
            raise DataError(f"{path}: expected a video, got {error}") from error
        raise DataError(f"{path}: expected {room + span} frames, decoding ended after {i + 1}")

    def _square(self, frame: Tensor) -> Tensor:
        """(H, W, 3) uint8 -> (3, size, size) uint8: short side to size, central square."""
        x = frame.permute(2, 0, 1)
        side = min(x.shape[1:])
        top, left = ((n - side) // 2 for n in x.shape[1:])
        x = x[None, :, top : top + side, left : left + side].float()
        x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return x[0].round().clamp(0, 255).byte()

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random clips (B, T, 3, size, size) float32 in [0, 1] and labels (B,), on the generator's device.

        File and start are uniform, with replacement.
        """
        device = generator.device
        indices = torch.randint(len(self), (count,), generator=generator, device=device)
        starts = torch.rand(count, generator=generator, device=device)
        with ThreadPoolExecutor() as pool:
            clips = torch.stack(list(pool.map(self.clip, indices.tolist(), starts.tolist())))
        return clips.to(device).float() / 255, self.labels.to(device)[indices]


@functools.cache
def _frame_count(path: Path) -> int:
    """Frames of a video file: by its header where that tells, else by counting packets (nothing is decoded)."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: expected a video, got {error}") from error


def video_folder(path: str | os.PathLike, frames: int = 16, size: int = 112, *, step: int = 1) -> Videos:
    """Videos of a folder: `path/<video>`, or `path/<class>/**/<video>`; needs PyAV.

    Args:
        path: the folder.
        frames: frames of a clip.
        size: side of a frame in pixels; the central square is resized to it.
        step: a clip takes every step-th frame.

    Raises:
        ValueError: frames, size or step below 1.
        DataError: no such folder, or no video in it.
    """
    for name, value in (("frames", frames), ("size", size), ("step", step)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    folder = _folder(path, "videos")
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in VIDEOS)
    classes, labels = (), torch.full((len(files),), -1)
    if not files:
        classes, files, labels = _classes(folder, VIDEOS, "videos")
    return Videos(files=tuple(files), labels=labels, classes=classes, frames=frames, size=size, step=step)


# ------------------------------------------------------------------------------------------------------------- series


def read_ts(text: str, name: str) -> tuple[list[Tensor], list[str], tuple[str, ...]]:
    """Parse a classification file of the UCR / UEA archives in the .ts format.

    Returns:
        The series, each (C, T) float32; their labels; the class names in the order of the file's head.

    Raises:
        DataError: the text is not such a file; `name` is used in the message.
    """
    head, found, data = text.partition("@data")
    entries = (line[1:].split(maxsplit=1) for line in head.splitlines() if line.startswith("@"))
    fields = {entry[0].lower(): entry[1] for entry in entries if len(entry) == 2}
    if not found or not fields.get("classlabel", "").startswith("true ") or fields.get("timestamps") == "true":
        raise DataError(f"{name}: expected a .ts file with @classLabel true, no time stamps, and @data")
    classes, series, labels = tuple(fields["classlabel"].split()[1:]), [], []
    for line in filter(None, map(str.strip, data.splitlines())):
        *channels, label = line.split(":")
        if label not in classes:
            raise DataError(f"{name}: expected one of the classes {', '.join(classes)}, got {label}")
        try:
            values = [[float("nan" if v == "?" else v) for v in channel.split(",")] for channel in channels]
        except ValueError as error:
            raise DataError(f"{name}: expected numbers between commas, got {error}") from error
        series.append(_ragged(values, name))
        labels.append(label)
    return series, labels, classes


def _read_tsv(text: str, name: str) -> tuple[list[Tensor], list[str], tuple[str, ...]]:
    """As `read_ts`, for a .tsv file of the UCR archive: label, values; short series end in NaN."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    try:
        series = [_ragged([[float(v) for v in row[1:]]], name) for row in rows]
    except ValueError as error:
        raise DataError(f"{name}: expected a label and numbers between tabs in each line, got {error}") from error
    labels = [row[0] for row in rows]
    return series, labels, tuple(sorted(set(labels), key=float))


def _ragged(channels: list[list[float]], name: str) -> Tensor:
    """(C, T) float32 without the NaN that pad short series; missing values inside are interpolated linearly."""
    if len({len(c) for c in channels}) != 1:
        raise DataError(f"{name}: expected channels of one length in a series, got {[len(c) for c in channels]}")
    x = np.array(channels, dtype=np.float64)
    known = ~np.isnan(x)
    if not known.any(1).all():
        raise DataError(f"{name}: expected a number at least in each series and channel, found a channel without any")
    x = x[:, : known.any(0).nonzero()[0][-1] + 1]
    for row in x:
        gap = np.isnan(row)
        if gap.any():
            row[gap] = np.interp(gap.nonzero()[0], (~gap).nonzero()[0], row[~gap])
    return torch.from_numpy(x.astype(np.float32))


def ucr_folder(path: str | os.PathLike, *, length: int | None = None) -> dict[str, tuple[Series, Series]]:
    """Data sets of the UCR / UEA archives with their official splits: name -> (training series, test series).

    `path` is the folder of one set, with `<name>_TRAIN.ts` and `<name>_TEST.ts` (or `.tsv`), or holds one such folder
    a set. `length` is that of `sslref.data.series`.

    Raises:
        DataError: no such folder, no pair of files in it, or a file in another format.
    """
    folder = _folder(path, "the files <name>_TRAIN.ts and <name>_TEST.ts (or .tsv)")
    pairs = {}
    for train in sorted([*folder.glob("*_TRAIN.ts*"), *folder.glob("*/*_TRAIN.ts*")], key=lambda f: f.suffix):
        test = train.with_name(train.name.replace("_TRAIN.ts", "_TEST.ts"))
        if train.suffix in (".ts", ".tsv") and test.is_file():
            pairs.setdefault(train.name.partition("_TRAIN")[0], (train, test))  # .ts goes before .tsv
    if not pairs:
        raise DataError(
            f"{folder}: expected <name>_TRAIN.ts and <name>_TEST.ts (or .tsv) here or in subfolders, found no such pair"
        )
    return {name: _official(name, *pairs[name], length) for name in sorted(pairs)}


def _official(name: str, train: Path, test: Path, length: int | None) -> tuple[Series, Series]:
    reader = read_ts if train.suffix == ".ts" else _read_tsv
    parts = [reader(file.read_text(encoding="utf-8", errors="replace"), str(file)) for file in (train, test)]
    classes = tuple(dict.fromkeys(parts[0][2] + parts[1][2]))
    longest = max(x.shape[1] for part in parts for x in part[0])
    return tuple(
        Series(
            x=stack_series(values, longest) if length is None else stack_series(values, length, resample=True),
            y=torch.tensor([classes.index(label) for label in labels]),
            lengths=torch.tensor([x.shape[1] for x in values]),
            classes=classes,
            name=name,
            split=split,
        )
        for split, (values, labels, _) in zip(("train", "test"), parts, strict=True)
    )


# -------------------------------------------------------------------------------------------------------------- graphs


def planetoid(path: str | os.PathLike, name: str) -> Graph:
    """Cora, CiteSeer or PubMed from the raw files `ind.<name>.*` of Planetoid, with its split as masks; needs PyTorch
    Geometric. The files are pickles: read only those you trust.

    Args:
        path: folder with `ind.<name>.x`, `.tx`, `.allx`, `.y`, `.ty`, `.ally`, `.graph` and `.test.index`.
        name: "cora", "citeseer" or "pubmed", in any case.

    Raises:
        DataError: a file is missing.
    """
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    name = name.lower()
    folder = _folder(path, f"the Planetoid files ind.{name}.*")
    _files(folder, [f"ind.{name}.{part}" for part in parts], f"the raw Planetoid files of {name}")
    from torch_geometric.io import read_planetoid_data
    from torch_geometric.utils import coalesce, to_undirected

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickles name modules that NumPy and SciPy have since renamed
        data = read_planetoid_data(str(folder), name)
    return Graph(
        x=data.x,
        edge_index=coalesce(to_undirected(data.edge_index)),
        y=data.y,
        classes=tuple(str(c) for c in range(int(data.y.max()) + 1)),
        name=name,
        train_mask=data.train_mask,
        val_mask=data.val_mask,
        test_mask=data.test_mask,
    )
