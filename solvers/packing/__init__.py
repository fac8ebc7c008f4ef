"""Rules of pod packing, one file each; `rules` lists them and plays them."""
