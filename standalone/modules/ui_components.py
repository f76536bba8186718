"""The WebUI's own components, over the gradio that is installed."""

from standalone.host.components import DropdownEditable, DropdownMulti, FormColorPicker, FormColumn, FormComponent
from standalone.host.components import FormGroup, FormHTML, FormRow, InputAccordion, ResizeHandleRow, ToolButton
from . import lead

lead(__name__, "host.components")
