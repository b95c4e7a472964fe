//! The proof that a queue which is not ours holds nothing is never premature.

use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::{Emptiness, QueueType};
use tokio::time::Instant;

use super::ledger::payload;
use super::{Case, Failure, Outcome, PATIENCE, Stage, ensure, eventually, spread};
use crate::Session;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "emptiness_classic", run: |s| emptiness(s, QueueType::Classic).boxed() },
        Case { name: "emptiness_quorum", run: |s| emptiness(s, QueueType::Quorum).boxed() },
        Case { name: "quiet_classic", run: |s| quiet(s, QueueType::Classic).boxed() },
        Case { name: "quiet_quorum", run: |s| quiet(s, QueueType::Quorum).boxed() },
        Case { name: "quiet_beside_classic", run: |s| beside(s, QueueType::Classic).boxed() },
        Case { name: "quiet_beside_quorum", run: |s| beside(s, QueueType::Quorum).boxed() },
    ]
}

/// Unacknowledged messages at the moment of the cancel, and how they are acknowledged.
const ROUNDS: [(u64, bool); 8] =
    [(1, false), (10, false), (10, true), (3, true), (1, true), (7, false), (10, true), (2, false)];

/// A consumer stops while it holds messages, as on `START_REPLAY`, and acknowledges them after a
/// while: not proved before, proved soon after.
async fn emptiness(stage: Stage, kind: QueueType) -> Outcome {
    let queue = stage.name("queue");
    stage.rig.remove(&[&queue], &[]).await?;
    stage.rig.declare_queue(&queue, &kind).await?;
    let session = stage.session("emptiness").await?;
    let mut publisher = stage.rig.publisher("", &queue, true).await?;
    let mut delays = Vec::new();
    for (round, (held, at_once)) in ROUNDS.into_iter().enumerate() {
        for sequence in 1..=held {
            publisher.publish(&payload(1, sequence)).await?;
        }
        unproved(session.as_ref(), &queue, Duration::ZERO).await?;
        let mut consumer = stage.rig.consumer(&queue, 20).await?;
        let mut tags = Vec::new();
        while (tags.len() as u64) < held {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await??;
            tags.extend(next.map(|message| message.tag));
        }
        consumer.cancel().await?;
        let watched = Duration::from_millis(150 * (round as u64 % 4));
        unproved(session.as_ref(), &queue, watched).await?;
        if at_once {
            consumer.ack(tags[tags.len() - 1], true).await?;
        } else {
            for tag in tags {
                unproved(session.as_ref(), &queue, Duration::ZERO).await?;
                consumer.ack(tag, false).await?;
            }
        }
        let acknowledged = Instant::now();
        let proved = async || Ok(session.emptiness(&queue).await? == Emptiness::Proved);
        eventually("the queue is proved empty", proved).await?;
        delays.push(acknowledged.elapsed());
        consumer.close().await;
    }
    returned(&stage, session.as_ref(), &queue).await?;
    session.close().await;
    stage.rig.remove(&[&queue], &[]).await?;
    Ok(format!("{} proofs, {} after the last acknowledgement", delays.len(), spread(delays)))
}

/// A consumer stops in the middle of a backlog: not proved before its last acknowledgement, proved
/// soon after, however many messages wait.
async fn quiet(stage: Stage, kind: QueueType) -> Outcome {
    const BACKLOG: u64 = 40;
    const HELD: u64 = 10;
    let queue = stage.name("queue");
    stage.rig.remove(&[&queue], &[]).await?;
    stage.rig.declare_queue(&queue, &kind).await?;
    let session = stage.session("quiet").await?;
    let mut publisher = stage.rig.publisher("", &queue, true).await?;
    for sequence in 1..=BACKLOG {
        publisher.publish(&payload(1, sequence)).await?;
    }
    let loud = async || {
        let quiet = session.quiet(&queue, 0).await?;
        ensure(quiet == Emptiness::Unproved, || "proved though a message is held".to_owned())
    };
    let mut delays = Vec::new();
    for round in 1..=BACKLOG / HELD {
        let prefetch = u16::try_from(HELD)?;
        let mut consumer = stage.rig.consumer(&queue, prefetch).await?;
        let mut tags = Vec::new();
        while (tags.len() as u64) < HELD {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await??;
            tags.extend(next.map(|message| message.tag));
        }
        consumer.cancel().await?;
        loud().await?;
        for tag in tags {
            loud().await?;
            consumer.ack(tag, false).await?;
        }
        let acknowledged = Instant::now();
        let proved = async || Ok(session.quiet(&queue, 0).await? == Emptiness::Proved);
        eventually("nothing is held", proved).await?;
        delays.push(acknowledged.elapsed());
        let left = session.counts(&queue).await?.map(|counts| counts.ready);
        ensure(left == Some(BACKLOG - round * HELD), || format!("{left:?} messages wait"))?;
        consumer.close().await;
    }
    session.close().await;
    stage.rig.remove(&[&queue], &[]).await?;
    Ok(format!("{} proofs, {} after the last acknowledgement", delays.len(), spread(delays)))
}

/// A consumer leaves a queue that another one goes on consuming: the same, and its address is not among
/// the consumers' any more.
async fn beside(stage: Stage, kind: QueueType) -> Outcome {
    const HELD: u16 = 5;
    const ROUNDS: u32 = 4;
    let queue = stage.name("queue");
    stage.rig.remove(&[&queue], &[]).await?;
    stage.rig.declare_queue(&queue, &kind).await?;
    let session = stage.session("beside").await?;
    let mut publisher = stage.rig.publisher("", &queue, true).await?;
    let mut delays = Vec::new();
    for _ in 0..ROUNDS {
        for sequence in 1..=u64::from(HELD) {
            publisher.publish(&payload(1, sequence)).await?;
        }
        let mut leaving = stage.rig.consumer(&queue, HELD).await?;
        let mut tags = Vec::new();
        while tags.len() < usize::from(HELD) {
            let next = tokio::time::timeout(PATIENCE, leaving.next()).await??;
            tags.extend(next.map(|message| message.tag));
        }
        let mut stays = stage.rig.consumer(&queue, 1).await?;
        leaving.cancel().await?;
        let quiet = async || Ok(session.quiet(&queue, 1).await? == Emptiness::Proved);
        for tag in tags {
            ensure(!quiet().await?, || "proved though a message is held".to_owned())?;
            leaving.ack(tag, false).await?;
        }
        let acknowledged = Instant::now();
        eventually("nothing is held by who has left", quiet).await?;
        delays.push(acknowledged.elapsed());
        let alone = async || Ok(session.consumers(&queue).await?.len() == 1);
        eventually("one consumer is named", alone).await?;
        leaving.close().await;
        stays.close().await;
    }
    session.close().await;
    stage.rig.remove(&[&queue], &[]).await?;
    Ok(format!("{} proofs, {} after the last acknowledgement", delays.len(), spread(delays)))
}

/// A consumer that dies gives back what it holds: never proved.
async fn returned(stage: &Stage, session: &dyn Session, queue: &str) -> Result<(), Failure> {
    let mut publisher = stage.rig.publisher("", queue, true).await?;
    publisher.publish(&payload(1, 1)).await?;
    let mut consumer = stage.rig.consumer(queue, 1).await?;
    tokio::time::timeout(PATIENCE, consumer.next()).await??;
    consumer.close().await;
    unproved(session, queue, Duration::from_millis(300)).await
}

async fn unproved(session: &dyn Session, queue: &str, watched: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let emptiness = session.emptiness(queue).await?;
        ensure(emptiness == Emptiness::Unproved, || {
            format!("proved {} ms after, though a message is there", begun.elapsed().as_millis())
        })?;
        if begun.elapsed() >= watched {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
