"""The top floor: joins the rooms into Lightning modules, a curriculum and tasks."""
