"""What the documentation claims in numbers, as commands that anyone can run."""
