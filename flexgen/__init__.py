"""FlexGen: flexible prior distributions in deep generative models."""

__version__ = "0.1.0"
