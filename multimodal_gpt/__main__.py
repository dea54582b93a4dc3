"""`python -m multimodal_gpt` is `mmgpt`."""

from multimodal_gpt.cli import main

if __name__ == "__main__":
    main()
