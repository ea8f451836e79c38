"""The HTTP server: OpenAI's routes, token-in/token-out, and the control verbs in the dialects that RL frameworks speak.

`app` puts it together; `wire` is what clients send, `replies` what they get, `completions` and `tokens` the routes that generate,
`serving` how a client's connection and a request's life are tied together.
"""
