"""The Python ledger gives the answers that the Rust one gave. Run: python3 -m unittest."""

import json
import unittest
from pathlib import Path

from ledger import Ledger

VECTORS = Path(__file__).parent / "tests" / "ledger_vectors.json"


class LedgerVectors(unittest.TestCase):
    def test_vectors(self):
        cases = json.loads(VECTORS.read_text())
        self.assertGreater(len(cases), 0)
        for number, case in enumerate(cases):
            ledger = Ledger(*case["start"])
            for event in case["events"]:
                if "reset" in event:
                    ledger.reset_window(*event["reset"])
                else:
                    message = event["message"]
                    ledger.apply(
                        message["publisher"],
                        message["seq"],
                        message["published_at"],
                        message.get("republication", 0),
                        event["redelivered"],
                        *event["at"],
                    )
            with self.subTest(case=number):
                self.assertEqual(ledger.report(), case["report"])


if __name__ == "__main__":
    unittest.main()
