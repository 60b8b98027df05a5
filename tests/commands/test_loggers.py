"""The configuration groups ``logger`` and ``callbacks``, through the real commands."""

from __future__ import annotations

import csv
import logging
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from ast_lightning.commands import app
from ast_lightning.commands.distill import distill
from ast_lightning.commands.evaluate import evaluation_folder
from ast_lightning.commands.train_experts import train_experts
from ast_lightning.errors import ConfigurationError
from ast_lightning.runs import loggers
from ast_lightning.trajectories import TrajectoryStore

from .conftest import SMALL, Command, run_of

pytestmark = pytest.mark.slow

OWN = """
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

class MyLogger(CSVLogger):
    def __init__(self, save_dir, colour="red"):
        super().__init__(save_dir, name="", version=f"own_{colour}")

class MyCallback(Callback):
    made = []

    def __init__(self, sizes):
        self.sizes, self.steps = sizes, 0
        MyCallback.made.append(self)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]

def not_a_logger(save_dir):
    return object()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module outside of the package, on the path."""
    (tmp_path / "my_package.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return __import__("my_package")


def distilled(output: Path, *words: str) -> Path:
    return run_of(*SMALL, f"output_dir={output}", *words).distill_folder()


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_several_loggers(output: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("logger=[tensorboard,csv]", "distill.lr_img=0.101")
    metrics = command("distill", output, *words)
    folder = distilled(output, *words)
    assert list((folder / "tensorboard").glob("events.out.tfevents*"))
    (last,) = [row["result/test_accuracy"] for row in table(folder / "csv" / "metrics.csv") if row["result/student_lr"]]
    assert float(last) == pytest.approx(metrics["test_accuracy"])
    assert f"tensorboard --logdir {folder}" in capsys.readouterr().out
    assert "lr_img: 0.101" in (folder / "csv" / "hparams.yaml").read_text()


@pytest.mark.parametrize("choice", ["none", "[]", "csv"])
def test_tensorboard_is_named_only_where_it_is_used(
    choice: str, output: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"logger={choice}", "distill.lr_img=0.102", "fresh=true")
    command("distill", output, *words)
    folder = distilled(output, *words)
    assert not (folder / "tensorboard").exists()
    assert (folder / "csv").exists() == (choice == "csv")
    command("evaluate", output, *words)
    command("train_experts", output, words[0])
    assert "TensorBoard" not in capsys.readouterr().out


def test_a_logger_of_the_users_own(output: Path, command: Command, package: Any) -> None:
    words = (
        "logger=none",
        "+logger.mine._target_=my_package.MyLogger",
        "+logger.mine.colour=blue",
        "distill.lr_img=0.103",
    )
    command("distill", output, *words)
    folder = distilled(output, *words)
    assert [row["step"] for row in table(folder / "own_blue" / "metrics.csv") if row["result/test_accuracy"]] == ["4"]
    assert not (folder / "tensorboard").exists()


def test_each_expert_and_each_evaluation_has_loggers_of_its_own(tmp_path: Path, command: Command) -> None:
    command("train_experts", tmp_path, "logger=csv")
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}").experts_folder())
    for index in (0, 1):
        rows = table(store.expert_folder(index) / "csv" / "metrics.csv")
        assert sum(bool(row["trajectory/movement"]) for row in rows) == 4
        assert sum(bool(row["result/movement"]) for row in rows) == 1
    command("distill", tmp_path, "logger=none")
    metrics = command("evaluate", tmp_path, "logger=csv", "baselines=[]")
    folder = evaluation_folder(run_of(*SMALL, f"output_dir={tmp_path}", "baselines=[]"))
    (row,) = table(folder / "csv" / "metrics.csv")
    assert float(row["result/distilled_accuracy"]) == pytest.approx(metrics["distilled_accuracy"])


@pytest.mark.skipif(not loggers.find_spec("wandb"), reason="pip install 'ast-lightning[wandb]'")
def test_weights_and_biases_offline(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ("logger=wandb", "trainer.log_every_n_steps=1")
    command("train_experts", tmp_path, *words)
    store = TrajectoryStore.open(run_of(*SMALL, f"output_dir={tmp_path}").experts_folder())
    for index in (0, 1):
        assert len(list(store.expert_folder(index).glob("wandb/offline-run-*/*.wandb"))) == 1
    command("distill", tmp_path, *words)
    (run,) = distilled(tmp_path, *words).glob("wandb/offline-run-*")
    (written,) = run.glob("*.wandb")
    content = written.read_bytes()
    for logged in (b"distill", b"train/loss", b"test/accuracy", b"result/student_lr"):
        assert logged in content
    assert len(list(run.glob("files/media/images/synthetic/pictures_*.png"))) == 2  # one an evaluation


@pytest.mark.skipif(
    not all(map(loggers.find_spec, ("mlflow", "sqlalchemy", "alembic"))), reason="pip install 'ast-lightning[mlflow]'"
)
def test_mlflow_in_a_local_store(output: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ("logger=mlflow", "trainer.log_every_n_steps=1", "distill.lr_img=0.105")
    metrics = command("distill", output, *words)
    folder = distilled(output, *words)
    with sqlite3.connect(folder / "mlflow.db") as store:
        logged = dict(store.execute("SELECT key, value FROM latest_metrics").fetchall())
        parameters = dict(store.execute("SELECT key, value FROM params").fetchall())
        names = store.execute("SELECT name, status FROM runs").fetchall()
    assert logged["result/test_accuracy"] == pytest.approx(metrics["test_accuracy"])
    assert {"train/loss", "test/accuracy"} <= set(logged)
    assert parameters["distill/lr_img"] == "0.105"
    assert names == [(folder.name, "FINISHED")]


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "alembic")])
def test_a_missing_package_is_named_before_data_are_read(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda each: None if each == package else there(each))
    words = (f"logger={name}", "data=image_folder", "data.root=/nowhere", f"output_dir={tmp_path}")
    with pytest.raises(ConfigurationError, match=rf"logger={name}: {package} .*pip install 'ast-lightning\[{name}\]'"):
        run_of(*SMALL, *words)


@pytest.mark.parametrize("value", ["csv", "false", "tensorboard"])
def test_the_former_option_names_its_successor(value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer\.logger={value}: .*logger=tensorboard, csv"):
        run_of(*SMALL, f"trainer.logger={value}")


def test_what_is_no_logger_is_named(tmp_path: Path, output: Path, package: Any) -> None:
    words = ("+logger.mine._target_=my_package.not_a_logger", "distill.lr_img=0.106")
    with pytest.raises(ConfigurationError, match=r"logger\.mine=object: .*Logger"):
        distill(run_of(*SMALL, f"output_dir={output}", *words))


def test_callbacks_of_the_users_own(tmp_path: Path, command: Command, package: Any) -> None:
    words = ("+callbacks.mine._target_=my_package.MyCallback", "+callbacks.mine.sizes=[1,2]", "logger=none")
    command("train_experts", tmp_path, *words)
    assert [each.steps for each in package.MyCallback.made] == [16, 16]  # one for each expert: 4 epochs of 4 steps
    assert package.MyCallback.made[0].sizes == [1, 2]
    assert type(package.MyCallback.made[0].sizes) is list
    package.MyCallback.made.clear()
    command("distill", tmp_path, *words, "distill.max_steps=2")
    command("distill", tmp_path, *words)
    assert [each.steps for each in package.MyCallback.made] == [2, 4]  # it resumes with its state


def test_groups_from_a_folder_of_the_users_own(tmp_path: Path, package: Any) -> None:
    for group, content in (("logger", "MyLogger"), ("callbacks", "MyCallback\n  sizes: [3]")):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(f"mine:\n  _target_: my_package.{content}\n")
    words = (f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "logger=mine", "callbacks=mine", "num_experts=1")
    config = run_of(*SMALL, f"output_dir={tmp_path}", *words)
    train_experts(config)
    store = TrajectoryStore.open(config.experts_folder())
    assert table(store.expert_folder(0) / "own_red" / "metrics.csv")
    assert [each.steps for each in package.MyCallback.made] == [16]


def test_the_profilers_report_is_printed(
    output: Path, command: Command, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [caplog.handler])
    with app.quiet():
        command(
            "distill", output, "trainer.profiler=simple", "distill.max_steps=1", "distill.lr_img=0.80", "logger=none"
        )
    assert "FIT Profiler Report" in caplog.text
