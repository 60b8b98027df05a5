"""Train expert networks on real images and record their trajectories."""

from ast_lightning.commands.entry import command

if __name__ == "__main__":
    command("train_experts")
