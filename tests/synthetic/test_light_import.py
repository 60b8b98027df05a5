"""A distilled dataset is loaded and trained on where torch, NumPy, safetensors and xxhash alone are installed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from ast_lightning.synthetic import save_distilled

PROGRAM = """
import sys

ABSENT = {"torchvision", "lightning", "pytorch_lightning", "lightning_utilities", "torchmetrics", "hydra", "omegaconf",
          "kornia", "sklearn", "scipy", "PIL", "rich", "tqdm", "filelock", "tensorboard", "joblib"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())

import numpy as np
import torch
from torch import nn
from ast_lightning.synthetic import load_distilled

distilled = load_distilled(sys.argv[1])
network = nn.Sequential(nn.Flatten(), nn.Linear(distilled.images[0].numel(), len(distilled.class_names)))
loss = nn.functional.cross_entropy(network(distilled.augment(distilled.images, 0)), distilled.labels)
loss.backward()
real = np.random.default_rng(0).integers(0, 256, size=(5, *distilled.images.shape[1:]), dtype=np.uint8)
print(network(distilled.transform(torch.from_numpy(real))).argmax(1).shape[0], bool(loss.isfinite()))
"""


def test_torch_numpy_safetensors_and_xxhash_are_enough(make_distilled: Any, tmp_path: Path) -> None:
    folder = save_distilled(tmp_path / "set", make_distilled())
    found = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True)
    assert found.stdout.split() == ["5", "True"], found.stderr
