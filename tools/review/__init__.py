"""The review of a branch's recipes: what a pull request changes, as one Markdown comment."""
