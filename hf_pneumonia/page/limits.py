"""What the page takes, for how long it keeps it, and how much at a time: each number, and its reason."""

# A DICOM image of 10 megapixels and 16 bits, uncompressed, is 20 MB; JPEG and PNG images are below 10 MB. Zip
# files are held to the same: an upload lies on the disk before anybody can look into it.
MAX_FILE_BYTES = 20 * 2**20

# Of one request. 500 images of 224 pixels in a zip file take 10 s, 300 full-size ones 19 to 36 s.
MAX_IMAGES = 500
MAX_UNPACKED_BYTES = 200 * 2**20
# Entries of a zip file, images or not: a directory of 20 MB names 400,000, which take 300 MB once listed.
MAX_ENTRIES = 5_000
# For a request; images that are left then get no answer. 500 images of 40 megapixels would take 13 minutes,
# keep all others from the decoders, and outlive their own uploads.
MANY_IMAGES_SECONDS = 300

# The largest digital chest X-rays have 20 megapixels.
MAX_PIXELS = 40_000_000

# An image of 40 megapixels and 16 bits is read in 2 s. What takes much longer is made to.
DECODING_SECONDS = 20
DECODING_BYTES = 1_500_000_000  # address space of a decoding process; that image needs 0.7 GB
DECODING_PROCESSES = 2

# Uploads and pictures are gone within ten minutes: each half minute those older than nine are deleted. Well
# above MANY_IMAGES_SECONDS, as images wait for their turn too.
KEPT_SECONDS = 540
SWEEP_SECONDS = 30

# Images that wait while one is answered, whoever asks.
QUEUE = 32
# Answers at a time, of each event. On two cores the second finds room while the first is decoded and sent:
# 264 images in 25 s, and 214 with one (one run each, beside other work); 15 MB more.
AT_A_TIME = 2

UPLOAD_SECONDS = 300  # for one, to its last byte
UPLOAD_BYTES = 220_000_000  # of one request, which may bring many images
MAX_STORED_BYTES = 2_000_000_000  # of all files on the disk
BUSY_UPLOADS = "The page is busy: too many images are being sent. Please try again in a minute."

# What an event sends besides its files: a few numbers, or where its MAX_IMAGES uploads lie, 230 kB by names of
# usual length, 490 kB by names of 200 letters. It is looked through while nobody else is served: 16 MB of
# empty lists held a bare Gradio for 8 s.
MAX_EVENT_BYTES = 500_000
