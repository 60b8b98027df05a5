"""Distil expert trajectories into synthetic images."""

from ast_lightning.commands.entry import command

if __name__ == "__main__":
    command("distill")
