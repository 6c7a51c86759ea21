"""`flexgen sample run=…`: draw samples, as a picture and as tensors."""

from pathlib import Path

from omegaconf import DictConfig

from flexgen.cli.compose import plain, run_hydra


def main(argv: list[str]) -> None:
    run_hydra("sample", argv, _sample, on_run=True)


def _sample(cfg: DictConfig) -> None:
    n, seed, checkpoint = cfg.n, cfg.sample_seed, cfg.checkpoint
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}")
    config = plain(cfg)
    from safetensors.torch import save_file

    from flexgen.callbacks.drawing import draw_samples
    from flexgen.cli.build import load_trained
    from flexgen.training import isolated_rng
    from flexgen.training.checkpoint import write_atomically

    run_dir = Path(config["paths"]["run_dir"])
    parts = load_trained(config, run_dir, checkpoint)
    with isolated_rng(seed):
        x = parts.model.sample(n).cpu().contiguous()
    stem = f"step={parts.model.counters.generator_steps:08d}_seed={seed}_n={n}"
    folder = run_dir / "samples"
    tensors, picture = folder / f"{stem}.safetensors", folder / f"{stem}.png"
    write_atomically(tensors, lambda beside: save_file({"x": x}, beside))
    print(f"tensors: {tensors}")
    draw_samples(x, parts.data.range, picture)
    print(f"picture: {picture}")
