"""A split model over a real link: the back half as a server, the front half as its client.

    python scripts/serve.py --machine llama3_tiny --codec klt_llama3_tiny --port 8700
    python scripts/ask.py --server http://127.0.0.1:8700 --machine llama3_tiny --prompt "..."

A language model's session is a WebSocket. The client opens it with the header of a stream (version 2)
and sends a frame per step; the server answers each with the next token. What is computed at once, a
picture's mask or class, is one bitstream (version 1) in an HTTP POST.

    limits, refusals, gate    what is let in, and what is said to the others
    backend, talk             the back half, and one text of a language model
    compute                   what is computed together
    session, app, server      the wire
    replicas, office          the same on a cluster
    client, link, guard, single
                              the other side: the wire, the rate for it, one picture or caption
    page                      a page for browsers
    serve, ask                the two commands
"""
