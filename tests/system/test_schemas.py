"""JSON schemas and their grammars, with ajv (npm) as the judge: tests/schemas/schemas.mjs, on what build/tools/schema answers.

NK_SCHEMA_SEED and NK_SCHEMA_ROUNDS in the environment draw others, and more."""
import os
import subprocess
import unittest

import nk
from test_clients import install

SOURCE = os.path.join(os.path.dirname(nk.HERE), "schemas")


class Schemas(unittest.TestCase):
    def test_what_grammars_let_through_is_valid(self):
        folder = install(SOURCE, os.path.join(nk.BUILD, "tests", "schemas"))
        done = subprocess.run(["node", "schemas.mjs", os.environ.get("NK_SCHEMA_SEED", "1"), os.environ.get("NK_SCHEMA_ROUNDS", "40" if nk.SANITIZED else "250")], cwd=folder,
                              env=dict(os.environ, NK_SCHEMA_TOOL=os.path.join(nk.BUILD, "tools", "schema")), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout[-20000:] + done.stderr[-4000:])


if __name__ == "__main__":
    unittest.main()
