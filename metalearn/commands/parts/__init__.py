"""What a command keeps in a file of its own: `compare_plan` is of `compare`, and so on.

`study_*` are of `sweep`, `ledger_jobs` of `reproduce`, `hub` of `publish` and `pull`.
"""
