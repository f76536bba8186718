"""The standalone host: what a WebUI does around a model. Jobs, scripts, settings, images and callbacks."""

from .instance import Host, import_modules, running, start

__all__ = ["Host", "import_modules", "running", "start"]
