"""The standalone host's page, in gradio: what a user of the WebUI knows, under the WebUI's element ids."""
