"""Access to a user's network: private copy, calls, structure, readout, capture and write.

Depends on torch alone.  Libraries of neurons are never imported: the classes of a net's modules name them.
"""
