"""What is made of trained runs: priors compared, paths in latent space, jobs of reversal."""
