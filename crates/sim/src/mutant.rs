//! Mutants: the real protocol with one thing left out. The simulator must catch each of them, or it
//! would not catch a protocol that is wrong in that way.

use shadow_protocol::broker::{Counts, Emptiness, Order, Topology};
use shadow_protocol::control::{Control, Role};
use shadow_protocol::effect::Effect;
use shadow_protocol::names::Names;
use shadow_protocol::observation::Observation;
use shadow_protocol::phase::{CutStep, ParkStep, Phase, Undo};
use shadow_protocol::spec::Settings;

/// What is left out. The first five are the holes of `docs/handoff.md`, "Why the obvious protocol is
/// wrong".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The source goes on with the new feed before the checkpoint, not after it.
    ConsumedMeanwhile,
    /// Messages that wait in `Q` are not waited for.
    WaitingForgotten,
    /// `Q` is not fed when the copy wakes: it takes what is the source's.
    TargetStarves,
    /// At the switch the rest of `Q` is dropped.
    RestDropped,
    /// Statistics are believed that say "0 unacknowledged".
    StatisticsBelieved,
    /// The source is not parked for the checkpoint.
    NotParked,
    /// Cut B before `Q` is proved empty.
    EarlyCutB,
    /// Trailing deliveries are not waited for, nor looked for.
    NoSettle,
    /// The source is deleted before the target has proved itself.
    EarlyCommit,
    /// Rolled back without proving the target gone.
    UndeadTarget,
    /// A source that has gone on by itself is believed to stand still.
    WakeIgnored,
}

/// All of them.
pub const MUTANTS: [Mutant; 11] = [
    Mutant::ConsumedMeanwhile,
    Mutant::WaitingForgotten,
    Mutant::TargetStarves,
    Mutant::RestDropped,
    Mutant::StatisticsBelieved,
    Mutant::NotParked,
    Mutant::EarlyCutB,
    Mutant::NoSettle,
    Mutant::EarlyCommit,
    Mutant::UndeadTarget,
    Mutant::WakeIgnored,
];

impl Mutant {
    /// What it does to the settings.
    pub fn settings(self, settings: &mut Settings) {
        match self {
            Mutant::NoSettle => (settings.settle_ms, settings.linger_ms) = (0, 0),
            Mutant::EarlyCutB => (settings.settle_ms, settings.ebb_ms) = (0, 0),
            _ => {}
        }
    }

    /// What it makes the operator believe.
    pub fn see(self, phase: &Phase, seen: &mut Observation) {
        let cut = |wanted: fn(&CutStep) -> bool| matches!(phase, Phase::Checkpointing { step, .. } if wanted(step));
        let Some(broker) = &mut seen.broker else { return };
        match self {
            Mutant::WaitingForgotten if cut(|s| matches!(s, CutStep::CutA)) => {
                broker.primary = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::WaitingForgotten | Mutant::EarlyCutB
                if cut(|s| {
                    matches!(s, CutStep::Divert { .. } | CutStep::Empty { .. } | CutStep::Drain(_))
                }) =>
            {
                broker.primary = Some(Counts::default());
                broker.primary_empty = Some(Emptiness::Proved);
                broker.s1 = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::StatisticsBelieved
                if cut(|s| matches!(s, CutStep::Quiesce(_) | CutStep::Park(ParkStep::Stop))) =>
            {
                let proof = Some(Emptiness::Proved);
                (broker.s1_empty, broker.primary_quiet) = (proof, proof);
                broker.s1 = Some(Counts::default());
                broker.primary = Some(Counts::default());
                broker.park = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::StatisticsBelieved
                if cut(|s| matches!(s, CutStep::Arm { .. } | CutStep::Freeze { .. })) =>
            {
                broker.s1 = Some(Counts::default());
                broker.park = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::ConsumedMeanwhile
                if cut(|s| {
                    matches!(s, CutStep::Quiesce(_) | CutStep::Arm { .. } | CutStep::Freeze { .. })
                }) =>
            {
                broker.park = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::NotParked
                if cut(|s| {
                    matches!(
                        s,
                        CutStep::Drain(_)
                            | CutStep::Quiesce(_)
                            | CutStep::Arm { .. }
                            | CutStep::Freeze { .. }
                    )
                }) =>
            {
                let consumers = u32::from(cut(|s| matches!(s, CutStep::Drain(_))));
                broker.s1 = Some(Counts { ready: 0, consumers });
                broker.park = Some(Counts { ready: 0, consumers: 1 });
                broker.s1_empty = Some(Emptiness::Proved);
            }
            Mutant::WakeIgnored if cut(|s| matches!(s, CutStep::Freeze { .. })) => {
                broker.s1 = Some(Counts::default());
                broker.park = Some(Counts { ready: 0, consumers: 1 });
                broker.wake = Some(Counts { ready: 1, consumers: 0 });
            }
            Mutant::NoSettle if phase.taken().is_some() => {
                broker.s1 = Some(Counts::default());
            }
            Mutant::UndeadTarget
                if matches!(phase, Phase::Unwinding { step: Undo::Target, .. }) =>
            {
                seen.target = None;
                broker.primary = Some(Counts::default());
            }
            _ => {}
        }
    }

    /// What it does to an effect: `None` leaves it out.
    pub fn effect(self, names: &Names, phase: &Phase, effect: Effect) -> Option<Effect> {
        let bound = |wanted: &str, source: &str| {
            matches!(&effect, Effect::Topology(Topology::BindQueue { queue, binding })
                if queue == wanted && binding.source == source)
        };
        let parks = matches!(&effect, Effect::Order(order)
            if matches!(&order.control, Control::StartReplay { queue, .. } if *queue == names.park));
        let to = |queue: &str| {
            let Effect::Order(order) = &effect else { return effect.clone() };
            let (pod, queue) = (order.pod.clone(), queue.to_owned());
            let control = Control::StartReplay { queue, role: Role::Source };
            Effect::Order(Order::new(&pod, control))
        };
        match self {
            Mutant::ConsumedMeanwhile if parks => Some(to(&names.s2)),
            Mutant::TargetStarves if bound(&names.primary, &names.both) => None,
            Mutant::RestDropped
                if matches!(phase, Phase::Finalizing { .. }) && effect == Effect::OpenGate =>
            {
                Some(Effect::Topology(Topology::Purge { queue: names.primary.clone() }))
            }
            Mutant::NotParked
                if matches!(phase, Phase::Checkpointing { step: CutStep::Quiesce(_), .. }) =>
            {
                None
            }
            Mutant::EarlyCommit
                if matches!(phase, Phase::Replaying { .. }) && effect == Effect::DeletePrePull =>
            {
                Some(Effect::DeleteSource)
            }
            Mutant::UndeadTarget if effect == Effect::DeleteTarget => None,
            _ => Some(effect),
        }
    }
}
