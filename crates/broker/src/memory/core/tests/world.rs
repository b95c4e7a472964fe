//! Connections, alarms, restarts, statistics.

use super::*;

#[test]
fn the_lock_is_its_connections_and_goes_with_it() {
    let mut bench = Bench::new();
    let (broker, ours) = (&mut bench.broker, bench.client);
    let theirs = broker.connect("guest", "other");
    broker.declare_queue(ours, "lock", QueueOptions::lock()).unwrap();
    broker.declare_queue(ours, "lock", QueueOptions::lock()).unwrap();
    let refused = broker.declare_queue(theirs, "lock", QueueOptions::lock()).unwrap_err();
    assert_eq!(refused.code(), Some(405));
    assert_eq!(broker.declare_passive(theirs, "lock").unwrap_err().code(), Some(405));
    assert_eq!(broker.owner("lock"), Some(ours));
    broker.close_by_broker(ours);
    assert!(broker.declare_queue(theirs, "lock", QueueOptions::lock()).is_ok());
    // A deposed connection's late operations fail.
    let late = broker.bind(ours, &queue("lock"), &Binding::plain("amq.fanout"));
    assert_eq!(late, Err(Refusal::ConnectionGone));
}

#[test]
fn a_dying_connection_gives_nothing_to_its_own_other_consumers() {
    let mut bench = Bench::with("q", QueueOptions::durable(Kind::Classic));
    bench.publish("q", 1..=4);
    for _ in 0..2 {
        let consumer = bench.consume("q", prefetch(1));
        bench.read(consumer);
    }
    bench.broker.close(bench.client);
    assert_eq!((bench.ready("q"), bench.counts("q")), (vec![1, 2, 3, 4], (4, 0)));
}

#[test]
fn an_alarm_holds_publishes_and_delivers_them_later() {
    let mut bench = Bench::with("q", QueueOptions::durable(Kind::Classic));
    let broker = &mut bench.broker;
    let [gone, closed] = ["gone", "closed"].map(|label| broker.connect("guest", label));
    broker.raise_alarm();
    for (connection, n) in [(gone, 1), (closed, 2), (bench.client, 3)] {
        let held = broker.publish(connection, run_to("", "q", n..=n));
        assert_eq!(held, Ok(Published::Blocked));
    }
    broker.close(gone);
    broker.close_by_broker(closed);
    // Everything but publishing goes on.
    broker.declare_queue(bench.client, "s", QueueOptions::side()).unwrap();
    let read = broker.lift_alarm();
    let arrived = Ok(Published::Arrived(1));
    assert_eq!(read, [(gone, arrived.clone()), (bench.client, arrived)]);
    assert_eq!(bench.ready("q"), [1, 3]);
}

#[test]
fn a_restart_keeps_what_is_durable() {
    let mut bench = Bench::with("q", QueueOptions::durable(Kind::Classic));
    let passing = QueueOptions { durable: false, ..QueueOptions::durable(Kind::Classic) };
    bench.broker.declare_queue(bench.client, "p", passing).unwrap();
    bench.exchange(EXCHANGE, ExchangeOptions::durable(ExchangeKind::Fanout));
    bench.bind(&queue("q"), EXCHANGE);
    bench.bind(&queue("p"), EXCHANGE);
    bench.publish("q", 1..=3);
    let consumer = bench.consume("q", prefetch(2));
    bench.read(consumer);
    bench.broker.publish_trailing(bench.client, run_to("", "q", 9..=9)).unwrap();
    bench.broker.restart();
    assert!(!bench.broker.connected(bench.client));
    assert_eq!(bench.broker.unconfirmed().next(), None);
    assert_eq!(bench.broker.counts("p"), None);
    assert_eq!(bench.broker.destinations(EXCHANGE), [queue("q")]);
    assert_eq!((bench.ready("q"), bench.counts("q")), (vec![1, 2, 3], (3, 0)));
}

#[test]
fn statistics_lie_until_the_second_emission_is_collected() {
    let mut bench = Bench::with("q", QueueOptions::durable(Kind::Quorum));
    let shown = |bench: &Bench| {
        bench.broker.statistics("q").unwrap().map(|it| (it.reductions, it.unacknowledged))
    };
    assert_eq!(shown(&bench), None);
    bench.broker.emit("q");
    bench.publish("q", 1..=5);
    bench.consume("q", prefetch(5));
    // The emission from before is shown only now.
    bench.broker.collect();
    assert_eq!(shown(&bench), Some((1, 0)));
    bench.broker.emit("q");
    assert_eq!(shown(&bench), Some((1, 0)));
    bench.broker.collect();
    assert_eq!(shown(&bench), Some((2, 5)));
}

#[test]
fn time_moves_statistics_and_an_idle_classic_queue_emits_none() {
    let mut broker: Broker = Broker::new(Settings { emit_every: 50, collect_every: 70 });
    let client = broker.connect("guest", "bench");
    for (name, kind) in [("c", Kind::Classic), ("q", Kind::Quorum)] {
        broker.declare_queue(client, name, QueueOptions::durable(kind)).unwrap();
        broker.declare_passive(client, name).unwrap();
    }
    let shown = |broker: &Broker, queue| broker.statistics(queue).unwrap().map(|it| it.reductions);
    broker.advance(69);
    assert_eq!(shown(&broker, "q"), None);
    broker.advance(70);
    assert_eq!((shown(&broker, "c"), shown(&broker, "q")), (Some(1), Some(1)));
    broker.advance(10_000_000_000);
    assert_eq!(shown(&broker, "c"), Some(1), "idle");
    assert!(shown(&broker, "q") > Some(2));
    broker.declare_passive(client, "c").unwrap();
    broker.advance(10_000_000_200);
    assert_eq!(shown(&broker, "c"), Some(2));
}

#[test]
fn a_quorum_queue_that_can_not_be_asked_answers_nothing_and_nobody() {
    let mut bench = Bench::with("q", QueueOptions::side());
    bench.publish("q", 1..=3);
    bench.broker.set_blind("q", true);
    assert_eq!(bench.counts("q"), (0, 0));
    bench.broker.set_blind("q", false);
    assert_eq!(bench.counts("q"), (3, 0));
}
