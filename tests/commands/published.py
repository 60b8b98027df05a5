"""The published settings as tables: what the files in conf/experiment must contain.

A column is an option, a row an experiment; ``-`` is null. A row with ``SUBSET`` stands for all
ImageNet subsets of its method. ``COMMON`` holds the options that all rows of a method
share, ``DATA`` those of the data.
"""

from __future__ import annotations

from typing import Any

_COLUMNS = {
    "zca": "data.preprocessing",
    "IPC": "distill.ipc",
    "K": "distill.syn_steps",
    "M": "distill.expert_epochs",
    "T-": "distill.min_start_epoch",
    "T0": "distill.first_start_bound",
    "T+": "distill.max_start_epoch",
    "end": "distill.expansion_end",
    "batch": "distill.batch_syn",
    "init": "distill.init",
    "balance": "distill.balance",
    "lr_img": "distill.lr_img",
    "lr_y": "distill.lr_labels",
    "lr_lr": "distill.lr_lr",
    "lr_teacher": "distill.lr_teacher",
    "a": "expert.sam_alpha",
    "ema": "distill.ema",
    "threshold": "distill.max_loss",
    "ratio": "distill.drop_ratio",
    "iterations": "distill.max_steps",
    "labels": "distill.labels",
    "experts": "num_experts",
    "side": "data.image_size",
    "canvas": "distill.canvas",
}
_WORDS: dict[str, Any] = {"-": None, "yes": True, "no": False, "real": "real"}
_WORDS |= {each: each for each in ("zca", "standardize", "representative", "correct", "teacher")}

_TABLES = """
experiment               IPC  zca          init            balance  K   M  T+  batch  lr_img  lr_lr  lr_teacher
ast_cifar100_ipc1        1    zca          representative  yes      20  3  20  -      1000    1e-5   0.01
ast_cifar100_ipc1_nozca  1    standardize  representative  no       40  3  15  -      100     1e-5   0.01
ast_cifar100_ipc10       10   standardize  representative  no       20  2  30  128    1000    1e-5   0.01
ast_cifar100_ipc50       50   standardize  representative  no       80  2  40  700    1000    1e-5   0.01
ast_cifar10_ipc10        10   zca          real            yes      30  2  20  -      100     1e-6   0.01
ast_cifar10_ipc10_lr1000 10   zca          real            yes      30  2  20  -      1000    1e-5   0.01

experiment               IPC  zca          init            balance  K   M  T+  batch  lr_img  lr_lr  lr_teacher
ast_cifar10_ipc1         1    zca          representative  yes      50  2  2   -      100     1e-7   0.01
ast_cifar10_ipc50        50   zca          representative  yes      30  2  40  -      1000    1e-5   0.01

experiment          IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher
mtt_cifar10_ipc1    1    50  2  2   -      zca          100     1e-7   0.01
mtt_cifar10_ipc10   10   30  2  20  -      zca          100     1e-5   0.001
mtt_cifar10_ipc50   50   30  2  40  -      standardize  1000    1e-5   0.001
mtt_cifar100_ipc1   1    20  3  20  -      zca          1000    1e-5   0.01
mtt_cifar100_ipc10  10   20  2  20  -      standardize  1000    1e-5   0.01
mtt_cifar100_ipc50  50   80  2  40  125    zca          1000    1e-5   0.01

experiment          IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher  a    ema
ftd_cifar10_ipc1    1    50  2  2   -      standardize  100     1e-7   0.01        0.3  0.9999
ftd_cifar10_ipc10   10   30  2  20  -      zca          100     1e-5   0.001       0.3  0.9995
ftd_cifar10_ipc50   50   30  2  40  -      standardize  1000    1e-5   0.01        1    0.999
ftd_cifar100_ipc1   1    40  3  20  -      standardize  1000    1e-5   0.01        1    0.9995
ftd_cifar100_ipc10  10   20  2  40  -      zca          1000    1e-5   0.01        1    0.9995
ftd_cifar100_ipc50  50   80  2  40  1000   standardize  1000    1e-5   0.01        1    0.999

experiment            IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher
tesla_cifar10_ipc1    1    50  2  5   -      standardize  1000    1e-7   0.01
tesla_cifar100_ipc50  50   80  2  40  125    zca          1000    1e-5   0.01

experiment            IPC   K    M  T-  T0  T+  end   batch  lr_img  lr_y  lr_lr  init     threshold
datm_cifar10_ipc1     1     80   2  0   -   4   -     -      100     5     1e-7   correct  1.1
datm_cifar10_ipc10    10    80   2  0   10  20  1000  -      100     2     1e-5   correct  1
datm_cifar10_ipc50    50    80   2  0   20  40  2000  -      1000    2     1e-5   correct  1
datm_cifar10_ipc500   500   40   2  40  -   60  -     1000   50      10    1e-5   correct  1
datm_cifar10_ipc1000  1000  100  2  40  -   60  -     1000   50      10    1e-5   correct  1
datm_cifar100_ipc1    1     40   3  0   10  20  1000  -      1000    10    1e-5   correct  1
datm_cifar100_ipc10   10    80   2  0   30  50  2000  -      1000    10    1e-5   correct  1
datm_cifar100_ipc50   50    80   2  20  -   70  -     1000   1000    10    1e-5   real     1
datm_cifar100_ipc100  100   80   2  30  -   70  -     1000   50      10    1e-5   correct  1

experiment           IPC   K    M  T-  T0  T+  end   batch  lr_img  lr_y  lr_lr  init     threshold  ratio
pad_cifar10_ipc1     1     80   2  0   -   4   -     -      100     5     1e-7   correct  1.1        0
pad_cifar10_ipc10    10    80   2  0   10  20  1000  -      100     2     1e-5   correct  1          0.5
pad_cifar10_ipc50    50    80   3  0   20  40  2000  -      1000    2     1e-5   correct  1          0.25
pad_cifar10_ipc500   500   40   2  40  60  70  2000  1000   50      10    1e-5   correct  1          0.5
pad_cifar10_ipc1000  1000  100  2  40  -   60  -     1000   50      10    1e-5   correct  1          0.5
pad_cifar100_ipc1    1     40   3  0   20  30  1000  -      1000    10    1e-5   correct  1          0.5
pad_cifar100_ipc10   10    80   2  0   30  50  2000  -      1000    10    1e-5   correct  1          0.5
pad_cifar100_ipc50   50    80   2  20  -   70  -     1000   1000    10    1e-5   real     1          0
pad_cifar100_ipc100  100   80   2  30  -   70  -     1000   50      10    1e-5   correct  1          0.5

experiment          IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher  ema     iterations
att_cifar10_ipc1    1    80  4  2   -      zca          1e2     1e-7   0.01        0.9999  6000
att_cifar10_ipc10   10   30  2  20  -      zca          1e4     1e-4   0.01        0.9999  60000
att_cifar10_ipc50   50   50  2  40  -      standardize  1e2     1e-5   0.001       0.999   1000000
att_cifar100_ipc1   1    50  4  20  -      zca          500     1e-5   0.01        0.9995  3000
att_cifar100_ipc10  10   20  2  40  -      standardize  1e3     1e-5   0.01        0.9995  200000
att_cifar100_ipc50  50   80  2  40  1200   zca          1e3     1e-5   0.01        0.999   100000

experiment            IPC  K   M   T+  batch  zca          lr_img  lr_lr  lr_teacher
mct_cifar10_ipc1      1    60  6   4   -      standardize  1e3     1e-7   0.01
mct_cifar10_ipc10     10   30  15  8   -      standardize  1e3     1e-5   0.01
mct_cifar10_ipc50     50   30  2   40  -      standardize  1e3     1e-5   0.001
mct_cifar10_ipc1_zca  1    50  5   3   -      zca          1e3     1e-7   0.01

experiment         IPC  lr_img  zca          iterations
dm_cifar10_ipc1    1    1       standardize  20000
dm_cifar10_ipc10   10   1       standardize  20000
dm_cifar10_ipc50   50   1       standardize  20000
dm_cifar100_ipc1   1    1       standardize  20000
dm_cifar100_ipc10  10   1       standardize  20000
dm_cifar100_ipc50  50   1       standardize  20000

experiment     IPC  zca          init  balance  K   M  T+  batch  lr_img  lr_lr  lr_teacher
ast_tiny_ipc1  1    standardize  real  no       10  2  10  -      10000   1e-4   0.01

experiment                    IPC  side  canvas  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher
mtt_tiny_ipc1                 1    64    1       10  2  10  -      standardize  10000   1e-4   0.01
mtt_tiny_ipc10                10   64    1       20  2  40  200    standardize  10000   1e-4   0.01
mtt_tiny_ipc50                50   64    1       20  2  40  300    standardize  10000   1e-4   0.01
mtt_SUBSET_ipc1               1    128   1       20  2  10  -      standardize  1000    1e-6   0.01
mtt_SUBSET_ipc10              10   128   1       20  2  10  20     standardize  1000    1e-6   0.01
mtt_imagesquawk_ipc1_texture  1    256   2       20  2  10  -      standardize  1000    1e-6   0.01

experiment        IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher  a  ema
ftd_tiny_ipc1     1    30  2  10  -      standardize  10000   1e-4   0.01        1  0.999
ftd_tiny_ipc10    10   20  2  40  500    standardize  10000   1e-4   0.01        1  0.999
ftd_SUBSET_ipc1   1    20  2  10  -      standardize  10000   1e-4   0.01        1  0.999
ftd_SUBSET_ipc10  10   20  2  10  64     standardize  10000   1e-4   0.01        1  0.999

experiment           IPC  experts  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher  labels
tesla_imagenet_ipc1  1    50       10  3  10  100    standardize  10000   1e-4   0.01        teacher

experiment       IPC  K   M  T-  T0  T+  end   batch  lr_img  lr_y  lr_lr  init     threshold
datm_tiny_ipc1   1    40  2  0   15  20  2000  -      10000   10    1e-4   correct  1
datm_tiny_ipc10  10   40  2  10  -   50  -     500    100     10    1e-4   correct  1
datm_tiny_ipc50  50   20  2  40  -   70  -     1000   100     10    1e-4   correct  1

experiment      IPC  K   M  T-  T0  T+  end   batch  lr_img  lr_y  lr_lr  init     threshold  ratio
pad_tiny_ipc1   1    40  2  0   15  20  2000  -      10000   10    1e-4   correct  1          0.5
pad_tiny_ipc10  10   40  2  10  -   50  -     500    100     10    1e-4   correct  1          0.5
pad_tiny_ipc50  50   20  2  40  -   70  -     1000   100     10    1e-4   correct  1          0.5

experiment        IPC  K   M  T+  batch  zca          lr_img  lr_lr  lr_teacher  ema     iterations
att_tiny_ipc1     1    30  2  10  -      standardize  1e4     1e-4   1e-2        0.999   10000
att_tiny_ipc10    10   20  2  40  -      standardize  1e4     1e-5   1e-4        0.999   80000
att_SUBSET_ipc1   1    20  2  10  -      standardize  1e4     5e-8   0.01        0.9999  10000
att_SUBSET_ipc10  10   20  2  10  -      standardize  1e4     1e-4   0.01        0.999   100000
"""
SUBSETS = ("imagenette", "imagewoof", "imagemeow", "imagefruit", "imageyellow", "imagesquawk")
_OF_METHOD = {"mtt": SUBSETS, "ftd": SUBSETS, "att": SUBSETS[:4]}

DATA: dict[str, dict[str, Any]] = {
    "cifar10": {"data.source": "cifar10", "network.depth": 3},
    "cifar100": {"data.source": "cifar100", "network.depth": 3},
    "tiny": {"data.source": "tiny_imagenet", "data.image_size": 64, "network.depth": 4},
    "imagenet": {"data.source": "imagenet", "data.image_size": 64, "data.resize": "squash", "network.depth": 4},
}
DATA |= {
    subset: {"data.source": "imagenet", "data.name": subset, "data.image_size": 128, "data.resize": "squash"}
    | {"network.depth": 5}
    for subset in SUBSETS
}

_AST_EXPERT = {"lr": 0.003, "momentum": 0.9, "weight_decay": 1e-3, "lr_decay": 0.6, "epochs": 50, "batch_size": 256}
_MTT_EXPERT = {"lr": 0.01, "momentum": 0, "weight_decay": 0, "lr_decay": 1, "epochs": 50, "batch_size": 256}
_MTT_EXPERT |= {"clipping": False, "gradient_penalty": 0, "optimizer": "sgd", "samples": "all"}
_GSAM = {"optimizer": "gsam", "sam_rho": 0.01, "sam_adaptive": True}
_SGD = {"outer": "sgd", "schedule": "constant", "alpha": "raw", "outer_momentum": 0.5}
_MTT = _SGD | {"momentum": 0, "balance": False, "perturbation": 0, "intermediate": "none", "windows_per_step": 1}
_MTT |= {"labels": "hard", "init": "real", "matching": "trajectory", "engine": "adjoint", "max_steps": 5000}
_DATM = _MTT | {"labels": "soft", "label_momentum": 0.9, "init": "correct", "lr_teacher": 0.01, "max_steps": 10000}
_EVALUATION = {"epochs": 1000, "batch_size": 256, "momentum": 0.9, "weight_decay": 5e-4, "lr_decay": 0.1}
_EVALUATION |= {"momentum_after_decay": 0.9, "networks": 5}
_AST_EVALUATION = {"epochs": 1000, "lr_decay": 0.5, "weight_decay": 1e-3, "momentum_after_decay": 0.8}

COMMON: dict[str, dict[str, dict[str, Any]]] = {
    "ast": {
        "expert": _AST_EXPERT | {"clipping": True, "gradient_penalty": 2.0},
        "distill": _SGD | {"momentum": 0.9, "labels": "hard"},
        "evaluation": _AST_EVALUATION,
    },
    "mtt": {"expert": _MTT_EXPERT, "distill": _MTT, "evaluation": _EVALUATION},
    "ftd": {"expert": _MTT_EXPERT | _GSAM, "distill": _MTT, "evaluation": _EVALUATION},
    "tesla": {
        "expert": _MTT_EXPERT,
        "distill": _MTT | {"engine": "truncated", "max_steps": 10000},
        "evaluation": _EVALUATION | {"networks": 3},
    },
    "datm": {
        "data": {"preprocessing": "zca"},
        "expert": _MTT_EXPERT | _GSAM | {"sam_alpha": 0.3, "epochs": 100},
        "distill": _DATM,
        "evaluation": _EVALUATION | {"batch_size": 128, "networks": 1},
    },
    "att": {
        "expert": _MTT_EXPERT | {"batch_size": 512},
        "distill": _MTT | {"matching": "nearest"},
        "evaluation": _EVALUATION,
    },
    "mct": {
        "expert": _MTT_EXPERT,
        "distill": _MTT | {"engine": "truncated", "waypoints": 3},
        "evaluation": _EVALUATION,
    },
    "dm": {
        "distill": {"outer": "sgd", "init": "real", "outer_momentum": 0.5, "real_batch": 256, "lr_teacher": 0.01},
        "evaluation": _EVALUATION,
    },
}
COMMON["pad"] = COMMON["datm"] | {"expert": COMMON["datm"]["expert"] | {"samples": "curriculum"}}


def _value(word: str) -> Any:
    return _WORDS[word] if word in _WORDS else float(word)


def _read(tables: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for table in tables.strip().split("\n\n"):
        header, *rows = (line.split() for line in table.splitlines())
        for name, *words in rows:
            options = {_COLUMNS[column]: _value(word) for column, word in zip(header[1:], words, strict=True)}
            subsets = _OF_METHOD[name.partition("_")[0]] if "SUBSET" in name else ("",)
            found |= {name.replace("SUBSET", subset): options for subset in subsets}
    return found


ROWS = _read(_TABLES)
"""The options of each experiment, by their full names."""


def published(experiment: str) -> dict[str, Any]:
    """All published options of an experiment, by their full names; those of its row replace the common ones."""
    method, data, _ = experiment.split("_", 2)
    common = {f"{section}.{name}": value for section, each in COMMON[method].items() for name, value in each.items()}
    experts = {} if method == "dm" else {"num_experts": 100}
    return {"network.width": 128, **DATA[data], **experts, **common, **ROWS[experiment]}
