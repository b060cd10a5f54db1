"""Scripts of this checkout. A package of its own: easyfsl installs one of this name too."""
