"""The decoder of an autoencoder of diffusers', from the folder in which it was saved."""

import json
import shutil
import sys

import pytest
import torch

from flexgen.reversal import load_generator, reverse

pytestmark = pytest.mark.filterwarnings("ignore")  # the other package's own


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny autoencoder, and the folder of a pipeline that holds it."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=16,
        shift_factor=0.5, mid_block_add_attention=False, **{k: 2 * v for k, v in kinds.items()},
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text("{}")
    return vae.eval().requires_grad_(False), folder


def test_codes_are_a_diffusions_and_come_back(saved):
    vae, folder = saved
    loaded = load_generator(folder / "vae")
    assert (loaded.latent_shape, loaded.kind) == ((4, 8, 8), "decoder of diffusers")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latent = z / vae.config.scaling_factor + 0.5
    torch.testing.assert_close(loaded.generator(z), vae.decode(latent).sample)
    start = z + 0.1
    found = reverse(
        loaded.generator, loaded.generator(z), latent_shape=(4, 8, 8), init=start, steps=12
    )
    before = (loaded.generator(start) - loaded.generator(z)).square().flatten(1).sum(1) / 2
    assert (found.loss < 0.1 * before).all()
    assert load_generator(folder).sha256 == loaded.sha256  # the pipeline's


def test_a_tiny_autoencoder_says_no_size(saved, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    counts = {f"num_{side}coder_blocks": (1, 1) for side in ("en", "de")}
    widths = {f"{side}coder_block_out_channels": (4, 4) for side in ("en", "de")}
    diffusers.AutoencoderTiny(**counts, **widths).save_pretrained(tmp_path)
    loaded = load_generator(tmp_path)
    assert loaded.latent_shape is None
    assert loaded.generator(torch.zeros(1, 4, 5, 6)).shape == (1, 3, 10, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, r"holds a UNet2DModel, which has no decoder"),
        ({"_class_name": "Pickle"}, r"holds a Pickle, of which diffusers .* knows no model"),
        ({"_class_name": "AutoencoderKL", "latent_channels": 5}, r"cannot load the AutoencoderKL"),
        ({}, r"must name the class"),
    ],
)
def test_other_models_are_refused(saved, tmp_path, change, message):
    shutil.copytree(saved[1] / "vae", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change if change else {}))
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model.safetensors"):
        load_generator(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"install it: pip install diffusers"):
        load_generator(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pipeline of diffusers without vae/config.json"):
        load_generator(tmp_path)
    with pytest.raises(ValueError, match=r"go with a file"):
        load_generator(tmp_path, key="vae")
