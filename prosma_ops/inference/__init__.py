"""From a trained run to masks and to scores: `Segmenter`, `scores`, and what `predict` and `evaluate` do with them."""
