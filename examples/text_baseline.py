"""The baseline of the examples and benchmarks that classify text."""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def tfidf_model():
    """A logistic regression on words and pairs of words, which reads bytes or strings."""
    return make_pipeline(
        TfidfVectorizer(decode_error="ignore", ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10),
    )
