"""Codecs of states: one codec per tensor in one folder, and bits shared between them.

A state is several named tensors of one machine, see :mod:`dtufc.states`. What is wanted is the least
damage to the model for the bits of the whole state. Damage is about a sum over the tensors t of their
squared errors, each times its sensitivity a_t (:mod:`dtufc.machines.sensitivity`)::

    minimise  sum_t (a_t * D_t + lambda * R_t)

A codec whose steps are Delta_t trades error for bits at a slope that grows with Delta_t^2. At the
optimum a_t * Delta_t^2 is the same for all tensors. A codec's quality is log2(u_t / Delta_t) with a unit
u_t of its own, so that each tensor's quality is the state's plus a shift of its own::

    q_t = q + log2(u_t) + log2(a_t) / 2 - (mean over the points)

The shift is found at the fit. One number, the quality q, is left, and a target of rate or error is met
by searching it: total bits over total points.
"""
