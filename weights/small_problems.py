"""Write problems of the small pair: `python -m weights.small_problems FILE`."""

from weights.small_language.problems import main

if __name__ == "__main__":
    main()
