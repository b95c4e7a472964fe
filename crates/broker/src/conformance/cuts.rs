//! A cut is one operation, and each message is on one side of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::QueueType;

use super::plant::{Feed, KEY, Plant};
use super::{Case, Failure, Ledger, Load, Outcome, PATIENCE, Rig, Stage, ensure};

/// Between two cuts.
const TOGGLE_PAUSE: Duration = Duration::from_millis(25);

pub(super) fn cases() -> Vec<Case> {
    use Feed::{Fanout, Topic};
    use QueueType::{Classic, Quorum};
    vec![
        Case { name: "routes_once", run: |stage| routes_once(stage).boxed() },
        Case { name: "cut_a_classic_fanout", run: |s| cut_a(s, Classic, Fanout, 4, 40).boxed() },
        Case { name: "cut_a_quorum_topic", run: |s| cut_a(s, Quorum, Topic, 12, 20).boxed() },
        Case { name: "cut_b_classic_topic", run: |s| cut_b(s, Classic, Topic, 12, 20).boxed() },
        Case { name: "cut_b_quorum_fanout", run: |s| cut_b(s, Quorum, Fanout, 4, 40).boxed() },
    ]
}

/// A message reaches a queue once, however many routes lead there.
async fn routes_once(stage: Stage) -> Outcome {
    let plant = Plant::build(stage, &QueueType::Classic, Feed::Topic).await?;
    plant.install().await?;
    plant.feed_both(true).await?;
    for binding in &plant.bindings {
        plant.stage.rig.bind(&plant.names.primary, binding).await?;
    }
    let mut publisher = plant.stage.rig.publisher(&plant.exchange, KEY, true).await?;
    for sequence in 1..=100 {
        publisher.publish(&super::ledger::payload(1, sequence)).await?;
    }
    let content = drain(&plant.stage.rig, &plant.names.primary, 100).await?;
    ensure(content.len() == 100, || format!("{} messages instead of 100", content.len()))?;
    let more = plant.counts(&plant.names.primary).await?.ready;
    ensure(more == 0, || format!("{more} messages too many"))?;
    plant.clear().await?;
    Ok("4 routes, 100 messages, each once".to_owned())
}

/// Cut A: bind or unbind the primary queue and the gate, over and over, under load. Each message
/// is in the primary queue or in the first side queue, and each toggle is one point in each
/// publisher's sequence.
async fn cut_a(
    stage: Stage,
    kind: QueueType,
    feed: Feed,
    publishers: u32,
    toggles: usize,
) -> Outcome {
    let plant = Plant::build(stage, &kind, feed).await?;
    plant.install().await?;
    let load = start_load(&plant, publishers).await?;
    for toggle in 0..toggles {
        tokio::time::sleep(TOGGLE_PAUSE).await;
        if toggle % 2 == 0 {
            plant.unbind_queue(&plant.names.primary, &plant.names.gate).await?;
        } else {
            plant.bind_queue(&plant.names.primary, &plant.names.gate).await?;
        }
    }
    let published = load.stop().await?;
    let total: u64 = published.values().sum();
    let on_primary = ordered(&plant, &plant.names.primary).await?;
    let on_side = ordered(&plant, &plant.names.s1).await?;
    check_partition(&published, &on_primary, &on_side, toggles)?;
    plant.clear().await?;
    Ok(format!("{publishers} publishers, {toggles} toggles, {total} messages: 0/0/0"))
}

/// Cut B: bind or unbind both and the gate. Each message is in the first side queue, or in the
/// primary and the second side queue.
async fn cut_b(
    stage: Stage,
    kind: QueueType,
    feed: Feed,
    publishers: u32,
    toggles: usize,
) -> Outcome {
    let plant = Plant::build(stage, &kind, feed).await?;
    plant.install().await?;
    plant.unbind_queue(&plant.names.primary, &plant.names.gate).await?;
    let load = start_load(&plant, publishers).await?;
    for toggle in 0..toggles {
        tokio::time::sleep(TOGGLE_PAUSE).await;
        plant.feed_both(toggle % 2 == 0).await?;
    }
    let published = load.stop().await?;
    let total: u64 = published.values().sum();
    let on_side = ordered(&plant, &plant.names.s1).await?;
    let on_primary = ordered(&plant, &plant.names.primary).await?;
    let on_second = ordered(&plant, &plant.names.s2).await?;
    check_partition(&published, &on_side, &on_primary, toggles)?;
    ensure(on_primary == on_second, || "the two fed queues differ".to_owned())?;
    plant.clear().await?;
    Ok(format!("{publishers} publishers, {toggles} toggles, {total} messages: 0/0/0"))
}

async fn start_load(plant: &Plant, publishers: u32) -> Result<Load, Failure> {
    let to = (plant.exchange.as_str(), KEY);
    Load::start(&plant.stage.rig, to, 0..publishers, true, Duration::ZERO).await
}

/// Sequence numbers per publisher.
type Sequences = BTreeMap<u32, Vec<u64>>;

/// The content of `queue`, in order.
async fn ordered(plant: &Plant, queue: &str) -> Result<Sequences, Failure> {
    let ready = plant.counts(queue).await?.ready;
    let mut sequences = Sequences::new();
    for payload in drain(&plant.stage.rig, queue, ready).await? {
        let text = String::from_utf8(payload)?;
        let parts = text.split_once(':').ok_or_else(|| Failure(format!("not ours: {text}")))?;
        sequences.entry(parts.0.parse()?).or_default().push(parts.1.parse()?);
    }
    Ok(sequences)
}

/// Takes `count` messages out of `queue`.
pub(super) async fn drain(
    rig: &Arc<dyn Rig>,
    queue: &str,
    count: u64,
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut consumer = rig.consumer(queue, 200).await?;
    let mut content = Vec::new();
    while (content.len() as u64) < count {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await?;
        let Some(message) = next? else { break };
        consumer.ack(message.tag, false).await?;
        content.push(message.payload);
    }
    consumer.close().await;
    Ok(content)
}

/// Every message on exactly one side, in order on each, and at most `toggles` changes of side per
/// publisher.
fn check_partition(
    published: &BTreeMap<u32, u64>,
    left: &Sequences,
    right: &Sequences,
    toggles: usize,
) -> Result<(), Failure> {
    let mut all = Ledger::default();
    for (&publisher, &count) in published {
        let none = Vec::new();
        let (left, right) =
            (left.get(&publisher).unwrap_or(&none), right.get(&publisher).unwrap_or(&none));
        for side in [left, right] {
            ensure(side.is_sorted(), || format!("out of order for publisher {publisher}"))?;
        }
        let mut sides: Vec<(u64, bool)> = left.iter().map(|&s| (s, false)).collect();
        sides.extend(right.iter().map(|&s| (s, true)));
        sides.sort_unstable();
        for (sequence, _) in &sides {
            all.apply(&super::ledger::payload(publisher, *sequence));
        }
        let changes = sides.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
        ensure(changes <= toggles, || {
            format!("publisher {publisher}: {changes} changes of side by {toggles} cuts")
        })?;
        ensure(count > 0, || format!("publisher {publisher} published nothing"))?;
    }
    all.verdict(published).clean().map(|_| ())
}
