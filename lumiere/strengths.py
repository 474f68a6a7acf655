"""How much of something is taken when nobody says. Light: command lines show these before anything is loaded."""

EDIT_STRENGTH = 0.25
"""How much of the way to noise a video is taken, from which a clip is started (docs/styles.md has the sweep)."""

STYLE_STRENGTH = 0.85
"""How much of a style's weights is blended in (docs/styles.md has the sweep)."""
