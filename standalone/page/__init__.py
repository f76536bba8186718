"""The standalone host's page in gradio, with the WebUI's layout and element ids."""
