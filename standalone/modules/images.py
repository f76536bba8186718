"""Images: grids, resizing, saving with infotext, reading it back."""

from . import lead
from standalone.host.grids import GridAnnotation, draw_grid_annotations, draw_prompt_matrix
from standalone.host.images import LANCZOS, flatten, image_data, image_grid, opts, read, read_info_from_image
from standalone.host.images import resize_image, save_image, save_image_with_geninfo

lead(__name__, "host.images", "host.grids")
