"""The built-in driving world: procedural, seeded, exact."""
