"""Which replica takes a token: by turns, by shares that are fixed, or by shares of the batch itself."""
