"""`gemb serve`: one open model behind the HTTP interfaces that other programs speak.

`app.Service` answers requests: OpenAI's, text-embeddings-inference's, Ollama's, and searches of
indexes. `batching.Batcher` is the one thread that computes, `guard` stands before every route,
`server` has the socket and the signals. `tools` is what `gemb mcp` offers to agents, and
`mcp` their protocol. starlette, uvicorn and mcp are imported here alone.
May import: `search`, `index`, `embedding`, `plugins`, `backend`, `models`, `texts`, `io`, `errors`,
`arrays`.
"""
