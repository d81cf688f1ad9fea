"""`python -m basic_lite` is `basic-lite`, for launchers that start modules."""

from basic_lite.cli import main

if __name__ == "__main__":
    main()
