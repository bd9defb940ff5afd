"""Programs that run exported kernels; `flextensor export` copies them, nothing imports them."""
