"""Scenes in exact integer arithmetic: textured shapes, rotated, overlapping, over clutter.

Every coordinate is a fixed-point integer and every random number an integer from PCG64, so that the same seed gives
the same pixels on every machine; floating point is used for nothing but rounding sines to 1/4096.
"""

import math
from dataclasses import dataclass

import numpy as np

UNIT = 4096
"""Fixed-point one: shapes are defined on [-UNIT, UNIT]² before scaling."""

SHAPES = ("disc", "box", "triangle", "star", "cross", "ring", "heart", "arch", "arrow", "hourglass", "frame", "moon")
"""No rotation and stretching turns one into another; a diamond, for one, would be a turned box."""

TEXTURES = ("plain", "striped", "checked", "dotted", "rimmed", "split", "latticed")
"""Told apart at any angle; slanted stripes, for one, would be stripes on a turned disc."""

Array = np.ndarray


@dataclass(frozen=True)
class Thing:
    """One object of a scene before it is drawn. Lengths in 1/16 pixel, angle in degrees, colours RGB."""

    label: int
    x: int
    y: int
    half_width: int
    half_height: int
    angle: int
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]


def class_names(count: int) -> list[tuple[str, str]]:
    """(name, parent) of the first ``count`` classes: textures of shapes, the shape being the parent.

    Neighbours in the list differ in shape, so that a few classes already have several parents with children.
    """
    shapes = max(2, min(len(SHAPES), -(-count // 2) if count <= 24 else len(SHAPES)))
    pairs = [(f"{texture} {shape}", shape) for texture in TEXTURES for shape in SHAPES[:shapes]]
    return pairs[:count]


def _parts(name: str) -> tuple[int, int]:
    texture, shape = name.split(" ")
    return TEXTURES.index(texture), SHAPES.index(shape)


def local_coordinates(thing: Thing, size: tuple[int, int]) -> tuple[Array, Array, tuple[slice, slice]]:
    """(u, v) of the pixel centres around a thing in its own frame, ±UNIT at its sides, and the window they cover.

    Args:
        thing: the object.
        size: (width, height) of the picture in pixels.
    """
    radius = math.isqrt(thing.half_width**2 + thing.half_height**2) // 16 + 2
    x0, x1 = max(thing.x // 16 - radius, 0), min(thing.x // 16 + radius + 1, size[0])
    y0, y1 = max(thing.y // 16 - radius, 0), min(thing.y // 16 + radius + 1, size[1])
    cos = round(math.cos(math.radians(thing.angle)) * UNIT)
    sin = round(math.sin(math.radians(thing.angle)) * UNIT)
    dx = (np.arange(x0, max(x1, x0), dtype=np.int64) * 16 + 8 - thing.x)[None, :]
    dy = (np.arange(y0, max(y1, y0), dtype=np.int64) * 16 + 8 - thing.y)[:, None]
    u = (dx * cos + dy * sin) // thing.half_width
    v = (dy * cos - dx * sin) // thing.half_height
    return u, v, (slice(y0, y1), slice(x0, x1))


def shape_mask(shape: int, u: Array, v: Array) -> Array:
    """Which points of the frame belong to a shape; ``u``, ``v`` in units of 1/UNIT."""
    one, a, b = UNIT, np.abs(u), np.abs(v)
    inside = (a <= one) & (b <= one)
    square = u * u + v * v
    match SHAPES[shape]:
        case "disc":
            return square <= one * one
        case "box":
            return inside
        case "triangle":
            return inside & (2 * a <= v + one)
        case "star":
            return inside & ((2 * a + b <= one) | (a + 2 * b <= one) | ((a <= one * 3 // 10) & (b <= one * 3 // 10)))
        case "cross":
            return inside & ((3 * a <= one) | (3 * b <= one))
        case "ring":
            return (square <= one * one) & (4 * square >= one * one)
        case "heart":
            lobes = (a - one // 2) ** 2 + (v + one // 2) ** 2 <= one * one // 4
            return lobes | ((v >= -one // 2) & (v <= one) & (3 * a <= 2 * (one - v)))
        case "arch":
            return inside & ~((2 * a <= one) & (v >= -one // 3))
        case "arrow":
            return inside & ((a <= v + one) & (v <= 0) | (10 * a <= 3 * one) & (v >= 0))
        case "hourglass":
            return inside & (a <= b + one // 8)
        case "frame":
            return inside & ((2 * a >= one) | (2 * b >= one))
        case _:  # moon
            shifted = (u - one // 2) ** 2 + v * v
            return (square <= one * one) & (shifted >= one * one * 9 // 16)


def texture_mask(texture: int, u: Array, v: Array) -> Array:
    """Which points of the frame carry the second colour."""
    one = UNIT
    cell = one * 2 // 5
    iu, iv = (u + 2 * one) // cell, (v + 2 * one) // cell
    match TEXTURES[texture]:
        case "plain":
            return np.zeros(u.shape, dtype=bool)
        case "striped":
            return iv % 2 == 0
        case "checked":
            return (iu + iv) % 2 == 0
        case "dotted":
            ru, rv = (u + 2 * one) % cell - cell // 2, (v + 2 * one) % cell - cell // 2
            return 10 * (ru * ru + rv * rv) <= cell * cell
        case "rimmed":
            return np.maximum(np.abs(u), np.abs(v)) * 3 <= one * 2
        case "split":
            return u >= 0
        case _:  # latticed
            return ((u + 2 * one) % cell * 3 < cell) | ((v + 2 * one) % cell * 3 < cell)


def background(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """A two-way gradient with grain, int64 (height, width, 3)."""
    width, height = size
    corners = rng.integers(40, 190, size=(4, 3))
    x = np.arange(width, dtype=np.int64)[None, :, None]
    y = np.arange(height, dtype=np.int64)[:, None, None]
    top = corners[0] * (width - x) + corners[1] * x
    bottom = corners[2] * (width - x) + corners[3] * x
    canvas = (top * (height - y) + bottom * y) // (width * height)
    return canvas + rng.integers(-10, 11, size=(height, width, 1))


def draw_clutter(rng: np.random.Generator, canvas: Array, count: int) -> None:
    """Thin lines and faint blobs that belong to no class, drawn in place."""
    height, width = canvas.shape[:2]
    for _ in range(count):
        is_line = bool(rng.integers(2))
        long = int(rng.integers(2, max(3, width // 3))) * 16
        thing = Thing(
            label=-1,
            x=int(rng.integers(width)) * 16,
            y=int(rng.integers(height)) * 16,
            half_width=long,
            half_height=10 if is_line else max(16, long // int(rng.integers(1, 4))),
            angle=int(rng.integers(180)),
            colours=((0, 0, 0), (0, 0, 0)),
        )
        u, v, window = local_coordinates(thing, (width, height))
        mask = shape_mask(SHAPES.index("box" if is_line else "disc"), u, v)
        shade = rng.integers(-60, 61, size=3) if is_line else rng.integers(-22, 23, size=3)
        canvas[window][mask] += shade


def draw_thing(canvas: Array, thing: Thing, name: str, grain: Array) -> tuple[Array, tuple[slice, slice]]:
    """Draw a thing in place; returns its whole (unoccluded) mask inside its window, and the window."""
    texture, shape = _parts(name)
    u, v, window = local_coordinates(thing, (canvas.shape[1], canvas.shape[0]))
    mask = shape_mask(shape, u, v)
    first, second = (np.array(colour, dtype=np.int64) for colour in thing.colours)
    paint = np.where(texture_mask(texture, u, v)[..., None], second, first)
    # Light from the upper left gives a little volume.
    paint = paint - ((u + v)[..., None] * 18 // (2 * UNIT)) + grain[window]
    canvas[window][mask] = paint[mask]
    return mask, window
