"""Plans: where each unit runs, which kernel computes it, and every byte it takes. Loads nothing and allocates nothing."""
