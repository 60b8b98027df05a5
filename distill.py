"""Distil expert trajectories into synthetic images."""

from typing import Any

from ast_lightning.commands.entry import configured, run_command, start


@configured
def main(config: Any) -> dict[str, float]:
    return run_command("distill", config)


if __name__ == "__main__":
    start(main)
