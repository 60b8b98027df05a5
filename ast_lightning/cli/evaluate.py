"""Evaluate a distilled dataset: train networks on nothing else."""

from ast_lightning.commands.entry import command

if __name__ == "__main__":
    command("evaluate")
