"""What stands beside an exported model: what it is, and how it is used, in words that run."""

from pathlib import Path
from typing import Any

_LOADED = {".pt": 'torch.jit.load("{name}")', ".pt2": 'torch.export.load("{name}").module()'}


def model_card(about: dict[str, Any], files: dict[str, list[Path]], *, picture: bool) -> str:
    """A README in Markdown, with an example that runs where there are programs.

    Args:
        about: what is known of the model.
        files: the files of each part.
        picture: whether `samples.png` lies beside.
    """
    size = " × ".join(str(edge) for edge in about["shape"])
    low_high = f"in {about['range']}" if about["range"] else "of any value"
    lines = [
        "---",
        "library_name: flexgen",
        "tags: [generative-model, flexgen]",
        "---",
        "",
        f"# {about['name']}",
        "",
        f"`{about['model'].rpartition('.')[2]}` trained on `{about['data']}` for {about['steps']} "
        f"generator steps (seed {about['seed']}) with FlexGen. Codes have {about['latent_dim']} "
        f"numbers, data are {size}, {low_high}. The prior is `{about['prior']}`.",
        "",
    ]
    if picture and len(about["shape"]) == 3 and about["range"]:
        lines += [f"![Samples (seed {about['sample_seed']})](samples.png)", ""]
    if about["num_classes"]:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(about["classes"]))
        lines += [
            f"It is conditional on {about['num_classes']} classes{': ' * bool(names)}{names}.",
            "",
        ]
    lines += ["| part | file |", "|---|---|"]
    lines += [f"| {part} | `{path.name}` |" for part, paths in files.items() for path in paths]
    return "\n".join([*lines, "", *_use(about, files)]) + "\n"


def _use(about: dict[str, Any], files: dict[str, list[Path]]) -> list[str]:
    programs = {
        part: path.name for part, paths in files.items() for path in paths if path.suffix in _LOADED
    }
    if "generator" not in programs:
        code, title = _weights_example(about, files), "Weights, with FlexGen's networks"
        return [f"## {title}", "", "```python", *code, "```"]
    code = _example(about, programs)
    lines = ["## Samples, with torch alone", "", "```python", *code, "```"]
    if about["num_classes"]:
        return lines
    bounds = f" range=[{about['range'][0]:g},{about['range'][1]:g}]" if about["range"] else ""
    program = programs["generator"]
    trust = " trust=true" if program.endswith(".pt2") else ""  # TorchScript is read first
    command = f"flexgen reverse generator={program}{trust} path=images{bounds}"
    return [*lines, "", "## Codes of images", "", "```console", f"$ {command}", "```"]


def _example(about: dict[str, Any], programs: dict[str, str]) -> list[str]:
    def load(part: str) -> str:
        name = programs[part]
        return f"{part} = {_LOADED[Path(name).suffix].format(name=name)}"

    lines = ["import torch", "", load("generator"), "torch.manual_seed(0)", "n = 16"]
    labels = ""
    if about["num_classes"]:
        lines.append(f"labels = torch.arange(n) % {about['num_classes']}")
        labels = ", labels"
    draw = about["draw"]
    if about["prior_is_map"] and draw and "prior" in programs:
        lines += [load("prior"), f"z = prior({draw})"]
    elif draw and not about["prior_is_map"]:
        lines.append(f"z = {draw}")
    else:  # the run itself draws from such a prior
        lines.append(f"z = torch.randn(n, {about['latent_dim']})  # not the model's own prior")
    lines += ["with torch.no_grad():", f"    x = generator(z{labels})"]
    if "encoder" in programs:
        lines += [load("encoder"), "with torch.no_grad():", f"    codes = encoder(x{labels})"]
    return lines


def _weights_example(about: dict[str, Any], files: dict[str, list[Path]]) -> list[str]:
    if "generator" not in files:
        names = [path.name for paths in files.values() for path in paths]
        return ["from safetensors.torch import load_file", "",
                *(f'weights = load_file("{name}")' for name in names)]  # fmt: skip
    return ["from hydra.utils import instantiate", "from safetensors.torch import load_file", "",
            f"generator = instantiate({about['network']!r})",
            f'generator.load_state_dict(load_file("{files["generator"][0].name}"))',
            "generator.eval()"]  # fmt: skip
