//! Exchanges, bindings, cuts.

use super::super::exchange::{headers_match, topic};
use super::*;

fn classic() -> QueueOptions {
    QueueOptions::durable(Kind::Classic)
}

#[test]
fn topic_patterns() {
    for (pattern, key, fits) in [
        ("#", "", true),
        ("#", "a.b.c", true),
        ("a.*", "a.b", true),
        ("a.*", "a", false),
        ("a.*", "a.b.c", false),
        ("a.#", "a", true),
        ("#.c", "a.b.c", true),
        ("#.b", "a.b.c", false),
        ("*.#.c", "c", false),
        ("a.#.#.b", "a.b", true),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(topic(pattern, key), fits, "{pattern:?} and {key:?}");
    }
}

#[test]
fn headers_all_and_any() {
    for (arguments, headers, fits) in [
        (r#"{"x-match":"all","a":1,"b":"x"}"#, r#"{"a":1,"b":"x","c":0}"#, true),
        (r#"{"x-match":"all","a":1,"b":"x"}"#, r#"{"a":1}"#, false),
        (r#"{"x-match":"any","a":1,"b":"x"}"#, r#"{"b":"x"}"#, true),
        (r#"{"x-match":"any","a":1}"#, r#"{"a":2}"#, false),
        (r#"{"a":1}"#, r#"{"a":1}"#, true),
        ("", "", true),
        (r#"{"x-match":"any"}"#, r#"{"a":1}"#, false),
        (r#"{"x-match":"all","x-a":1}"#, "", true),
        (r#"{"x-match":"all-with-x","x-a":1}"#, "", false),
    ] {
        assert_eq!(headers_match(arguments, headers), fits, "{arguments} and {headers}");
    }
}

#[test]
fn a_queue_gets_one_copy_however_many_routes_lead_there() {
    let mut bench = Bench::with("q", classic());
    bench.exchange(EXCHANGE, ExchangeOptions::durable(ExchangeKind::Topic));
    bench.exchange("gate", ExchangeOptions::internal(None));
    for key in ["#", "a.*"] {
        bench.broker.bind(bench.client, &queue("q"), &binding(EXCHANGE, key, "")).unwrap();
        bench.broker.bind(bench.client, &exchange("gate"), &binding(EXCHANGE, key, "")).unwrap();
    }
    bench.bind(&queue("q"), "gate");
    // A circle is no trap.
    bench.bind(&exchange("gate"), "gate");
    let published = bench.broker.publish(bench.client, run_to(EXCHANGE, "a.b", 1..=3));
    assert_eq!(published, Ok(Published::Arrived(1)));
    assert_eq!(bench.ready("q"), [1, 2, 3]);
}

#[test]
fn the_alternate_gets_what_matches_no_binding_of_its_exchange() {
    let mut bench = Bench::with("q", classic());
    bench.broker.declare_queue(bench.client, "s", QueueOptions::side()).unwrap();
    bench.exchange("hold", ExchangeOptions::internal(None));
    bench.exchange("gate", ExchangeOptions::internal(Some("hold".into())));
    bench.exchange(EXCHANGE, ExchangeOptions::durable(ExchangeKind::Fanout));
    bench.bind(&exchange("gate"), EXCHANGE);
    bench.bind(&queue("s"), "hold");
    bench.bind(&queue("q"), "gate");
    let publish = |bench: &mut Bench, n| {
        bench.broker.publish(bench.client, run_to(EXCHANGE, "", n..=n)).unwrap();
    };
    publish(&mut bench, 1);
    bench.unbind(&queue("q"), "gate");
    publish(&mut bench, 2);
    bench.unbind(&queue("q"), "gate");
    bench.bind(&queue("q"), "gate");
    publish(&mut bench, 3);
    assert_eq!((bench.ready("q"), bench.ready("s")), (vec![1, 3], vec![2]));
    // One that leads nowhere still matches: nothing for the alternate.
    bench.unbind(&queue("q"), "gate");
    bench.exchange("nowhere", ExchangeOptions::internal(None));
    bench.bind(&exchange("nowhere"), "gate");
    let lost = bench.broker.publish(bench.client, run_to(EXCHANGE, "", 4..=4));
    assert_eq!(lost, Ok(Published::Arrived(0)));
}

#[test]
fn what_is_refused() {
    let mut bench = Bench::with("q", classic());
    bench.exchange("inner", ExchangeOptions::internal(None));
    let (broker, client) = (&mut bench.broker, bench.client);
    let code = |refused: Result<(), Refusal>| refused.unwrap_err().code();
    let done = |published: Result<Published, Refusal>| published.map(|_| ());
    assert_eq!(code(done(broker.publish(client, run_to("inner", "", 1..=1)))), Some(403));
    assert_eq!(code(done(broker.publish(client, run_to("none", "", 1..=1)))), Some(404));
    assert_eq!(code(broker.bind(client, &queue("q"), &Binding::plain(""))), Some(403));
    assert_eq!(code(broker.bind(client, &queue("q"), &Binding::plain("none"))), Some(404));
    assert_eq!(code(broker.bind(client, &queue("no"), &Binding::plain("inner"))), Some(404));
    assert_eq!(broker.unbind(client, &queue("no"), &Binding::plain("none")), Ok(()));
    assert_eq!(code(broker.delete_exchange(client, "amq.fanout")), Some(403));
    assert_eq!(broker.delete_exchange(client, "none"), Ok(()));
    let otherwise = broker.declare_queue(client, "q", QueueOptions::side()).map(|_| ());
    assert_eq!(code(otherwise), Some(406));
    assert_eq!(broker.delete_queue(client, "no", false), Ok(0));
    broker.declare_queue(client, "s", QueueOptions::side()).unwrap();
    assert_eq!(code(broker.delete_queue(client, "s", true).map(|_| ())), Some(540));
    assert_eq!(broker.delete_queue(client, "q", true), Ok(0));
}

#[test]
fn deliveries_trail_an_unbind_in_order() {
    let mut bench = Bench::with("q", classic());
    bench.bind(&queue("q"), "amq.fanout");
    let (broker, client) = (&mut bench.broker, bench.client);
    for n in 1..=3 {
        let sent = broker.publish_trailing(client, run_to("amq.fanout", "", n..=n));
        assert_eq!(sent, Ok(Published::Pending(1)));
    }
    broker.unbind(client, &queue("q"), &Binding::plain("amq.fanout")).unwrap();
    // A later one is routed by the new bindings, and does not overtake.
    broker.publish(client, run_to("", "q", 4..=4)).unwrap();
    assert_eq!(broker.counts("q").unwrap().ready, 0);
    assert_eq!(broker.flush(client, 1), 1);
    broker.close(client);
    let unconfirmed: Vec<_> = broker.unconfirmed().map(|(of, it, _)| (of, it.sequence)).collect();
    assert_eq!(unconfirmed, [2, 3, 4].map(|n| (client, n)));
    assert_eq!(broker.flush(client, 9), 3);
    assert_eq!(broker.unconfirmed().next(), None);
    assert_eq!(bench.ready("q"), [1, 2, 3, 4]);
}

#[test]
fn each_queue_gets_what_trails_at_its_own_time() {
    let mut bench = Bench::with("q", classic());
    bench.broker.declare_queue(bench.client, "p", classic()).unwrap();
    for name in ["p", "q"] {
        bench.bind(&queue(name), "amq.fanout");
    }
    let (broker, client) = (&mut bench.broker, bench.client);
    for n in 1..=2 {
        broker.publish_trailing(client, run_to("amq.fanout", "", n..=n)).unwrap();
    }
    assert_eq!(broker.trails_to(client), ["p".into(), "q".into()]);
    assert!(broker.flush_into(client, "q") && broker.flush_into(client, "q"));
    assert!(!broker.flush_into(client, "q"), "there is no third one");
    assert!(broker.flush_into(client, "p"));
    assert_eq!(broker.trails_to(client), ["p".into()]);
    assert_eq!(broker.unconfirmed().count(), 1);
    assert_eq!((bench.ready("p"), bench.ready("q")), (vec![1], vec![1, 2]));
}

#[test]
fn a_transaction_arrives_with_its_commit_where_it_was_routed() {
    let mut bench = Bench::with("q", classic());
    bench.bind(&queue("q"), "amq.fanout");
    let (broker, client) = (&mut bench.broker, bench.client);
    broker.select_transaction(client).unwrap();
    assert_eq!(broker.transactional().collect::<Vec<_>>(), [client]);
    broker.publish(client, run_to("amq.fanout", "", 1..=2)).unwrap();
    broker.unbind(client, &queue("q"), &Binding::plain("amq.fanout")).unwrap();
    assert_eq!(broker.counts("q").unwrap().ready, 0);
    broker.commit(client).unwrap();
    assert_eq!(broker.counts("q").unwrap().ready, 2);
    broker.publish(client, run_to("", "q", 3..=3)).unwrap();
    broker.close(client);
    assert_eq!(bench.ready("q"), [1, 2]);
}
