"""What a token stream is. Needs numpy only; knows no modality and no torch."""
