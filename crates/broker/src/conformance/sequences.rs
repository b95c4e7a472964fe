//! Whole migrations at the broker's level: real load, copies of the application as tasks.

use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::{Counts, QueueType, Topology};
use tokio::time::Instant;

use super::plant::{Feed, KEY, Plant};
use super::{Application, Case, Failure, Habits, Ledger, Load, Outcome, Stage, ensure, eventually};

const PUBLISHERS: u32 = 4;
/// Between two messages of one publisher.
const PAUSE: Duration = Duration::from_millis(6);
/// Work per message.
const SERVICE: Duration = Duration::from_micros(500);
/// How long the load runs before, between and after the steps.
const WHILE: Duration = Duration::from_millis(400);
/// How long the first side queue is watched for late messages.
const WATCH: Duration = Duration::from_secs(2);

pub(super) fn cases() -> Vec<Case> {
    use QueueType::{Classic, Quorum};
    vec![
        Case { name: "forward_classic", run: |s| forward(s, Classic, false).boxed() },
        Case { name: "forward_quorum", run: |s| forward(s, Quorum, false).boxed() },
        Case { name: "forward_copy_wakes_parked", run: |s| forward(s, Classic, true).boxed() },
        Case { name: "back_after_replay_classic", run: |s| back_late(s, Classic).boxed() },
        Case { name: "back_after_replay_quorum", run: |s| back_late(s, Quorum).boxed() },
        Case { name: "back_before_cut_b", run: |s| back_early(s, Quorum).boxed() },
    ]
}

/// A migration under way.
struct Run {
    plant: Plant,
    load: Load,
    source: Application,
    figures: Figures,
}

/// What was measured.
#[derive(Default)]
struct Figures {
    /// From the first look at the primary queue to the proof that it is empty.
    proof: Duration,
    /// From the order to stand still to the proof that the source holds nothing.
    parked: Duration,
}

fn habits() -> Habits {
    Habits { service: SERVICE, ..Habits::default() }
}

impl Run {
    /// Steps 1 to 3: the source lives on the first side queue, the primary queue is proved empty.
    async fn to_first_side_queue(stage: Stage, kind: &QueueType) -> Result<Self, Failure> {
        let plant = Plant::build(stage, kind, Feed::Topic).await?;
        let names = plant.names.clone();
        let rig = plant.stage.rig.clone();
        let source = Application::start(&rig, &names.primary, habits(), Ledger::default()).await?;
        let to = (plant.exchange.as_str(), KEY);
        let load = Load::start(&rig, to, 0..PUBLISHERS, true, PAUSE).await?;
        tokio::time::sleep(WHILE).await;
        plant.install().await?;
        plant.unbind_queue(&names.primary, &names.gate).await?;
        plant.until_drained(&names.primary).await?;
        source.go(&names.s1).await?;
        let proof = plant.prove_empty(&names.primary).await?;
        Ok(Self { plant, load, source, figures: Figures { proof, ..Figures::default() } })
    }

    /// Steps 4 to 7: cut B, the source is parked for its checkpoint and lives on the second side
    /// queue.
    async fn checkpoint(&mut self) -> Result<Ledger, Failure> {
        let (plant, names) = (&self.plant, &self.plant.names);
        plant.feed_both(true).await?;
        self.figures.parked = self.park(&names.s1).await?;
        let checkpoint = self.source.snapshot();
        self.source.go(&names.s2).await?;
        plant.bind_queue(&names.s2, &names.hold).await?;
        plant.unbind_queue(&names.s1, &names.hold).await?;
        tokio::time::sleep(WATCH).await;
        let ready = plant.counts(&names.s1).await?.ready;
        ensure(ready == 0, || format!("{ready} late messages in the queue the source has left"))?;
        Ok(checkpoint)
    }

    /// Step 5: parks the source and proves `side` empty, again if something was late.
    async fn park(&self, side: &str) -> Result<Duration, Failure> {
        let plant = &self.plant;
        loop {
            plant.until_drained(side).await?;
            let ordered = Instant::now();
            self.source.go(&plant.names.park).await?;
            if plant.counts(side).await?.ready == 0 {
                plant.prove_empty(side).await?;
                return Ok(ordered.elapsed());
            }
            self.source.go(side).await?;
        }
    }

    /// Rolls back: feed to the primary queue, the side queue runs dry, the source returns.
    async fn return_from(self, side: &str, what: &str) -> Outcome {
        let Self { plant, load, source, figures } = self;
        let primary = &plant.names.primary;
        plant.bind_queue(primary, &plant.names.gate).await?;
        load.settle().await?;
        plant.until_drained(side).await?;
        source.go(primary).await?;
        let (on_primary, on_side) = (plant.counts(primary).await?, plant.counts(side).await?);
        ensure(on_primary.consumers == 1, || format!("the primary queue has {on_primary:?}"))?;
        ensure(on_side == Counts::default(), || format!("the side queue has {on_side:?}"))?;
        plant.remove().await?;
        finish(plant, load, source, &figures, what).await
    }
}

async fn forward(stage: Stage, kind: QueueType, wakes_parked: bool) -> Outcome {
    let mut run = Run::to_first_side_queue(stage, &kind).await?;
    let checkpoint = run.checkpoint().await?;
    let Run { plant, load, source, figures } = run;
    let first = if wakes_parked { &plant.names.park } else { &plant.names.primary };
    let target = Application::start(&plant.stage.rig, first, habits(), checkpoint).await?;
    if wakes_parked {
        tokio::time::sleep(WHILE).await;
        target.go(&plant.names.primary).await?;
    }
    plant.until_drained(&plant.names.primary).await?;
    // The commit point.
    source.die().await?;
    plant.remove().await?;
    finish(plant, load, target, &figures, "the target").await
}

async fn back_late(stage: Stage, kind: QueueType) -> Outcome {
    let mut run = Run::to_first_side_queue(stage, &kind).await?;
    let checkpoint = run.checkpoint().await?;
    let (plant, names) = (&run.plant, run.plant.names.clone());
    let target = Application::start(&plant.stage.rig, &names.primary, habits(), checkpoint).await?;
    tokio::time::sleep(WHILE).await;
    target.die().await?;
    plant.feed_both(false).await?;
    run.load.settle().await?;
    plant.apply(Topology::Purge { queue: names.primary.clone() }).await?;
    run.return_from(&names.s2, "the source, after the target had consumed").await
}

async fn back_early(stage: Stage, kind: QueueType) -> Outcome {
    let run = Run::to_first_side_queue(stage, &kind).await?;
    let s1 = run.plant.names.s1.clone();
    run.return_from(&s1, "the source, before cut B").await
}

/// The end: all that was published is applied by `survivor`.
async fn finish(
    plant: Plant,
    load: Load,
    survivor: Application,
    figures: &Figures,
    what: &str,
) -> Outcome {
    tokio::time::sleep(WHILE).await;
    let published = load.stop().await?;
    let total: u64 = published.values().sum();
    eventually("the survivor applies everything", async || {
        Ok(survivor.snapshot().applied() >= total)
    })
    .await?;
    let verdict = survivor.die().await?.verdict(&published).clean()?;
    plant.clear().await?;
    Ok(format!(
        "{what}: {} messages 0/0/0; queue proved empty in {} ms, source parked in {} ms",
        verdict.applied,
        figures.proof.as_millis(),
        figures.parked.as_millis()
    ))
}
