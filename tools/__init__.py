"""What people run beside training: benchmarks, converters, reviews of recipes."""
