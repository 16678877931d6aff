"""How a run gets onto machines, stays there and is watched: needs the recipe alone."""
