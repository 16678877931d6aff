"""What people run alongside training: benchmarks, converters, reviews of recipes."""
