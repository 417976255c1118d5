"""`ggrun bench`: how many tokens a second a model computes. Drives executors directly: no tokenizer, no sampling, no scheduler."""
