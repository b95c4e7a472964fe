//! What is simulated: the workload, the load, and the plan of faults. All of it follows from a seed.

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use shadow_protocol::spec::{IdentitySwap, ReplayMode};
use shadow_protocol::step::Step;

use crate::application::Habits;

/// Who owns the pod that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnerKind {
    /// Nobody: a pod that is deleted stays away.
    Bare,
    /// A Deployment's ReplicaSet.
    Deployment,
    /// A StatefulSet: the strategy is Sequential.
    StatefulSet,
    /// A StatefulSet that its last pod leaves.
    Shrinking,
}

/// What happens to one call of the operator: a write of the status, or an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallFault {
    /// The operator crashes before it.
    CrashBefore,
    /// The operator crashes when it is done, before it knows.
    CrashAfter,
    /// It fails and nothing has happened.
    Fail,
    /// It is done, and the answer is lost.
    LostAnswer,
    /// It is done twice.
    Twice,
}

/// All of them.
pub const CALL_FAULTS: [CallFault; 5] = [
    CallFault::CrashBefore,
    CallFault::CrashAfter,
    CallFault::Fail,
    CallFault::LostAnswer,
    CallFault::Twice,
];

/// What happens in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorldFault {
    /// The source's container crashes and is started afresh.
    SourceRestarts,
    /// The source's pod is deleted by somebody.
    SourceGone,
    /// The target's process ends.
    TargetEnds,
    /// The target's pod is deleted by somebody.
    TargetGone,
    /// Every connection to the broker is cut, and nobody gets a new one for a while.
    BrokerRestarts,
    /// The applications' connections are cut.
    ApplicationsCutOff,
    /// The operator's process is killed.
    OperatorCrashes,
    /// The source's node loses power for a while.
    SourceNodeGone,
    /// The target's node does.
    TargetNodeGone,
    /// The next checkpoint's archive ends early: it can be pushed by no Job.
    ArchiveTruncated,
    /// The checkpoint does not reach the registry.
    PushFails,
    /// The target can't be started.
    RestoreFails,
    /// Admission does not answer for a while, so that the copy is not let in.
    AdmissionSilent,
    /// Deliveries trail for longer than the settling time.
    Flood,
    /// Somebody else consumes the queue for a while.
    Intruder,
    /// A memory or disk alarm: publishers and orders are held up for a while.
    Alarm,
    /// The operator's connections to the broker are closed.
    SessionLost,
    /// Another migration of the same queue begins.
    SecondMigration,
    /// Quorum queues can't be asked for a while: they answer 0/0.
    QueuesBlind,
    /// Somebody publishes in a transaction that stays open for a while.
    Transaction,
    /// The user sets `spec.abort`.
    Abort,
    /// The user deletes the object.
    Delete,
}

/// All of them.
pub const WORLD_FAULTS: [WorldFault; 22] = [
    WorldFault::SourceRestarts,
    WorldFault::SourceGone,
    WorldFault::TargetEnds,
    WorldFault::TargetGone,
    WorldFault::BrokerRestarts,
    WorldFault::ApplicationsCutOff,
    WorldFault::OperatorCrashes,
    WorldFault::SourceNodeGone,
    WorldFault::TargetNodeGone,
    WorldFault::ArchiveTruncated,
    WorldFault::PushFails,
    WorldFault::RestoreFails,
    WorldFault::AdmissionSilent,
    WorldFault::Flood,
    WorldFault::Intruder,
    WorldFault::Alarm,
    WorldFault::SessionLost,
    WorldFault::SecondMigration,
    WorldFault::QueuesBlind,
    WorldFault::Transaction,
    WorldFault::Abort,
    WorldFault::Delete,
];

impl WorldFault {
    /// Where there is no broker, nothing of it happens.
    pub fn is_at_broker(self) -> bool {
        matches!(
            self,
            WorldFault::BrokerRestarts
                | WorldFault::ApplicationsCutOff
                | WorldFault::Flood
                | WorldFault::Intruder
                | WorldFault::Alarm
                | WorldFault::SessionLost
                | WorldFault::SecondMigration
                | WorldFault::QueuesBlind
                | WorldFault::Transaction
        )
    }
}

/// One fault, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// At the operator's call of this number, from 0.
    Call(u32, CallFault),
    /// At this time, in milliseconds since the migration began.
    World(u64, WorldFault),
    /// So many milliseconds after the migration has gone into this step for the first time.
    Step(Step, u64, WorldFault),
}

/// Everything a run depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Seed of what is left to chance within the run.
    pub seed: u64,
    /// Who owns the pod.
    pub owner: OwnerKind,
    /// A StatefulSet's pod moves in two hops and keeps its name; otherwise the strategy is Sequential.
    pub swap: IdentitySwap,
    /// The mode asked for; [`ReplayMode::Alone`]: there is no queue, and who would publish asks the
    /// application itself.
    pub mode: Option<ReplayMode>,
    /// How many publishers.
    pub publishers: u8,
    /// Time between two publishes of one publisher, in milliseconds.
    pub interval: u64,
    /// Messages per publish.
    pub burst: u64,
    /// Messages that wait when the migration begins.
    pub backlog: u32,
    /// The queue is a quorum queue.
    pub quorum: bool,
    /// How the application behaves.
    pub habits: Habits,
    /// How long deliveries may trail what was published, in milliseconds.
    pub trail: u64,
    /// How long a checkpoint takes, in milliseconds.
    pub checkpoint: u64,
    /// How long its way to the registry takes, in milliseconds.
    pub transfer: u64,
    /// How long a pod takes to run, in milliseconds.
    pub start: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// An ordinary migration has about so many calls, and takes about so long in simulated milliseconds.
const CALLS: u32 = 75;
const DURATION: u64 = 1_800;
/// An application that takes so many messages in a millisecond is done with a million in time.
pub(crate) const DEEP: u64 = 2_000;

impl Scenario {
    /// The scenario that follows from `seed`, with up to three faults.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut scenario = Self::quiet(&mut rng, seed).swapped(&mut rng);
        scenario = match rng.u8(..100) {
            0 | 1 => scenario.slow(2),
            2 => {
                let slowly = rng.u8(..4) == 0;
                scenario.deep(if slowly { DEEP / 20 } else { DEEP })
            }
            _ => scenario,
        };
        for _ in 0..rng.usize(0..=3) {
            scenario.faults.push(if rng.bool() {
                let fault = CALL_FAULTS[rng.usize(..CALL_FAULTS.len())];
                Fault::Call(rng.u32(..scenario.calls()), fault)
            } else {
                let fault = WORLD_FAULTS[rng.usize(..WORLD_FAULTS.len())];
                let whole = scenario.duration();
                let longest = if rng.bool() { whole } else { whole / 4 };
                Fault::World(rng.u64(..longest), fault)
            });
        }
        scenario
    }

    /// The same, in two hops if it can be and chance wants it.
    pub(crate) fn swapped(mut self, rng: &mut Rng) -> Self {
        let swaps = !matches!(self.mode, Some(ReplayMode::Park | ReplayMode::Alone));
        if self.owner == OwnerKind::StatefulSet && swaps {
            let swaps = [IdentitySwap::None, IdentitySwap::ExchangeFence, IdentitySwap::Cutoff];
            self.swap = swaps[rng.usize(..swaps.len())];
        }
        if self.swap != IdentitySwap::None && self.quorum {
            // It would look like two consumers each time it takes over, and a second hop that can't
            // be given up would be begun for ever.
            self.habits.late_acks = 0;
        }
        self
    }

    /// One scenario of each kind: owners, modes, queue types and habits, without a fault.
    pub fn kinds() -> Vec<Self> {
        let mut kinds = Vec::new();
        let replay = [Some(ReplayMode::Cutoff), Some(ReplayMode::Drain)];
        let park = [Some(ReplayMode::Park)];
        let alone = [Some(ReplayMode::Alone)];
        for (owner, modes) in [
            (OwnerKind::Bare, [&replay[..], &park].concat()),
            (OwnerKind::Deployment, [&replay[..], &park].concat()),
            (OwnerKind::Shrinking, [&replay[..1], &park].concat()),
            (OwnerKind::StatefulSet, [&replay[..], &park, &alone].concat()),
        ] {
            for (index, mode) in modes.into_iter().enumerate() {
                let mut rng = Rng::with_seed(index as u64);
                let mut scenario = Self::quiet(&mut rng, index as u64);
                (scenario.owner, scenario.mode) = (owner, mode);
                scenario.habits.remembers = true;
                kinds.push(scenario);
            }
        }
        for (index, swap) in (2..).zip([IdentitySwap::ExchangeFence, IdentitySwap::Cutoff]) {
            let mut scenario = Self::quiet(&mut Rng::with_seed(index), index);
            (scenario.owner, scenario.swap) = (OwnerKind::StatefulSet, swap);
            scenario.mode = Some(ReplayMode::Cutoff);
            scenario.habits.remembers = true;
            kinds.push(scenario);
        }
        kinds
    }

    /// Loads at which a migration can't go as planned, or takes long: a slow application and a
    /// million messages, once with time enough to work them off and once without.
    pub fn loads() -> Vec<Self> {
        let ordinary = |mode| {
            let mut scenario = Self::quiet(&mut Rng::with_seed(0), 0);
            (scenario.owner, scenario.mode) = (OwnerKind::Bare, Some(mode));
            scenario.habits.remembers = true;
            scenario
        };
        vec![
            ordinary(ReplayMode::Cutoff).slow(2),
            ordinary(ReplayMode::Drain).slow(2),
            ordinary(ReplayMode::Cutoff).deep(DEEP),
            ordinary(ReplayMode::Cutoff).deep(DEEP / 20),
            ordinary(ReplayMode::Park).deep(DEEP / 100),
        ]
    }

    /// Whether there is no queue.
    pub fn alone(&self) -> bool {
        self.mode == Some(ReplayMode::Alone)
    }

    /// Two hops take twice as long.
    pub(crate) fn hops(&self) -> u32 {
        if self.swap == IdentitySwap::None { 1 } else { 2 }
    }

    fn calls(&self) -> u32 {
        CALLS * self.hops()
    }

    fn duration(&self) -> u64 {
        DURATION * u64::from(self.hops())
    }

    /// The same with an application that is slower than its publishers: it takes at least `service`
    /// milliseconds per message.
    #[must_use]
    pub fn slow(mut self, service: u64) -> Self {
        let service = self.habits.service.max(service);
        (self.habits.service, self.burst) = (service, 1);
        self.interval = (service * u64::from(self.publishers) / 2).max(1);
        self
    }

    /// The same with a million messages waiting, of which the application takes up to `bite` in a
    /// millisecond.
    #[must_use]
    pub fn deep(mut self, bite: u64) -> Self {
        self.backlog = 1_000_000;
        (self.habits.service, self.habits.bite) = (1, bite);
        (self.habits.prefetch, self.habits.batch) = (1 << 12, 1 << 8);
        self
    }

    /// The same without a fault.
    pub(crate) fn quiet(rng: &mut Rng, seed: u64) -> Self {
        let owner = match rng.u8(..10) {
            0 | 1 => OwnerKind::StatefulSet,
            2 => OwnerKind::Shrinking,
            3..=5 => OwnerKind::Deployment,
            _ => OwnerKind::Bare,
        };
        let remembers = rng.bool();
        let mode = match rng.u8(..8) {
            0 | 1 if remembers => Some(ReplayMode::Park),
            2 => Some(ReplayMode::Drain),
            3 => None,
            4 | 5 if owner == OwnerKind::StatefulSet => Some(ReplayMode::Alone),
            _ => Some(ReplayMode::Cutoff),
        };
        let publishers = rng.u8(1..=3);
        let service = rng.u64(..=4);
        let burst = if rng.u8(..6) == 0 { rng.u64(2..=3) } else { 1 };
        let rarely = |rng: &mut Rng, yes: u64, no: u64| if rng.u8(..6) == 0 { yes } else { no };
        let scenario = Self {
            seed,
            owner,
            swap: IdentitySwap::None,
            mode,
            publishers,
            // Slower than the application, so that queues drain: 1 ms per message is its least.
            interval: burst * (service.max(1) + 1) * u64::from(publishers) * 2 + rng.u64(..20),
            burst,
            backlog: if rng.u8(..4) == 0 { rng.u32(..60) } else { 0 },
            quorum: rng.bool(),
            habits: Habits {
                prefetch: 1 << rng.usize(..5),
                batch: rng.usize(1..=4),
                service,
                bite: 1,
                rebinds: rng.bool(),
                late_acks: if rng.u8(..6) == 0 { rng.u64(50..700) } else { 0 },
                remembers,
                attention: rng.u64(1..20),
                reconnect: rng.u64(1..40),
            },
            trail: rarely(rng, 25, 3),
            checkpoint: rng.u64(5..60),
            transfer: rng.u64(20..200),
            start: rng.u64(20..150),
            faults: Vec::new(),
        };
        // Whoever is asked owes nobody an acknowledgement.
        let late_acks = if scenario.alone() { 0 } else { scenario.habits.late_acks };
        Self { habits: Habits { late_acks, ..scenario.habits }, ..scenario }
    }
}
