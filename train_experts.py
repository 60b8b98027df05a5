"""Train expert networks on real images and record their trajectories."""

import hydra
from omegaconf import DictConfig, OmegaConf

from ast_lightning.runs import train_experts
from ast_lightning.runs.command import execute
from ast_lightning.runs.sweeps import sweep_name

OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> dict[str, float]:
    return execute(train_experts, config)


if __name__ == "__main__":
    main()
