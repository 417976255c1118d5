"""Programs: what a model computes, with no idea where."""
