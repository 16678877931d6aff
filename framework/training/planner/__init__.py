"""What a recipe costs: parameters, memory, FLOPs, traffic and hours."""
