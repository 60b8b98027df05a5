"""Train expert networks on real images and record their trajectories."""

import hydra
from omegaconf import DictConfig

import ast_lightning.sweeps.table  # noqa: F401  it tells Hydra what ${sweep_name:} is


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> dict[str, float]:
    from ast_lightning.commands.app import execute  # late: --help and --cfg answer without loading torch
    from ast_lightning.commands.train_experts import train_experts

    return execute(train_experts, config)


if __name__ == "__main__":
    main()
