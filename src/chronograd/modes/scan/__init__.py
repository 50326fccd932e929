"""Adding up in parallel over time. ``mode.py`` is the mode, and loads without torch; ``associative.py`` the scan (E5),
``edges.py`` gates, resets and frozen rows as its coefficients; ``newton.py`` nonlinear recurrences over the whole
sequence at once, ``solver.py`` as a mode asks for it; ``jacobians.py`` the built-in cells at all steps; ``layer.py``
and ``cell.py`` a layer and a user's cell run that way; ``engine.py`` what the recurrent loops of a model are handed to;
``report.py`` how each was computed.
"""
