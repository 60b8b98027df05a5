"""Evaluate a distilled dataset: train networks on nothing else."""

from typing import Any

from ast_lightning.commands.entry import configured, run_command, start


@configured
def main(config: Any) -> dict[str, float]:
    return run_command("evaluate", config)


if __name__ == "__main__":
    start(main)
