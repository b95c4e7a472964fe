//! Consumers and what they hold.

use super::*;

fn classic() -> QueueOptions {
    QueueOptions::durable(Kind::Classic)
}

fn quorum(limit: Option<i64>) -> QueueOptions {
    QueueOptions { delivery_limit: limit, ..QueueOptions::durable(Kind::Quorum) }
}

#[test]
fn a_million_messages_are_one_run() {
    let mut bench = Bench::with("q", classic());
    bench.publish("q", 1..=1_000_000);
    bench.publish("q", 1_000_001..=1_000_002);
    let consumer = bench.consume("q", prefetch(10));
    let delivery = bench.broker.take(consumer, u64::MAX).unwrap().unwrap();
    assert_eq!((delivery.tag, delivery.first, delivery.count), (1, serial(1), 10));
    assert_eq!(bench.counts("q"), (999_992, 1));
    assert_eq!(bench.broker.ready("q").count(), 1);
    assert_eq!(bench.broker.ack(consumer, 10, true), Ok(10));
    assert_eq!(bench.broker.take(consumer, 3).unwrap().unwrap().count, 3);
}

#[test]
fn what_is_given_back_returns_to_its_place_except_without_a_limit() {
    let back = |options| {
        let mut bench = Bench::with("q", options);
        bench.publish("q", 1..=6);
        let consumer = bench.consume("q", prefetch(2));
        assert_eq!(bench.read(consumer), [1, 2]);
        bench.broker.close_channel(consumer);
        let redelivered: Vec<bool> = bench.broker.ready("q").map(|(_, _, it)| it).collect();
        (bench.ready("q"), redelivered)
    };
    assert_eq!(back(classic()), (vec![1, 2, 3, 4, 5, 6], vec![true, false]));
    assert_eq!(back(QueueOptions::side()), (vec![1, 2, 3, 4, 5, 6], vec![true, false]));
    // Measured on 4.0.5: 345612.
    assert_eq!(back(quorum(Some(-1))), (vec![3, 4, 5, 6, 1, 2], vec![false, true]));
}

#[test]
fn what_several_consumers_give_back_at_once_comes_back_in_order() {
    let mut bench = Bench::with("q", quorum(Some(-1)));
    bench.publish("q", 1..=4);
    for sequence in 1..=2 {
        let consumer = bench.consume("q", prefetch(1));
        assert_eq!(bench.read(consumer), [sequence]);
    }
    bench.broker.close(bench.client);
    assert_eq!(bench.ready("q"), [3, 4, 1, 2]);
}

#[test]
fn beyond_its_limit_a_message_is_dropped() {
    let mut bench = Bench::with("q", quorum(Some(1)));
    bench.publish("q", 1..=2);
    for (ready, dropped) in [(vec![1, 2], 0), (vec![2], 1)] {
        let consumer = bench.consume("q", prefetch(1));
        bench.read(consumer);
        bench.broker.close_channel(consumer);
        assert_eq!((bench.ready("q"), bench.broker.dropped("q")), (ready, dropped));
    }
}

#[test]
fn single_acks_in_any_order_and_unknown_tags() {
    let mut bench = Bench::with("q", classic());
    bench.publish("q", 1..=5);
    let consumer = bench.consume("q", prefetch(0));
    assert_eq!(bench.broker.take(consumer, 4).unwrap().unwrap().count, 4);
    assert_eq!(bench.broker.ack(consumer, 3, false), Ok(1));
    assert_eq!(bench.broker.ack(consumer, 1, false), Ok(1));
    assert_eq!(bench.broker.figures("q").unwrap().unacknowledged, 3);
    assert_eq!(bench.broker.nack(consumer, 2, false), Ok(1));
    // It comes again at once, behind what was sent already.
    assert_eq!(bench.read(consumer), [5, 2]);
    // Acknowledged twice: the channel is closed, what it held returns.
    assert_eq!(bench.broker.ack(consumer, 3, false).unwrap_err().code(), Some(406));
    assert_eq!(bench.broker.take(consumer, 1), Err(Refusal::ConsumerGone));
    assert_eq!((bench.ready("q"), bench.counts("q")), (vec![2, 4, 5], (3, 0)));
}

#[test]
fn a_message_that_was_not_read_can_not_be_acknowledged() {
    let mut bench = Bench::with("q", classic());
    bench.publish("q", 1..=2);
    let consumer = bench.consume("q", prefetch(2));
    assert_eq!(bench.broker.ack(consumer, 0, true), Ok(0));
    assert_eq!(bench.broker.ack(consumer, 1, true).unwrap_err().code(), Some(406));
    assert_eq!(bench.ready("q"), [1, 2]);
}

#[test]
fn a_cancelled_consumer_counts_in_a_quorum_queue_until_its_last_ack() {
    for (options, counted) in [(classic(), 0), (QueueOptions::side(), 1)] {
        let mut bench = Bench::with("q", options);
        bench.publish("q", 1..=3);
        let consumer = bench.consume("q", prefetch(2));
        bench.broker.cancel(consumer).unwrap();
        assert_eq!(bench.counts("q"), (1, counted));
        // What was sent is still to be read, and nothing more comes.
        assert_eq!(bench.read(consumer), [1, 2]);
        bench.broker.ack(consumer, 1, false).unwrap();
        assert_eq!(bench.counts("q"), (1, counted));
        bench.broker.ack(consumer, 2, false).unwrap();
        assert_eq!(bench.counts("q"), (1, 0));
        assert_eq!(bench.broker.take(consumer, 1), Err(Refusal::ConsumerGone));
    }
}

#[test]
fn peers_take_turns_and_the_higher_priority_comes_first() {
    let mut bench = Bench::with("q", classic());
    let (one, two) = (bench.consume("q", prefetch(2)), bench.consume("q", prefetch(2)));
    let first = bench.consume("q", ConsumeOptions { priority: 5, ..prefetch(1) });
    bench.publish("q", 1..=6);
    assert_eq!(bench.read(first), [1]);
    assert_eq!((bench.read(one), bench.read(two)), (vec![2, 4], vec![3, 5]));
    bench.broker.ack(first, 1, false).unwrap();
    assert_eq!(bench.read(first), [6]);
}

#[test]
fn a_single_active_consumer_gives_way_only_in_a_quorum_queue() {
    for kind in [Kind::Classic, Kind::Quorum] {
        let options = QueueOptions { single_active: true, ..QueueOptions::durable(kind) };
        let mut bench = Bench::with("q", options);
        bench.publish("q", 1..=6);
        let old = bench.consume("q", prefetch(2));
        let new = bench.consume("q", ConsumeOptions { priority: 1, ..prefetch(9) });
        assert_eq!(bench.read(old), [1, 2]);
        bench.broker.ack(old, 1, false).unwrap();
        // The quorum queue waits for the last acknowledgement and feeds nobody meanwhile.
        let (on_old, on_new): (&[u64], &[u64]) = match kind {
            Kind::Classic => (&[3], &[]),
            Kind::Quorum => (&[], &[]),
        };
        assert_eq!((bench.read(old).as_slice(), bench.read(new).as_slice()), (on_old, on_new));
        bench.broker.ack(old, 0, true).unwrap();
        let expected: &[u64] = if kind == Kind::Quorum { &[3, 4, 5, 6] } else { &[] };
        assert_eq!(bench.read(new), expected);
        bench.broker.cancel(old).unwrap();
        bench.publish("q", 7..=7);
        assert_eq!(bench.read(new).last(), Some(&7));
    }
}

#[test]
fn a_deleted_queue_goes_with_its_consumers() {
    let mut bench = Bench::with("q", classic());
    bench.bind(&queue("q"), "amq.fanout");
    let consumer = bench.consume("q", prefetch(1));
    bench.broker.delete_queue(bench.client, "q", false).unwrap();
    assert_eq!(bench.broker.take(consumer, 1), Err(Refusal::ConsumerGone));
    assert!(bench.broker.destinations("amq.fanout").is_empty());
}

#[test]
fn purging_leaves_what_is_held() {
    let mut bench = Bench::with("q", classic());
    bench.publish("q", 1..=5);
    let consumer = bench.consume("q", prefetch(2));
    assert_eq!(bench.broker.purge(bench.client, "q"), Ok(3));
    bench.publish("q", 6..=6);
    bench.broker.close_channel(consumer);
    assert_eq!(bench.ready("q"), [1, 2, 6]);
}
