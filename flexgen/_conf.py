"""Where the YAML lives: inside an installed package, else beside it in a checkout."""

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configuration groups.

    Raises:
        FileNotFoundError: if it is in neither place, as in a broken installation.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no configuration beside {package}; install FlexGen again with `pip install flexgen`"
    )
