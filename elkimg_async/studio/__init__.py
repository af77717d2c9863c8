"""A page for generating and editing images in the browser: `elkimg studio`."""
