//! The conformance suite on the broker in memory, by a paused clock; and the faults it can make.
#![expect(clippy::expect_used, reason = "a test's own helpers")]

#[path = "memory/rig.rs"]
mod rig;

use std::sync::Arc;

use rig::MemoryRig;
use shadow_broker::conformance::order_id;
use shadow_broker::conformance::{self, Rig as _};
use shadow_broker::memory::core::Broker;
use shadow_broker::memory::{Fault, Operation};
use shadow_broker::{Error, Session};
use shadow_protocol::broker::{Order, QueueType, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::names::control_queue;

#[tokio::test(start_paused = true)]
async fn conformance_suite() {
    let only = std::env::var("SHADOW_TEST_ONLY").unwrap_or_default();
    let mut cases = conformance::cases();
    cases.retain(|case| case.name.contains(&only));
    let (lines, failed) = conformance::run(Arc::new(MemoryRig::default()), cases).await;
    for line in lines {
        println!("{line}");
    }
    assert_eq!(failed, 0, "cases failed");
}

/// A session, and a broker that does `fault` to each change.
async fn faulty(fault: Fault) -> (MemoryRig, Box<dyn Session>) {
    let rig = MemoryRig::default();
    let session = rig.connector().open(&rig.target(), "faulty").await.expect("it connects");
    session.lock("lock").await.expect("nobody else is there");
    rig.broker.set_hook(Arc::new(move |call| match call.operation {
        Operation::Apply(_) if call.migration == "faulty" => fault,
        _ => Fault::Pass,
    }));
    (rig, session)
}

fn declare() -> Topology {
    Topology::DeclareSideQueue { name: "side".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_call_fails_before_or_after_it_took_effect() {
    for (fault, there) in [(Fault::Before, false), (Fault::After, true)] {
        let (_rig, session) = faulty(fault).await;
        let outcome = session.apply(&declare()).await;
        assert!(matches!(outcome, Err(Error::Unreachable { .. })), "{fault:?}: {outcome:?}");
        assert_eq!(session.counts("side").await.unwrap().is_some(), there, "{fault:?}");
        assert!(session.alive());
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_an_alarm_holds_up_is_discarded_and_the_next_one_arrives() {
    let (rig, session) = faulty(Fault::Pass).await;
    let control = control_queue("pod");
    session.apply(&Topology::DeclareSideQueue { name: control.clone() }).await.unwrap();
    let order = Order::new("pod", Control::EndReplay);
    rig.broker.with(Broker::raise_alarm);
    let held = session.order(&order, &order_id()).await;
    assert!(matches!(held, Err(Error::Timeout { .. })), "{held:?}");
    rig.broker.with(Broker::lift_alarm);
    let ready = async || session.counts(&control).await.unwrap().map(|counts| counts.ready);
    assert_eq!(ready().await, Some(0));
    session.order(&order, &order_id()).await.unwrap();
    assert_eq!(ready().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_cut_session_has_done_nothing_and_its_lock_is_free() {
    let (rig, session) = faulty(Fault::Cut).await;
    assert!(session.apply(&declare()).await.is_err());
    assert!(!session.alive());
    assert!(session.counts("side").await.is_err());
    let stranger = rig.connector().open(&rig.target(), "stranger").await.unwrap();
    stranger.lock("lock").await.unwrap();
    assert_eq!(stranger.counts("side").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_move_whose_answer_is_lost_is_done() {
    let (rig, session) = faulty(Fault::After).await;
    for queue in ["from", "to"] {
        rig.declare_queue(queue, &QueueType::Classic).await.unwrap();
    }
    rig.publisher("", "from", true).await.unwrap().publish(b"1:1").await.unwrap();
    let change = Topology::Move { from: "from".to_owned(), to: "to".to_owned() };
    assert!(session.apply(&change).await.is_err());
    let ready = async |queue| session.counts(queue).await.unwrap().unwrap().ready;
    assert_eq!((ready("from").await, ready("to").await), (0, 1));
}
