//! Each change done twice is done once; the survey tells what is there; orders arrive.

use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::{Binding, Counts, Order, QueueType, Topology};
use shadow_protocol::control::{Control, Role};
use shadow_protocol::names::control_queue;
use tokio::time::Instant;

use super::ledger::payload;
use super::plant::{Feed, Plant};
use super::{
    Case, Failure, Habits, Ledger, Outcome, PATIENCE, Stage, ensure, eventually, order_id,
};
use crate::Session;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "changes_are_idempotent", run: |s| idempotent(s).boxed() },
        Case { name: "bindings_with_arguments", run: |s| arguments(s).boxed() },
        Case { name: "moving", run: |s| moving(s).boxed() },
        Case { name: "survey", run: |s| survey(s).boxed() },
        Case { name: "orders", run: |s| orders(s).boxed() },
        Case { name: "waiting_orders", run: |s| waiting(s).boxed() },
    ]
}

/// More than one batch, moved behind what is there already, in order; an empty queue is no error.
async fn moving(stage: Stage) -> Outcome {
    const MESSAGES: u64 = 250;
    let (from, to) = (stage.name("from"), stage.name("to"));
    stage.rig.remove(&[&from, &to], &[]).await?;
    let session = stage.session("moving").await?;
    session.apply(&Topology::DeclareSideQueue { name: from.clone() }).await?;
    stage.rig.declare_queue(&to, &QueueType::Classic).await?;
    for (queue, range) in [(&to, 1..=5), (&from, 6..=MESSAGES)] {
        let mut publisher = stage.rig.publisher("", queue, true).await?;
        for sequence in range {
            publisher.publish(&payload(1, sequence)).await?;
        }
    }
    twice(session.as_ref(), Topology::Move { from: from.clone(), to: to.clone() }).await?;
    // A quorum queue knows its consumers a little later.
    let empty = async || Ok(session.counts(&from).await? == Some(Counts::default()));
    eventually("nothing and nobody is left behind", empty).await?;
    let mut consumer = stage.rig.consumer(&to, 50).await?;
    for sequence in 1..=MESSAGES {
        let message = consumer.next().await?.ok_or(Failure("no more messages".to_owned()))?;
        let right = message.payload == payload(1, sequence);
        ensure(right, || format!("message {sequence} is another one"))?;
        consumer.ack(message.tag, false).await?;
    }
    // Whoever came first is served first: nothing is moved, and that is no success.
    let mut first = stage.rig.consumer(&from, 1).await?;
    let mut publisher = stage.rig.publisher("", &from, true).await?;
    for sequence in 1..=3 {
        publisher.publish(&payload(2, sequence)).await?;
    }
    let held = first.next().await?.ok_or(Failure("nothing was delivered".to_owned()))?;
    let rest = Topology::Move { from: from.clone(), to: to.clone() };
    let moved = session.apply(&rest).await;
    ensure(moved.is_err(), || "a move that has moved nothing is done".to_owned())?;
    let counts = session.counts(&from).await?.map(|counts| counts.ready);
    ensure(counts == Some(2), || format!("{counts:?} of what another one consumes"))?;
    first.ack(held.tag, false).await?;
    first.close().await;
    consumer.close().await;
    session.close().await;
    stage.rig.remove(&[&from, &to], &[]).await?;
    Ok(format!("{MESSAGES} messages in order"))
}

async fn twice(session: &dyn Session, change: Topology) -> Result<(), Failure> {
    session.apply(&change).await?;
    Ok(session.apply(&change).await?)
}

async fn idempotent(stage: Stage) -> Outcome {
    let plant = Plant::build(stage, &QueueType::Quorum, Feed::Topic).await?;
    let (session, names) = (plant.session.as_ref(), &plant.names);
    let control = plant.stage.name("control");
    plant.install().await?;
    plant.install().await?;
    let exchange =
        Topology::DeclareExchange { name: names.gate.clone(), alternate: Some(names.hold.clone()) };
    twice(session, exchange).await?;
    let like = names.primary.clone();
    twice(session, Topology::DeclareControlQueue { name: control.clone(), like }).await?;
    let fed = session.fed_by(&names.both).await?;
    let mut expected = vec![(names.primary.clone(), true), (names.s2.clone(), true)];
    expected.sort();
    ensure(fed == expected, || format!("{} feeds {fed:?}", names.both))?;
    let fed = session.fed_by(&plant.exchange).await?;
    ensure(fed == [(names.gate.clone(), false)], || format!("the exchange feeds {fed:?}"))?;
    plant.feed_both(true).await?;
    plant.feed_both(true).await?;
    plant.feed_both(false).await?;
    plant.feed_both(false).await?;
    twice(session, Topology::Purge { queue: names.primary.clone() }).await?;
    plant.remove().await?;
    plant.remove().await?;
    let idle = plant.stage.rig.consumer(&control, 1).await?;
    let delete = Topology::DeleteQueue { name: control.clone() };
    ensure(session.apply(&delete).await.is_err(), || "a queue in use was deleted".to_owned())?;
    { idle }.close().await;
    let unused = async || Ok(session.counts(&control).await?.is_some_and(|c| c.consumers == 0));
    eventually("the consumer is gone", unused).await?;
    twice(session, delete).await?;
    ensure(session.counts(&control).await?.is_none(), || "it is still there".to_owned())?;
    plant.clear().await?;
    Ok("every change, twice".to_owned())
}

async fn arguments(stage: Stage) -> Outcome {
    let (queue, exchange) = (stage.name("queue"), stage.name("headers"));
    stage.rig.remove(&[&queue], &[&exchange]).await?;
    stage.rig.declare_queue(&queue, &QueueType::Classic).await?;
    stage.rig.declare_exchange(&exchange, "headers").await?;
    let session = stage.session("arguments").await?;
    let texts = [
        "",
        r#"{"colour":"red","x-match":"all"}"#,
        r#"{"colour":"blue","x-match":"any"}"#,
        r#"{"big":1099511627776,"flag":true,"size":7,"x-match":"all"}"#,
        r#"{"ratio":0.5}"#,
    ];
    let binding = |text: &&str| Binding {
        source: exchange.clone(),
        routing_key: "k".to_owned(),
        arguments: (*text).to_owned(),
    };
    let mut expected: Vec<Binding> = texts.iter().map(binding).collect();
    expected.sort();
    for binding in expected.clone() {
        twice(session.as_ref(), Topology::BindQueue { queue: queue.clone(), binding }).await?;
    }
    while let Some(binding) = expected.pop() {
        let found = session.bindings(&queue).await?;
        let mut all = expected.clone();
        all.push(binding.clone());
        ensure(found == all, || format!("bindings are {found:?} instead of {all:?}"))?;
        twice(session.as_ref(), Topology::UnbindQueue { queue: queue.clone(), binding }).await?;
    }
    ensure(session.bindings(&queue).await?.is_empty(), || "a binding is left".to_owned())?;
    session.close().await;
    stage.rig.remove(&[&queue], &[&exchange]).await?;
    Ok(format!("{} bindings between the same two", texts.len()))
}

async fn survey(stage: Stage) -> Outcome {
    let plant = Plant::build(stage, &QueueType::Classic, Feed::Topic).await?;
    let control = plant.stage.name("control");
    let primary = plant.names.primary.clone();
    let session = plant.session.as_ref();
    let absent = session.survey(&control, &control).await?;
    ensure(absent.queue.is_none() && !absent.control_queue, || format!("{absent:?}"))?;
    let rig = plant.stage.rig.clone();
    let habits = Habits::default();
    let application = super::Application::start(&rig, &primary, habits, Ledger::default()).await?;
    let listed = async || Ok(session.consumers(&primary).await?.len() == 1);
    eventually("the consumer is listed", listed).await?;
    let survey = session.survey(&primary, &primary).await?;
    let mut bindings = plant.bindings.clone();
    bindings.sort();
    ensure(survey.bindings == bindings, || format!("bindings: {:?}", survey.bindings))?;
    ensure(survey.control_queue, || "a queue that exists is not found".to_owned())?;
    let kind = survey.exchanges.get(&plant.exchange).map(|exchange| exchange.kind.as_str());
    ensure(kind == Some("topic"), || format!("the exchange's type is {kind:?}"))?;
    let queue = survey.queue.ok_or_else(|| Failure("the queue is not found".to_owned()))?;
    ensure(queue.durable && !queue.exclusive && !queue.auto_delete, || format!("{queue:?}"))?;
    ensure(queue.kind == QueueType::Classic, || format!("{queue:?}"))?;
    let [consumer] = survey.consumers.as_slice() else {
        return Err(Failure(format!("consumers: {:?}", survey.consumers)));
    };
    ensure(consumer.ack_required && !consumer.exclusive, || format!("{consumer:?}"))?;
    let known = async || {
        let consumers = session.consumers(&primary).await?;
        let Some(consumer) = consumers.first() else { return Ok(false) };
        let there = session.connections_from(&consumer.peer).await?;
        Ok(!consumer.peer.is_empty() && there.contains(&consumer.connection))
    };
    eventually("the consumer's connection is listed by its address", known).await?;
    application.die().await?;
    plant.clear().await?;
    Ok(format!("broker {}, alarms {:?}", survey.version, survey.alarms))
}

async fn orders(stage: Stage) -> Outcome {
    let pod = stage.name("pod");
    let queue = control_queue(&pod);
    stage.rig.remove(&[&queue], &[]).await?;
    let session = stage.session("orders").await?;
    let control = Control::StartReplay { queue: "side".to_owned(), role: Role::Source };
    let order = Order::new(&pod, control);
    let missing = session.order(&order, &order_id()).await;
    ensure(missing.is_err(), || "an order without a queue was accepted".to_owned())?;
    stage.rig.declare_queue(&queue, &QueueType::Classic).await?;
    session.order(&order, &order_id()).await?;
    let mut consumer = stage.rig.consumer(&queue, 1).await?;
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await??;
    let text = next.map(|message| String::from_utf8(message.payload)).transpose()?;
    let expected = r#"{"type":"START_REPLAY","payload":{"queue":"side","role":"source"}}"#;
    ensure(text.as_deref() == Some(expected), || format!("the order reads {text:?}"))?;
    consumer.close().await;
    session.close().await;
    stage.rig.remove(&[&queue], &[]).await?;
    Ok("delivered word for word".to_owned())
}

/// An order that waits comes after its time and not before; one that was taken away never does.
async fn waiting(stage: Stage) -> Outcome {
    const AFTER: Duration = Duration::from_millis(600);
    let pod = stage.name("pod");
    let (control, wait) = (control_queue(&pod), stage.name("wait"));
    stage.rig.remove(&[&control, &wait], &[]).await?;
    stage.rig.declare_queue(&control, &QueueType::Classic).await?;
    let session = stage.session("waiting").await?;
    let after_ms = u64::try_from(AFTER.as_millis()).unwrap_or_default();
    let declare = Topology::DeclareWaitingQueue { name: wait.clone(), pod: pod.clone(), after_ms };
    twice(session.as_ref(), declare).await?;
    let order = Order { waits_in: Some(wait.clone()), ..Order::new(&pod, Control::EndReplay) };
    let mut consumer = stage.rig.consumer(&control, 1).await?;
    let begun = Instant::now();
    session.order(&order, &order_id()).await?;
    let waits = session.counts(&wait).await?;
    ensure(waits == Some(Counts { ready: 1, consumers: 0 }), || format!("it waits: {waits:?}"))?;
    let message = tokio::time::timeout(PATIENCE, consumer.next()).await??;
    let took = begun.elapsed();
    ensure(took >= AFTER, || format!("it came after {took:?}"))?;
    let message = message.ok_or(Failure("no order came".to_owned()))?;
    ensure(message.payload == br#"{"type":"END_REPLAY"}"#, || format!("{message:?}"))?;
    consumer.ack(message.tag, false).await?;
    let gone = session.counts(&wait).await?;
    ensure(gone == Some(Counts::default()), || format!("it has left: {gone:?}"))?;
    let taken =
        [Topology::Purge { queue: wait.clone() }, Topology::DeleteQueue { name: wait.clone() }];
    for taken in taken {
        session.order(&order, &order_id()).await?;
        session.apply(&taken).await?;
    }
    let late = tokio::time::timeout(2 * AFTER, consumer.next()).await;
    ensure(late.is_err(), || format!("an order that was taken away came: {late:?}"))?;
    consumer.close().await;
    session.close().await;
    stage.rig.remove(&[&control, &wait], &[]).await?;
    Ok(format!("delivered after {took:?}"))
}
