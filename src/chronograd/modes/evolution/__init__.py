"""Evolution strategies through time: gradients from losses alone, by many perturbed runs side by side."""
