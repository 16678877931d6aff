"""The domain: what a robotaxi senses, what surrounds it and what it does; frames, units and kinematics. No torch at
import.
"""
