"""Evaluate a distilled dataset: train networks on nothing else."""

import hydra
from omegaconf import DictConfig

from ast_lightning.commands.entry import run_command, start


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> dict[str, float]:
    return run_command("evaluate", config)


if __name__ == "__main__":
    start(main)
