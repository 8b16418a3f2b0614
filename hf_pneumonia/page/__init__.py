"""The page: an image in a browser -> an answer that can be understood. The only room that knows Gradio."""
