"""How fast, how exact and how large a meta-gradient is, beside other packages' engines."""
