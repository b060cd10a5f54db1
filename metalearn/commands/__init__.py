"""A file a command, each with `main(arguments, console)`; Hydra is known here and nowhere else.

`building/` holds what they share: from overrides to a configuration, and from there to objects.
`parts/` holds what one of them keeps in a file of its own.
"""
