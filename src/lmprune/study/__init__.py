"""A grid of runs from one YAML file: `grid` reads it, `runner` carries it out, `records` keeps what came of it."""
