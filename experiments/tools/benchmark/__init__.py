"""Speed and memory of our code, alone or compared with others.

``__main__`` is the command, ``rows`` its output; ``rounds`` runs contenders in
turn, each in its own process; ``ours`` and ``peers`` are those processes,
``worker`` is what they share.
"""
