"""Images and annotations on their way into the network: read, checked, cropped, augmented."""
