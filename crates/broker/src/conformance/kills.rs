//! An operator that dies at any moment of parking leaves a source that waits: its successor deposes
//! it, does the step again and goes on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use shadow_protocol::broker::{Order, QueueType, Topology};
use shadow_protocol::control::{Control, Role};
use shadow_protocol::names::control_queue;

use super::plant::{Feed, KEY, Plant};
use super::{
    Application, Case, Consumer, Failure, Habits, Ledger, Line, Load, Outcome, Rig, Stage,
};
use super::{ensure, eventually, order_id};

pub(super) fn cases() -> Vec<Case> {
    vec![Case { name: "killed_while_parking", run: |s| killed(s).boxed() }]
}

/// Times the source is parked for a checkpoint, and once more to come back.
const ROUNDS: u32 = 8;
const PUBLISHERS: u32 = 3;
/// Between two messages of one publisher.
const PAUSE: Duration = Duration::from_millis(4);
/// An operator dies at most so many microseconds after the moment chosen.
const SPREAD: u32 = 4_000;

/// How far parking has come when the operator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Drained,
    Ordered,
    Left,
    Proved,
}

const MOMENTS: [Moment; 4] = [Moment::Drained, Moment::Ordered, Moment::Left, Moment::Proved];

/// When to die.
struct Doom {
    at: Moment,
    after: Duration,
}

/// The operator at work, and the line its session hangs on.
struct Operator {
    plant: Plant,
    line: Line,
    pod: String,
    kills: u32,
    /// Of which parking was not finished.
    interrupted: u32,
    random: u32,
}

impl Operator {
    fn doom(&mut self) -> Doom {
        let at = MOMENTS[self.kills as usize % MOMENTS.len()];
        // Knuth's generator: any spread will do.
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.kills += 1;
        let after = Duration::from_micros(u64::from((self.random >> 8) % SPREAD));
        Doom { at, after }
    }

    /// A successor takes over: it deposes whoever holds the lock.
    async fn succeed(&mut self) -> Result<(), Failure> {
        let stage = &self.plant.stage;
        self.line = stage.rig.line().await?;
        self.plant.session = stage.session_at(&self.line.target, "plant").await?;
        Ok(self.plant.session.lock(&self.plant.names.lock).await?)
    }

    async fn send(&self, queue: &str) -> Result<(), Failure> {
        let control = Control::StartReplay { queue: queue.to_owned(), role: Role::Source };
        let order = Order::new(&self.pod, control);
        Ok(self.plant.session.order(&order, &order_id()).await?)
    }

    /// Sends the source to `queue` and waits until it is there.
    async fn send_on(&self, queue: &str) -> Result<(), Failure> {
        self.send(queue).await?;
        let there = async || Ok(self.plant.counts(queue).await?.consumers == 1);
        eventually("the source has arrived", there).await.map(|_| ())
    }

    /// Step 5: the source is sent from `side` to the parking queue, `side` is proved empty.
    async fn park(&self, side: &str, doom: Option<&Doom>) -> Result<(), Failure> {
        let plant = &self.plant;
        let reached = |moment| {
            if let Some(doom) = doom.filter(|doom| doom.at == moment) {
                let (cut, after) = (self.line.cut.clone(), doom.after);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    cut.cancel();
                });
            }
        };
        plant.until_drained(side).await?;
        reached(Moment::Drained);
        if plant.counts(side).await?.consumers > 0 {
            self.send(&plant.names.park).await?;
        }
        reached(Moment::Ordered);
        let left = async || Ok(plant.counts(side).await?.consumers == 0);
        eventually("the source has left", left).await?;
        reached(Moment::Left);
        plant.prove_empty(side).await?;
        reached(Moment::Proved);
        Ok(())
    }

    /// Parks while the operator dies, then once more by its successor.
    async fn park_and_die(&mut self, side: &str) -> Result<(), Failure> {
        let doom = self.doom();
        if self.park(side, Some(&doom)).await.is_err() {
            self.interrupted += 1;
            // It failed because it is dead, and for no other reason.
            self.line.cut.cancelled().await;
        }
        self.line.cut.cancel();
        self.succeed().await?;
        self.park(side, None).await
    }
}

/// Obeys the orders in `control`; ends only in failure.
async fn obey(
    source: &Application,
    control: &mut dyn Consumer,
    obeyed: &AtomicU32,
) -> Result<Infallible, Failure> {
    while let Some(message) = control.next().await? {
        let order: Control = serde_json::from_slice(&message.payload)?;
        let Control::StartReplay { queue, role: Role::Source } = order else {
            return Err(Failure(format!("not for the source: {order:?}")));
        };
        source.go(&queue).await?;
        control.ack(message.tag, false).await?;
        obeyed.fetch_add(1, Ordering::Relaxed);
    }
    Err(Failure("the control queue has gone".to_owned()))
}

/// The checkpoint is taken `ROUNDS` times. Each time two operators die: one as it parks the source
/// for the checkpoint, one as it parks it to bring it back to the first side queue. At the end the
/// last checkpoint becomes a target, and both copies must have applied everything.
async fn killed(stage: Stage) -> Outcome {
    let seed = std::time::UNIX_EPOCH.elapsed()?.subsec_nanos();
    let plant = Plant::build(stage, &QueueType::Classic, Feed::Topic).await?;
    let rig = plant.stage.rig.clone();
    let pod = plant.stage.name("pod");
    let control_name = control_queue(&pod);
    rig.remove(&[&control_name], &[]).await?;
    rig.declare_queue(&control_name, &QueueType::Classic).await?;
    let mut control = rig.consumer(&control_name, 1).await?;
    plant.install().await?;
    plant.unbind_queue(&plant.names.primary, &plant.names.gate).await?;
    let habits = Habits { service: Duration::from_micros(500), batch: 3, ..Habits::default() };
    let source = Application::start(&rig, &plant.names.s1, habits, Ledger::default()).await?;
    let to = (plant.exchange.as_str(), KEY);
    let load = Load::start(&rig, to, 0..PUBLISHERS, true, PAUSE).await?;
    let line = rig.line().await?;
    let mut operator = Operator { plant, line, pod, kills: 0, interrupted: 0, random: seed };
    let obeyed = AtomicU32::new(0);
    let checkpoint = tokio::select! {
        ended = obey(&source, control.as_mut(), &obeyed) => ended.map(|never| match never {}),
        checkpoint = rounds(&mut operator, &source, &load) => checkpoint,
    };
    let told = |failure: Failure| Failure(format!("seed {seed}: {failure}"));
    let checkpoint = checkpoint.map_err(told)?;
    control.close().await;
    let Operator { plant, kills, interrupted, .. } = operator;
    let total = complete(&rig, &plant, source, habits, checkpoint, load).await.map_err(told)?;
    rig.remove(&[&control_name], &[]).await?;
    plant.remove().await?;
    plant.clear().await?;
    let obeyed = obeyed.into_inner();
    Ok(format!(
        "{kills} operators killed ({interrupted} before they knew the proof), {obeyed} orders \
         obeyed, {total} messages 0/0/0 and nothing else, source and target (seed {seed})"
    ))
}

/// All rounds; the last checkpoint.
async fn rounds(
    operator: &mut Operator,
    source: &Application,
    load: &Load,
) -> Result<Ledger, Failure> {
    let names = operator.plant.names.clone();
    operator.succeed().await?;
    for round in 1..=ROUNDS {
        operator.plant.feed_both(true).await?;
        load.settle().await?;
        operator.park_and_die(&names.s1).await?;
        let checkpoint = source.snapshot();
        operator.send_on(&names.s2).await?;
        if round == ROUNDS {
            return Ok(checkpoint);
        }
        operator.plant.feed_both(false).await?;
        load.settle().await?;
        // Nobody has consumed this round's copy.
        operator.plant.apply(Topology::Purge { queue: names.primary.clone() }).await?;
        operator.park_and_die(&names.s2).await?;
        operator.send_on(&names.s1).await?;
    }
    Err(Failure("no rounds".to_owned()))
}

/// The target lives from the checkpoint on; it and the source must have applied everything.
async fn complete(
    rig: &Arc<dyn Rig>,
    plant: &Plant,
    source: Application,
    habits: Habits,
    checkpoint: Ledger,
    load: Load,
) -> Result<u64, Failure> {
    let target = Application::start(rig, &plant.names.primary, habits, checkpoint).await?;
    let published = load.stop().await?;
    let total: u64 = published.values().sum();
    for copy in [source, target] {
        let applied = async || Ok(copy.snapshot().applied() >= total);
        eventually("a copy applies everything", applied).await?;
        let verdict = copy.die().await?.verdict(&published).clean()?;
        ensure(verdict.applied == total, || format!("{} of {total} applied", verdict.applied))?;
    }
    Ok(total)
}
