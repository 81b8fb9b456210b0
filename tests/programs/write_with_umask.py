"""Write a file and a folder with a file in it, all named so, under the umask 027."""

import os

from keras_cosattn.atomic_write import atomic_write

os.umask(0o027)
with atomic_write("file") as new:
    new.write_text("new")
with atomic_write("folder", folder=True) as new:
    (new / "inner").mkdir(0o700)
    (new / "inner" / "file").write_text("new")
