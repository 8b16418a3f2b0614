"""The page: a film in a browser -> an answer that can be understood. The only room that knows Gradio."""
