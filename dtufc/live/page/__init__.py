"""The page of a server: an input, a slider of the rate, and what comes out, in a browser.

    python scripts/serve.py --machine dinov2_tiny --codec klt_dinov2_tiny --page true

The page has both halves in the server. An input goes through the front half once; then each position of
the slider codes its feature, decodes it and runs the back half.

    work                      what a kind of machine takes, answers and shows
    seeing, painting, speaking    the kinds: DINOv2 and ResNet, Stable Diffusion 3, language models
    pictures, errors          pictures in and out; where in a feature the error is
    desk                      the inputs that are kept, and their coding
    routes, static/           the wire, and the page itself
"""
