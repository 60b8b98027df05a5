"""The options: names, types, defaults and checks. Nothing here imports torch."""
