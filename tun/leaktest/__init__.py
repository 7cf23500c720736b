"""The leak test of system-wide mode: whether packets of the kinds that leak in practice leave past the tunnel.

canaries    what is sent, each with a random text of its own
held        flows that are kept while a person pauses, reloads, restarts
system      what it needs of the operating system, a capture above all
probe       opens the capture, sends the canaries, reads what leaves
packets     what of a captured packet matters
watch       recognises canaries in what leaves, and concludes
report      the result, and its lines for a terminal
"""
