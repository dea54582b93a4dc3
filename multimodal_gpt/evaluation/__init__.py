"""Numbers about a trained run that can be compared across tokenizers: one module per question."""
