"""Every setting, in sections: its name in the environment, its type, its default and its meaning.

Values come from the environment, else from a `.env` file in the working directory, else from the defaults.
`python -m embedshare.settings docs/settings.md` writes the table of all of them.
"""

from embedshare.settings.client import ClientSettings
from embedshare.settings.indexes import IndexSettings
from embedshare.settings.model import ANY_NAME, ModelSettings
from embedshare.settings.operation import OperationSettings
from embedshare.settings.search import SearchSettings
from embedshare.settings.server import ServerSettings
from embedshare.settings.settings import Settings, parse
from embedshare.settings.settings import _from_pickle as _from_pickle  # where older pickles find it
from embedshare.settings.sources import tell_notes
from embedshare.settings.web import WebSettings

__all__ = [
    "ANY_NAME",
    "ClientSettings",
    "IndexSettings",
    "ModelSettings",
    "OperationSettings",
    "SearchSettings",
    "ServerSettings",
    "Settings",
    "WebSettings",
    "parse",
    "tell_notes",
]
