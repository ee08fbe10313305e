"""Which folders the wheel holds; all else is in `pyproject.toml`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["daasr_jax*"]), "daasr_jax.configs"],
    package_dir={"daasr_jax.configs": "configs"},
    package_data={
        "daasr_jax.configs": ["splits/*.json"],
        "daasr_jax.evaluation.tables": ["paper.json", "report.html"],
        "daasr_jax.enhancement": ["page.html"],
        "daasr_jax.released": ["*.safetensors", "*.md", "index.json"],
    },
)
