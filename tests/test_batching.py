from m3_integrations.vectors import windows


def test_windows_hold_bounded_texts_and_tokens_and_keep_the_order() -> None:
    texts = ["aaa", "bb", "c" * 100, "d", "e", "f"]
    limits = {"max_texts": 2, "max_tokens": 8, "max_length": 6}
    assert list(windows(texts, **limits)) == [["aaa", "bb"], ["c" * 100, "d"], ["e", "f"]]
    assert list(windows([], **limits)) == []
    assert list(windows(["g" * 50, "h" * 50], max_texts=9, max_tokens=8, max_length=90)) == [["g" * 50], ["h" * 50]]


def test_windows_read_no_further_than_they_must() -> None:
    taken = []

    def stream() -> object:
        for i in range(100):
            taken.append(i)
            yield "x"

    next(windows(stream(), max_texts=3, max_tokens=99, max_length=9))  # type: ignore[arg-type]
    assert len(taken) == 4
