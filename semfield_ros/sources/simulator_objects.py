"""The simulator's catalogue: kinds of everyday objects, their shapes, parts, colours, poses and names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .simulator_shapes import Surface, box, chaikin, lathe, tube

MAIN = "main"
"""Tint of the parts that carry an object's colour; every other tint is one of ACCENTS."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.07, 0.07),
    "green": (0.10, 0.55, 0.14),
    "blue": (0.08, 0.22, 0.78),
    "yellow": (0.93, 0.82, 0.08),
    "orange": (0.95, 0.45, 0.05),
    "purple": (0.45, 0.12, 0.62),
    "white": (0.92, 0.92, 0.90),
    "black": (0.06, 0.06, 0.07),
}

ACCENTS: dict[str, tuple[float, float, float]] = {
    "steel": (0.62, 0.64, 0.67),
    "iron": (0.27, 0.28, 0.30),
    "dark": (0.12, 0.12, 0.13),
    "paper": (0.90, 0.87, 0.78),
    "lens": (0.97, 0.95, 0.72),
    "stem": (0.30, 0.22, 0.08),
}

Vec = tuple[float, float, float]


Range = tuple[float, float]
ANYWHERE: Range = (-np.inf, np.inf)

PART_NAMES: tuple[str, ...] = (
    "",
    *("base", "body", "bowl", "cap", "cover", "handle", "head", "label", "lens", "lid", "neck", "pages", "rim", "ring"),
    *("roof", "shaft", "spine", "spout", "stalk", "stem", "stripe", "tip", "wheel", "window"),
)
"""What parts of the catalogue's objects are called, by part number; 0 = no part of an object."""


@dataclass(frozen=True)
class Zone:
    """A named region of a surface: where its points' z, x and distance from the z axis lie (object frame, metres)."""

    name: str
    z_m: Range = ANYWHERE
    radius_m: Range = ANYWHERE
    x_m: Range = ANYWHERE

    def contains(self, points_object: np.ndarray) -> np.ndarray:
        """Which points [N, 3] lie in it: [N] bool. Lower ends count, upper ones do not."""
        x, z = points_object[:, 0], points_object[:, 2]
        radius = np.hypot(x, points_object[:, 1])
        inside = np.ones(len(points_object), bool)
        for value, (low, high) in ((z, self.z_m), (radius, self.radius_m), (x, self.x_m)):
            inside &= (value >= low) & (value < high)
        return inside

    def scaled(self, factor: float) -> Zone:
        """Larger or smaller about the object frame's origin, by a positive factor."""
        z, radius, x = ((low * factor, high * factor) for low, high in (self.z_m, self.radius_m, self.x_m))
        return Zone(self.name, z, radius, x)


@dataclass(frozen=True)
class Part:
    """One surface of an object: what it is called, how it is coloured, how strongly it shines (0 to 1).

    Points in one of its `zones` are called as the first of those, all others by the part's own name.
    """

    name: str
    surface: Surface
    tint: str = MAIN
    gloss: float = 0.25
    zones: tuple[Zone, ...] = ()

    def scaled(self, factor: float) -> Part:
        """Larger or smaller about the object frame's origin, zones included, by a positive factor."""
        zones = tuple(zone.scaled(factor) for zone in self.zones)
        return replace(self, surface=self.surface.scaled((factor,) * 3), zones=zones)

    def part_number(self, points_object: np.ndarray) -> np.ndarray:
        """The exact part of points [N, 3] on this surface: [N] int32 indices into PART_NAMES."""
        number = np.full(len(points_object), PART_NAMES.index(self.name), np.int32)
        for zone in reversed(self.zones):
            number[zone.contains(points_object)] = PART_NAMES.index(zone.name)
        return number


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        name: canonical name. synonyms: other words that are right for it.
        build: makes the parts in the object's own frame (z up, metres) from a random generator (proportions).
        rests: directions of the object frame that may point down, with their probabilities; None = any sideways one.
    """

    name: str
    synonyms: tuple[str, ...]
    build: Callable[[np.random.Generator], tuple[Part, ...]]
    rests: tuple[tuple[Vec | None, float], ...]


UP: Vec = (0.0, 0.0, -1.0)
"""The direction that points down when an object stands upright."""


def _wall(outer: list[tuple[float, float]], thickness_m: float, floor_m: float) -> list[tuple[float, float]]:
    """A hollow lathe profile: the outer line (axis to rim), then back down inside it."""
    inner = [(max(r - thickness_m, 0.0), z) for r, z in reversed(outer) if z > floor_m and r > thickness_m]
    return [*outer, *inner, (0.0, floor_m)]


def _from(name: str, z_m: float) -> Zone:
    """The zone of all points at or above a height."""
    return Zone(name, (z_m, np.inf))


RIM_M = 0.018
"""What counts as the rim of a vessel: this much below its edge, inside and outside."""


def _arc(centre: Vec, radius_x: float, radius_z: float, from_deg: float, to_deg: float, count: int = 14) -> np.ndarray:
    """An elliptic arc in the xz plane: [count, 3]."""
    a = np.radians(np.linspace(from_deg, to_deg, count))
    return np.stack([centre[0] + radius_x * np.cos(a), np.full(count, centre[1]), centre[2] + radius_z * np.sin(a)], 1)


def _mug(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h = rng.uniform(0.038, 0.045), rng.uniform(0.088, 0.108)
    outer = [(0.0, 0.0), (r * 0.9, 0.0), (r, 0.006), (r, h)]
    handle = _arc((r - 0.003, 0.0, h * 0.5), rng.uniform(0.033, 0.041), h * 0.34, -90, 90)
    body = Part("body", lathe(_wall(outer, 0.004, 0.007)), zones=(_from("rim", h - RIM_M),))
    return body, Part("handle", tube(handle, rng.uniform(0.006, 0.0078), 10))


def _bowl(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h = rng.uniform(0.068, 0.088), rng.uniform(0.05, 0.068)
    curve = chaikin([(0.45 * r, 0.005), (0.8 * r, 0.2 * h), (0.97 * r, 0.62 * h), (r, h)])
    outer = [(0.0, 0.0), (0.42 * r, 0.0), *map(tuple, curve)]
    return (Part("body", lathe(_wall(outer, 0.0045, 0.008), 48), zones=(_from("rim", h - RIM_M),)),)


def _plate(rng: np.random.Generator) -> tuple[Part, ...]:
    r = rng.uniform(0.095, 0.118)
    profile = [
        (0.0, 0.0),
        (0.6 * r, 0.0),
        (0.72 * r, 0.008),
        (r, 0.019),
        (r, 0.0235),
        (0.71 * r, 0.0125),
        (0.6 * r, 0.005),
        (0.0, 0.005),
    ]
    return (Part("body", lathe(profile, 56), gloss=0.35, zones=(Zone("rim", radius_m=(0.74 * r, np.inf)),)),)


def _bottle(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h = rng.uniform(0.031, 0.038), rng.uniform(0.125, 0.155)
    neck, top = rng.uniform(0.0125, 0.015), h + rng.uniform(0.085, 0.11)
    shoulder = chaikin([(r, h), (0.92 * r, h + 0.03), (neck, h + 0.045), (neck, h + 0.06)])
    body = [(0.0, 0.0), (0.92 * r, 0.0), (r, 0.005), *map(tuple, shoulder), (neck, top - 0.02), (0.0, top - 0.02)]
    cap = [(0.0, top - 0.022), (neck + 0.003, top - 0.022), (neck + 0.003, top), (0.0, top)]
    label = [(0.0, 0.3 * h), (r + 0.0008, 0.3 * h), (r + 0.0008, 0.75 * h), (0.0, 0.75 * h)]
    return (
        Part("body", lathe(body), gloss=0.55, zones=(_from("neck", h + 0.042),)),
        Part("label", lathe(label), "paper", 0.05),
        Part("cap", lathe(cap, 24), "dark"),
    )


def _wine_glass(rng: np.random.Generator) -> tuple[Part, ...]:
    r, foot, stem = rng.uniform(0.034, 0.041), rng.uniform(0.034, 0.039), rng.uniform(0.075, 0.095)
    bowl = rng.uniform(0.085, 0.1)
    cup = chaikin(
        [(0.006, stem), (0.7 * r, stem + 0.1 * bowl), (1.08 * r, stem + 0.45 * bowl), (0.84 * r, stem + bowl)]
    )
    inside = [(max(x - 0.0028, 0.0), z) for x, z in cup[::-1] if z > stem + 0.008]
    profile = [
        (0.0, 0.0),
        (foot, 0.0),
        (foot, 0.003),
        (0.012, 0.007),
        (0.0055, 0.02),
        *map(tuple, cup),
        *inside,
        (0.0, stem + 0.008),
    ]
    zones = (
        Zone("base", (-np.inf, 0.01)),
        Zone("stem", (0.01, stem + 0.002)),
        _from("rim", stem + bowl - RIM_M),
        _from("bowl", stem + 0.002),
    )
    return (Part("body", lathe(profile, 36), gloss=0.6, zones=zones),)


def _pitcher(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h = rng.uniform(0.056, 0.066), rng.uniform(0.185, 0.225)
    curve = chaikin([(0.9 * r, 0.004), (1.05 * r, 0.25 * h), (0.95 * r, 0.6 * h), (0.68 * r, 0.8 * h), (0.8 * r, h)])
    outer = [(0.0, 0.0), (0.85 * r, 0.0), *map(tuple, curve)]
    body = lathe(_wall(outer, 0.0045, 0.01), 44)
    v = body.vertices.copy()
    lip = np.clip((v[:, 2] - 0.8 * h) / (0.2 * h), 0, 1) ** 2
    away = np.abs(np.arctan2(v[:, 1], -v[:, 0]))
    v[:, 0] -= 0.036 * lip * np.exp(-((away / 0.42) ** 2))
    handle = _arc((0.72 * r, 0.0, 0.58 * h), rng.uniform(0.062, 0.075), 0.31 * h, -88, 88, 18)
    spout = Zone("spout", (0.84 * h, np.inf), x_m=(-np.inf, -0.62 * r))
    zones = (spout, _from("rim", h - RIM_M))
    return Part("body", body.deformed(v), zones=zones), Part("handle", tube(handle, 0.0085, 10))


def _can(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h = rng.uniform(0.031, 0.035), rng.uniform(0.105, 0.125)
    body = [(0.0, 0.006), (0.88 * r, 0.006), (r, 0.013), (r, h - 0.013), (0.88 * r, h - 0.005), (0.0, h - 0.005)]
    rim = [
        (0.0, h - 0.007),
        (0.88 * r, h - 0.007),
        (0.88 * r, h),
        (0.8 * r, h),
        (0.77 * r, h - 0.004),
        (0.0, h - 0.004),
    ]
    foot = [(0.0, 0.003), (0.7 * r, 0.003), (0.76 * r, 0.0), (0.86 * r, 0.0), (0.88 * r, 0.008), (0.0, 0.008)]
    return (
        Part("body", lathe(body), gloss=0.6),
        Part("lid", lathe(rim), "steel", 0.8),
        Part("base", lathe(foot), "steel", 0.8),
    )


def _cereal_box(rng: np.random.Generator) -> tuple[Part, ...]:
    w, d, h = rng.uniform(0.12, 0.15), rng.uniform(0.042, 0.058), rng.uniform(0.175, 0.215)
    panel = box((0.68 * w, d + 0.0016, 0.36 * h), (0, 0, 0.66 * h))
    stripe = box((w + 0.0012, d + 0.0012, 0.06 * h), (0, 0, 0.22 * h))
    return (
        Part("body", box((w, d, h), (0, 0, h / 2)), gloss=0.1),
        Part("label", panel, "paper", 0.1),
        Part("stripe", stripe, "paper", 0.1),
    )


def _book(rng: np.random.Generator) -> tuple[Part, ...]:
    w, d, t = rng.uniform(0.125, 0.155), rng.uniform(0.18, 0.22), rng.uniform(0.022, 0.038)
    c = 0.0035
    return (
        Part("cover", box((w, d, c), (0, 0, c / 2)), gloss=0.15),
        Part("cover", box((w, d, c), (0, 0, t - c / 2)), gloss=0.15),
        Part("spine", box((c, d, t - 2 * c), (-w / 2 + c / 2, 0, t / 2)), gloss=0.15),
        Part("pages", box((w - c - 0.006, d - 0.012, t - 2 * c), (-0.002, 0, t / 2)), "paper", 0.0),
    )


def _banana(rng: np.random.Generator) -> tuple[Part, ...]:
    bend = rng.uniform(0.085, 0.11)
    path = _arc((0, 0, 0), bend, bend, -58, 58, 18)[:, [0, 2, 1]]
    t = np.linspace(-1, 1, len(path))
    radius = 0.0185 * np.sqrt(np.clip(1 - 0.86 * t**4, 0.05, 1)) * rng.uniform(0.95, 1.12)
    tip = tube(path[:3] + [0, 0, 0], [0.0075, 0.0082, 0.0078])
    direction = path[-1] - path[-2]
    stalk = tube([path[-1], path[-1] + 2.2 * direction], [0.0062, 0.0048], 8)
    return (
        Part("body", tube(path[1:], radius[1:], 12), gloss=0.2),
        Part("tip", tip, "stem"),
        Part("stalk", stalk, "stem"),
    )


def _ball(rng: np.random.Generator) -> tuple[Part, ...]:
    r = rng.uniform(0.031, 0.039)
    a = np.linspace(-np.pi / 2, np.pi / 2, 29)
    return (Part("body", lathe(np.stack([r * np.cos(a), r + r * np.sin(a)], 1), 56), gloss=0.4),)


def _screwdriver(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h, shaft = rng.uniform(0.0145, 0.018), rng.uniform(0.095, 0.115), rng.uniform(0.09, 0.115)
    curve = chaikin([(0.6 * r, 0.0), (r, 0.008), (r, 0.6 * h), (0.62 * r, 0.8 * h), (0.85 * r, h)])
    handle = [(0.0, 0.0), *map(tuple, curve), (0.0, h)]
    rod = [
        (0.0, h - 0.002),
        (0.0045, h - 0.002),
        (0.0045, h + shaft - 0.012),
        (0.0058, h + shaft - 0.01),
        (0.0022, h + shaft),
        (0.0, h + shaft),
    ]
    return Part("handle", lathe(handle, 18), gloss=0.5), Part("shaft", lathe(rod, 12), "steel", 0.8)


def _hammer(rng: np.random.Generator) -> tuple[Part, ...]:
    length, r = rng.uniform(0.23, 0.27), rng.uniform(0.0125, 0.0145)
    shaft = [
        (0.0, 0.0),
        (0.8 * r, 0.0),
        (r, 0.006),
        (1.05 * r, 0.35 * length),
        (0.75 * r, 0.55 * length),
        (0.75 * r, length),
        (0.0, length),
    ]
    z = length - 0.006
    face = tube([(0.0, 0, z), (0.022, 0, z), (0.024, 0, z), (0.05, 0, z)], [0.0125, 0.0125, 0.0165, 0.0165], 18)
    claw = tube(
        [(0.004, 0, z), (-0.022, 0, z), (-0.045, 0, z - 0.006), (-0.062, 0, z - 0.018)],
        [[0.013, 0.0125], [0.013, 0.012], [0.016, 0.007], [0.017, 0.003]],
        14,
    )
    return Part("handle", lathe(shaft, 18)), Part("head", face, "iron", 0.6), Part("head", claw, "iron", 0.6)


def _spoon(rng: np.random.Generator) -> tuple[Part, ...]:
    length, r = rng.uniform(0.17, 0.21), rng.uniform(0.027, 0.033)
    a = np.linspace(-np.pi / 2, 0, 9)
    bowl = [*np.stack([r * np.cos(a), 0.55 * r * np.sin(a)], 1).tolist()]
    back = [[max(x - 0.0035, 0.0), min(z + 0.0035, 0.0)] for x, z in bowl[::-1] if x > 0.0035]
    scoop = lathe([*bowl, *back, [0.0, -0.55 * r + 0.0035]], 28).scaled((1.3, 1.0, 1.0))
    path = np.array([(1.22 * r, 0, -0.002), (1.22 * r + 0.03, 0, 0.006), (1.22 * r + length, 0, 0.002)])
    return Part("bowl", scoop, gloss=0.4), Part("handle", tube(chaikin(path), 0.0068, 10), gloss=0.4)


def _frying_pan(rng: np.random.Generator) -> tuple[Part, ...]:
    r, h, length = rng.uniform(0.085, 0.105), rng.uniform(0.032, 0.042), rng.uniform(0.14, 0.17)
    outer = [(0.0, 0.0), (0.8 * r, 0.0), (0.86 * r, 0.005), (r, h)]
    path = [(0.93 * r, 0, 0.7 * h), (r + 0.03, 0, 0.9 * h), (r + length, 0, 1.15 * h)]
    return (
        Part("body", lathe(_wall(outer, 0.004, 0.005), 52), gloss=0.35, zones=(_from("rim", h - 0.7 * RIM_M),)),
        Part("handle", tube(chaikin(path), [[0.0125, 0.008]] * len(chaikin(path)), 12), "dark"),
    )


def _torch(rng: np.random.Generator) -> tuple[Part, ...]:
    r, length, head = rng.uniform(0.0155, 0.018), rng.uniform(0.115, 0.135), rng.uniform(0.027, 0.031)
    body = [
        (0.0, 0.0),
        (0.9 * r, 0.0),
        (r, 0.004),
        (r, length),
        (head, length + 0.025),
        (head, length + 0.045),
        (0.9 * head, length + 0.045),
        (0.9 * head, length + 0.042),
        (0.0, length + 0.042),
    ]
    ring = [(0.0, 0.62 * length), (r + 0.003, 0.62 * length), (r + 0.003, 0.75 * length), (0.0, 0.75 * length)]
    lens = [(0.0, length + 0.04), (0.86 * head, length + 0.04), (0.86 * head, length + 0.044), (0.0, length + 0.044)]
    return (
        Part("body", lathe(body, 28), gloss=0.5, zones=(_from("head", length + 0.008),)),
        Part("ring", lathe(ring, 28), "dark"),
        Part("lens", lathe(lens, 28), "lens", 0.9),
    )


def _toy_car(rng: np.random.Generator) -> tuple[Part, ...]:
    length, w, h = rng.uniform(0.14, 0.17), rng.uniform(0.066, 0.076), 0.03
    z = 0.014
    hull = box((length, w, h), (0, 0, z + h / 2))
    cabin = box((0.5 * length, 0.86 * w, 0.03), (-0.06 * length, 0, z + h + 0.015))
    v = cabin.vertices.copy()
    v[v[:, 2] > z + h + 0.02] *= [0.72, 0.88, 1.0]
    glass = Surface(v * [1.02, 1.02, 1.0] - [0, 0, 0.004], cabin.faces)
    roof = box((0.34 * length, 0.74 * w, 0.006), (-0.045 * length, 0, z + h + 0.029))
    wheel = lathe([(0.0, -0.008), (0.018, -0.008), (0.018, 0.008), (0.0, 0.008)], 20)
    upright = Surface(wheel.vertices[:, [0, 2, 1]] * [1, -1, 1], wheel.faces)
    wheels = tuple(
        Part("wheel", upright.moved((x * 0.31 * length, y * w / 2, 0.018)), "dark", 0.1)
        for x in (-1, 1)
        for y in (-1, 1)
    )
    return Part("body", hull, gloss=0.5), Part("window", glass, "iron", 0.8), Part("roof", roof, gloss=0.5), *wheels


KINDS: tuple[Kind, ...] = (
    Kind("mug", ("cup", "coffee mug", "tea cup"), _mug, ((UP, 0.8), (None, 0.2))),
    Kind("bowl", ("soup bowl", "salad bowl"), _bowl, ((UP, 0.9), ((0.0, 0.0, 1.0), 0.1))),
    Kind("plate", ("dish", "dinner plate"), _plate, ((UP, 1.0),)),
    Kind("bottle", ("water bottle", "flask"), _bottle, ((UP, 0.65), (None, 0.35))),
    Kind("wine glass", ("goblet", "stemware"), _wine_glass, ((UP, 0.75), (None, 0.25))),
    Kind("pitcher", ("jug", "water jug"), _pitcher, ((UP, 0.9), (None, 0.1))),
    Kind("can", ("soda can", "tin can"), _can, ((UP, 0.6), (None, 0.4))),
    Kind("cereal box", ("box", "carton"), _cereal_box, ((UP, 0.6), ((0.0, 1.0, 0.0), 0.25), ((1.0, 0.0, 0.0), 0.15))),
    Kind("book", ("novel", "hardcover book"), _book, ((UP, 0.8), ((-1.0, 0.0, 0.0), 0.1), ((0.0, -1.0, 0.0), 0.1))),
    Kind("banana", ("plantain", "banana fruit"), _banana, ((UP, 1.0),)),
    Kind("ball", ("toy ball", "sphere"), _ball, ((UP, 1.0),)),
    Kind("screwdriver", ("screw driver", "phillips screwdriver"), _screwdriver, ((None, 1.0),)),
    Kind("hammer", ("claw hammer", "mallet"), _hammer, (((0.0, 1.0, 0.0), 0.5), ((0.0, -1.0, 0.0), 0.5))),
    Kind("spoon", ("ladle", "serving spoon"), _spoon, ((UP, 0.85), ((0.0, 0.0, 1.0), 0.15))),
    Kind("frying pan", ("pan", "skillet"), _frying_pan, ((UP, 1.0),)),
    Kind("flashlight", ("torch", "hand lamp"), _torch, ((None, 0.8), (UP, 0.1), ((0.0, 0.0, 1.0), 0.1))),
    Kind("toy car", ("car", "model car"), _toy_car, ((UP, 0.9), ((0.0, 0.0, 1.0), 0.1))),
)


STUFF: tuple[str, ...] = ("floor", "wall", "table")


def names_of(kind: Kind, colour: str) -> tuple[str, ...]:
    """Every caption that is right for an object: kinds and synonyms, each alone and with its colour."""
    nouns = (kind.name, *kind.synonyms)
    return (*nouns, *(f"{colour} {noun}" for noun in nouns))
