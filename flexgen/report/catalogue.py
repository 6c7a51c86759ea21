"""What each logged metric is called, which direction is better, and which curves share a panel.

An unknown metric is still shown, under its own name and without a direction, so a new metric needs
no line here. The order of `METRICS` is the order of tables and pages.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A logged quantity: its column of `metrics.csv`, a short label, which is `better`, "lower",
    "higher" or "" where neither is, and a clause that says what is measured, in which unit."""

    name: str
    label: str
    better: str = ""
    note: str = ""

    @property
    def arrow(self) -> str:
        """An arrow in the better direction, or nothing."""
        return {"lower": "↓", "higher": "↑"}.get(self.better, "")

    @property
    def meaning(self) -> str:
        """What is measured, which direction is better and where its floor is, in a sentence."""
        told = [self.note or self.name]
        if self.better:
            told.append(f"{self.better} is better")
        if self.name in FLOORS:
            told.append(f"its floor is {FLOORS[self.name]}")
        return f"{'; '.join(told)} ({self.name})"

    @property
    def undefined(self) -> str:
        """Why its value may be NaN."""
        of_a_ratio = "it was measured as NaN, as a ratio of two zeros is"
        known = (why for name, why in _UNDEFINED.items() if fnmatch.fnmatchcase(self.name, name))
        return next(known, of_a_ratio)

    @property
    def heading(self) -> str:
        """The label with the arrow."""
        return f"{self.label} {self.arrow}".strip()


_OWN_FEATURES = "of the features of FlexGen's own classifier: not to be set beside others' figures"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("nll/ais", "−log p(x), AIS", "lower", "held out, nats; a level is off by its gap"),
        Metric("nll/ais_standard_error", "−log p(x), standard error", "", "over data, nats"),
        Metric("nll/ais_gap", "−log p(x), gap", "", "of the bounds, on own samples, nats"),
        Metric("pag/posterior", "PAG", "lower", "of posterior draws, bias-corrected, nats"),
        Metric("own/pag_posterior", "PAG, own samples", "", "0 if the draws can be believed"),
        Metric("pag/posterior_energy", "Codes to prior, energy", "lower", "of posterior draws"),
        Metric("pag/posterior_nscd", "NSCD", "lower", "codes' mean direction to the prior's"),
        Metric("own/nscd_posterior", "NSCD, own samples", "", "0 if the draws can be believed"),
        Metric("pag/unit", "PAG by descent", "lower", "of early-stopped codes, nats"),
        Metric("emd/samples", "EMD", "lower", "samples to held-out data, Euclidean cost"),
        Metric("emd/unmasked", "EMD, base", "lower", "samples by codes of the prior's base"),
        Metric("emd/floor", "EMD floor", "", "two data samples of the same size"),
        Metric("fid", "FID, own classifier", "lower", f"Fréchet distance {_OWN_FEATURES}"),
        Metric(
            "fid/inception", "FID, Inception", "lower", "Fréchet distance of Inception features"
        ),
        Metric("kid", "KID, own classifier", "lower", f"kernel distance {_OWN_FEATURES}"),
        Metric("kid/inception", "KID, Inception", "lower", "kernel distance of Inception features"),
        Metric("inception", "Classifier score", "higher", "Inception's, by FlexGen's classifier"),
        Metric("classes/total_variation", "Class imbalance", "lower", "to the held-out shares"),
        Metric(
            "classes/accuracy",
            "Class accuracy",
            "higher",
            "samples that the classifier takes for the class they were made of",
        ),
        Metric("classes/accuracy_lowest", "Class accuracy, worst", "higher", "of the worst class"),
        Metric("precision", "Precision", "higher", "samples among data, k-th neighbours"),
        Metric("recall", "Recall", "higher", "data among samples, k-th neighbours"),
        Metric("density", "Density", "higher", "of data's neighbourhoods at samples; 1 for data"),
        Metric("coverage", "Coverage", "higher", "data's neighbourhoods that hold a sample"),
        Metric("modes/captured", "Modes captured", "higher", "modes with samples near them"),
        Metric("modes/high_quality", "High-quality share", "higher", "samples within 3 std"),
        Metric("modes/total_variation", "Mode imbalance", "lower", "total variation of the shares"),
        Metric("nll/samples", "NLL", "lower", "exact or by importance sampling, nats per datum"),
        Metric("nll/standard_error", "NLL, standard error", "", "over data, nats"),
        Metric("nll/train", "NLL, training data", "lower", "nats per datum"),
        Metric("nll/bits_per_dimension", "Bits per dimension", "lower"),
        Metric("elbo/bound", "ELBO", "higher", "nats per datum"),
        Metric("elbo/reconstruction", "Reconstruction", "lower", "−E log p(x|z), nats per datum"),
        Metric("elbo/kl", "KL of posteriors", "", "to the prior, nats per datum"),
        Metric("elbo/kl_level1", "KL, lowest level", "", "given the level above, nats per datum"),
        Metric("elbo/kl_level2", "KL, level 2", "", "given any level above, nats per datum"),
        Metric("elbo/kl_level3", "KL, level 3", "", "given any level above, nats per datum"),
        Metric("elbo/mutual_information", "Mutual information", "", "of datum and code, nats"),
        Metric("elbo/marginal_kl", "KL of the aggregate", "lower", "of q(z) to the prior, nats"),
        Metric("elbo/total_correlation", "Total correlation", "", "of q(z), nats"),
        Metric("elbo/dimensionwise_kl", "KL of dimensions", "lower", "of q(zⱼ) to p(zⱼ), nats"),
        Metric("codebook/perplexity", "Perplexity", "", "of the vectors that codes name"),
        Metric("codebook/used", "Vectors used", "higher", "a share of the codebook"),
        Metric("codebook/batch_perplexity", "Perplexity, training", "", "of a batch's codes"),
        Metric("codebook/batch_used", "Vectors used, training", "", "by a batch, a share"),
        Metric("posterior/active_units", "Active units", "higher", "dimensions that data move"),
        Metric("posterior/active_units_level1", "Active units, lowest level", "higher"),
        Metric("posterior/active_units_level2", "Active units, level 2", "higher"),
        Metric("posterior/active_units_level3", "Active units, level 3", "higher"),
        Metric("posterior/energy", "Codes to prior, energy", "lower", "aggregate posterior"),
        Metric("posterior/pag", "PAG of posterior", "lower", "aggregate to N(0, I), nats"),
        Metric("own/posterior_pag", "PAG of posterior, own samples", "", "0 if q(z|x) is exact"),
        Metric("posterior/pag_level1", "PAG of posterior, lowest level", "lower"),
        Metric("posterior/pag_level2", "PAG of posterior, level 2", "lower"),
        Metric("posterior/error", "Encoder's error", "lower", "½‖x − G(z)‖² at codes of q(z|x)"),
        Metric("posterior/error_level2", "Encoder's error, level 2", "lower", "given it and above"),
        Metric("own/posterior_error", "Encoder's error, own samples", "lower"),
        Metric("posterior/correlation", "Correlation", "higher", "of x and z, each a number"),
        Metric("pag/literal", "PAG, literal", "", "the paper's text read literally, nats"),
        Metric("pag/kl", "Gaussian KL", "lower", "KL of the codes' moments to the prior, nats"),
        Metric("pag/kl_mean", "KL, mean term", "lower", "the part of the KL due to the mean, nats"),
        Metric("pag/fit", "Codes to prior, KL", "lower", "codes in Z, prior's moments, nats"),
        Metric("pag/samples", "Codes to prior, energy", "lower", "codes in Z to the prior's draws"),
        Metric("reversal/error", "Reversal error", "lower", "reconstruction error of the codes"),
        Metric("reversal/converged", "Reversal converged", "higher", "share of converged codes"),
        Metric("pag/nscd", "NSCD by descent", "lower", "codes' mean direction to the prior's"),
        Metric("own/nscd", "NSCD, own reversed", "", "reversed samples of the generator"),
        Metric("own/pag_reversed", "PAG, own reversed", "", "reversed samples of the generator"),
        Metric("own/pag_true", "PAG, true codes", "", "the true codes of those samples"),
        Metric("ais/sigma", "σ of the noise", "", "without which no −log p(x) means anything"),
        Metric("ais/acceptance", "HMC acceptance", "", "of the annealed chains, mean"),
        Metric("own/error", "Own-sample error", "lower", "reversal error on own samples"),
        Metric("codes/cluster_ratio", "Cluster ratio", "", "between over within classes, codes"),
        Metric("codes/cluster_ratio_tsne", "Cluster ratio, t-SNE", "", "in the t-SNE plane"),
        Metric("prior/critic_std", "Critic's spread", "", "std of the scores a prior draws by"),
        Metric("prior/effective_sample_size", "Effective sample size", "", "of weights, a share"),
        Metric("prior/acceptance", "Acceptance", "", "that rejection by the weights would have"),
        Metric("samples/critic_std", "Critic's spread, samples", "", "when samples are measured"),
        Metric("samples/effective_sample_size", "Effective sample size, samples", "", "measured"),
        Metric("samples/acceptance", "Acceptance, samples", "", "when samples are measured"),
        Metric("disagreement/distance", "Disagreement", "", "farthest draws over the mean draw"),
        Metric("loss/critic", "Critic loss"),
        Metric("loss/generator", "Generator loss"),
        Metric("loss/nll", "NLL, training", "lower", "of the batches, nats per datum"),
        Metric("loss/encoder", "Encoder loss"),
        Metric("loss/cycle", "Round trip, training", "lower", "½‖x − G(z)‖² at codes of q(z|x)"),
        Metric("loss/penalty", "Gradient penalty"),
        Metric("loss/reconstruction", "Reconstruction, training", "lower", "nats per datum"),
        Metric("loss/kl", "KL, training", "", "nats per datum"),
        Metric("loss/commitment", "Features to their vectors", "", "squared distance, training"),
        Metric("refit/energy_before", "Old prior to codes", "lower", "energy distance, held out"),
        Metric("refit/energy_after", "New prior to codes", "lower", "energy distance, held out"),
        Metric("refit/energy_floor", "Training codes to codes", "", "energy distance, held out"),
        Metric("refit/gain", "Gain of the refit", "higher", "log p(x), held out, by codes, nats"),
        Metric("refit/nll_before", "Old prior, codes", "lower", "−log p(z), held out, nats"),
        Metric("refit/nll_after", "New prior, codes", "lower", "−log p(z), held out, nats"),
        Metric("refit/kept", "Refit kept", "", "1 when the learned prior was kept"),
        Metric("prior/stage", "Prior stage", "", "0 is the first prior"),
    )
}

FLOORS = {
    "emd/samples": "emd/floor, which two samples of the data have",
    "fid": "that of the training data, above 0 for few images",
    "kid": "0, around which it scatters",
    "pag/unit": "0, for codes of the prior itself",
    "pag/posterior": "0, for codes of the prior itself",
    "posterior/pag": "0, for codes of the prior itself",
    "pag/samples": "0, around which it scatters",
    "posterior/energy": "0, around which it scatters",
}
"""Where a perfect model would be."""

_NO_DENSITY = "the density of the prior in use is not normalised"
_UNDEFINED = {
    "elbo/kl_level*": "the prior in use has no such level",
    "elbo/total_correlation": "dimensions of the prior in use are not independent normals",
    "elbo/dimensionwise_kl": "dimensions of the prior in use are not independent normals",
    "elbo/*": _NO_DENSITY,
    "nll/standard_error": f"it takes two data, or {_NO_DENSITY}",
    "nll/*": _NO_DENSITY,
    "posterior/correlation": "all data or all codes are equal",
    "posterior/pag*": "the prior in use is no map of N(0, I), or there are too few codes",
    "own/posterior_pag*": "the prior in use is no map of N(0, I), or there are too few codes",
}

CHIEF = (
    "nll/ais", "nll/samples", "pag/posterior", "pag/unit", "emd/samples", "fid/inception", "fid",
    "kid", "inception", "modes/captured", "modes/high_quality",
)  # fmt: skip
"""Metrics that get a tile, the first three that a run has."""

HEADLINE = (
    "nll/ais", "pag/posterior", "pag/unit", "pag/samples", "nll/samples", "elbo/bound",
    "elbo/marginal_kl", "emd/samples", "fid/inception", "fid", "kid/inception", "kid", "inception",
    "modes/captured", "modes/high_quality", "modes/total_variation", "reversal/error",
)  # fmt: skip
"""The metrics of a table, unless others are named."""

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Prior agreement (PAG)", ("pag/posterior", "own/pag_posterior")),
    ("−log p(x) of held-out data, AIS", ("nll/ais",)),
    ("PAG of early-stopped codes", ("pag/unit",)),
    ("Earth mover's distance", ("emd/samples", "emd/unmasked", "emd/floor")),
    ("Negative log-likelihood", ("nll/samples", "nll/train")),
    ("PAG of the posterior", ("posterior/pag", "own/posterior_pag")),
    ("ELBO and its parts", ("elbo/bound", "elbo/reconstruction", "elbo/kl")),
    ("Vectors that codes name", ("codebook/perplexity", "codebook/batch_perplexity")),
    ("Parts of the KL", ("elbo/mutual_information", "elbo/marginal_kl", "elbo/total_correlation",
                         "elbo/dimensionwise_kl")),
    ("Losses", ("loss/critic", "loss/generator", "loss/encoder")),
    ("Gradient penalty", ("loss/penalty",)),
    ("FID by FlexGen's own classifier", ("fid",)),
    ("FID by Inception features", ("fid/inception",)),
    ("KID by FlexGen's own classifier", ("kid",)),
    ("KID by Inception features", ("kid/inception",)),
    ("Classifier score", ("inception",)),
    ("Modes captured", ("modes/captured",)),
    ("Mode quality and imbalance", ("modes/high_quality", "modes/total_variation")),
    ("Reversal error", ("reversal/error", "own/error")),
    ("Encoder's error", ("posterior/error", "own/posterior_error", "posterior/error_level2")),
    ("PAG of reversed own samples", ("own/pag_reversed", "own/pag_true")),
    ("PAG, literal", ("pag/literal",)),
    ("Codes to the prior's moments", ("pag/fit",)),
    ("Codes to the prior's draws", ("pag/samples",)),
    ("Gaussian KL of the codes", ("pag/kl", "pag/kl_mean")),
    ("Reversal converged", ("reversal/converged",)),
    ("Cluster ratio of the codes", ("codes/cluster_ratio", "codes/cluster_ratio_tsne")),
)  # fmt: skip
"""Curves that belong in one panel of the page, in order."""

IN_OTHER_PANELS = {"prior/stage", "nll/standard_error", "nll/ais_standard_error"} | {
    f"{name}_{end}"
    for name in (
        "pag/unit", "pag/posterior", "own/pag_posterior", "posterior/pag", "own/posterior_pag"
    )
    for end in ("low", "high")
}  # fmt: skip
"""Columns that are drawn as a band or as a line between stages, never as a curve of their own."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart under every common colour blindness."""


def describe(name: str) -> Metric:
    """The `Metric` of that name; one with only its name where it is not known."""
    return METRICS.get(name, Metric(name, name))


def ordered(names: Iterable[str]) -> list[str]:
    """The names without repetition, known metrics first in the catalogue's order."""
    found = set(names)
    return [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]


def choose(patterns: Sequence[str] | None, present: Iterable[str]) -> list[str]:
    """The present metrics that names or globs such as "modes/*" give, in their order, each once.

    None gives the headline metrics that are present, or every metric where none of those is.

    Raises:
        ValueError: when a pattern names nothing that was logged.
    """
    names = ordered(present)
    if patterns is None:
        return [name for name in HEADLINE if name in names] or names
    chosen: list[str] = []
    for pattern in patterns:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            near = get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"; the nearest is `{near[0]}`" if near else ""
            raise ValueError(
                f"`metrics` must name logged metrics, got '{pattern}'{hint}; "
                f"logged: {', '.join(names) or 'none'}"
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def number(value: float, digits: int = 4) -> str:
    """A number for people: significant digits, no exponent between 1e-4 and 1e6, and
    "not defined" for NaN."""
    if not np.isfinite(value):
        return "not defined" if np.isnan(value) else str(float(value))
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    text = f"{value:.{decimals}f}"
    if float(value).is_integer() and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text


def why_undefined(values: Mapping[str, float]) -> list[str]:
    """Of metrics whose value is NaN why it is, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name in ordered(name for name, value in values.items() if np.isnan(value)):
        names.setdefault(describe(name).undefined, []).append(describe(name).label)
    return [f"not defined: {', '.join(labels)}: {why}" for why, labels in names.items()]


def typeset(text: str) -> str:
    """The text of a number with a true minus sign in front where it is negative."""
    return f"−{text[1:]}" if text.startswith("-") else text


def signed(value: float) -> str:
    """A difference with its sign, a true minus for negative ones."""
    return f"{'+' if value > 0 else ''}{typeset(number(value, 3))}"


def mean_and_std(mean: float, std: float) -> tuple[str, str]:
    """Mean and standard deviation to the same decimals: two significant digits of the deviation,
    which is empty where it is not known (one run)."""
    if np.isnan(std) or np.isnan(mean):
        return number(mean), ""
    if std < 1e-12 * abs(mean):  # rounding of the mean of equal values
        std = 0.0
    if not (np.isfinite(mean) and np.isfinite(std)) or std == 0:
        return number(mean), number(std)
    largest = max(abs(mean), std)
    if not 1e-4 <= largest < 1e6:
        return number(mean, 3), number(std, 2)
    decimals = max(0, 1 - int(np.floor(np.log10(std))))
    # A deviation far below the mean would otherwise print ten digits of it.
    decimals = min(decimals, max(0, 5 - int(np.floor(np.log10(largest)))))
    return f"{mean:.{decimals}f}", f"{std:.{decimals}f}"


def plus_minus(mean: float, std: float) -> str:
    """Mean ± standard deviation as one text, the mean alone where the deviation is not known."""
    return " ± ".join(filter(None, mean_and_std(mean, std)))
