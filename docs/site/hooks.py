"""What MkDocs calls while it builds the site: it gets the pages that are made from code."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from reference import cli_page, http_page, settings_page

_PAGES = {"reference/http.md": http_page, "reference/cli.md": cli_page, "reference/settings.md": settings_page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that are files."""
    for path, page in _PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
