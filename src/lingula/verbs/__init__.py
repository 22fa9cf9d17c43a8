"""One function a command; each composes the layers below."""
