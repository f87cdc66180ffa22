"""Where session() was before it moved to graphs/sessions.py: scripts outside the project import it from here."""
from graphs.sessions import session

__all__ = ["session"]
