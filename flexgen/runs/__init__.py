"""A run as a library: composed, built, trained, opened again."""
