"""The Gradio page and its API. No other package imports Gradio."""
