"""A plugin that connects highway-env (Gymnasium) as an environment of closed-loop evals."""
