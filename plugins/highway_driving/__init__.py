"""A plugin that drives highway-env (Gymnasium) through the closed loop's own interface."""
