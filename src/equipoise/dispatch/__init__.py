"""Which replica takes a token: by the token number, by shares that are fixed, or by shares of the batch itself."""
