"""How fast, and how much memory: ours alone, or beside others.

``__main__`` is the command, ``rows`` what it prints; ``rounds`` runs
contenders, each in a process of its own, in turn; ``ours`` and ``peers`` are
those processes, ``worker`` what they have in common.
"""
