"""The annotation by which a component says that an argument must exist before the run starts."""

from __future__ import annotations

from pathlib import Path

InputPath = str | Path
"""An existing file or folder, relative to the working directory; the check looks for it. A value with `://` is taken to
be remote."""
ConversationsPath = str | Path
"""An `InputPath`: a file of conversations, or their folder. Where it is missing, the check says how to
lay them there."""
RecordingsPath = str | Path
"""An `InputPath`: the folder of recordings. Where it is missing, the check says how to lay one's own there."""
