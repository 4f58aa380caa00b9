"""The Monk Skin Tone scale."""

#: The ten orbs, light to dark, as published in sRGB (E. Monk, 2019).
MONK_TONES = (
    "f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96",
    "a07e56", "825c43", "604134", "3a312a", "292420",
)  # fmt: skip
