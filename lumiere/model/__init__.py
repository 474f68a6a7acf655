"""The network: layers that mix frames, image networks as they are read, and the Space-Time U-Net made of both."""
