"""The recipe of the embedded default model: data, phrasings, tokenizer, training, export. Used by scripts/train_embedded.py only."""
