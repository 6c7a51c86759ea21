"""The configuration that a run saved, with its paths as they are today."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flexgen.files import keep_within
from flexgen.runs.trust import check_form, check_provenance, confine, own_folder
from flexgen.untrusted import check_folder, parse_plain, read_start

PATH_KEYS = {"paths", "root", "cache_dir", "data_dir", "run_dir", "save_dir", "default_root_dir"}
"""What these hold, at any depth, are paths, even where they do not begin at the root."""


def load_config(run_dir: Path, trust: bool = False, typed: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration that a run saved, with its paths as they are today.

    A run directory may have been moved since. Data are looked for where `paths.data_dir` is typed
    to be, else in `FLEXGEN_DATA`; else a trusted run says where, and others find them in `data`.

    A run with `trust` may build and write whatever it says; see :mod:`flexgen.runs.trust`. The
    overrides on top of it are `typed`.

    Raises:
        FileNotFoundError: if `run_dir` is not a run directory.
        ValueError: if its configuration is damaged, or may not do what it says.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        below = sorted(p.parent for p in run_dir.glob("**/config.yaml"))
        hint = f"did you mean {below[0]}?" if below else "a run directory holds config.yaml"
        raise FileNotFoundError(f"{run_dir} is not a run directory; {hint}")
    if trust:
        keep_within(run_dir, links=True)
    else:
        check_folder(run_dir)
    try:
        saved = parse_plain(read_start(path))
        check_form(saved)
    except ValueError as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is damaged ({reason}); restore it or train again") from error
    check_provenance(run_dir)
    words = [word.partition("=") for word in typed]
    data_dir = next((value for key, _, value in words if key == "paths.data_dir"), None)
    if not data_dir:
        data_dir = os.environ.get("FLEXGEN_DATA") if trust else own_folder("data_dir")
    moved = [(saved["paths"]["run_dir"], str(run_dir))]
    if data_dir:
        moved.append((saved["paths"]["data_dir"], data_dir))
    saved = relocate(saved, moved)
    if not trust:
        confine(saved, run_dir, typed)
    return saved


def relocate(value: Any, moved: list[tuple[str, str]], is_path: bool = False) -> Any:
    """A plain configuration, or a value in one, whose paths in folders lead to where these lie now.

    A text is a path where its key says so (`is_path`), or if it begins with the absolute name that
    the configuration has for a folder, which stands in `moved` with its new name.
    """
    if isinstance(value, dict):
        return {k: relocate(v, moved, is_path or k in PATH_KEYS) for k, v in value.items()}
    if isinstance(value, list):
        return [relocate(v, moved, is_path) for v in value]
    if isinstance(value, str):
        for old, new in moved:
            named = is_path or os.path.isabs(old)
            if named and (value == old or value.startswith(f"{old}/")):
                return new + value[len(old) :]
    return value
