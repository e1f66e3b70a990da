"""How good a converted network is: accuracy after every step, spikes, operations, energy, errors by layer."""
