"""The ledger of `workload consumer` in Python: the same rules, the same JSON.

It observes what is applied and never deduplicates. See src/ledger.rs for what the fields mean;
tests/ledger_vectors.json holds both to the same answers.
"""

from bisect import bisect_right

MASK = (1 << 64) - 1
COUNTS = (
    "applied",
    "duplicated",
    "gaps",
    "inversions",
    "redelivered",
    "redelivered_duplicates",
    "republished",
    "republished_duplicates",
)


class Intervals:
    """A set of integers as closed intervals: without gaps it needs one."""

    def __init__(self):
        self.starts, self.ends, self.count = [], [], 0

    def insert(self, value):
        """Adds value; False if it was there."""
        at = bisect_right(self.starts, value)
        if at and value <= self.ends[at - 1]:
            return False
        self.count += 1
        after_previous = at > 0 and self.ends[at - 1] + 1 == value
        before_next = at < len(self.starts) and self.starts[at] == value + 1
        if after_previous and before_next:
            self.ends[at - 1] = self.ends.pop(at)
            self.starts.pop(at)
        elif after_previous:
            self.ends[at - 1] = value
        elif before_next:
            self.starts[at] = value
        else:
            self.starts.insert(at, value)
            self.ends.insert(at, value)
        return True


class Ages:
    """A histogram: exact below 128 ms, then at most 1.6 % too high."""

    def __init__(self):
        self.buckets, self.count, self.max = {}, 0, 0

    def record(self, age):
        shift = max(age.bit_length() - 7, 0)
        bucket = 64 * shift + (age >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.max = max(self.max, age)

    def percentile(self, percent):
        rank = -(-self.count * percent // 100)
        counted = 0
        for bucket in sorted(self.buckets):
            counted += self.buckets[bucket]
            if counted >= rank:
                shift = max(bucket // 64 - 1, 0)
                return min(((bucket - 64 * shift + 1) << shift) - 1, self.max)
        return 0


class Publisher:
    def __init__(self):
        self.counts = dict.fromkeys(COUNTS, 0)
        self.highest = 0
        self.hash = 0xCBF29CE484222325
        self.seen, self.originals, self.republications = Intervals(), Intervals(), set()

    def apply(self, seq, republication, redelivered):
        if republication == 0:
            new_on_wire = self.originals.insert(seq)
        else:
            new_on_wire = (seq, republication) not in self.republications
            self.republications.add((seq, republication))
        new = self.seen.insert(seq)
        self.counts["applied"] += 1
        self.counts["redelivered"] += bool(redelivered)
        self.counts["republished"] += republication > 0
        self.counts["duplicated"] += not new_on_wire
        self.counts["redelivered_duplicates"] += bool(redelivered) and not new_on_wire
        self.counts["republished_duplicates"] += new_on_wire and not new
        self.counts["inversions"] += new and seq < self.highest
        self.highest = max(self.highest, seq)
        for byte in seq.to_bytes(8, "little"):
            self.hash = ((self.hash ^ byte) * 0x100000001B3) & MASK

    def report(self):
        gaps = self.highest - self.seen.count
        return {**self.counts, "gaps": gaps, "highest": self.highest, "hash": f"{self.hash:016x}"}


class Window:
    """What is measured since the last reset, in milliseconds."""

    def __init__(self, unix_ms, mono_ms):
        self.began, self.applied, self.ages = unix_ms, 0, Ages()
        self.last_unix, self.last_mono = unix_ms, mono_ms
        self.gap = self.gap_began = self.gap_mono = self.gap_began_mono = 0
        self.pause = self.pause_began = 0

    def apply(self, published_at, unix_ms, mono_ms):
        gap = unix_ms - self.last_unix
        if gap > self.gap:
            self.gap, self.gap_began = gap, self.last_unix
            self.gap_mono = max(mono_ms - self.last_mono, 0)
            self.gap_began_mono = self.last_mono
        # This message waited since it was published, or since the application before it.
        began = max(published_at, self.last_unix)
        if unix_ms - began > self.pause:
            self.pause, self.pause_began = unix_ms - began, began
        self.ages.record(max(unix_ms - published_at, 0))
        self.applied += 1
        self.last_unix, self.last_mono = unix_ms, mono_ms

    def report(self):
        return {
            "began_unix_ms": self.began,
            "applied": self.applied,
            "max_age_ms": self.ages.max,
            "p99_age_ms": self.ages.percentile(99),
            "longest_gap_ms": self.gap,
            "longest_gap_began_unix_ms": self.gap_began,
            "longest_gap_monotonic_ms": self.gap_mono,
            "longest_gap_began_monotonic_ms": self.gap_began_mono,
            "pause_ms": self.pause,
            "pause_began_unix_ms": self.pause_began,
        }


class Ledger:
    def __init__(self, unix_ms, mono_ms):
        self.publishers, self.applied_total, self.last_age = {}, 0, 0
        self.window = Window(unix_ms, mono_ms)

    def apply(self, publisher, seq, published_at, republication, redelivered, unix_ms, mono_ms):
        self.applied_total += 1
        self.last_age = max(unix_ms - published_at, 0)
        self.window.apply(published_at, unix_ms, mono_ms)
        if publisher not in self.publishers:
            self.publishers[publisher] = Publisher()
        self.publishers[publisher].apply(seq, republication, redelivered)

    def applied(self):
        """What was applied, as closed intervals: for queues that several consume."""
        return {
            name: list(zip(p.seen.starts, p.seen.ends)) for name, p in self.publishers.items()
        }

    def reset_window(self, unix_ms, mono_ms):
        self.window = Window(unix_ms, mono_ms)

    def report(self):
        publishers = {name: self.publishers[name].report() for name in sorted(self.publishers)}
        totals = {count: sum(p[count] for p in publishers.values()) for count in COUNTS}
        return {
            "applied_total": self.applied_total,
            "last_age_ms": self.last_age,
            "totals": totals,
            "publishers": publishers,
            "window": self.window.report(),
        }
