"""leaktest."""
