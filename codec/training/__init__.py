"""Training: TOML recipe, data in memory, one Lightning Fabric loop. Needs the ``train`` extra."""
