"""Forward in time: real-time recurrent learning and its approximations, one estimator a file."""
