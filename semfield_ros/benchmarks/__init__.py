"""Every figure of the documentation comes from here; each against a baseline in the same run."""
