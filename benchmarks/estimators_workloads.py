"""Trainings along which estimators of the kernel are compared: real data, reduced networks."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from networks import SegNetMTAN, celeba_losses, dense_losses
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench import problems
from ntkmtl.bench.problems.base import MultiTaskModel, batches

__all__ = ["MAKERS", "Training"]


@dataclass
class Training:
    """A network, an endless stream of batches, and its losses.

    Attributes:
        title: What is trained, for tables.
        model: The network, with ``represent`` and ``predict``.
        batches: Batches without end.
        losses: From outputs and batch to k scalars.
        inputs: From a batch to what ``represent`` takes.
        shared: The shared parameters.
        layers: Linear layers of the trunk, the last first, for kernels of several layers.
        minibatches: The paper's n.
        learning_rate: Of Adam.
        steps: Steps of the whole training.
    """

    title: str
    model: Any
    batches: Iterator[Any]
    losses: Callable[[Sequence[Tensor], Any], list[Tensor]]
    inputs: Callable[[Any], Any]
    shared: list[nn.Parameter]
    minibatches: int
    learning_rate: float
    steps: int
    layers: list[nn.Linear] = field(default_factory=list)


def _qm9(data: Path | None, steps: int | None) -> Training:
    problem = problems.create("qm9-mini")
    recipe = problem.recipe
    model: Any = problem.model()

    def stream() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        while True:
            for indices in batches(problem.size("train"), recipe.batch_size, generator):
                yield problem.batch("train", indices)

    def losses(outputs: Sequence[Tensor], batch: Any) -> list[Tensor]:
        return [loss for loss in problem.losses(outputs, batch).values() if loss is not None]

    per_epoch = problem.size("train") // recipe.batch_size
    return Training(
        f"qm9-mini, k = {len(problem.tasks)}, n = {recipe.minibatches}, batch {recipe.batch_size}",
        model,
        stream(),
        losses,
        lambda batch: batch,
        list(model.shared_parameters()),
        recipe.minibatches,
        recipe.learning_rate,
        steps or recipe.epochs * per_epoch,
        [model.refine, model.read],
    )


class _SmallCelebA(MultiTaskModel):
    """The nine-layer network's plan at a fraction of its width, for images of 32 x 32."""

    def __init__(self, heads: int, widths: Sequence[int] = (16, 32, 48, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            channels = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            layers += [
                nn.Linear(channels, channels, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(channels, 1) for _ in range(heads))

    def represent(self, batch: Tensor) -> Tensor:
        features: Tensor = self.trunk(batch)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(view).squeeze(1) for head, view in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()


def _need(data: Path | None, *parts: str) -> Path:
    path = (data or Path()).joinpath(*parts)
    if data is None or not path.exists():
        raise FileNotFoundError(f"{path} is missing; name the folder of the data with --data")
    return path


def _picture(file: bytes, size: tuple[int, int], nearest: bool = False) -> Tensor:
    """Decode one image to (H, W) or (H, W, 3), float32."""
    import numpy as np
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BOX
    with Image.open(io.BytesIO(file)) as image:
        return torch.from_numpy(np.array(image.resize(size, how), dtype=np.float32))


def _celeba(data: Path | None, steps: int | None) -> Training:
    pictures = _need(data, "celeba", "img_align_celeba_half_4000.tar")
    with zipfile.ZipFile(_need(data, "celeba", "list_attr_celeba.zip")) as archive:
        lines = archive.read("list_attr_celeba.txt").decode().splitlines()
    images, rows = [], []
    with tarfile.open(pictures) as tar:
        for number, member in enumerate(tar):
            file = tar.extractfile(member)
            if file is None:
                continue
            images.append(_picture(file.read(), (32, 32)) / 255 - 0.5)
            rows.append(Path(member.name).stem)
            if number >= 3200:
                break
    attributes = {
        Path(line.split()[0]).stem: [float(word == "1") for word in line.split()[1:]]
        for line in lines[2 : len(rows) + 50]
    }
    x = torch.stack(images).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor([attributes[row] for row in rows])
    model = _SmallCelebA(heads=y.shape[1])

    def stream() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        while True:
            for indices in batches(len(x), 32, generator):
                yield x[indices], y[indices]

    fc = [layer for layer in model.trunk if isinstance(layer, nn.Linear)]
    return Training(
        f"CelebA, reduced (32 x 32, a quarter of the widths), k = {y.shape[1]}, n = 2, batch 32",
        model,
        stream(),
        lambda outputs, batch: celeba_losses(outputs, batch[1]),
        lambda batch: batch[0],
        list(model.shared_parameters()),
        2,
        1e-3,
        steps or 400,
        fc[::-1],
    )


def _normals(depth: Tensor) -> Tensor:
    """Unit normals of a depth map (H, W) from its differences, (3, H, W); 0 where unknown."""
    height, width = depth.shape
    focal_x, focal_y = 518.86 * width / 640, 519.47 * height / 480
    u = torch.arange(width) - (width - 1) / 2
    v = torch.arange(height) - (height - 1) / 2
    points = torch.stack([u[None, :] * depth / focal_x, v[:, None] * depth / focal_y, depth])
    right = (points[:, 1:-1, 2:] - points[:, 1:-1, :-2]).movedim(0, 2)
    down = (points[:, 2:, 1:-1] - points[:, :-2, 1:-1]).movedim(0, 2)
    normal = functional.normalize(torch.linalg.cross(down, right), dim=2).movedim(2, 0)
    return functional.pad(normal, (1, 1, 1, 1))


def _nyuv2(data: Path | None, steps: int | None) -> Training:
    size = (96, 64)
    kinds: dict[str, dict[str, Tensor]] = {"image": {}, "label13": {}, "depth8": {}}
    with tarfile.open(_need(data, "nyuv2", "nyuv2_quarter.tar")) as tar:
        for member in tar:
            file = tar.extractfile(member)
            parts = Path(member.name).parts
            if file is None or parts[0] != "train":
                continue
            kind = parts[1]
            decoded = _picture(file.read(), size, nearest=kind == "label13")
            kinds[kind][Path(member.name).stem] = decoded
    names = sorted(kinds["image"])
    images = torch.stack([kinds["image"][name] for name in names]).permute(0, 3, 1, 2) / 255
    classes = torch.stack([kinds["label13"][name] for name in names]).long()
    classes[classes == 255] = -1
    depths = torch.stack([(kinds["depth8"][name] + 0.5) / 25.5 for name in names])
    normals = torch.stack([_normals(depth) for depth in depths])
    depths = depths[:, None]
    model = SegNetMTAN(widths=(8, 16, 16, 32, 32), depths=(2, 2, 2, 2, 2))

    def stream() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        while True:
            for i in batches(len(images), 4, generator):
                yield images[i], [classes[i], depths[i], normals[i]]

    return Training(
        "NYUv2, SegNet-MTAN reduced (96 x 64, 8 to 32 channels), k = 3, n = 2, batch 4",
        model,
        stream(),
        lambda outputs, batch: dense_losses(model.tasks, outputs, batch[1]),
        lambda batch: batch[0],
        list(model.shared_parameters()),
        2,
        1e-3,
        steps or 200,
    )


MAKERS: dict[str, Callable[[Path | None, int | None], Training]] = {
    "qm9-mini": _qm9,
    "celeba": _celeba,
    "nyuv2": _nyuv2,
}
