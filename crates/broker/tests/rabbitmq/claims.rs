//! Claims about RabbitMQ in particular, measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use shadow_broker::conformance::{
    Case, Failure, Load, Outcome, Rig, Stage, ensure, eventually, order_id,
};
use shadow_protocol::broker::{Binding, Order, QueueType, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::names::control_queue;

use crate::rig::RabbitRig;

/// Queues observed for one claim about statistics.
const QUEUES: usize = 7;

/// Without growth for so long, a queue that is no longer fed has all it will get.
const SETTLE: Duration = Duration::from_secs(2);

/// The claims as cases of the suite.
pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "statistics_classic", run: |s| statistics(s, "classic").boxed() },
        Case { name: "statistics_quorum", run: |s| statistics(s, "quorum").boxed() },
        Case { name: "quorum_refuses_if_unused", run: |s| if_unused(s).boxed() },
        Case { name: "returns_with_a_limit_keep_order", run: |s| returns(s).boxed() },
        Case { name: "policies_are_kept_off", run: |s| policies(s).boxed() },
        Case { name: "an_order_sent_twice_bears_one_id", run: |s| identified(s).boxed() },
    ]
}

fn rig() -> Result<RabbitRig, Failure> {
    RabbitRig::from_env().ok_or_else(|| Failure("no broker".to_owned()))
}

/// How long "0 unacknowledged" lies, and after how many new emissions it still does.
async fn statistics(stage: Stage, kind: &'static str) -> Outcome {
    let looks = (0..QUEUES).map(|number| {
        let stage = stage.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(700 * number as u64)).await;
            one_lie(stage.rig.clone(), &stage.name(&number.to_string()), kind).await
        })
    });
    let (mut longest, mut lied) = (Duration::ZERO, [0_usize; 4]);
    for look in looks.collect::<Vec<_>>() {
        let (lie, emissions) = look.await??;
        longest = longest.max(lie);
        for count in lied.iter_mut().take(emissions + 1) {
            *count += 1;
        }
    }
    ensure(lied[2] == 0, || format!("{} of {QUEUES} lied after two emissions", lied[2]))?;
    Ok(format!(
        "a lone zero lied in {} of {QUEUES}, for up to {:.1} s; after one emission {}, after two {}",
        lied[0],
        longest.as_secs_f64(),
        lied[1],
        lied[2]
    ))
}

/// A queue known as empty gets messages, delivered at once and kept unacknowledged: for how long,
/// and for how many emissions, do the statistics still say that there are none?
async fn one_lie(rig: Arc<dyn Rig>, queue: &str, kind: &str) -> Result<(Duration, usize), Failure> {
    let raw = self::rig()?;
    rig.remove(&[queue], &[]).await?;
    let kind = if kind == "quorum" { QueueType::Quorum } else { QueueType::Classic };
    rig.declare_queue(queue, &kind).await?;
    let path = format!("queues/%2f/{queue}?columns=reductions,messages_unacknowledged");
    let read = async || -> Result<Option<(u64, u64)>, Failure> {
        let figures: Value = raw.management(&path).await?;
        let figure = |key| figures.get(key).and_then(Value::as_u64);
        Ok(figure("reductions").zip(figure("messages_unacknowledged")))
    };
    let session = rig.connector().open(&rig.target(), queue).await?;
    let mut consumer = rig.consumer(queue, 10).await?;
    let known = async || {
        session.counts(queue).await?;
        Ok(read().await?.is_some_and(|(_, unacknowledged)| unacknowledged == 0))
    };
    eventually("the queue has statistics", known).await?;
    let mut publisher = rig.publisher("", queue, true).await?;
    for sequence in 1..=5 {
        publisher.publish(format!("1:{sequence}").as_bytes()).await?;
        consumer.next().await?;
    }
    let begun = Instant::now();
    let (mut last, mut emissions, mut lie) = (None, 0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(20) {
        session.counts(queue).await?;
        if let Some((reductions, unacknowledged)) = read().await? {
            if last.is_some_and(|last| last != reductions) {
                emissions += 1;
            }
            last = Some(reductions);
            if unacknowledged == 5 {
                // This emission told the truth.
                emissions -= usize::from(emissions > 0);
                break;
            }
            lie = begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    consumer.close().await;
    session.close().await;
    rig.remove(&[queue], &[]).await?;
    Ok((lie, emissions))
}

/// Messages that reach a queue after its unbind was acknowledged, from publishers who don't wait
/// for confirms. How long they trail depends on the machine and is only measured; that the unbind
/// is nevertheless one point in each publisher's sequence is what the protocol relies on. Nothing is
/// asked of the management API, which a flood on a slow machine keeps silent.
pub async fn trailing(rig: RabbitRig, stage: Stage) -> Outcome {
    let (exchange, queue) = (stage.name("exchange"), stage.name("queue"));
    stage.rig.remove(&[&queue], &[&exchange]).await?;
    stage.rig.declare_exchange(&exchange, "fanout").await?;
    stage.rig.declare_queue(&queue, &QueueType::Classic).await?;
    let session = stage.session("trailing").await?;
    let (connection, channel) = rig.connect().await?;
    let (mut most, mut longest, mut widest) = (0, Duration::ZERO, Duration::ZERO);
    let mut heads = BTreeMap::new();
    for round in 0..3 {
        let binding = Binding::plain(&exchange);
        rig.bind(&queue, &binding).await?;
        let to = (exchange.as_str(), "");
        let load =
            Load::start(&stage.rig, to, round * 8..round * 8 + 8, false, Duration::ZERO).await?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let of = (queue.as_str().into(), exchange.as_str().into(), "".into());
        channel.queue_unbind(of.0, of.1, of.2, FieldTable::default()).await?;
        let cut = Instant::now();
        let count = async || Ok::<_, Failure>(session.counts(&queue).await?.map_or(0, |c| c.ready));
        let at_cut = count().await?;
        // What the publishers have sent already is flood enough.
        load.stop().await?;
        let (mut last, mut grew) = (at_cut, Duration::ZERO);
        while cut.elapsed() < grew + SETTLE {
            let now = count().await?;
            if now != last {
                let at = cut.elapsed();
                (last, widest, grew) = (now, widest.max(at.saturating_sub(grew)), at);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (most, longest) = (most.max(last - at_cut), longest.max(grew));
        gapless(&stage, &queue, &mut heads).await?;
    }
    session.close().await;
    drop((connection, channel));
    stage.rig.remove(&[&queue], &[&exchange]).await?;
    Ok(format!(
        "deliveries trail an unbind: up to {most} messages, for up to {} ms, pauses up to {} ms; \
         of each publisher the first ones without a gap",
        longest.as_millis(),
        widest.as_millis()
    ))
}

/// Takes all there is out of `queue`: of each publisher the next after its head, without a gap.
async fn gapless(
    stage: &Stage,
    queue: &str,
    heads: &mut BTreeMap<String, u64>,
) -> Result<(), Failure> {
    const QUIET: Duration = Duration::from_secs(1);
    let mut consumer = stage.rig.consumer(queue, 500).await?;
    let mut taken = None;
    while let Ok(next) = tokio::time::timeout(QUIET, consumer.next()).await {
        let Some(message) = next? else { break };
        let text = String::from_utf8(message.payload)?;
        let (publisher, sequence) =
            text.split_once(':').ok_or_else(|| Failure(format!("a stranger: {text:?}")))?;
        let before = heads.entry(publisher.to_owned()).or_default();
        let sequence: u64 = sequence.parse()?;
        ensure(sequence == *before + 1, || format!("{sequence} of {publisher} after {before}"))?;
        *before = sequence;
        taken = Some(message.tag);
        if message.tag % 200 == 0 {
            consumer.ack(message.tag, true).await?;
            taken = None;
        }
    }
    if let Some(tag) = taken {
        consumer.ack(tag, true).await?;
    }
    consumer.close().await;
    ensure(!heads.is_empty(), || "the flood did not reach the queue".to_owned())
}

/// A quorum queue can't be deleted "if unused".
async fn if_unused(stage: Stage) -> Outcome {
    let queue = stage.name("queue");
    stage.rig.declare_queue(&queue, &QueueType::Quorum).await?;
    let (_connection, channel) = rig()?.connect().await?;
    let options = QueueDeleteOptions { if_unused: true, ..Default::default() };
    let answer = channel.queue_delete(queue.as_str().into(), options).await;
    let text = answer.map_or_else(|error| error.to_string(), |count| count.to_string());
    stage.rig.remove(&[&queue], &[]).await?;
    ensure(text.contains("NOT_IMPLEMENTED"), || format!("the answer is {text}"))?;
    Ok("540 NOT_IMPLEMENTED".to_owned())
}

/// Returned messages go to the head of a quorum queue if it has a delivery limit, else to its end.
async fn returns(stage: Stage) -> Outcome {
    let mut orders = Vec::new();
    for limit in [i32::MAX, -1] {
        let queue = stage.name(&limit.to_string());
        stage.rig.remove(&[&queue], &[]).await?;
        let (_connection, channel) = rig()?.connect().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        let mut publisher = stage.rig.publisher("", &queue, true).await?;
        for sequence in 1..=6 {
            publisher.publish(format!("1:{sequence}").as_bytes()).await?;
        }
        // Two are taken and returned while the others wait.
        let mut taken = Vec::new();
        for _ in 0..2 {
            let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
            taken.extend(got.map(|got| got.delivery.delivery_tag));
        }
        let options = BasicNackOptions { multiple: true, requeue: true };
        channel.basic_nack(taken[1], options).await?;
        let all = async || {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let found = channel
                .queue_declare(queue.as_str().into(), options, FieldTable::default())
                .await?;
            Ok(found.message_count() == 6)
        };
        eventually("both are back", all).await?;
        let mut order = String::new();
        while let Some(got) =
            channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?
        {
            order.push(char::from(*got.delivery.data.last().unwrap_or(&b'?')));
        }
        stage.rig.remove(&[&queue], &[]).await?;
        orders.push(order);
    }
    ensure(orders[0] == "123456", || format!("with a limit the order is {}", orders[0]))?;
    Ok(format!("with a limit {}, without {}", orders[0], orders[1]))
}

/// A user's policy that matches a side queue is displaced, and ours goes with the queue.
async fn policies(stage: Stage) -> Outcome {
    let queue = stage.name("side.1");
    stage.rig.remove(&[&queue], &[]).await?;
    let raw = rig()?;
    let body = serde_json::json!({
        "pattern": format!("^{}", stage.name("side")), "apply-to": "queues", "priority": 40,
        "definition": { "message-ttl": 1, "max-length": 1 },
    });
    let policy = format!("policies/%2f/{}", stage.name("policy"));
    raw.write(&policy, Some(&body)).await?;
    let session = stage.session("policies").await?;
    session.apply(&Topology::DeclareSideQueue { name: queue.clone() }).await?;
    session.apply(&Topology::DeclareSideQueue { name: queue.clone() }).await?;
    let mut publisher = stage.rig.publisher("", &queue, true).await?;
    for sequence in 1..=5 {
        publisher.publish(format!("1:{sequence}").as_bytes()).await?;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ready = session.counts(&queue).await?.map(|counts| counts.ready);
    ensure(ready == Some(5), || format!("{ready:?} of 5 messages survive a user's policy"))?;
    session.apply(&Topology::DeleteQueue { name: queue.clone() }).await?;
    let left = raw.management("policies/%2f").await?;
    let ours = format!("ms2m.{queue}");
    let ours_left = left.as_array().into_iter().flatten().any(|p| p["name"] == ours.as_str());
    ensure(!ours_left, || "our policy was left behind".to_owned())?;
    raw.write(&policy, None).await?;
    session.close().await;
    Ok("a TTL of 1 ms and a length of 1 did not reach the side queue".to_owned())
}

/// A successor repeats what its predecessor may have done: the application can tell.
async fn identified(stage: Stage) -> Outcome {
    let pod = stage.name("pod");
    let queue = control_queue(&pod);
    stage.rig.remove(&[&queue], &[]).await?;
    stage.rig.declare_queue(&queue, &QueueType::Classic).await?;
    let order = Order::new(&pod, Control::EndReplay);
    for _ in 0..2 {
        let session = stage.session("identified").await?;
        session.order(&order, &order_id()).await?;
        session.close().await;
    }
    let (_connection, channel) = rig()?.connect().await?;
    let mut ids = Vec::new();
    while let Some(got) =
        channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await?
    {
        ids.push(got.delivery.properties.message_id().clone().map(|id| id.to_string()));
    }
    stage.rig.remove(&[&queue], &[]).await?;
    let expected = Some(order_id().to_string());
    ensure(ids == [expected.clone(), expected], || format!("the message IDs are {ids:?}"))?;
    Ok("in two sessions".to_owned())
}
