"""Inputs of users, apart by modality."""

from unime_jax.data.user_inputs import split_modalities


def test_an_input_is_its_images_and_its_text_as_far_as_it_has_them():
    def parts(given):
        return [
            (part.user_input, part.prompt, part.suffix)
            for part in split_modalities(3, given, " image", " text")
        ]

    images = ({"image": (b"1",)}, "", " image")
    assert parts({"image": b"1"}) == parts({"image": b"1", "text": " \n"}) == [images]
    assert parts({"image": b"1", "text": "<|image_1|>"}) == [images]
    assert parts({"image": b"1", "text": " red "}) == [images, ("red", "", " text")]
    assert parts("red") == parts({"text": "red", "image": []}) == [("red", "", " text")]
    assert parts("") == parts({"text": " "}) == [("", "", " text")]
    assert [part.number for part in split_modalities(3, "red", "", "")] == [3]
