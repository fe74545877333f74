"""``tsd doctor``: whether this machine can do the job, said before hours are lost.

A check is a function of a :class:`tsd.doctor.checks.Context` that gives one :class:`tsd.doctor.checks.Check` or
several; :mod:`tsd.doctor.examine` lists them all and runs them.
"""
