"""Where the cells of a view's feature map lie in the picture from which the view was cut."""

import torch
from torch import Tensor


def pixel_centers(boxes: Tensor, height: int, width: int) -> Tensor:
    """Centres of the cells of a map that covers a box: (x1 + (u + 1/2) (x2 - x1) / width, and so for y).

    Args:
        boxes: (B, 4), (x1, y1, x2, y2) in any unit; x1 > x2 if the view is mirrored, its cells then run backwards.
        height, width: cells of the map.

    Returns:
        (B, height, width, 2), last axis (x, y), in the unit of the boxes.

    Raises:
        ValueError: boxes not (B, 4), a size below 1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected shape (B, 4), got {tuple(boxes.shape)}")
    for name, value in (("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    boxes = boxes if boxes.is_floating_point() else boxes.to(torch.get_default_dtype())
    lines = []
    for axis, count in ((0, width), (1, height)):
        t = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
        lines.append(boxes[:, axis, None] + (boxes[:, axis + 2] - boxes[:, axis])[:, None] * t)
    x, y = lines
    return torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)


def true_matches(
    boxes_q: Tensor, boxes_k: Tensor, height: int, width: int, *, key_size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """The key cell in which the centre of each query cell lies, by the boxes of two views of one picture.

    Args:
        boxes_q, boxes_k: (B, 4) as in `pixel_centers`, in one unit.
        height, width: cells of the query map.
        key_size: (rows, columns) of the key map, those of the query map by default.

    Returns:
        index: (B, height * width) int64, row-major cell of the key map; the nearest one where the view misses it.
        inside: (B, height * width) bool, whether the centre lies in the key view.

    Raises:
        ValueError: boxes not (B, 4) of one B, a size below 1.
    """
    if boxes_q.shape != boxes_k.shape:
        shapes = f"{tuple(boxes_q.shape)} and {tuple(boxes_k.shape)}"
        raise ValueError(f"boxes_q, boxes_k: expected one shape (B, 4), got {shapes}")
    rows, columns = key_size or (height, width)
    if min(rows, columns) < 1:
        raise ValueError(f"key_size: expected at least (1, 1), got {key_size}")
    centers = pixel_centers(boxes_q, height, width).flatten(1, 2)
    start, end = boxes_k[:, None, :2], boxes_k[:, None, 2:]
    place = (centers - start) / (end - start)  # 0 to 1 across the key view, mirrored or not
    inside = ((place >= 0) & (place < 1)).all(-1)
    column, row = ((place[..., i] * n).floor().clamp(0, n - 1).long() for i, n in enumerate((columns, rows)))
    return row * columns + column, inside
