//! The ledger against an oracle that keeps the whole history and decides naively.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Event {
    publisher: u8,
    seq: u64,
    republication: u32,
    redelivered: bool,
}

/// Publishers' sequences with duplicates, gaps, inversions and republications, interleaved.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0u8..3, 1u64..40, prop_oneof![8 => Just(0u32), 2 => 1u32..4], any::<bool>());
    prop::collection::vec(event, 0..200).prop_map(|events| {
        let event = |(publisher, seq, republication, redelivered)| Event {
            publisher,
            seq,
            republication,
            redelivered,
        };
        events.into_iter().map(event).collect()
    })
}

fn oracle(history: &[&Event]) -> Counts {
    let mut counts = Counts::default();
    for (index, event) in history.iter().enumerate() {
        let before = &history[..index];
        let same_seq = before.iter().any(|old| old.seq == event.seq);
        let same_copy = before
            .iter()
            .any(|old| (old.seq, old.republication) == (event.seq, event.republication));
        counts.applied += 1;
        counts.redelivered += u64::from(event.redelivered);
        counts.republished += u64::from(event.republication > 0);
        if same_copy {
            counts.duplicated += 1;
            counts.redelivered_duplicates += u64::from(event.redelivered);
        } else if same_seq {
            counts.republished_duplicates += 1;
        } else if before.iter().any(|old| old.seq > event.seq) {
            counts.inversions += 1;
        }
    }
    let highest = history.iter().map(|event| event.seq).max().unwrap_or(0);
    let missing = (1..highest).filter(|seq| !history.iter().any(|event| event.seq == *seq));
    counts.gaps = missing.count() as u64;
    counts
}

fn message(event: &Event) -> Message {
    Message {
        publisher: format!("p-{}", event.publisher),
        seq: event.seq,
        published_at: 0,
        republication: event.republication,
    }
}

fn at(unix_ms: u64) -> Moment {
    Moment { unix_ms, mono_ms: unix_ms / 2 }
}

proptest! {
    #[test]
    fn any_history_is_classified_as_the_oracle_does(events in events()) {
        let mut ledger = Ledger::new(Moment::default());
        for event in &events {
            ledger.apply(&message(event), event.redelivered, Moment::default());
        }
        let report = ledger.report();
        let mut totals = Counts::default();
        for publisher in 0..3u8 {
            let history: Vec<_> = events.iter().filter(|e| e.publisher == publisher).collect();
            let expected = oracle(&history);
            totals.add(expected);
            let got = report.publishers.get(&format!("p-{publisher}"));
            prop_assert_eq!(got.map_or(Counts::default(), |report| report.counts), expected);
        }
        prop_assert_eq!(report.totals, totals);
        prop_assert_eq!(report.applied_total, events.len() as u64);
    }

    #[test]
    fn the_hash_tells_histories_apart(mut seqs in prop::collection::vec(1u64..1000, 2..50)) {
        let hash = |seqs: &[u64]| {
            let mut hash = RunningHash::default();
            for seq in seqs {
                hash.add(*seq);
            }
            hash.0
        };
        let original = hash(&seqs);
        prop_assert_ne!(hash(&seqs[1..]), original);
        let last = seqs.len() - 1;
        prop_assume!(seqs[0] != seqs[last]);
        seqs.swap(0, last);
        prop_assert_ne!(hash(&seqs), original);
    }
}

fn published(published_at: u64) -> Message {
    Message { publisher: "p".into(), seq: 1, published_at, republication: 0 }
}

#[test]
fn a_gap_without_a_waiting_message_is_no_pause() {
    let mut ledger = Ledger::new(at(1_000));
    ledger.apply(&published(1_000), false, at(1_004));
    ledger.apply(&published(9_000), false, at(9_006));
    let window = ledger.report().window;
    assert_eq!((window.longest_gap_ms, window.longest_gap_began_unix_ms), (8_002, 1_004));
    assert_eq!(
        (window.longest_gap_monotonic_ms, window.longest_gap_began_monotonic_ms),
        (4_001, 502)
    );
    assert_eq!((window.pause_ms, window.pause_began_unix_ms), (6, 9_000));
}

#[test]
fn messages_that_waited_together_share_one_pause() {
    let mut ledger = Ledger::new(at(1_000));
    ledger.apply(&published(1_000), false, at(1_001));
    ledger.apply(&published(1_100), false, at(1_500));
    ledger.apply(&published(1_101), false, at(1_510));
    let window = ledger.report().window;
    assert_eq!((window.pause_ms, window.pause_began_unix_ms), (400, 1_100));
    assert_eq!(window.max_age_ms, 409);
}

#[test]
fn a_new_window_measures_afresh_and_keeps_the_counts() {
    let mut ledger = Ledger::new(at(0));
    ledger.apply(&published(0), false, at(5_000));
    ledger.reset_window(at(6_000));
    ledger.apply(&published(5_500), false, at(6_010));
    let report = ledger.report();
    assert_eq!(report.applied_total, 2);
    assert_eq!(report.totals.duplicated, 1);
    assert_eq!((report.window.applied, report.window.max_age_ms), (1, 510));
    assert_eq!((report.window.longest_gap_ms, report.window.pause_ms), (10, 10));
    assert_eq!(report.window.began_unix_ms, 6_000);
}

#[test]
fn a_wall_clock_that_steps_back_counts_as_no_time() {
    let mut ledger = Ledger::new(at(9_000));
    ledger.apply(&published(9_500), false, at(8_000));
    let window = ledger.report().window;
    assert_eq!((window.max_age_ms, window.longest_gap_ms, window.pause_ms), (0, 0, 0));
}
