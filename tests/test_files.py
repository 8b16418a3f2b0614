from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_pneumonia.data.files import DICOM, IMAGE, IMAGE_ENDINGS, PERHAPS_DICOM, kind_by_name


def test_the_images_of_a_folder_are_those_that_imagefolder_lists():
    assert set(ImageFolder.EXTENSIONS) == IMAGE_ENDINGS


def test_a_file_is_known_by_its_ending_in_any_case_and_a_film_of_an_archive_by_having_none():
    kinds = {"a.JPeG": IMAGE, "a.dcm": DICOM, "IM0001": PERHAPS_DICOM, "1.2.840.10008": PERHAPS_DICOM}
    assert {name: kind_by_name(name) for name in kinds} == kinds
    assert kind_by_name("notes.txt") is None
