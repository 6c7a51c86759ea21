"""Every YAML file, found by glob, composes, instantiates and does its work once."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from flexgen.contracts import Batch
from flexgen.distributions import drawn
from flexgen.networks import MLPEncoder, TopDownResNet
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import as_prior
from flexgen.runs import resolvers
from tests.conftest import CONF
from tests.training import labelled, noise, train, trainable, without_gradient


def names(group: str) -> list[str]:
    return sorted(
        str(path.relative_to(CONF / group).with_suffix(""))
        for path in (CONF / group).rglob("*.yaml")
    )


def config(*overrides: str) -> dict[str, Any]:
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, "paths.run_dir=nowhere"])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def for_prior(name: str) -> tuple[str, ...]:
    """The overrides that a prior of conf/prior takes; skipped if its package is missing."""
    if name.startswith("zuko"):
        pytest.importorskip("zuko")
    return f"prior={name}", f"conditional={str(name == 'per_class').lower()}"


def size_for(prior: str, usual: int) -> tuple[str, ...]:
    """The size of a code: as it is usual in a test, or a small map for a prior over maps."""
    if prior == "top_down":
        return ("latent_dim=16",)  # one map of 4 x 4
    if prior == "pixelcnn_levels":
        return "latent_dim=6", "code_shape=[1,2,2]"
    if prior.startswith("pixelcnn"):
        return "latent_dim=4", "code_shape=[1,2,2]"
    return (f"latent_dim={usual}",)


INFERENCE = ["ali", "bigan", "hali"]
AUTOENCODERS = ["ae", "rae", "wae"]
OTHERS = ["adversarial", "density", "vae", "vq_vae", *INFERENCE, *AUTOENCODERS]
GAMES = [name for name in names("model") if name not in OTHERS]
PIXELS = [
    name
    for name in names("network")
    if "pixels" in OmegaConf.load(CONF / "network" / f"{name}.yaml")
]


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("network", ["mlp", "dcgan_small"])
def test_every_model_trains_every_parameter(name: str, network: str) -> None:
    torch.manual_seed(0)
    model = instantiate(config(f"model={name}", f"network={network}")["model"])
    before = [p.detach().clone() for p in model.parameters()]
    of_generator, of_critic = trainable(model.generator), trainable(model.critic)
    train(model, labelled(lambda: torch.randn(8, 1, 8, 8).tanh()))
    # The critic's last bias moves real and fake alike: a game of differences cannot see it.
    blind = [of_critic[-1][0]] if name.startswith(("wgan", "hinge")) else []
    assert without_gradient(of_critic) in ([], blind)
    assert without_gradient(of_generator) == []
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(changed)
    assert model.counters.critic_steps == model.critic_steps
    assert model.counters.generator_steps == 1


@pytest.mark.parametrize("name", INFERENCE)
@pytest.mark.parametrize("objective", names("objective"))
def test_every_game_with_an_encoder_trains_every_part_and_level(name: str, objective: str) -> None:
    torch.manual_seed(0)
    words = (f"model={name}", f"objective@model.objective={objective}", "model.cycle_weight=1")
    model = instantiate(config(*words, "latent_dim=5")["model"])
    of_critic, learns = trainable(model.critic), trainable(*model.learners()[0])
    assert {n.partition(".")[0] for n, _ in trainable(model.posterior)}
    train(model, labelled(lambda: torch.randn(8, 1, 8, 8).tanh()))
    assert without_gradient(of_critic) in ([], ["output.output.bias"])
    assert without_gradient(learns) == []
    assert model.encode(torch.zeros(3, 1, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize("posterior", names("posterior"))
def test_a_game_takes_every_posterior(posterior: str) -> None:
    if posterior == "bidirectional_conv_iaf":
        pytest.skip("of a decoder of its own kind, network=resnet_vae")
    torch.manual_seed(0)
    words = ("model=ali", "network=ali", "latent_dim=4", *for_posterior(posterior))
    if posterior.startswith("bidirectional"):
        with pytest.raises(Exception, match="ema_decay=null"):
            instantiate(config(*words)["model"])
        words = (*words, "model.ema_decay=null")
    small = ("network.generator.channels=[4]", "network.encoder.channels=[4]")
    model = instantiate(config(*words, *small)["model"])
    learns = trainable(model.posterior)
    train(model, labelled(lambda: torch.randn(8, 1, 8, 8).tanh()))
    assert without_gradient(learns) == []


# Games differ in their objective, which no prior sees, and in how many steps the critic takes.
@pytest.mark.parametrize("name", ["gan", "wgan_gp", "bigan"])
@pytest.mark.parametrize("prior", names("prior"))
def test_every_prior_trains_with_a_game(name: str, prior: str) -> None:
    torch.manual_seed(0)
    ring = ("data=ring8", *size_for(prior, 2), "network.generator.hidden_features=[8]")
    cfg = config(f"model={name}", *for_prior(prior), *ring)
    alone = as_prior(instantiate(cfg["prior"]))
    refused = None
    if "ladder" in alone.needs:
        refused = r"decoder that draws its levels.*use prior=hierarchical"
    elif "posterior" in alone.needs:
        refused = r"VAE's posteriors.*use prior=mixture"
    elif alone.num_values is not None:
        refused = "are real numbers, and a .* prior is over names.*use prior=normal"
    elif trainable(alone) and not alone().has_rsample:
        refused = "gradient of its draws, .* have none; start with prior=normal"
    if refused:
        with pytest.raises(Exception, match=refused):
            instantiate(cfg["model"])
        return
    model = instantiate(cfg["model"])
    learns = trainable(model.generator, model.prior)
    train(model, noise(20, 2))
    assert without_gradient(learns) == []


BINARY = ("model=vae", "data=digits_static", "latent_dim=3")
RESNET = (
    "network=resnet_vae", "prior=top_down", "latent_dim=32", "network.decoder.blocks=[1]",
    "network.decoder.code_channels=2", "network.decoder.channels=8",
)  # fmt: skip


def for_posterior(name: str) -> tuple[str, ...]:
    """The overrides that a posterior of conf/posterior takes: those of levels want some."""
    if name == "bidirectional_conv_iaf":
        return (*RESNET, f"posterior={name}", "posterior.flow.hidden_channels=[8]")
    if name.startswith(("bottom_up", "bidirectional", "markov")):
        return "prior=hierarchical", "latent_dim=4", f"posterior={name}"
    of_length_1 = name in ("power_spherical", "von_mises_fisher")
    return f"posterior={name}", *(("prior=hyperspherical",) if of_length_1 else ())


def vae(*overrides: str) -> Any:
    torch.manual_seed(0)
    return instantiate(config(*BINARY, *overrides)["model"])


def binary() -> Iterator[Batch]:
    return labelled(lambda: torch.rand(8, 1, 8, 8).round())


@pytest.mark.parametrize("likelihood", names("likelihood"))
@pytest.mark.parametrize("posterior", names("posterior"))
def test_every_posterior_trains_with_every_likelihood(posterior: str, likelihood: str) -> None:
    words = (*for_posterior(posterior), f"likelihood={likelihood}")
    if posterior == "deterministic":
        with pytest.raises(Exception, match=r"needs the density of.*use posterior=diagonal"):
            vae(*words)
        return
    model = vae(*words)
    learns = trainable(model.posterior, model.likelihood)
    levels = 2 if likelihood == "pixelcnn" else 256  # by its output=bernoulli
    train(model, labelled(lambda: torch.randint(levels, (8, 1, 8, 8)) / (levels - 1)))
    assert without_gradient(learns) == []
    assert model.counters.generator_steps == 1


@pytest.mark.parametrize("prior", names("prior"))
def test_a_vae_trains_every_prior_with_a_density_and_refuses_the_others(prior: str) -> None:
    words = (*for_prior(prior), *size_for(prior, 3))
    alone = as_prior(instantiate(config(*words)["prior"]))
    words += ("posterior=von_mises_fisher",) if alone.spherical else ()
    if alone.num_values is not None:
        with pytest.raises(Exception, match=r"codes of a VAE are real numbers.*use prior=normal"):
            vae(*words)
        return
    if not alone.has_log_prob or alone.support is not None:
        with pytest.raises(Exception, match=r"a VAE.*use prior=normal"):
            vae(*words)
        return
    if "ladder" in alone.needs:
        with pytest.raises(Exception, match=r"decoder that draws its levels.*network=resnet_vae"):
            vae(*words)
        words = (*RESNET, "posterior=bidirectional")
    model = vae(*words)
    learns = trainable(model)
    train(model, binary())
    assert without_gradient(learns) == []


def test_the_highest_level_may_have_a_prior_of_its_own() -> None:
    words = ("prior=hierarchical", "prior@prior.top=realnvp_small", "prior.top.latent_dim=2")
    model = vae(*words, "latent_dim=4", "posterior=bidirectional")
    learns = trainable(model)
    train(model, binary())
    assert without_gradient(learns) == []


@pytest.mark.parametrize("prior", names("prior"))
def test_a_vq_vae_takes_every_prior_over_names_and_refuses_the_others(prior: str) -> None:
    size = 20 if prior == "pixelcnn_levels" else 16
    words = (*for_prior(prior), f"latent_dim={size}", "code_shape=[1,4,4]", "conditional=false")
    if prior == "per_class":
        words = (*words, "conditional=true", "prior@prior.base=categorical")
    cfg = config("model=vq_vae", "data=digits_static", *words)
    torch.manual_seed(0)
    alone = as_prior(instantiate(cfg["prior"]))
    if alone.num_values is None:
        with pytest.raises(Exception, match=r"VQVAE|a critic|a VAE's posteriors|a decoder"):
            instantiate(cfg["model"])
        return
    model = instantiate(cfg["model"])
    learns = trainable(model)
    train(model, binary())
    assert without_gradient(learns) == []
    assert model.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    "words",
    [(f"model={name}",) for name in AUTOENCODERS]
    + [("model=wae", f"regulariser@model.regulariser={name}") for name in names("regulariser")],
    ids=lambda words: words[-1].rpartition("=")[2],
)
def test_every_autoencoder_trains_with_every_regulariser(words: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = instantiate(config(*words, "latent_dim=4", "conditional=true")["model"])
    learns = trainable(*model.learners())
    train(model, labelled(lambda: torch.randn(8, 1, 8, 8).tanh()))
    assert without_gradient(learns) == []
    assert model.encode(torch.zeros(3, 1, 8, 8), torch.arange(3)).shape == (3, 4)
    assert model.sample(3).shape == (3, 1, 8, 8)


# Labels do not meet the output: one is enough.
@pytest.mark.parametrize(
    ("network", "output", "conditional"),
    [
        (network, output, conditional)
        for network in PIXELS
        for output in names("output")
        for conditional in (False, True)
        if (network != "dequantised" or output == "categorical")  # it has no output
        and not (conditional and network in ("gated_pixelcnn_positioned", "dequantised"))
        and not (conditional and output != "categorical")
    ],
)
def test_every_pixel_network_trains_with_every_output(
    network: str, output: str, conditional: bool
) -> None:
    torch.manual_seed(0)
    data = "digits_static" if output == "bernoulli" or network == "made" else "digits"
    words = (f"network={network}", f"output={output}", f"conditional={conditional}", f"data={data}")
    cfg = config("model=density", "latent_dim=64", *words)
    pixels = cfg["network"]["pixels"]
    assert pixels.get("network", pixels)["shape"] == [1, 8, 8]
    model = instantiate(cfg["model"])
    learns = trainable(model.density)
    low, high = cfg["data"]["range"]
    levels = 2 if data == "digits_static" else 256
    x = torch.randint(levels, (8, 1, 8, 8)) / (levels - 1) * (high - low) + low
    train(model, labelled(lambda: x))
    assert without_gradient(learns) == []
    assert model.counters.generator_steps == 1
    assert model.sample(3).shape == (3, 1, 8, 8)
    assert model.log_likelihood(x, model.in_turn(8)).shape == (8,)


@pytest.mark.parametrize("name", [name for name in names("network") if name not in PIXELS])
def test_every_network_fits_the_data_it_is_sized_by(name: str) -> None:
    data = "ring8" if name == "mlp_goerttler_kloft" else "mnist"
    both = OmegaConf.load(CONF / "network" / f"{name}.yaml")
    model = "vae" if "encoder" in both else "gan"
    model = "ali" if "joint_critic" in both else model
    model = "vq_vae" if name == "spatial" else model
    # The levels of a ResNet VAE at its size: ten of 32 x 14 x 14, ten of 32 x 7 x 7.
    size = ("latent_dim=78400",) if name == "resnet_vae" else ()
    cfg = config(f"network={name}", f"data={data}", f"model={model}", *size)
    parts = {key: instantiate(part) for key, part in cfg["network"].items()}
    pairs = {"generator", "critic"}, {"encoder", "decoder"}, {"encoder", "joint_critic"}
    assert any(pair <= parts.keys() for pair in pairs)
    x = torch.randn(2, *cfg["data"]["shape"])
    for key in parts.keys() & {"generator", "decoder"}:
        own = parts[key].latent_dim if name == "spatial" else cfg["latent_dim"]
        assert parts[key](torch.randn(2, own)).shape == x.shape
    if "joint_critic" in parts:
        assert parts["joint_critic"](x, torch.randn(2, cfg["latent_dim"])).shape == (2,)
    if "critic" in parts:
        assert parts["critic"](x).shape == (2,)
    if "encoder" in parts:
        assert parts["encoder"](x).shape == (2, parts["encoder"].out_features)


@pytest.mark.parametrize("name", names("prior"))
def test_every_prior_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    cfg = config(*for_prior(name), *size_for(name, 3))
    prior = as_prior(instantiate(cfg["prior"]))
    d = cfg["latent_dim"]
    assert prior.latent_dim == d
    encoder = MLPEncoder(cfg["data"]["shape"], hidden_features=[8])
    score, posterior = functools.partial(torch.sum, dim=-1), DiagonalGaussian(encoder, d)

    decoder = (
        TopDownResNet(d, (1, 4, 4), code_channels=1, channels=2, blocks=[1], weight_norm=False)
        if "ladder" in prior.needs
        else None
    )
    offers = {
        "score": score, "critic": lambda x: x.flatten(1).sum(1), "posterior": posterior,
        "decoder": lambda z: z.sin(), "ladder": decoder,
    }  # fmt: skip
    data = {"data": lambda n: torch.rand(n, *cfg["data"]["shape"])}
    prior.bind(**offers, **data)
    p = prior()
    assert p.event_shape == (d,)
    assert p.sample((5,)).shape == drawn(p, (5,)).shape == (5, d)
    if prior.num_values is not None:
        assert set(p.sample((5,)).unique().tolist()) <= set(map(float, range(prior.num_values)))
    assert not p.sample((5,)).requires_grad
    torch.manual_seed(1)
    first = p.sample((4,))
    torch.manual_seed(1)
    torch.testing.assert_close(p.sample((4,)), first)
    if prior.has_log_prob:
        assert p.log_prob(first).shape == (4,)
        assert p.log_prob(first).isfinite().all()
    else:
        with pytest.raises(NotImplementedError, match="no density"):
            p.log_prob(first)
    restored = as_prior(instantiate(cfg["prior"]))
    restored.load_state_dict(prior.state_dict())
    restored.bind(**offers, **(data if "critic" in prior.needs else {}))
    torch.manual_seed(1)
    torch.testing.assert_close(restored().sample((4,)), first)
    if (support := prior.support) is not None:
        assert first.min() >= support[0]
        assert first.max() <= support[1]


@pytest.mark.parametrize("name", names("objective"))
def test_every_objective_has_both_sides(name: str) -> None:
    objective = instantiate(OmegaConf.load(CONF / "objective" / f"{name}.yaml"))
    real, fake = torch.randn(2, 6)
    for value in (objective.critic(real, fake), objective.generator(fake)):
        assert value.shape == ()
        assert value.isfinite()
    assert (objective.score(real).argsort() == real.argsort()).all()


@pytest.mark.parametrize("name", names("callbacks"))
def test_every_callback_builds(name: str) -> None:
    extra = ["callbacks.refit.at=[3]"] if name.startswith("refit") else []
    extra += ["code_shape=[1,2,2]"] if name.endswith("pixelcnn") else []
    extra += ["callbacks.early_stopping.metric=fid"] if name == "early_stopping" else []
    wanted = f"[reversal,{name}]" if name.startswith("refit") else f"[{name}]"
    for callback in config(f"callbacks={wanted}", *extra)["callbacks"].values():
        instantiate(callback)


@pytest.mark.parametrize("name", names("logger"))
def test_every_logger_composes(name: str) -> None:
    assert "csv" in config(f"logger={name}")["logger"]  # the report reads it


@pytest.mark.parametrize("name", names("trainer"))
def test_every_trainer_composes(name: str) -> None:
    assert config(f"trainer={name}")["trainer"]["inference_mode"] is False


def test_no_yaml_is_outside_the_groups_that_are_tested() -> None:
    tested = {
        "callbacks", "data", "experiment", "hydra", "likelihood", "logger", "model", "network",
        "objective", "optimizer", "output", "posterior", "prior", "regulariser", "schedule",
        "trainer",
    }  # fmt: skip
    assert {p.name for p in CONF.iterdir() if p.is_dir() and any(p.rglob("*.yaml"))} <= tested


@pytest.mark.parametrize("schedule", names("schedule"))
def test_every_schedule_moves_the_step_sizes_of_every_family(schedule: str) -> None:
    for model, learners in (("gan", 2), ("vae", 1), ("density", 1)):
        built = config(f"model={model}", f"schedule={schedule}")["model"]
        makers = [value for key, value in built.items() if key.endswith("scheduler")]
        assert len(makers) == learners
        for maker in filter(None, makers):
            optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
            made = instantiate(maker)(optimizer)
            optimizer.step()
            made.step()
            assert 0 < made.get_last_lr()[0] <= 1
        assert all(maker is None for maker in makers) == (schedule == "constant")


@pytest.mark.parametrize("optimizer", names("optimizer"))
def test_every_optimizer_builds(optimizer: str) -> None:
    make = instantiate(OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml"))
    weights: list[Tensor] = [nn.Parameter(torch.zeros(2))]
    assert isinstance(make(weights), torch.optim.Optimizer)


def test_priors_with_a_base_take_that_of_the_run() -> None:
    for words, kind in (
        (["prior=masked"], "Uniform"),
        (["prior=masked", "prior@base=normal"], "Normal"),
        (["prior=langevin", "prior@base=uniform", "prior.base.low=-2"], "Uniform"),
        (["prior=masked", "prior@base=normal", "prior@prior.base=gaussian"], "Gaussian"),
    ):
        prior = config(*words)["model"]["prior"]
        assert prior["base"]["_target_"] == f"flexgen.priors.{kind}"
    assert "base" not in config("prior=normal", "prior@base=uniform")["model"]["prior"]
    over = config("prior=masked", "prior@base=masked")["model"]["prior"]["base"]
    assert over["base"]["_target_"] == "flexgen.priors.Uniform"  # a base of its own, not itself
