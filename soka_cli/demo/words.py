"""The people and things of the demo's texts."""

import random

PEOPLE = ("Anna", "Ben", "Emma", "Leo", "Max", "Mia", "Sam", "Tom")
ITEMS = ("apples", "balls", "books", "cards", "coins", "pens", "shells", "stickers")


def draw_words(generator: random.Random) -> dict[str, str]:
    """Two different people and one thing: `who`, `friend`, `item`."""
    who, friend = generator.sample(PEOPLE, 2)
    return {"who": who, "friend": friend, "item": generator.choice(ITEMS)}
