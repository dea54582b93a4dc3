"""Looking into a trained network: what it expects and why, which tokens lie near each other."""
