"""Plans in the form in which benchmarks take them."""
