//! The barrier: closes a queue, proves that nothing is unacknowledged, puts back what came late.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Barrier;
use futures::FutureExt as _;
use shadow_protocol::broker::Topology;

use super::ledger::payload;
use super::{
    Application, Case, Failure, Habits, Ledger, Load, Outcome, PATIENCE, Stage, ensure, eventually,
};
use crate::Session;

/// Messages per round.
const MESSAGES: u64 = 60;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "barrier_proof_single_acks", run: |s| proof(s, 1).boxed() },
        Case { name: "barrier_proof_batched_acks", run: |s| proof(s, 7).boxed() },
        Case { name: "barrier_idle_application", run: |s| idle(s).boxed() },
        Case { name: "barrier_late_messages", run: |s| late(s).boxed() },
        Case { name: "barrier_under_load", run: |s| under_load(s).boxed() },
    ]
}

/// A side queue with an application on it.
struct Side {
    stage: Stage,
    session: Box<dyn Session>,
    queue: String,
    application: Application,
}

impl Side {
    async fn build(stage: Stage, habits: Habits) -> Result<Self, Failure> {
        let queue = stage.name("side");
        stage.rig.remove(&[&queue], &[]).await?;
        let session = stage.session("barrier").await?;
        session.apply(&Topology::DeclareSideQueue { name: queue.clone() }).await?;
        let rig = stage.rig.clone();
        let application = Application::start(&rig, &queue, habits, Ledger::default()).await?;
        Ok(Self { stage, session, queue, application })
    }

    async fn publish(&self, from: u64, to: u64) -> Result<(), Failure> {
        let mut publisher = self.stage.rig.publisher("", &self.queue, true).await?;
        for sequence in from..=to {
            publisher.publish(&payload(1, sequence)).await?;
        }
        Ok(())
    }

    async fn raise(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let patience = Duration::from_millis(100);
        while self.session.raise_barrier(&self.queue, patience).await? != Barrier::Proved {
            ensure(begun.elapsed() < PATIENCE, || "no proof".to_owned())?;
        }
        Ok(())
    }

    async fn finish(self, published: u64) -> Result<(), Failure> {
        let applied = async || Ok(self.application.snapshot().applied() >= published);
        eventually("everything is applied", applied).await?;
        let verdict = self.application.die().await?.verdict(&BTreeMap::from([(1, published)]));
        verdict.clean()?;
        self.session.close().await;
        self.stage.rig.remove(&[&self.queue], &[]).await
    }
}

/// The proof comes after the last acknowledgement, and soon.
async fn proof(stage: Stage, batch: u16) -> Outcome {
    let service = Duration::from_millis(2);
    let side = Side::build(stage, Habits { batch, service, ..Habits::default() }).await?;
    let mut delays = Vec::new();
    let mut published = 0;
    for _ in 0..12 {
        side.publish(published + 1, published + MESSAGES).await?;
        published += MESSAGES;
        side.raise().await?;
        let now = Instant::now();
        let applied = side.application.snapshot().applied();
        ensure(applied == published, || format!("proved with {applied} of {published} applied"))?;
        delays.push(now.saturating_duration_since(side.application.settled_at()));
        side.session.lower_barrier(&side.queue).await?;
    }
    side.finish(published).await?;
    Ok(format!("{} proofs, {} after the last acknowledgement", delays.len(), spread(delays)))
}

/// With nothing unacknowledged the proof takes one round trip.
async fn idle(stage: Stage) -> Outcome {
    let side = Side::build(stage, Habits::default()).await?;
    side.publish(1, 10).await?;
    let applied = async || Ok(side.application.snapshot().applied() == 10);
    eventually("the application is idle", applied).await?;
    let mut delays = Vec::new();
    for _ in 0..25 {
        let begun = Instant::now();
        side.raise().await?;
        delays.push(begun.elapsed());
        side.session.lower_barrier(&side.queue).await?;
    }
    side.finish(10).await?;
    Ok(format!("{} barriers, {} from call to proof", delays.len(), spread(delays)))
}

/// What arrives behind the barrier stays there, is noticed, and goes on in order afterwards.
async fn late(stage: Stage) -> Outcome {
    let side = Side::build(stage, Habits::default()).await?;
    side.publish(1, 20).await?;
    side.raise().await?;
    side.publish(21, 70).await?;
    let noticed = async || Ok(side.session.barrier(&side.queue) == Barrier::Late);
    eventually("late messages are noticed", noticed).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let applied = side.application.snapshot().applied();
    ensure(applied == 20, || format!("{applied} applied behind the barrier instead of 20"))?;
    let ready = side.session.counts(&side.queue).await?.map(|counts| counts.ready);
    ensure(ready == Some(49), || format!("{ready:?} ready behind the barrier instead of 49"))?;
    side.session.lower_barrier(&side.queue).await?;
    side.finish(70).await?;
    Ok("50 late messages kept back, then applied in order".to_owned())
}

/// Raised and lowered while messages keep coming: nothing lost, duplicated or reordered.
async fn under_load(stage: Stage) -> Outcome {
    let side = Side::build(stage, Habits::default()).await?;
    let to = ("", side.queue.as_str());
    let load = Load::start(&side.stage.rig, to, 1..3, true, Duration::from_millis(2)).await?;
    let mut proved = 0;
    for _ in 0..25 {
        let patience = Duration::from_millis(30);
        if side.session.raise_barrier(&side.queue, patience).await? != Barrier::Raised {
            proved += 1;
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
        side.session.lower_barrier(&side.queue).await?;
    }
    let published = load.stop().await?;
    let total: u64 = published.values().sum();
    let applied = async || Ok(side.application.snapshot().applied() >= total);
    eventually("everything is applied", applied).await?;
    side.application.die().await?.verdict(&published).clean()?;
    side.session.close().await;
    side.stage.rig.remove(&[&side.queue], &[]).await?;
    Ok(format!("25 barriers ({proved} proved) amid {total} messages: 0/0/0"))
}

/// Shortest, median and longest.
pub(super) fn spread(mut delays: Vec<Duration>) -> String {
    delays.sort();
    let ms = |delay: Option<&Duration>| delay.map_or(0.0, |d| d.as_secs_f64() * 1e3);
    format!(
        "{:.1}/{:.1}/{:.1} ms (min/median/max)",
        ms(delays.first()),
        ms(delays.get(delays.len() / 2)),
        ms(delays.last())
    )
}
