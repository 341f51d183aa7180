"""A few trials of recovery (trials.py); `make trials` has more, of other seeds."""
import unittest

import trials


class Trials(unittest.TestCase):
    def test_a_few(self):
        kinds = ("dense", "hybrid")
        self.assertGreater(trials.run(177, 3 * len(kinds), kinds, per_pool=3), 0)


if __name__ == "__main__":
    unittest.main()
