"""The reader of FITS: images, patches, cut-outs, masks, and maps of the sphere."""
