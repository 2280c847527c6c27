"""Faults planted into the product on purpose, and the tests that must catch them: one that cannot fail proves nothing.

planting   how a fault gets into the product while it is imported
faults     every fault, and which tests must catch it
catching   runs those tests on the product with the fault in it
__main__   `make planted`: all of them, and the table
"""
