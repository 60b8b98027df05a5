"""Train expert networks on real images and record their trajectories."""

from typing import Any

from ast_lightning.commands.entry import configured, run_command, start


@configured
def main(config: Any) -> dict[str, float]:
    return run_command("train_experts", config)


if __name__ == "__main__":
    start(main)
