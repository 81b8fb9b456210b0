"""Programs that other modules run in processes of their own.

They import nothing of this package, since that would import Keras, which takes seconds.
"""
