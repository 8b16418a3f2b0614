"""Limits of the page on size, time and number, each with its reason."""

# An uncompressed DICOM image of 10 megapixels and 16 bits is 20 MB; JPEG and PNG images are below 10 MB. Zip
# files have the same limit: an upload is on the disk before it can be inspected.
MAX_FILE_BYTES = 20 * 2**20

# Per request. 500 images of 224 pixels in a zip file take 10 s, 300 full-size ones 19 to 36 s.
MAX_IMAGES = 500
MAX_UNPACKED_BYTES = 200 * 2**20
# Entries of a zip file, images or not: a directory of 20 MB names 400,000, which take 300 MB when listed.
MAX_ENTRIES = 5_000
# Per request; the remaining images get no answer. 500 images of 40 megapixels would take 13 minutes, block
# the decoders, and outlive their own uploads.
MANY_IMAGES_SECONDS = 300

# The largest digital chest X-rays have 20 megapixels.
MAX_PIXELS = 40_000_000

# An image of 40 megapixels and 16 bits is read in 2 s; a file that takes much longer is hostile.
DECODING_SECONDS = 20
DECODING_BYTES = 1_500_000_000  # address space of a decoding process; that image needs 0.7 GB
DECODING_PROCESSES = 2

# Uploads and rendered images are deleted within ten minutes: every 30 s, those older than nine minutes. Well
# above MANY_IMAGES_SECONDS, as requests also wait in the queue.
KEPT_SECONDS = 540
SWEEP_SECONDS = 30

# Requests that wait, of all clients together.
QUEUE = 32
# Concurrent requests of each event. The second uses the network while the first is decoded or sent: on two
# cores 264 images in 25 s, against 214 with one at a time (one run each); 15 MB more.
MAX_CONCURRENT = 2

UPLOAD_SECONDS = 300  # per upload request
UPLOAD_BYTES = 220_000_000  # per request, which may have many images
MAX_STORED_BYTES = 2_000_000_000  # all files on the disk
BUSY_UPLOADS = "Too many images are being uploaded. Try again in a minute."

# The JSON of an event: the paths of MAX_IMAGES uploads take 230 kB, 490 kB with names of 200 letters. Parsing
# blocks all other requests: 16 MB of empty lists blocked a bare Gradio for 8 s.
MAX_EVENT_BYTES = 500_000
