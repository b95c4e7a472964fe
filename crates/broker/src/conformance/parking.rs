//! Parking: an application leaves its side queue for one that is never fed; the proof that it holds
//! nothing comes after its last acknowledgement, and what comes late waits for its return.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::{Counts, Emptiness, Topology};
use tokio::time::Instant;

use super::ledger::payload;
use super::{Application, Case, Failure, Habits, Ledger, Outcome, Stage};
use super::{PATIENCE, ensure, eventually, spread};
use crate::Session;

/// Messages per round.
const MESSAGES: u64 = 60;
const ROUNDS: u64 = 12;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "parking_single_acks", run: |s| proof(s, 1).boxed() },
        Case { name: "parking_batched_acks", run: |s| proof(s, 7).boxed() },
        Case { name: "parking_late_messages", run: |s| late(s).boxed() },
    ]
}

/// A side queue with an application on it, and the queue where it is parked.
struct Side {
    stage: Stage,
    session: Box<dyn Session>,
    queue: String,
    park: String,
    application: Application,
}

impl Side {
    async fn build(stage: Stage, habits: Habits) -> Result<Self, Failure> {
        let (queue, park) = (stage.name("side"), stage.name("park"));
        stage.rig.remove(&[&queue, &park], &[]).await?;
        let session = stage.session("parking").await?;
        for name in [&queue, &park] {
            session.apply(&Topology::DeclareSideQueue { name: name.clone() }).await?;
        }
        let rig = stage.rig.clone();
        let application = Application::start(&rig, &queue, habits, Ledger::default()).await?;
        Ok(Self { stage, session, queue, park, application })
    }

    async fn publish(&self, from: u64, to: u64) -> Result<(), Failure> {
        let mut publisher = self.stage.rig.publisher("", &self.queue, true).await?;
        for sequence in from..=to {
            publisher.publish(&payload(1, sequence)).await?;
        }
        Ok(())
    }

    async fn drained(&self) -> Result<(), Failure> {
        let drained =
            async || Ok(self.session.counts(&self.queue).await?.is_some_and(|c| c.ready == 0));
        eventually("nothing is ready", drained).await.map(|_| ())
    }

    /// Asks for the proof until it comes; when it came.
    async fn proved(&self, published: u64) -> Result<Instant, Failure> {
        let begun = Instant::now();
        while self.session.emptiness(&self.queue).await? != Emptiness::Proved {
            ensure(begun.elapsed() < PATIENCE, || "no proof".to_owned())?;
        }
        let now = Instant::now();
        let applied = self.application.snapshot().applied();
        ensure(applied == published, || format!("proved with {applied} of {published} applied"))?;
        Ok(now)
    }

    async fn finish(self, published: u64) -> Result<(), Failure> {
        let applied = async || Ok(self.application.snapshot().applied() >= published);
        eventually("everything is applied", applied).await?;
        self.application.die().await?.verdict(&BTreeMap::from([(1, published)])).clean()?;
        self.session.close().await;
        self.stage.rig.remove(&[&self.queue, &self.park], &[]).await
    }
}

/// Asked for all the while the application leaves, the proof never comes before its last
/// acknowledgement, and soon after it.
async fn proof(stage: Stage, batch: u16) -> Outcome {
    let service = Duration::from_millis(2);
    let side = Side::build(stage, Habits { batch, service, ..Habits::default() }).await?;
    let mut delays = Vec::new();
    for round in 1..=ROUNDS {
        let published = round * MESSAGES;
        side.publish(published - MESSAGES + 1, published).await?;
        side.drained().await?;
        let (parked, proved) =
            tokio::join!(side.application.go(&side.park), side.proved(published));
        parked?;
        let settled = side.application.settled_at();
        delays.push(proved?.saturating_duration_since(settled));
        side.application.go(&side.queue).await?;
    }
    side.finish(ROUNDS * MESSAGES).await?;
    Ok(format!("{} proofs, {} after the last acknowledgement", delays.len(), spread(delays)))
}

/// What arrives after the application has left stays visible, forbids the proof, and is applied in
/// order when it returns.
async fn late(stage: Stage) -> Outcome {
    let side = Side::build(stage, Habits::default()).await?;
    side.publish(1, 20).await?;
    side.drained().await?;
    side.application.go(&side.park).await?;
    side.proved(20).await?;
    side.publish(21, 70).await?;
    let counts = side.session.counts(&side.queue).await?;
    let all = Some(Counts { ready: 50, consumers: 0 });
    ensure(counts == all, || format!("{counts:?} in the queue that was left, not {all:?}"))?;
    let emptiness = side.session.emptiness(&side.queue).await?;
    ensure(emptiness == Emptiness::Unproved, || "proved with 50 messages ready".to_owned())?;
    let applied = side.application.snapshot().applied();
    ensure(applied == 20, || format!("{applied} applied while parked instead of 20"))?;
    side.application.go(&side.queue).await?;
    side.finish(70).await?;
    Ok("50 late messages stayed visible, then were applied in order".to_owned())
}
