"""The own project from Python: as a script, or cell by cell in a notebook or an editor (`# %%`).

Run it in the project's folder: that is where Python finds `own_project`.
"""

# %% Compose and train, by the words of the command line
from functools import partial

import pytorch_lightning as pl
import torch
from own_project.data import FewDigits
from own_project.networks import ConvCritic, ConvGenerator
from own_project.objectives import SmoothedGAN
from own_project.priors import StudentT
from torch.utils.data import DataLoader, TensorDataset

import flexgen

config = flexgen.compose(["experiment=mine", "steps=200", "prior.df=3"], config_dir="conf")
run = flexgen.train(config)
print(run.folder)

# %% Open it again, later or elsewhere: it builds classes of your own, so it must be trusted
run = flexgen.open_run(run.folder, trust=True)
for name, (steps, values) in run.metrics.items():
    print(f"{name:20} {values[-1]:8.3f} at step {steps[-1]}")

# %% Samples, data of codes, codes of data
samples = run.sample(16, seed=0)
pictures = run.decode(torch.zeros(1, 8))
held_out, labels = run.data.split("validation", 32)
found = run.reverse(held_out)
print("samples", tuple(samples.shape), "codes", tuple(found.z.shape), found.how)
print(f"reconstruction error {float(found.loss.mean()):.2f} an image")

# %% Everything that the run measures once more, on its last checkpoint
values = run.evaluate()
print(f"copies/ratio {values['copies/ratio']:.2f}")

# %% The modules alone, in a training of Lightning's own: any loader will do
data = FewDigits(
    [0, 1, 4], name="few_digits", shape=[1, 8, 8], range=[-1, 1], batch_size=50, seed=0,
    num_validation=100, num_test=50,
)  # fmt: skip
loader = DataLoader(TensorDataset(*data.split("train")), batch_size=50, shuffle=True)

adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))
model = flexgen.models.Adversarial(
    ConvGenerator(8, (1, 8, 8)),
    ConvCritic((1, 8, 8)),
    StudentT(8),
    SmoothedGAN(),
    generator_optimizer=adam,
    critic_optimizer=adam,
)
trainer = pl.Trainer(
    max_steps=100,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, loader)
print("generator steps", model.counters.generator_steps, "samples", tuple(model.sample(4).shape))
