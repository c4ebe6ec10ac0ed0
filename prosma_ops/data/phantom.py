"""Generated images with known labels: for demonstrations, for tests, and for learning what a network can do at all.

An organ (1) with a core nested in it (2), and a neighbour that touches it (3), in tissue with unlabelled bodies of the
same brightness. Borders are low in contrast, blurred by a width that changes along them, and in places gone. In 2-D it
looks like ultrasound: bright layers, speckle from the interference of random scatterers, attenuation and shadows. In
3-D it looks like MRI: a bias field and Rician noise. Image i of a seed is the same whichever others are made.

All shapes are ellipsoids in coordinates that a few random waves have bent: f(u) = 1 - |A (u - c)| is positive inside,
0 on the border, and about the distance to it, so that sigmoid(f / width) is the blurred body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from scipy.ndimage import gaussian_filter

from .case import Case, Collection, Generated
from .labels import LabelScheme

NAMES = ("background", "organ", "core", "neighbour")
DEFAULT_CASES = {2: 200, 3: 60}
DEFAULT_SIZE = {2: 128, 3: 48}
WAVES = 6

TISSUE = 0.50
# Brightness against the tissue: what carries the label differs by little more than what carries none.
ORGAN = (-0.24, -0.14)
CORE = (-0.05, 0.06)
NEIGHBOUR = (-0.34, -0.22)
CLUTTER = (-0.28, 0.12)


@dataclass(frozen=True)
class Phantom:
    """`cases` images of `size` pixels a side, in 2 or 3 dimensions; 0 stands for the default of the dimensions."""

    dimensions: int = 2
    cases: int = 0
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise ValueError(f"a phantom has 2 or 3 dimensions, not {self.dimensions}")
        if self.cases < 0 or self.seed < 0:
            raise ValueError(f"cases and seed of a phantom cannot be negative, got {self.cases} and {self.seed}")
        if self.size < 0 or 0 < self.size < 16:
            raise ValueError(f"a phantom needs a size of at least 16, got {self.size}")
        object.__setattr__(self, "cases", self.cases or DEFAULT_CASES[self.dimensions])
        object.__setattr__(self, "size", self.size or DEFAULT_SIZE[self.dimensions])

    def __str__(self) -> str:
        return "phantom:" + ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @staticmethod
    def describes(text: str) -> bool:
        return text.partition(":")[0] == "phantom"

    @classmethod
    def parse(cls, text: str) -> Phantom:
        """ "phantom", or "phantom:dimensions=3,cases=60,size=48,seed=1"."""
        names = [field.name for field in fields(cls)]
        options = {}
        for part in filter(None, text.partition(":")[2].split(",")):
            name, _, value = part.partition("=")
            if name not in names or not value.isdigit():
                raise ValueError(f"{text!r}: {part!r} is no option of a phantom; they are {'=N, '.join(names)}=N")
            options[name] = int(value)
        return cls(**options)

    def collection(self) -> Collection:
        digits = len(str(self.cases - 1))
        cases = tuple(
            Case(f"phantom_{i:0{digits}}", (Generated(self, i, "image"),), Generated(self, i, "label"))
            for i in range(self.cases)
        )
        scheme = LabelScheme(NAMES, tuple((code,) for code in range(len(NAMES))))
        channel = "ultrasound" if self.dimensions == 2 else "MRI"
        return Collection(str(self), "phantom", cases, self.dimensions, (channel,), scheme)

    def make(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        """Image (1, *spatial) float32, label (*spatial) uint8 and spacing of number `index`."""
        if not 0 <= index < self.cases:
            raise ValueError(f"this phantom has images 0 to {self.cases - 1}, not {index}")
        generator = np.random.default_rng((self.seed, self.dimensions, index))
        scene = _Scene(generator, (self.size,) * self.dimensions)
        organ = scene.body(scene.near(0.0, 0.15), generator.uniform(0.40, 0.56, self.dimensions))
        core = organ.inner(generator)
        neighbour = organ.beside(generator)
        label = np.zeros(scene.shape, np.uint8)
        label[neighbour.field > 0] = 3
        label[organ.field > 0] = 1
        label[(core.field > 0) & (organ.field > 0)] = 2

        brightness = scene.tissue()
        for _ in range(generator.integers(4, 9)):
            clutter = scene.body(scene.near(0.0, 0.9), generator.uniform(0.06, 0.22, self.dimensions))
            scene.paint(brightness, clutter.field, CLUTTER)
        scene.paint(brightness, neighbour.field, NEIGHBOUR)
        scene.paint(brightness, organ.field, ORGAN)
        scene.paint(brightness, np.minimum(core.field, organ.field), CORE)
        scene.capsule(brightness, organ.field)
        image = scene.ultrasound(brightness) if self.dimensions == 2 else scene.mri(brightness)
        return image.astype(np.float32)[None], label, (1.0,) * self.dimensions


@dataclass(frozen=True)
class _Body:
    """An ellipsoid: its border is |matrix (u - centre)| = 1."""

    coordinates: np.ndarray
    centre: np.ndarray
    radii: np.ndarray
    matrix: np.ndarray
    field: np.ndarray

    @classmethod
    def of(cls, coordinates: np.ndarray, centre: np.ndarray, radii: np.ndarray, rotation: np.ndarray) -> _Body:
        matrix = rotation / radii[:, None]
        offset = coordinates - centre.reshape(-1, *(1,) * (coordinates.ndim - 1))
        scaled = np.tensordot(matrix, offset, 1)
        # Times the mean radius, so that the field is a length like the coordinates.
        field = (1 - np.sqrt((scaled**2).sum(0))) * float(radii.mean())
        return cls(coordinates, centre, radii, matrix, field)

    def _at(self, generator: np.random.Generator, distance: float) -> np.ndarray:
        """The point in a random direction at this distance, in radii, from the centre."""
        direction = generator.normal(size=len(self.centre))
        direction *= distance / np.linalg.norm(self.matrix @ direction)
        point: np.ndarray = self.centre + direction
        return point

    def inner(self, generator: np.random.Generator) -> _Body:
        """One within it, which may reach its border."""
        radii = self.radii * generator.uniform(0.32, 0.52, len(self.radii))
        return _Body.of(
            self.coordinates, self._at(generator, generator.uniform(0.1, 0.5)), radii, _rotation(generator, len(radii))
        )

    def beside(self, generator: np.random.Generator) -> _Body:
        """One whose centre lies on its border or a little outside: the rest of it touches along a line."""
        radii = self.radii * generator.uniform(0.45, 0.75, len(self.radii))
        return _Body.of(
            self.coordinates, self._at(generator, generator.uniform(1.0, 1.25)), radii, _rotation(generator, len(radii))
        )


def _rotation(generator: np.random.Generator, dimensions: int) -> np.ndarray:
    matrix, _ = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))
    return np.asarray(matrix)


class _Scene:
    """Coordinates, -1 to 1 and bent, and what is painted on them. Axis 0 is the depth."""

    def __init__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.generator = generator
        self.shape = shape
        self.axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
        self.straight = np.stack(np.meshgrid(*self.axes, indexing="ij"))
        slow, fast = (np.stack([self.waves(*range_of) for _ in shape]) for range_of in ((0.5, 1.3), (1.5, 3.0)))
        self.coordinates = self.straight + np.float32(generator.uniform(0.05, 0.10)) * slow + np.float32(0.022) * fast

    def near(self, centre: float, spread: float) -> np.ndarray:
        return centre + self.generator.uniform(-spread, spread, len(self.shape))

    def waves(self, lowest: float, highest: float) -> np.ndarray:
        """A smooth random field of variance 1, of waves with so many half periods across half of the image.

        cos(k.x + phase) is the real part of a product over axes, so the sum over waves is one product of matrices.
        """
        directions = self.generator.normal(size=(WAVES, len(self.shape)))
        lengths = math.pi * self.generator.uniform(lowest, highest, WAVES)
        directions *= (lengths / np.linalg.norm(directions, axis=1))[:, None]
        phases = np.exp(2j * math.pi * self.generator.uniform(size=WAVES))
        axes = [np.exp(1j * np.outer(directions[:, i], axis)).astype(np.complex64) for i, axis in enumerate(self.axes)]
        leading = phases.astype(np.complex64)[:, None] * axes[0]
        for axis in axes[1:-1]:
            leading = (leading[:, :, None] * axis[:, None]).reshape(WAVES, -1)
        left = np.concatenate([leading.real, -leading.imag])
        right = np.concatenate([axes[-1].real, axes[-1].imag])
        return np.asarray((left.T @ right).reshape(self.shape) * np.float32(math.sqrt(2 / WAVES)))

    def body(self, centre: np.ndarray, radii: np.ndarray) -> _Body:
        return _Body.of(self.coordinates, centre, radii, _rotation(self.generator, len(self.shape)))

    def tissue(self) -> np.ndarray:
        return TISSUE + 0.03 * self.waves(0.5, 2.0) + 0.03 * self.waves(3.0, 7.0)

    def paint(self, brightness: np.ndarray, field: np.ndarray, contrast: tuple[float, float]) -> None:
        """Moves the brightness within a body to its own, over a border of changing width."""
        width = 0.03 * np.exp(0.6 * self.waves(0.8, 2.0))
        inside = 1 / (1 + np.exp(np.clip(-field / width, -30, 30)))
        texture = 0.03 * self.waves(4.0, 9.0)
        brightness += inside * (TISSUE + self.generator.uniform(*contrast) + texture - brightness)

    def capsule(self, brightness: np.ndarray, field: np.ndarray) -> None:
        """A bright skin along parts of a border."""
        part = np.clip(self.waves(0.7, 1.6), 0, 1)
        brightness += 0.16 * part * np.exp(-((field - 0.01) ** 2) / 0.022**2)

    def ultrasound(self, brightness: np.ndarray) -> np.ndarray:
        """Grey values 0 to 255. Log compression makes sums of products: the tissue's echoes, gain, speckle."""
        depth = self.straight[0]
        echoes = 1.25 * (brightness - TISSUE) + 0.45 * self.layers() + 0.25 * np.exp(-(((depth + 0.97) / 0.03) ** 2))
        shadows = 0.06 * np.clip(self.waves(0.8, 2.2)[:1], 0, None) * (depth + 1)
        gain = 0.06 * self.waves(0.3, 0.8) - self.generator.uniform(0.04, 0.10) * (depth + 1) - shadows
        values = 0.47 + echoes + gain + self.generator.uniform(0.08, 0.13) * self.speckle()
        return np.asarray(255 * np.clip(gaussian_filter(values, 0.5), 0, 1))

    def layers(self) -> np.ndarray:
        """Fasciae: bright lines across the image that fade in and out."""
        total = np.zeros(self.shape)
        for _ in range(self.generator.integers(4, 9)):
            tilt = self.generator.uniform(-0.3, 0.3) * self.straight[1]
            place = self.generator.uniform(-0.95, 0.95) + tilt + 0.06 * self.waves(0.5, 1.5)
            part = np.clip(self.waves(0.5, 1.5), 0, 1.2)
            total += part * np.exp(-(((self.coordinates[0] - place) / self.generator.uniform(0.012, 0.025)) ** 2))
        return total

    def speckle(self) -> np.ndarray:
        """The logarithm of the echoes of scatterers that interfere, two looks, blurred more across the beam; mean 0."""
        width = (0.6, *(1.3,) * (len(self.shape) - 1))
        echoes = [gaussian_filter(self.generator.normal(size=self.shape), width) for _ in range(4)]
        power = sum(echo**2 for echo in echoes)
        logarithm = np.log(power / power.mean() + 0.02)
        return np.asarray(logarithm - logarithm.mean())

    def mri(self, brightness: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter(brightness, 0.6) * np.exp(0.15 * self.waves(0.2, 0.6))
        noise = self.generator.uniform(0.025, 0.05)
        parts = [noise * self.generator.normal(size=self.shape) for _ in range(2)]
        scale = self.generator.uniform(200, 1500)  # the units of MRI are arbitrary, and differ from scan to scan
        return np.asarray(scale * np.hypot(smooth + parts[0], parts[1]))
