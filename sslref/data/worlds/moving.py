"""The moving world: emoji over photographs under a panning camera, with exact flow and masks.

**What it models**: rigid and hinged motion in the image plane, camera pan, occlusion, soft edges, shadow, reflection.
**What it leaves out**: depth, perspective, light that changes, motion blur, rolling shutter, texture that moves by
itself (except in animations, and those have no flow).

**Material.** Sprites are emoji of one vendor, area-averaged from 32 to 24 px with their colour multiplied by alpha.
Left out: Flags, Symbols, swatches of skin colour, and drawings with alpha > 1/2 in fewer than 75 of the 1,024 pixels.
Seven categories remain. The split is that of `sslref.data.emoji`. Backgrounds are ten photographs with a short side
of `photo_side` pixels: training clips cut theirs from the left 60 %, test clips from the right 40 %, mirrored with
probability 1/2. (Two more photographs are mostly black: nothing would be seen to move.)

**One clip**, T frames of S×S pixels. All draws are independent and uniform on the interval named. Pixel centres are
integers, x to the right, y down; `mid` is the middle of the clip, (T - 1) / 2.
1. Camera: speed in `pan`, direction in [0, 2 pi), constant. The background moves by exactly minus its velocity.
2. Each of `objects`, later ones in front: an emoji; side D of its square in `diameter`; angle ±0.35 rad at `mid` and
   spin ±`spin` degrees a frame; velocity in the scene with a speed in `speed` and a direction in [0, 2 pi), or one of
   `directions` evenly spaced ones (0 to the right, then clockwise). On the screen it moves by its velocity minus the
   camera's. Its centre at `mid` is the centre of the frame plus, per axis, U(-1, 1) times
   max(0, S/2 - 0.35 D - |screen velocity| (T - 1)/2). With probability `still` nothing of it moves in the scene.
3. `hinge` = a > 0 makes a figure of two rigid parts: a line at distance U(0, 0.12) · 24 sprite pixels from the centre,
   in a random direction, cuts the sprite (each side keeps half a pixel over the cut). The part beyond it is the limb;
   it turns about the point of the line that is nearest to the centre by a sin(phase + 2 pi t / period) degrees,
   period in [6, 12] frames. Appearance says one thing, motion says two. With `limbs` the limb is a hand emoji at 0.75
   of the size instead, behind the body and pointing outwards; its joint lies 0.32 · 24 sprite pixels from the centre
   of the body, its own centre 0.23 · 24 further out. An image alone can tell it from the body.
4. `shadow` = s: the alpha of the figure, moved by (0.28 D, 0.17 D) and blurred 3×3, darkens what lies under it by s.
   `reflection` = r: the figure, mirrored in the horizontal line 0.5 D below its centre (which moves with it), lies
   under it with opacity r.
5. Composition is "over" with premultiplied alpha and bilinear sampling.

**Animations** (`animated`): the sprite shows 16 frames of an animated emoji, one or two a video frame, from a random
one on. Nobody knows the flow inside: `flow` and `seen` are nan and `valid` False wherever the animated object is in
frame t or t + 1. Masks and labels are exact. Those who need flow call `Clips.exact_flow`, which refuses such clips.

**Check.** Frame t + 1 read at p + flow(p) gives frame t, except where something is hidden; what remains is bilinear
blur at edges. `tests/data/test_moving.py` measures it. Nothing is stored: a thousand clips take a second or two.
"""

import functools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from sslref.data import embedded

SPRITE = 24  # side of a sprite in its own pixels
CHUNK = 32  # clips rendered together; larger chunks are slower, because they no longer fit into the cache
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "china", "coffee", "flower", "grass", "gravel", "rocket")
LEFT_OUT = ("Symbols", "Flags")
HANDS = ("hand-fingers-open", "hand-fingers-partial", "hand-fingers-closed", "hand-single-finger")


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips with their ground truth; the first axis of everything is the clip."""

    video: Tensor  #: (B, T, 3, S, S) float32 in [0, 1]
    flow: Tensor  #: (B, T - 1, 2, S, S) pixels, from frame t to t + 1, of the surface that is visible in frame t
    seen: Tensor  #: the same, but shadows and reflections on the background move as their figure does
    parts: Tensor  #: (B, T, S, S) int64: 0 background, 1 body, 2 limb of the first object, 3, 4 of the second, …
    valid: Tensor  #: (B, T - 1, S, S) bool: True where flow is known (everywhere, but for animated objects)
    effect: Tensor  #: (B, T, S, S) bool: shadow or reflection on the background
    meta: dict[str, Tensor]  #: what was drawn; see `MovingWorld.sample`

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, rows: Tensor | slice) -> "Clips":
        """Some of the clips."""
        return _over_fields([self], lambda tensors: tensors[0][rows])

    def exact_flow(self) -> Tensor:
        """`flow`, (B, T - 1, 2, S, S). Raises ValueError where it is not known, that is for animated objects."""
        if not self.valid.all():
            raise ValueError("flow: expected rigid or hinged objects, got animated ones, whose flow nobody knows")
        return self.flow


def _over_fields(many: list[Clips], make) -> Clips:
    """One Clips from several, field by field."""
    values = {f.name: [getattr(clips, f.name) for clips in many] for f in fields(Clips)}
    meta = {name: make([m[name] for m in values["meta"]]) for name in many[0].meta}
    return Clips(**{name: make(v) for name, v in values.items() if name != "meta"}, meta=meta)


# -------------------------------------------------------------------------------------------------------- material


def _sprites(rgba: Tensor) -> Tensor:
    """(..., 4, 32, 32) uint8 -> (..., 4, 24, 24) float32, colour multiplied by alpha; each pixel is an area mean."""
    rgba = rgba.float() / 255
    rgba = torch.cat([rgba[..., :3, :, :] * rgba[..., 3:, :, :], rgba[..., 3:, :, :]], dim=-3)
    fine = rgba.flatten(0, -4).repeat_interleave(3, -1).repeat_interleave(3, -2)
    return F.avg_pool2d(fine, 4).unflatten(0, rgba.shape[:-3])


@functools.cache
def _pool(split: str, vendor: str, animated: bool, device: torch.device) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Sprites (N, F, 4, 24, 24), categories (N,), captions. F = 16 frames of an animation, else 1."""
    drawn = embedded.emoji(split, vendor=vendor)
    category = dict(zip(drawn.captions, drawn.labels.tolist(), strict=True))
    if animated:
        moving = embedded.animations(split)
        rgba, captions = moving.rgba, moving.captions
    else:
        large = (drawn.rgba[:, 3] > 127).sum((1, 2)) >= 75
        kept = [
            i
            for i, (c, s) in enumerate(zip(drawn.labels.tolist(), drawn.sublabels.tolist(), strict=True))
            if large[i] and drawn.categories[c] not in LEFT_OUT and drawn.subcategories[s] != "skin-tone"
        ]
        rgba, captions = drawn.rgba[kept, None], tuple(drawn.captions[i] for i in kept)
    return _sprites(rgba).to(device), torch.tensor([category[c] for c in captions], device=device), captions


@functools.cache
def _hands(split: str, vendor: str, device: torch.device) -> Tensor:
    drawn = embedded.emoji(split, vendor=vendor)
    kept = [i for i, s in enumerate(drawn.sublabels.tolist()) if drawn.subcategories[s] in HANDS]
    return _sprites(drawn.rgba[kept, None]).to(device)


@functools.cache
def _places(split: str, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The part of each photograph that a split may use, (N, 3, side, W) padded on the right, and its width (N,)."""
    parts = []
    for photo in embedded.photographs(PHOTOGRAPHS).values():
        width = round(photo.shape[2] * side / 240)
        photo = F.interpolate(photo[None], size=(side, width), mode="bilinear", antialias=True)[0]
        parts.append(photo[..., : int(0.6 * width)] if split == "train" else photo[..., -int(0.4 * width) :])
    widest = max(p.shape[2] for p in parts)
    padded = torch.stack([F.pad(p, (0, widest - p.shape[2])) for p in parts])
    return padded.to(device), torch.tensor([p.shape[2] for p in parts], device=device)


# -------------------------------------------------------------------------------------------------------- geometry


def _turn(v: Tensor, angle: Tensor) -> Tensor:
    """Vectors (..., 2) turned by an angle (...), clockwise on the screen, whose y axis points down."""
    x, y = v.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def _polar(length: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([length * angle.cos(), length * angle.sin()], dim=-1)


@dataclass(frozen=True)
class _Part:
    """A rigid part of a figure: a sprite and its pose x = scale · R(angle) q + centre, q in sprite pixels."""

    sprite: Tensor  # (B, F, 4, 24, 24), F = 1 or T
    scale: Tensor  # (B,) screen pixels a sprite pixel
    angle: Tensor  # (B, T)
    centre: Tensor  # (B, T, 2)
    step: Tensor  # (B, T - 1, 2): how the centre moves; given, because a difference of centres would be rounded

    def draw(self, points: Tensor) -> Tensor:
        """Colour times alpha, and alpha, at points (B, T, S, S, 2) of the screen: (B, T, 4, S, S)."""
        q = _turn(points - self.centre[:, :, None, None], -self.angle[:, :, None, None])
        grid = q * (2 / (SPRITE * self.scale))[:, None, None, None, None]
        if self.sprite.shape[1] == 1:  # one picture for all frames: no need to copy it
            drawn = F.grid_sample(self.sprite[:, 0], grid.flatten(1, 2), align_corners=False)
            return drawn.unflatten(2, grid.shape[1:3]).transpose(1, 2)
        drawn = F.grid_sample(self.sprite.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
        return drawn.unflatten(0, grid.shape[:2])

    def motion(self, points: Tensor) -> Tensor:
        """Where the surface at points (B, T, S, S, 2) goes in the next frame: (B, T - 1, 2, S, S)."""
        arm = (points - self.centre[:, :, None, None])[:, :-1]
        moved = _turn(arm, self.angle.diff(dim=1)[:, :, None, None]) - arm + self.step[:, :, None, None]
        return moved.permute(0, 1, 4, 2, 3)


def _over(front: Tensor, back: Tensor) -> Tensor:
    """Premultiplied composition of (B, T, 4, S, S) over (B, T, 3 or 4, S, S)."""
    return front[:, :, : back.shape[2]] + (1 - front[:, :, 3:]) * back


def _figure(parts: list[_Part], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parts from back to front: picture (B, T, 4, S, S), number of the part or -1 (B, T, S, S), motion."""
    picture, owner, motion = None, None, None
    for i, part in enumerate(parts):
        drawn, moved = part.draw(points), part.motion(points)
        solid = drawn[:, :, 3] > 0.5
        picture = drawn if picture is None else _over(drawn, picture)
        owner = torch.where(solid, i, -1 if owner is None else owner)
        motion = moved if motion is None else moved.where(solid[:, :-1, None], motion)
    return picture, owner, motion


# ----------------------------------------------------------------------------------------------------------- world


class _Draw:
    """Independent draws, one a clip."""

    def __init__(self, count: int, generator: torch.Generator):
        self.options = {"size": (count,), "generator": generator, "device": generator.device}

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(**self.options)

    def below(self, high: int) -> Tensor:
        return torch.randint(high, **self.options)

    def heading(self) -> Tensor:
        return self.uniform(0, 2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class MovingWorld:
    """Draws clips; the module's docstring says how.

    Args:
        frames, size: T and S.
        objects: how many, at least 0.
        diameter: range of the side of a sprite's square, pixels.
        speed, pan: ranges of the speeds of objects in the scene and of the camera, pixels a frame.
        spin: largest rotation, degrees a frame.
        directions: number of evenly spaced directions of travel, or None for any.
        hinge: largest angle of the limb, degrees; 0 for rigid objects.
        still: probability that an object does not move in the scene.
        shadow, reflection: how dark, how opaque, in [0, 1].
        limbs: with `hinge`, limbs are hands instead of halves of the drawing.
        animated: animated emoji instead of rigid ones.
        vendor: of the drawings, "google" or "twitter".
        split: "train" or "test", of emoji and of photographs.
        photo_side: short side of the photographs, at most 240 pixels; more of it fits longer clips.

    Raises:
        ValueError: an argument out of range, arguments that exclude each other, clips that need a larger photograph.
    """

    frames: int = 8
    size: int = 32
    objects: int = 1
    diameter: tuple[float, float] = (12, 18)
    speed: tuple[float, float] = (0.7, 2.0)
    pan: tuple[float, float] = (0.5, 2.0)
    spin: float = 2.0
    directions: int | None = 8
    hinge: float = 0.0
    still: float = 0.0
    shadow: float = 0.0
    reflection: float = 0.0
    limbs: bool = False
    animated: bool = False
    vendor: str = "google"
    split: str = "train"
    photo_side: int = 160

    def __post_init__(self):
        limits = {"frames": (2, None), "size": (1, None), "objects": (0, None), "spin": (0, None), "hinge": (0, None)}
        limits |= {"photo_side": (1, 240)} | dict.fromkeys(("still", "shadow", "reflection"), (0, 1))
        limits |= {} if self.directions is None else {"directions": (1, None)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                wanted = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name}: expected {wanted}, got {value}")
        for name in ("diameter", "speed", "pan"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "diameter" and low == 0):
                raise ValueError(f"{name}: expected a range (low, high) from 0 up, got {(low, high)}")
        if self.animated and (self.hinge or self.limbs):
            raise ValueError("animated: expected hinge=0 and limbs=False, an animation has joints of its own")
        if self.limbs and not self.hinge:
            raise ValueError(f"limbs: expected hinge > 0, got {self.hinge}")
        for name, allowed in (("vendor", embedded.VENDORS), ("split", ("train", "test"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        narrowest = int(_places(self.split, self.photo_side, torch.device("cpu"))[1].min())
        if self._crop > min(narrowest, self.photo_side):
            raise ValueError(
                f"photo_side: expected larger photographs (up to 240): a clip needs {self._crop} pixels, and the "
                f"{self.split} part of a photograph with a short side of {self.photo_side} has {narrowest}"
            )

    @property
    def _margin(self) -> int:
        return math.ceil(self.pan[1] * (self.frames - 1) / 2) + 1

    @property
    def _crop(self) -> int:
        return self.size + 2 * self._margin

    @property
    def captions(self) -> tuple[str, ...]:
        """Short names of the emoji that may occur; `meta["emoji"]` counts them."""
        return _pool(self.split, self.vendor, self.animated, torch.device("cpu"))[2]

    def sample(self, count: int, generator: torch.Generator) -> Clips:
        """Draw clips, on the generator's device.

        Args:
            count: number of clips. The first n of many are the clips that n alone would be, for multiples of 32.

        Returns:
            Clips. `meta`, with N objects: `camera` (B, 2) velocity in pixels a frame; `photograph` (B,) index into
            PHOTOGRAPHS; `emoji` (B, N) index into `captions`; `category` (B, N) index into the emoji's categories;
            `velocity` (B, N, 2) in the scene; `direction` (B, N) index of its direction, -1 if it does not move or
            any direction may occur; `moves` (B, N) bool; `diameter` (B, N); on the screen, frame by frame, the body's
            `centre` (B, T, N, 2) and `angle` (B, T, N) in radians, clockwise.

        Raises:
            ValueError: count < 1.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
        return _over_fields([self._chunk(n, generator) for n in sizes], torch.cat)

    def _chunk(self, count: int, generator: torch.Generator) -> Clips:
        device = generator.device
        time = torch.arange(self.frames, device=device) - (self.frames - 1) / 2
        draw = _Draw(count, generator)
        axis = torch.arange(self.size, device=device, dtype=torch.float32)
        points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).expand(count, self.frames, -1, -1, -1)
        camera = _polar(draw.uniform(*self.pan), draw.heading())
        place, photograph = self._background(draw, device)
        at = points + (camera[:, None] * time[:, None])[:, :, None, None] + self._margin
        grid = (2 * at + 1) / self._crop - 1
        video = F.grid_sample(place, grid.flatten(1, 2), align_corners=False)
        video = video.unflatten(2, (self.frames, self.size)).transpose(1, 2)
        flow = -camera[:, None, :, None, None].expand(-1, self.frames - 1, -1, self.size, self.size)
        seen, parts = flow, torch.zeros(points.shape[:-1], dtype=torch.int64, device=device)
        effect, drawn = torch.zeros_like(parts, dtype=torch.bool), []

        for number in range(self.objects):
            layers, facts = self._object(draw, camera, time)
            drawn.append(facts)
            side, centre, step = facts["diameter"], facts["centre"], layers[-1].step
            if self.shadow:
                offset = torch.stack([0.28 * side, 0.17 * side], dim=1)
                picture, _, motion = _figure(layers, points - offset[:, None, None, None])
                alpha = F.avg_pool2d(picture[:, :, 3], 3, stride=1, padding=1)[:, :, None]
                video = video * (1 - self.shadow * alpha)
                seen, effect = _mark(alpha[:, :, 0] > 0.5, motion, seen, effect)
            if self.reflection:
                line = (centre[..., 1] + 0.5 * side[:, None])[:, :, None, None]
                mirrored = torch.stack([points[..., 0], 2 * line - points[..., 1]], dim=-1)
                picture, _, motion = _figure(layers, mirrored)
                video = _over(self.reflection * picture, video)
                # y is mirrored in a line that itself moves down by `step`
                motion = torch.stack([motion[:, :, 0], 2 * step[:, :, 1, None, None] - motion[:, :, 1]], dim=2)
                seen, effect = _mark(picture[:, :, 3] > 0.5, motion, seen, effect)
            picture, owner, motion = _figure(layers, points)
            video = _over(picture, video)
            solid = owner >= 0
            parts = torch.where(solid, 2 * number + len(layers) - owner, parts)  # the body is the last layer
            flow, seen = (f.where(~solid[:, :-1, None], motion) for f in (flow, seen))
            effect = effect & ~solid

        valid = torch.ones_like(parts[:, 1:], dtype=torch.bool)
        if self.animated:
            valid = (parts[:, :-1] == 0) & (parts[:, 1:] == 0)
            flow, seen = (f.where(valid[:, :, None], torch.nan) for f in (flow, seen))
        meta = {"camera": camera, "photograph": photograph}
        for name in drawn[0] if drawn else ():
            meta[name] = torch.stack([facts[name] for facts in drawn], dim=2 if name in ("centre", "angle") else 1)
        return Clips(video.clamp(0, 1), flow.contiguous(), seen.contiguous(), parts, valid, effect, meta)

    def _background(self, draw: _Draw, device: torch.device) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, Q, Q) and which photograph (B,)."""
        places, widths = _places(self.split, self.photo_side, device)
        photograph = draw.below(len(places))
        free = widths[photograph] - self._crop
        left = (draw.uniform() * (free + 1)).long().minimum(free)
        rows = draw.below(self.photo_side - self._crop + 1)[:, None] + torch.arange(self._crop, device=device)
        columns = left[:, None] + torch.arange(self._crop, device=device)
        columns = torch.where(draw.uniform()[:, None] < 0.5, columns.flip(1), columns)
        crop = places[photograph[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crop.permute(0, 3, 1, 2).contiguous(), photograph

    def _object(self, draw: _Draw, camera: Tensor, time: Tensor) -> tuple[list[_Part], dict[str, Tensor]]:
        """Rigid parts from back to front (limb, body), and what was drawn."""
        sprites, categories, _ = _pool(self.split, self.vendor, self.animated, camera.device)
        emoji = draw.below(len(sprites))
        moves = draw.uniform() >= self.still
        side = draw.uniform(*self.diameter)
        spin = torch.deg2rad(draw.uniform(-self.spin, self.spin)) * moves
        angle = draw.uniform(-0.35, 0.35)[:, None] + spin[:, None] * time
        speed = draw.uniform(*self.speed) * moves
        if self.directions is None:
            direction, heading = torch.full_like(emoji, -1), draw.heading()
        else:
            direction = draw.below(self.directions)
            heading = direction * (2 * math.pi / self.directions)
        velocity = _polar(speed, heading)
        screen = velocity - camera
        reach = self.size / 2 - 0.35 * side[:, None] - screen.abs() * (self.frames - 1) / 2
        middle = (self.size - 1) / 2 + torch.stack([draw.uniform(-1, 1), draw.uniform(-1, 1)], dim=1) * reach.clamp(
            min=0
        )
        centre = middle[:, None] + screen[:, None] * time[:, None]
        step = screen[:, None].expand(-1, self.frames - 1, -1)
        facts = {"emoji": emoji, "category": categories[emoji], "velocity": velocity, "diameter": side}
        facts |= {"direction": direction.where(moves, -1), "moves": moves, "centre": centre, "angle": angle}

        sprite, scale = sprites[emoji], side / SPRITE
        frame = torch.arange(self.frames, device=camera.device)
        if self.animated:
            pace, first = (1 + draw.below(2)) * moves, draw.below(sprite.shape[1])
            shown = (first[:, None] + pace[:, None] * frame) % sprite.shape[1]
            sprite = sprite[torch.arange(len(sprite), device=frame.device)[:, None], shown]
        body = _Part(sprite, scale, angle, centre, step)
        if not self.hinge:
            return [body], facts

        outward = draw.heading()
        period, phase = draw.uniform(6, 12)[:, None], draw.heading()[:, None]
        bend = math.radians(self.hinge) * moves[:, None] * torch.sin(phase + 2 * math.pi * frame / period)
        if self.limbs:
            hands = _hands(self.split, self.vendor, camera.device)
            joint, reach = (_polar(torch.full_like(side, d * SPRITE), outward) for d in (0.32, 0.23))
            limb_sprite, size = hands[draw.below(len(hands))], 0.75
            rest = outward + math.pi / 2  # hands are drawn pointing up
        else:
            joint = _polar(draw.uniform(0, 0.12) * SPRITE, outward)
            q = torch.arange(SPRITE, device=camera.device) - (SPRITE - 1) / 2
            grid = torch.stack(torch.meshgrid(q, q, indexing="xy"), dim=-1)
            # signed distance of each sprite pixel from the cut, (B, 1, 1, 24, 24)
            beyond = ((grid - joint[:, None, None]) * _polar(torch.ones_like(outward), outward)[:, None, None]).sum(-1)
            beyond = beyond[:, None, None]
            limb_sprite, sprite = sprite * (1 + beyond).clamp(0, 1), sprite * (1 - beyond).clamp(0, 1)
            reach, size, rest = -joint, 1, torch.zeros_like(outward)
            body = _Part(sprite, scale, angle, centre, step)
        # the centre of the limb's sprite as seen from the centre of the body: to the joint, then bent
        offset = joint[:, None] + _turn(reach[:, None].expand(-1, self.frames, -1), bend)
        offset = scale[:, None, None] * _turn(offset, angle)
        limb = _Part(
            limb_sprite, size * scale, angle + bend + rest[:, None], centre + offset, step + offset.diff(dim=1)
        )
        return [limb, body], facts


def _mark(where: Tensor, motion: Tensor, seen: Tensor, effect: Tensor) -> tuple[Tensor, Tensor]:
    """Let pixels `where` of a shadow or reflection move as `motion`."""
    return motion.where(where[:, :-1, None], seen), effect | where
