"""The local server: one model or several, behind OpenAI's, llama.cpp's, Anthropic's and Ollama's requests, and a page."""
