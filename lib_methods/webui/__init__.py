"""What the pages of the methods share: differences between gradio versions, and checks in front of the REST API."""
