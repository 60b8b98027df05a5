"""The folder conf/ of the repository is part of the installed package; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ast_lightning*"]), "ast_lightning.conf"],
    package_dir={"ast_lightning.conf": "conf"},
    package_data={"ast_lightning": ["py.typed"], "ast_lightning.conf": ["*.yaml", "*/*.yaml", "*/*/*.yaml"]},
)
